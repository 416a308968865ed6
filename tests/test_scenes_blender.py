"""The Blender layout, scene.json, and what silhouettes say about the box."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_field import scene_of
from PIL import Image

import conftest
from conftest import RADIUS, SIZE, sphere_c2w, sphere_image, write_blender_scene
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import (
    Scene,
    Similarity,
    load_scene,
    load_views,
    read_source,
    views_bytes,
)
from nerfcli.scenes.build import move_box, scene_from_source
from nerfcli.scenes.hull import is_plausible, visual_hull
from nerfcli.scenes.silhouette_box import silhouette_box
from nerfcli.scenes.source import Points
from nerfcli.scenes.views import Views


def test_a_blender_folder(ball: Path) -> None:
    scene = load_scene(ball)
    assert (scene.kind, scene.name, scene.background) == ("blender", "ball", "white")
    assert {split: len(views) for split, views in scene.splits.items()} == {
        "train": 8,
        "val": 0,
        "test": 2,
    }
    assert scene.names[0] == "train/r_0.png"
    assert (scene.box, scene.near, scene.far) == (Box((0.0, 0.0, 0.0), 1.5), 2.0, 6.0)
    assert scene.scene_from_source == Similarity()
    assert scene.cameras.focal[0].tolist() == pytest.approx([0.5 * SIZE / math.tan(0.35)] * 2)
    assert scene.notes == ()


def test_pixels_arrive_with_straight_alpha(ball: Path) -> None:
    scene = load_scene(ball)
    said: list[str] = []
    views = load_views(scene, scene.splits["train"], note=said.append)
    assert said == ["reading 8 images, 0 MB"]
    assert views_bytes(scene, scene.splits["train"]) == 8 * SIZE * SIZE * 4
    assert np.array_equal(views.image(3).numpy(), sphere_image(sphere_c2w(9, 10)))
    assert views.cameras.tolist() == list(range(8))
    assert views.usable is None


def test_the_centre_of_the_ball_is_in_the_middle_of_each_image(ball: Path) -> None:
    cameras = load_scene(ball).cameras
    for i in range(len(cameras)):
        xy, z = cameras.project(i, torch.zeros(1, 3).double())
        assert torch.allclose(xy, torch.full((1, 2), SIZE / 2).double(), atol=1e-9)
        assert float(z) == pytest.approx(4.0)


def test_depth_and_normal_images_beside_the_views_are_skipped(tmp_path: Path) -> None:
    folder = write_blender_scene(tmp_path / "scene")
    for name in ("r_8_depth_0001.png", "r_8_normal_0001.png"):
        Image.new("L", (3, 3)).save(folder / "test" / name)
    assert len(load_scene(folder).cameras) == 10


def test_one_of_the_files_alone_is_split_by_the_rule(ball: Path) -> None:
    scene = load_scene(ball / "transforms_train.json")
    assert scene.splits == {"train": tuple(range(1, 8)), "val": (), "test": (0,)}
    assert (scene.near, scene.far) == (2.0, 6.0)


def test_without_test_views_some_training_views_are_held_out(tmp_path: Path) -> None:
    folder = write_blender_scene(tmp_path / "scene")
    (folder / "transforms_test.json").unlink()
    scene = load_scene(folder, SceneConfig(holdout=4))
    assert scene.splits["test"] == (0, 4)
    assert any("held out" in note for note in scene.notes)


def test_test_views_alone_are_split_by_the_rule(tmp_path: Path) -> None:
    folder = write_blender_scene(tmp_path / "scene", 2, 4)
    (folder / "transforms_train.json").unlink()
    assert load_scene(folder, SceneConfig(holdout=4)).splits == {
        "train": (1, 2, 3),
        "val": (),
        "test": (0,),
    }


def test_a_scene_of_another_size_gets_its_box_from_the_cameras(tmp_path: Path) -> None:
    folder = write_blender_scene(tmp_path / "scene")
    for split in ("train", "test"):
        path = folder / f"transforms_{split}.json"
        table = json.loads(path.read_text())
        for frame in table["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] *= 10
        path.write_text(json.dumps(table))
    scene = load_scene(folder)
    assert scene.scene_from_source.scale == pytest.approx(1 / 20, rel=1e-6)
    assert scene.near == pytest.approx(0.05 * 2, rel=1e-6)
    assert any("40 units from the origin" in note for note in scene.notes)


def moved_scene(folder: Path, distances: list[float]) -> Path:
    """The scene of the ball with its cameras at these distances from the origin, in turn."""
    write_blender_scene(folder)
    for split in ("train", "test"):
        path = folder / f"transforms_{split}.json"
        table = json.loads(path.read_text())
        for i, frame in enumerate(table["frames"]):
            for row in frame["transform_matrix"][:3]:
                row[3] *= distances[i % len(distances)] / RADIUS
        path.write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize("distances", [[3.05], [4.9], [4.0, 4.0, 3.2]])
def test_near_and_far_reach_around_the_box(tmp_path: Path, distances: list[float]) -> None:
    scene = load_scene(moved_scene(tmp_path / "scene", distances))
    assert scene.box == Box((0.0, 0.0, 0.0), 1.5)
    assert scene.scene_from_source == Similarity()
    corner = math.sqrt(3) * 1.5
    assert scene.near == pytest.approx(0.05 * float(np.median(distances)), rel=0.05)
    assert scene.far == pytest.approx(max(distances) + corner)


def test_a_box_of_the_users_own_is_not_cut_by_the_published_far(ball: Path) -> None:
    for wanted, half in ((SceneConfig(box=3.0), 3.0), (SceneConfig(cascades=2), 3.0)):
        scene = load_scene(ball, wanted)
        assert scene.box.outer_half_size == half
        assert scene.near == pytest.approx(0.05 * RADIUS)  # the cameras are within the sphere
        assert scene.far == pytest.approx(RADIUS + math.sqrt(3) * half)
    stated = load_scene(ball, SceneConfig(box=3.0, near=1.0, far=7.0))
    assert (stated.near, stated.far) == (1.0, 7.0)


def test_near_and_far_follow_a_moved_box_but_not_where_they_are_stated(tmp_path: Path) -> None:
    box = Box((0.2, 0.0, 0.0), 1.0)
    folder = moved_scene(tmp_path / "scene", [4.9])
    scene = move_box(load_scene(folder), box, "a test")
    center = torch.tensor(box.center, dtype=torch.float64)
    distances = (scene.cameras.positions - center).norm(dim=-1)
    assert scene.near == pytest.approx(0.05 * 4.9, rel=0.05)  # a path may come closer
    assert scene.far == pytest.approx(float(distances.max()) + math.sqrt(3))
    stated = move_box(load_scene(folder, SceneConfig(near=2.5)), box, "a test")
    assert (stated.near, stated.far) == (2.5, scene.far)
    published = move_box(load_scene(write_blender_scene(tmp_path / "ball")), box, "a test")
    assert (published.near, published.far) == (2.0, 6.0)


def test_near_stays_in_front_of_the_nearest_points(ball: Path) -> None:
    source = read_source(ball)
    ball_points = np.random.default_rng(0).normal(size=(500, 3))
    ball_points /= np.linalg.norm(ball_points, axis=1, keepdims=True)
    pose = source.frames[0].c2w
    close = np.repeat((pose[:, 3] + 0.1 * pose[:, 2])[None], 20, 0)  # nearer than 0.05 * 4
    points = Points(np.concatenate([ball_points, close]))
    scene = scene_from_source(
        replace(source, points=points, box=None, bounds=None, keep_frame=False), SceneConfig()
    )
    assert scene.near == pytest.approx(0.1 * scene.scene_from_source.scale)


def test_sparse_points_move_with_the_cameras_and_stay_out_of_scene_json(ball: Path) -> None:
    source = read_source(ball)
    assert scene_from_source(source, SceneConfig()).points is None
    xyz = np.random.default_rng(0).normal(size=(50, 3))
    source = replace(source, points=Points(xyz), box=None, bounds=None, keep_frame=False)
    scene = scene_from_source(source, SceneConfig())
    assert scene.points is not None and scene.points.dtype == torch.float32
    back = scene.scene_from_source.inverse().apply(scene.points.double())
    torch.testing.assert_close(back, torch.from_numpy(xyz), atol=1e-5, rtol=0)
    assert move_box(scene, Box((0.0, 0.0, 0.0), 2.0, 3), "a test").points is scene.points
    assert Scene.from_json(scene.to_json()).points is None


def test_a_broken_split_file_is_named(tmp_path: Path) -> None:
    folder = write_blender_scene(tmp_path / "scene")
    (folder / "transforms_test.json").write_text('{"frames": [\n\n  oops]}')
    with pytest.raises(NerfError, match=r"transforms_test\.json, line 3, column 3"):
        load_scene(folder)


def test_scene_json_holds_what_rendering_needs_and_no_path(ball: Path) -> None:
    scene = load_scene(ball)
    text = json.dumps(scene.to_json())
    assert str(ball.parent) not in text
    back = Scene.from_json(json.loads(text))
    for name in ("c2w", "focal", "principal", "size"):
        assert torch.equal(getattr(back.cameras, name), getattr(scene.cameras, name))
    assert back.cameras.lenses == scene.cameras.lenses
    for name in ("names", "splits", "box", "near", "far", "background", "scene_from_source"):
        assert getattr(back, name) == getattr(scene, name)
    with pytest.raises(NerfError, match="a run folder holds none"):
        load_views(back, [0])


def test_damaged_or_newer_scene_json(ball: Path) -> None:
    data = load_scene(ball).to_json()
    with pytest.raises(NerfError, match="format 99"):
        Scene.from_json({**data, "format": 99})
    del data["box"]
    with pytest.raises(NerfError, match=r"damaged \(KeyError: 'box'\)"):
        Scene.from_json(data)


def test_a_similarity_and_its_inverse() -> None:
    turn = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    similarity = Similarity(2.0, turn, (1.0, 2.0, 3.0))
    point = torch.tensor([1.0, 0.0, -1.0]).double()
    assert similarity.apply(point).tolist() == [1.0, 4.0, 1.0]  # turned to y, doubled, shifted
    assert torch.allclose(similarity.inverse().apply(similarity.apply(point)), point)
    c2w = torch.eye(4, dtype=torch.float64)[:3]
    moved = similarity.apply_c2w(c2w)
    assert torch.equal(moved[:, :3], torch.tensor(turn).double())
    assert moved[:, 3].tolist() == [1.0, 2.0, 3.0]
    matrix = torch.from_numpy(similarity.matrix)
    assert torch.allclose(matrix[:3, :3] @ point + matrix[:3, 3], similarity.apply(point))


@pytest.fixture(scope="module")
def ball_views(tmp_path_factory: pytest.TempPathFactory):
    """More views, and pixels small enough to carve a ball."""
    return write_ball_views(tmp_path_factory.mktemp("hull"), 0.7)


def write_ball_views(folder: Path, angle: float):
    (folder / "train").mkdir()
    frames = []
    for i in range(24):
        c2w = sphere_c2w(i, 24)
        Image.fromarray(sphere_image(c2w, 64)).save(folder / "train" / f"r_{i}.png")
        frames.append({"file_path": f"./train/r_{i}", "transform_matrix": c2w.tolist()})
    table = {"camera_angle_x": angle, "frames": frames}
    (folder / "transforms_train.json").write_text(json.dumps(table))
    scene = load_scene(folder, SceneConfig(holdout=0))
    return scene, load_views(scene, scene.splits["train"])


def test_the_hull_holds_the_ball_and_little_else(ball_views) -> None:
    scene, views = ball_views
    n = 32
    hull = visual_hull(scene, views, scene.box, n)
    axis = (torch.arange(n) + 0.5) / n * 3 - 1.5
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    radius = torch.sqrt(x * x + y * y + z * z)
    cell = 3 / n
    assert hull[radius < 1.0].all()
    # a cell's half diagonal, two pixels of 4 / 88 units, and the hull of 24 views
    far = radius > 1.0 + 0.87 * cell + 2 * 4 / 88 + 0.15
    assert not hull[far & (radius < 4 * math.sin(0.35) - 0.87 * cell)].any()  # all views show these


def test_the_hull_is_indexed_z_y_x(ball_views) -> None:
    scene, views = ball_views
    # the ball ends at 1 of the 1.2 units that this cube covers along z, and then along x
    hull = visual_hull(scene, views, Box((0.0, 0.0, 0.6), 0.6), 16)
    assert hull[0].all()
    assert not hull[-1].any()
    hull = visual_hull(scene, views, Box((0.6, 0.0, 0.0), 0.6), 16)
    assert hull[..., 0].all()
    assert not hull[..., -1].any()


def test_the_silhouettes_tighten_the_box(ball_views) -> None:
    scene, views = ball_views
    box = silhouette_box(scene, views)
    assert box is not None
    assert max(abs(c) for c in box.center) < 0.05
    assert 1.0 < box.half_size < 1.3  # the ball, a pixel or two, and a margin of a cell


def test_the_silhouettes_find_an_object_in_large_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the object, cells are in the cones of few views: they are no part of it."""
    monkeypatch.setattr(conftest, "ANGLE_X", 1.6)
    scene, views = write_ball_views(tmp_path, 1.6)
    for half in (1.0, 2.0):
        box = silhouette_box(replace(scene, box=Box((0.0, 0.0, 0.0), half, 3)), views)
        assert box is not None and box.n_cascades == 1
        assert max(abs(c) for c in box.center) < 0.3
        assert 1.0 < box.half_size < 1.5
    # the cube around the ball is no finer than this detail cube, if the files do state it
    small = replace(scene, box=Box((0.0, 0.0, 0.0), 0.5, 4))
    assert silhouette_box(replace(small, box_is_stated=True), views) is None
    assert silhouette_box(small, views) is not None


def spoiled(views, i: int, alpha: int):
    """The views, one of which has the same alpha everywhere."""
    pixels = views.pixels.clone()
    pixels[int(views.offsets[i]) : int(views.offsets[i + 1]), 3] = alpha
    return replace(views, pixels=pixels)


def test_one_blank_view_carves_nothing_alone(ball_views) -> None:
    scene, views = ball_views
    blank = spoiled(views, 5, 0)
    hull = visual_hull(scene, blank, scene.box, 32)
    assert hull.view(-1)[scene.box.from_unit(cell_middles(32)).norm(dim=1) < 1.0].all()
    box, right = silhouette_box(scene, blank), silhouette_box(scene, views)
    assert box is not None and right is not None
    assert box.half_size == pytest.approx(right.half_size, rel=0.05)


def test_a_view_whose_pose_is_wrong_carves_nothing_alone(ball_views) -> None:
    scene, views = ball_views
    c2w = scene.cameras.c2w.clone()
    c2w[3, :, 3] += 1.2 * c2w[3, :, 0]  # to the right by more than the ball's radius
    moved = replace(scene, cameras=replace(scene.cameras, c2w=c2w))
    hull = visual_hull(moved, views, scene.box, 32)
    inner = scene.box.from_unit(cell_middles(32)).norm(dim=1) < 0.9
    assert hull.view(-1)[inner].all()
    assert not visual_hull(moved, views, scene.box, 32, trust_all=True).view(-1)[inner].all()


def test_sound_views_carve_alone(ball_views) -> None:
    scene, _ = ball_views
    for some in (range(24), range(0, 24, 3), range(0, 24, 6)):
        few = load_views(scene, [scene.splits["train"][i] for i in some])
        mine, most = (visual_hull(scene, few, scene.box, 32, trust_all=t) for t in (False, True))
        assert torch.equal(mine, most)


def test_a_hull_with_next_to_nothing_in_it_is_not_plausible(ball_views) -> None:
    scene, views = ball_views
    for i in (5, 6):
        views = spoiled(views, i, 0)
    hull = visual_hull(scene, views, Box((0.0, 0.0, 0.0), 1.0), 32)
    assert not is_plausible(hull)
    assert silhouette_box(scene, views) is None
    few = torch.zeros(32, 32, 32, dtype=torch.bool)
    few[0, 0, :3] = True
    assert not is_plausible(few)
    few[0, 0, 3] = True
    assert is_plausible(few)


def nearly_masked(views):
    """The views, of which only the left columns of each image may be used."""
    flat = torch.arange(len(views.pixels))
    return replace(views, usable=flat[flat % 64 < 8])


def test_masked_pixels_carve_nothing(ball_views) -> None:
    scene, views = ball_views
    masked = nearly_masked(views)
    assert views.usable_of(0) is None
    usable = masked.usable_of(3)
    assert usable is not None
    assert torch.equal(usable, torch.arange(64 * 64) % 64 < 8)
    hull = visual_hull(scene, masked, scene.box, 32)
    middles = scene.box.from_unit(cell_middles(32))
    xs = [scene.cameras.project(i, middles)[0][:, 0] for i in range(24)]
    left = torch.stack([x < 8 for x in xs])
    assert hull.view(-1)[~left.any(0)].all()
    assert not hull.all()


def cell_middles(n: int) -> torch.Tensor:
    axis = (torch.arange(n).double() + 0.5) / n
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3)


def test_what_sticks_out_of_the_frame_is_not_carved() -> None:
    """A transparent frame beside a ball; no cell that the ball touches may go."""
    n, side = 16, 32
    frame = torch.zeros(side, side, 4, dtype=torch.uint8)
    turn = torch.tensor([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double()
    # two cameras that look along -x, with the ball just left of the frame
    places = [torch.tensor([4.0, -0.5, z]).double() for z in (-0.1, 0.1)]
    c2w = torch.stack([torch.cat([turn, p[:, None]], dim=1) for p in places])
    size = torch.full((2, 2), side)
    cameras = Cameras(c2w, size.double(), size / 2.0, size, (Lens(), Lens()))
    middle = torch.tensor([0.0, 1.9, 0.0]).double()
    xy, z = cameras.project(0, middle[None])
    assert z > 0 and xy[0, 0] < 0  # left of it
    scene = replace(scene_of(cameras, Box((0.0, 0.0, 0.0), 1.5), Similarity()), has_alpha=True)
    offsets = torch.tensor([0, side * side, 2 * side * side])
    views = Views(frame.view(-1, 4).repeat(2, 1), offsets, torch.arange(2), size[:, 0].clone())
    box = Box((0.0, 1.0, 0.0), 1.5)
    hull = visual_hull(scene, views, box, n)
    points = box.from_unit(cell_middles(n))
    edge = torch.cartesian_prod(*[torch.linspace(-0.499, 0.499, 5).double()] * 3) * box.side / n
    out = torch.zeros(n**3, dtype=torch.bool)  # some of the cell is out of both frames
    for corner in edge:
        beyond = torch.ones(n**3, dtype=torch.bool)
        for i in range(2):
            xy, _ = cameras.project(i, points + corner)
            beyond &= ((xy < 0) | (xy > side)).any(1)
        out |= beyond
    assert hull.view(-1)[out].all()
    assert not hull.all()


def test_opaque_views_leave_the_box_alone(ball_views) -> None:
    scene, views = ball_views
    opaque = views.pixels.clone()
    opaque[:, 3] = 255
    object.__setattr__(views, "pixels", opaque)
    assert silhouette_box(scene, views) is None
    assert visual_hull(scene, views, scene.box, 16).all()


def test_lego() -> None:
    root = os.environ.get("NERF_DATA")
    if not root or not (Path(root) / "lego").is_dir():
        pytest.skip("NERF_DATA does not hold the scene lego")
    scene = load_scene(Path(root) / "lego", SceneConfig(downscale=4))
    assert [len(scene.splits[s]) for s in ("train", "val", "test")] == [100, 13, 25]
    assert scene.cameras.size[0].tolist() == [100, 100]
    assert float(scene.cameras.focal[0, 0]) == pytest.approx(1111.111 / 8, rel=1e-5)
    views = load_views(scene, scene.splits["train"])
    box = silhouette_box(scene, views)
    assert box is not None
    # the model reaches from -0.64 to 1.02 in x, further in y; no view may lose a part of it
    assert 1.0 < box.half_size < 1.4
    hull = visual_hull(scene, views, box, 64)
    assert 0.02 < float(hull.float().mean()) < 0.2
    unit = (hull.nonzero().flip(-1) + 0.5) / 64
    points = box.from_unit(unit.double())
    for view in range(0, 100, 9):
        xy, _ = scene.cameras.project(view, points)
        covered = torch.zeros(100, 100, dtype=torch.bool)
        x, y = xy.long().clamp(0, 99).unbind(-1)
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                covered[(y + dy).clamp(0, 99), (x + dx).clamp(0, 99)] = True
        visible = views.image(view)[..., 3] > 127
        assert covered[visible].all()

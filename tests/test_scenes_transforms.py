"""instant-ngp and nerfstudio files: keys, lenses, sizes, masks, splits, boxes, faults."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import sphere_c2w
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import Scene, load_scene, load_views, read_source
from nerfcli.scenes.source import Depth

WIDTH, HEIGHT = 12, 8
TOP: dict[str, Any] = {"fl_x": 10.0, "fl_y": 11.0, "cx": 6.5, "cy": 3.5, "w": 12, "h": 8}


def capture(folder: Path, n: int = 10, top: dict[str, Any] | None = None) -> dict[str, Any]:
    """Opaque views in `folder`/images, and the table that describes them."""
    (folder / "images").mkdir()
    frames = []
    for i in range(n):
        pixels = np.full((HEIGHT, WIDTH, 3), 10 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        c2w = sphere_c2w(i, n).tolist()
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": c2w})
    return {**(TOP if top is None else top), "frames": frames}


def write(folder: Path, table: dict[str, Any]) -> Path:
    (folder / "transforms.json").write_text(json.dumps(table))
    return folder


def source_c2w(scene: Scene) -> torch.Tensor:
    return scene.scene_from_source.inverse().apply_c2w(scene.cameras.c2w)


def test_poses_change_from_opengl_to_opencv_and_keep_their_source(tmp_path: Path) -> None:
    table = capture(tmp_path)
    scene = load_scene(write(tmp_path, table))
    assert scene.kind == "instant-ngp"
    for i, frame in enumerate(table["frames"]):
        opengl = torch.tensor(frame["transform_matrix"], dtype=torch.float64)[:3]
        want = opengl * torch.tensor([1.0, -1.0, -1.0, 1.0])
        assert torch.allclose(source_c2w(scene)[i], want, atol=1e-12)
    assert scene.cameras.focal[0].tolist() == [10.0, 11.0]
    assert scene.cameras.principal[0].tolist() == [6.5, 3.5]
    assert scene.box.half_size == 1.0
    assert scene.box.center == (0.0, 0.0, 0.0)
    # the cameras look at the origin from 4 away: half of that is the detail cube
    assert scene.scene_from_source.scale == pytest.approx(1 / 2.0, rel=1e-6)
    assert "focus" in scene.box_source
    assert (scene.background, scene.has_alpha) == ("black", False)


def test_names_are_in_natural_order_and_every_eighth_is_held_out(tmp_path: Path) -> None:
    table = capture(tmp_path, 12)
    table["frames"].reverse()
    scene = load_scene(write(tmp_path, table))
    assert scene.names == tuple(f"images/{i}.png" for i in range(12))
    assert scene.splits == {
        "train": (1, 2, 3, 4, 5, 6, 7, 9, 10, 11),
        "val": (),
        "test": (0, 8),
    }
    assert load_scene(tmp_path, SceneConfig(holdout=0)).splits["train"] == tuple(range(12))
    with pytest.raises(NerfError, match="leaves none to train on"):
        load_scene(tmp_path, SceneConfig(holdout=1))


@pytest.mark.parametrize(
    ("keys", "focal"),
    [
        ({"camera_angle_x": 1.0}, (6 / math.tan(0.5),) * 2),
        ({"camera_angle_y": 1.0}, (4 / math.tan(0.5),) * 2),
        (
            {"x_fov": 60.0, "y_fov": 40.0},
            tuple(s / math.tan(math.radians(a / 2)) for s, a in ((6, 60), (4, 40))),
        ),
        ({"x_fov": 60.0, "fl_x": 99.0}, (6 / math.tan(math.radians(30)),) * 2),
        ({"fl_x": 20.0, "camera_angle_x": 1.0}, (20.0, 20.0)),
    ],
)
def test_focal_lengths_in_all_their_forms(
    tmp_path: Path, keys: dict[str, float], focal: tuple[float, float]
) -> None:
    scene = load_scene(write(tmp_path, capture(tmp_path, top=keys)))
    assert scene.cameras.focal[0].tolist() == pytest.approx(focal)
    assert scene.cameras.principal[0].tolist() == [6.0, 4.0]


def test_a_frame_speaks_before_the_file(tmp_path: Path) -> None:
    table = capture(tmp_path)
    table["frames"][3].update({"fl_x": 33.0, "cx": 5.0, "k1": 0.1})
    scene = load_scene(write(tmp_path, table))
    assert scene.cameras.focal[3].tolist() == [33.0, 33.0]
    assert scene.cameras.principal[3].tolist() == [5.0, 3.5]
    assert scene.cameras.lenses[3].params[0] == 0.1
    assert scene.cameras.lenses[2].is_pinhole
    assert scene.cameras.focal[2].tolist() == [10.0, 11.0]


@pytest.mark.parametrize(
    ("keys", "model", "params"),
    [
        (
            {"k1": 0.1, "k2": 0.02, "p1": 0.003, "p2": 0.004},
            "brown",
            (0.1, 0.02, 0, 0, 0.003, 0.004),
        ),
        ({"camera_model": "OPENCV", "k3": 0.1}, "brown", (0, 0, 0.1, 0, 0, 0)),
        ({"is_fisheye": True, "k1": 0.1, "k4": 0.2}, "fisheye", (0.1, 0, 0, 0.2)),
        ({"camera_model": "OPENCV_FISHEYE", "k2": 0.3}, "fisheye", (0, 0.3, 0, 0)),
        ({"distortion_params": [1e-1, 2e-2, 0, 0, 3e-3, 0]}, "brown", (0.1, 0.02, 0, 0, 0.003, 0)),
        ({"k1": 0, "camera_model": "SIMPLE_PINHOLE"}, "pinhole", ()),
    ],
)
def test_lenses(
    tmp_path: Path, keys: dict[str, Any], model: str, params: tuple[float, ...]
) -> None:
    scene = load_scene(write(tmp_path, {**capture(tmp_path), **keys}))
    assert scene.cameras.lenses[0].model == model
    assert scene.cameras.lenses[0].params == pytest.approx(params)


def test_intrinsics_follow_images_of_another_size(tmp_path: Path) -> None:
    table = capture(
        tmp_path, top={**TOP, "w": 24.0, "h": 16.0, "fl_x": 20.0, "cx": 13.0, "cy": 7.0}
    )
    scene = load_scene(write(tmp_path, {**table, "fisheye_crop_radius": 8}))
    assert scene.cameras.size[0].tolist() == [WIDTH, HEIGHT]
    assert scene.cameras.focal[0].tolist() == [10.0, 5.5]
    assert scene.crop_radius == 4.0
    assert scene.cameras.principal[0].tolist() == [6.5, 3.5]
    assert any(
        "another size than stated in" in n and "(12x8 instead of 24x16)" in n for n in scene.notes
    )
    write(tmp_path, {**table, "w": 8, "h": 12})
    with pytest.raises(NerfError, match=r"0\.png: the image has 12x8 pixels, 8x12 are stated"):
        load_scene(tmp_path)


def test_downscale_divides_pixels_and_intrinsics(tmp_path: Path) -> None:
    scene = load_scene(write(tmp_path, capture(tmp_path)), SceneConfig(downscale=3))
    assert scene.cameras.size[0].tolist() == [4, 2]
    assert scene.cameras.focal[0].tolist() == pytest.approx([10 / 3, 11 / 3])
    assert scene.cameras.principal[0].tolist() == pytest.approx([6.5 / 3, 3.5 / 3])
    views = load_views(scene, [2, 1])
    assert views.image(0).shape == (2, 4, 3)
    assert views.image(0).unique().tolist() == [20]
    assert views.locate(torch.tensor([0, 8])).tolist() == [[2, 0, 0], [1, 0, 0]]


def test_frames_without_an_image_are_left_out_and_told(tmp_path: Path) -> None:
    table = capture(tmp_path)
    gone = dict(table["frames"][4], file_path="images/4b.png")
    table["frames"].insert(2, gone)
    scene = load_scene(write(tmp_path, table))
    assert len(scene.cameras) == 10
    assert any("1 of 11 frames" in n and "images/4b.png" in n for n in scene.notes)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(NerfError, match="none of the 11 images exists"):
        load_scene(tmp_path)


def test_extension_less_and_backslashed_paths(tmp_path: Path) -> None:
    table = capture(tmp_path)
    table["frames"][0]["file_path"] = "./images/0"
    table["frames"][1]["file_path"] = "images\\1.png"
    scene = load_scene(write(tmp_path, table))
    assert scene.names[:2] == ("images/0.png", "images/1.png")


def half_mask(path: Path, left: int, right: int) -> None:
    mask = np.full((HEIGHT, WIDTH), right, dtype=np.uint8)
    mask[:, : WIDTH // 2] = left
    Image.fromarray(mask).save(path)


def test_dynamic_masks_ignore_what_is_not_zero(tmp_path: Path) -> None:
    table = capture(tmp_path)
    half_mask(tmp_path / "images" / "dynamic_mask_3.png", 0, 7)
    scene = load_scene(write(tmp_path, table))
    assert scene.masked_where == "nonzero"
    views = load_views(scene, [2, 3])
    assert views.n_pixels == WIDTH * HEIGHT * 3 // 2
    x = views.locate(views.draw(torch.linspace(0.7, 0.999, 50).double()))
    assert (x[:, 0] == 3).all()
    assert int(x[:, 1].max()) == WIDTH // 2 - 1


def test_mask_paths_ignore_black_and_may_be_of_some_frames(tmp_path: Path) -> None:
    table = capture(tmp_path)
    for i, frame in enumerate(table["frames"]):
        half_mask(tmp_path / f"mask_{i}.png", 0, 7)
        frame["mask_path"] = f"mask_{i}.png"
    scene = load_scene(write(tmp_path, table))
    assert (scene.kind, scene.masked_where) == ("nerfstudio", "black")
    views = load_views(scene, [0])
    assert int(views.locate(views.draw(torch.zeros(1).double()))[0, 1]) == WIDTH // 2
    alone = tmp_path / "transforms_test.json"  # a name by which Blender's files go
    alone.write_text(json.dumps(table))
    assert load_views(load_scene(alone), [0]).n_pixels == WIDTH * HEIGHT // 2
    assert load_scene(alone).masked_where == "black"
    alone.unlink()
    for absent in (None, ""):
        table["frames"][5]["mask_path"] = absent
        scene = load_scene(write(tmp_path, table))
        assert [i for i, mask in enumerate(scene.mask_paths) if mask is None] == [5]
        assert scene.notes == (
            "1 of 10 images have no mask, all of their pixels count: images/5.png",
        )
    assert load_views(scene, [4, 5]).n_pixels == WIDTH * HEIGHT * 3 // 2
    table["frames"][4]["mask_path"] = "gone.png"
    with pytest.raises(NerfError, match=r"4\.png: the mask gone\.png does not exist"):
        load_scene(write(tmp_path, table))


def test_alpha_files_give_transparency_through_the_srgb_curve(tmp_path: Path) -> None:
    table = capture(tmp_path, 2)
    for i in range(2):
        alpha = np.full((HEIGHT, WIDTH), 188, dtype=np.uint8)
        alpha[0] = 255
        Image.fromarray(alpha).save(tmp_path / "images" / f"{i}.alpha.png")
    scene = load_scene(write(tmp_path, table))
    assert (scene.has_alpha, scene.background) == (True, "white")
    image = load_views(scene, [1]).image(0)
    assert image[0, 0].tolist() == [10, 10, 10, 255]
    linear = ((188 / 255 + 0.055) / 1.055) ** 2.4
    assert image[1, 0, 3] == int(255 * linear)


def test_explicit_split_lists(tmp_path: Path) -> None:
    table = capture(tmp_path, 6)
    table["train_filenames"] = [f"images/{i}.png" for i in (0, 2, 4)]
    table["val_filenames"] = ["./images/1.png", "images/none.png"]
    scene = load_scene(write(tmp_path, table))
    assert scene.kind == "nerfstudio"
    assert scene.names == tuple(f"images/{i}.png" for i in (0, 1, 2, 4))
    assert scene.splits == {"train": (0, 2, 3), "val": (1,), "test": (1,)}
    assert any("validation views serve" in n for n in scene.notes)
    table["test_filenames"] = ["images/2.png"]
    with pytest.raises(NerfError, match=r"images/2\.png is listed for training and for test"):
        load_scene(write(tmp_path, table))
    del table["train_filenames"]
    with pytest.raises(NerfError, match="no train_filenames"):
        load_scene(write(tmp_path, table))


@pytest.mark.parametrize(
    ("keys", "center", "half", "cascades"),
    [
        ({"aabb_scale": 1}, (0, 0, 0), 0.5 / 0.33, 1),
        ({"aabb_scale": 16}, (0, 0, 0), 0.5 / 0.33, 5),
        ({"aabb_scale": 2, "scale": 0.5, "offset": [0.5, 1.0, 0.0]}, (0, -1, 1), 1.0, 2),
        ({"aabb": [[1, 2, 3], [3, 3, 4]]}, (2, 2.5, 3.5), 1.0, 1),
    ],
)
def test_stated_boxes(
    tmp_path: Path,
    keys: dict[str, Any],
    center: tuple[float, ...],
    half: float,
    cascades: int,
) -> None:
    scene = load_scene(write(tmp_path, {**capture(tmp_path), **keys}))
    back = scene.scene_from_source.inverse()
    corners = torch.tensor([[-1.0, -1, -1], [1, 1, 1]], dtype=torch.float64)
    want = torch.tensor(center).double() + corners * half
    assert torch.allclose(back.apply(corners), want, atol=1e-9)
    assert scene.box.n_cascades == cascades
    assert scene.near < scene.far


def test_the_user_overrules_the_box(tmp_path: Path) -> None:
    write(tmp_path, {**capture(tmp_path), "aabb_scale": 4})
    scene = load_scene(tmp_path, SceneConfig(box=2.5, cascades=2, near=0.3, far=9.0))
    assert scene.scene_from_source.scale == pytest.approx(0.4)
    assert (scene.box.n_cascades, scene.near, scene.far) == (2, 0.3, 9.0)
    with pytest.raises(NerfError, match=r"near \(10\) must be smaller than far \(9\)"):
        load_scene(tmp_path, SceneConfig(near=10.0, far=9.0))


def test_points_choose_the_box(tmp_path: Path) -> None:
    import trimesh

    points = np.random.default_rng(1).normal(size=(500, 3)) * 0.1 + [1.0, 2.0, 3.0]
    trimesh.PointCloud(points).export(tmp_path / "points.ply")
    scene = load_scene(write(tmp_path, {**capture(tmp_path), "ply_file_path": "points.ply"}))
    assert scene.box_source == "500 points"
    center = scene.scene_from_source.inverse().apply(torch.zeros(3).double())
    assert torch.allclose(center, torch.tensor([1.0, 2.0, 3.0]).double(), atol=0.02)
    write(tmp_path, {**capture_table(tmp_path), "ply_file_path": "none.ply"})
    scene = load_scene(tmp_path)
    assert "focus" in scene.box_source
    assert any("none.ply do not exist" in n for n in scene.notes)


def capture_table(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "transforms.json").read_text())


def test_scaled_rotations_are_cleaned_and_told(tmp_path: Path) -> None:
    table = capture(tmp_path)
    matrix = np.array(table["frames"][2]["transform_matrix"])
    matrix[:3, :3] *= 0.5
    table["frames"][2]["transform_matrix"] = matrix.tolist()
    scene = load_scene(write(tmp_path, table))
    rotation = scene.cameras.c2w[2, :, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3).double(), atol=1e-12)
    assert torch.allclose(source_c2w(scene)[2, :, 3], torch.tensor(matrix[:3, 3]), atol=1e-12)
    assert any("carry a scale (the first 0.5)" in n for n in scene.notes)


def test_keys_without_effect_here_are_told(tmp_path: Path) -> None:
    table = {
        **capture(tmp_path),
        "sharpen": 0.5,
        "mystery": 3,
        "applied_scale": 2.0,
        "up": [0, 0, 1],
    }
    table["white_transparent"] = False
    table["frames"][1]["sharpness"] = 12.0
    notes = load_scene(write(tmp_path, table)).notes
    assert any("sharpen" in n for n in notes)
    assert any(n.endswith("ignored: mystery") for n in notes)
    assert len(notes) == 2


def bad_pose(**changes: Any) -> list[list[float]]:
    matrix = sphere_c2w(0, 10)
    for place, value in changes.items():
        matrix[int(place[1]), int(place[2])] = value
    return matrix.tolist()


@pytest.mark.parametrize(
    ("top", "frame", "message"),
    [
        ({}, {"transform_matrix": bad_pose(m03=math.nan)}, r"frame images/0\.png: .*not finite"),
        ({}, {"transform_matrix": bad_pose(m00=2.0)}, r"frame images/0\.png: .*not orthonormal"),
        ({}, {"transform_matrix": [[1, 0], [0, 1]]}, "must be 4x4 or 3x4"),
        ({}, {"transform_matrix": np.diag([-1, 1, 1, 1]).tolist()}, "mirrored"),
        ({}, {"transform_matrix": np.zeros((4, 4)).tolist()}, "singular"),
        ({}, {"file_path": 7}, "frame 0 has no file_path"),
        ({}, {"fl_x": 0.02}, r"focal length 0\.02 along x is absurd for 12 pixels.*degrees"),
        ({}, {"fl_x": -10.0}, r"focal length -10 along x is absurd"),
        ({"fl_x": 1e9}, {}, "focal length 1e[+]09 along x is absurd"),
        ({"fl_x": "ten"}, {}, r"fl_x must be a finite number, got 'ten'"),
        ({"x_fov": 200}, {}, "field of view of 200 degrees"),
        ({"cx": 1000}, {}, r"principal point \(1000, 3\.5\) is far outside"),
        ({"camera_model": "VR180_L"}, {}, "'VR180_L' is not supported"),
        ({"orthographic": True}, {}, "orthographic means .* not supported"),
        ({"rolling_shutter": [0, 0.1, 0, 0]}, {}, "rolling_shutter"),
        ({"ftheta_p0": 0.1}, {}, "ftheta_p0 means an f-theta lens"),
        ({}, {"transform_matrix_start": [[1]]}, r"images/0\.png: transform_matrix_start"),
        ({"aabb_scale": 3}, {}, "power of two from 1 to 128, got 3"),
        ({"aabb": "x"}, {}, "aabb must be"),
        ({"aabb": [[0, 0, 0], [1, 1]]}, {}, "aabb must be"),
        ({"frames": []}, {}, "has no frames"),
        ({"distortion_params": [1, 2]}, {}, "distortion_params must list"),
    ],
)
def test_faults_are_named(
    tmp_path: Path, top: dict[str, Any], frame: dict[str, Any], message: str
) -> None:
    table = capture(tmp_path)
    table["frames"][0].update(frame)
    with pytest.raises(NerfError, match=message):
        load_scene(write(tmp_path, {**table, **top}))


def test_missing_keys_are_named(tmp_path: Path) -> None:
    table = capture(tmp_path)
    del table["frames"][3]["transform_matrix"]
    with pytest.raises(NerfError, match=r"frame images/3\.png has no transform_matrix"):
        load_scene(write(tmp_path, table))
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(NerfError, match="no focal length; one of fl_x"):
        load_scene(write(tmp_path, capture(tmp_path, top={})))


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_text('{"fl_x": 10,\n "frames": [}')
    with pytest.raises(NerfError, match=r"transforms\.json, line 2, column 13: broken JSON"):
        load_scene(tmp_path)
    (tmp_path / "transforms.json").write_text("[1, 2]")
    with pytest.raises(NerfError, match="must hold a JSON object, found a list"):
        load_scene(tmp_path)


def test_folders_that_are_no_scene(tmp_path: Path) -> None:
    with pytest.raises(NerfError, match="does not exist"):
        load_scene(tmp_path / "none")
    with pytest.raises(NerfError, match=r"no known format.*transforms_train\.json.*instant-ngp"):
        load_scene(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(NerfError, match=r"a\.txt is no scene"):
        load_scene(tmp_path / "a.txt")


def test_mixed_transparency_and_doubled_images_are_faults(tmp_path: Path) -> None:
    table = capture(tmp_path)
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[:, : WIDTH // 4, 3] = 255  # a part of the border is opaque: a mask, or an object
    Image.fromarray(pixels).save(tmp_path / "images" / "2.png")
    with pytest.raises(NerfError, match=r"an alpha channel is in 1 image and not in 9 .*2\.png"):
        load_scene(write(tmp_path, table))
    table["frames"][2] = table["frames"][1]
    with pytest.raises(NerfError, match=r"image images/1\.png more than once"):
        load_scene(write(tmp_path, table))
    source = read_source(tmp_path, SceneConfig(skip_bad_frames=True))
    assert len(source.frames) == 8 and "images/1.png" not in [f.name for f in source.frames]


def test_an_image_that_changes_or_breaks_after_loading_is_named(tmp_path: Path) -> None:
    scene = load_scene(write(tmp_path, capture(tmp_path)))
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "1.png")
    with pytest.raises(NerfError, match=r"1\.png has 5x5 pixels.*expected 12x8"):
        load_views(scene, [0, 1, 2])
    data = (tmp_path / "images" / "2.png").read_bytes()
    (tmp_path / "images" / "2.png").write_bytes(data[:45])
    with pytest.raises(NerfError, match=r"2\.png is corrupt or truncated"):
        load_views(scene, [2])


def real(name: str) -> Path:
    root = os.environ.get("NERF_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"NERF_DATA does not hold the scene {name}")
    return Path(root) / name


def test_fox_as_published_with_frames_that_have_no_image(tmp_path: Path) -> None:
    source = real("fox")
    table = json.loads((source / "transforms.json").read_text())
    invented = [
        {**table["frames"][i], "file_path": f"images/9{i:03d}.jpg"} for i in range(0, 34, 2)
    ]
    table["frames"] += invented
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    (tmp_path / "images").symlink_to(source / "images")
    scene = load_scene(tmp_path)
    assert len(scene.cameras) == 50
    assert any(note.startswith("17 of 67 frames") for note in scene.notes)
    assert scene.box.n_cascades == 3  # aabb_scale 4
    assert scene.cameras.lenses[0].params[:2] == (0.0578421, -0.0805099)
    assert [len(scene.splits[s]) for s in ("train", "test")] == [43, 7]
    views = load_views(scene, [0, 3])
    assert views.image(1).shape == (960, 540, 3)
    assert views.usable is None


def test_pc_tower() -> None:
    scene = load_scene(real("pc_tower"))
    assert (scene.kind, len(scene.cameras)) == ("nerfstudio", 16)
    assert scene.cameras.lenses[0].is_pinhole
    assert scene.cameras.principal[0].tolist() == pytest.approx([324.5625, 171.7050], abs=1e-3)
    assert scene.notes == ()
    # the detail cube is where the cameras look: in front of all, in the image of most
    inside = 0
    for i in range(16):
        xy, z = scene.cameras.project(i, torch.zeros(1, 3).double())
        assert float(z) > 0
        inside += bool(((xy[0] > 0) & (xy[0] < scene.cameras.size[i])).all())
    assert inside >= 12


def test_depth_images_of_both_tools(tmp_path: Path) -> None:
    table = capture(tmp_path, 3)
    for frame in table["frames"]:
        frame["depth_file_path"] = "d.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 1500, np.uint16)).save(tmp_path / "d.png")
    depth = read_source(write(tmp_path, table)).frames[0].depth
    assert depth == Depth(tmp_path / "d.png", 1e-3)  # nerfstudio: millimetres along the axis
    table |= {"depth_unit_scale_factor": 0.5, "is_euclidean_depth": True}
    depth = read_source(write(tmp_path, table)).frames[0].depth
    assert depth == Depth(tmp_path / "d.png", 0.5, is_euclidean=True)
    for frame in table["frames"]:
        frame["depth_path"] = frame.pop("depth_file_path")
    assert read_source(write(tmp_path, table)).frames[0].depth is None  # as in instant-ngp
    table["integer_depth_scale"] = 1e-4
    depth = read_source(write(tmp_path, table)).frames[0].depth
    assert depth == Depth(tmp_path / "d.png", 1e-4)
    table["frames"][1]["depth_path"] = "none.png"
    source = read_source(write(tmp_path, table))
    assert source.frames[1].depth is None
    assert "1 depth images do not exist: none.png" in source.notes
    table["integer_depth_scale"] = -1
    with pytest.raises(NerfError, match="integer_depth_scale must be positive"):
        read_source(write(tmp_path, table))


def test_the_frame_before_is_remembered(tmp_path: Path) -> None:
    table = capture(tmp_path, 3) | {
        "applied_transform": [[1, 0, 0, 5], [0, 0, 1, 0], [0, -1, 0, 0]]
    }
    source = read_source(write(tmp_path, table))
    assert source.applied_transform is not None and source.applied_transform[0, 3] == 5
    table["applied_transform"] = [[1, 2], [3, 4]]
    with pytest.raises(NerfError, match="applied_transform must be a 3x4 table"):
        read_source(write(tmp_path, table))


def test_panoramas_as_nerfstudio_has_them(tmp_path: Path) -> None:
    """Its formula (cameras.py): theta = -pi x, phi = pi (0.5 - y) with x = (u - cx) / fx and
    y = -(v - cy) / fy; direction (-sin theta sin phi, cos phi, -cos theta sin phi), OpenGL."""
    table = capture(tmp_path, 3, {"camera_model": "EQUIRECTANGULAR", "w": WIDTH, "h": HEIGHT})
    table |= {"fl_x": WIDTH / 2, "fl_y": HEIGHT, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    scene = load_scene(write(tmp_path, table))
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    theta = -np.pi * (u - WIDTH / 2) / (WIDTH / 2)
    phi = np.pi * (0.5 + (v - HEIGHT / 2) / HEIGHT)
    local = np.stack([-np.sin(theta) * np.sin(phi), np.cos(phi), -np.cos(theta) * np.sin(phi)], -1)
    for i, frame in enumerate(table["frames"]):
        want = local.reshape(-1, 3) @ np.array(frame["transform_matrix"])[:3, :3].T
        got = scene.cameras.image_rays(i).directions.numpy()
        np.testing.assert_allclose(got, want, atol=1e-6)  # float32
    assert scene.cameras.valid_pixels(0).all()

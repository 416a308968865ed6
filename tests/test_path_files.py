"""Camera paths from files show the rays that their own tools cast; what is broken is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from test_paths import looking, ring, scene_json
from test_scenes_colmap import capture

from conftest import ROOT
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.core.errors import NerfError
from nerfcli.engine.path_request import PathRequest
from nerfcli.engine.plan import Plan, plan_path
from nerfcli.scenes.own_path import write_own_path
from nerfcli.scenes.path_frames import KnownFrames, move_cameras
from nerfcli.scenes.read_path import read_path
from nerfcli.scenes.scene import Similarity
from nerfcli.scenes.source import opengl_matrix

Array = np.ndarray
SIZE = (12, 8)  # of what one eye sees
IPD = 0.064
PANORAMAS = ("equirectangular", "omnidirectional", "vr180")
TYPES = (None, "perspective", "fisheye", *PANORAMAS)


def poses(n: int, seed: int = 0) -> Array:
    """Random OpenGL poses [n, 4, 4]."""
    random = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (n, 1, 1))
    c2w[:, :3, :3] = Rotation.from_quat(random.normal(size=(n, 4))).as_matrix()
    c2w[:, :3, 3] = random.normal(size=(n, 3))
    return c2w


def camera_path(camera_type: str | None, c2w: Array, fov: float = 50.0) -> dict[str, Any]:
    """What nerfstudio's viewer writes."""
    path: dict[str, Any] = {
        "render_width": SIZE[0],
        "render_height": SIZE[1],
        "seconds": len(c2w) / 24,
        "is_cycle": False,
        "camera_path": [
            {"camera_to_world": pose.reshape(-1).tolist(), "fov": fov + i, "aspect": 1.0}
            for i, pose in enumerate(c2w)
        ],
    }
    return path | ({} if camera_type is None else {"camera_type": camera_type})


def nerfstudio_rays(path: dict[str, Any], index: int, eye: int) -> tuple[Array, Array]:
    """Origins and unit directions [height, width, 3] in model space, by nerfstudio's formulas.

    eye: 1 the right one, -1 the left one, 0 the only one.
    """
    width, height = path["render_width"], path["render_height"]
    entry = path["camera_path"][index]
    c2w = np.array(entry["camera_to_world"]).reshape(4, 4)
    kind = path.get("camera_type", "perspective")
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    origins = np.zeros((height, width, 3))
    if kind in PANORAMAS:
        turn = (u / width - 0.5) * (math.pi if kind == "vr180" else 2 * math.pi)  # to the right
        rise = (0.5 - v / height) * math.pi
        local = np.stack(
            [np.cos(rise) * np.sin(turn), np.sin(rise), -np.cos(rise) * np.cos(turn)], axis=-1
        )
        turn = 0 * turn if kind == "vr180" else turn
        origins = eye * IPD / 2 * np.stack([np.cos(turn), 0 * turn, np.sin(turn)], axis=-1)
    else:
        focal = height / 2 / math.tan(math.radians(entry["fov"]) / 2)
        x, y = (u - width / 2) / focal, (height / 2 - v) / focal
        local = np.stack([x, y, -np.ones_like(x)], axis=-1)
        if kind == "fisheye":
            theta = np.hypot(x, y)[..., None]
            sine = np.sin(theta) / theta
            local = np.concatenate([local[..., :2] * sine, -np.cos(theta)], axis=-1)
    directions = local @ c2w[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return origins @ c2w[:3, :3].T + c2w[:3, 3], directions


def image_of(path: dict[str, Any], index: int) -> tuple[Array, Array]:
    """The same of a whole frame, both eyes of it, row after row: [n, 3] each."""
    kind = path.get("camera_type")
    if kind not in ("omnidirectional", "vr180"):
        both = [nerfstudio_rays(path, index, 0)]
    else:
        both = [nerfstudio_rays(path, index, eye) for eye in (-1, 1)]
    axis = 1 if kind == "vr180" else 0
    origins, directions = (np.concatenate(parts, axis=axis) for parts in zip(*both, strict=True))
    return origins.reshape(-1, 3), directions.reshape(-1, 3)


def assert_rays(
    cameras: Cameras, index: int, origins: Array, directions: Array, tolerance: float = 1e-5
) -> None:
    rays = cameras.image_rays(index)
    np.testing.assert_allclose(rays.origins.numpy(), origins, rtol=0, atol=tolerance)
    np.testing.assert_allclose(rays.directions.numpy(), directions, rtol=0, atol=tolerance)
    width, height = cameras.size[index].tolist()
    y, x = np.divmod(np.arange(width * height), width)
    pixels = torch.from_numpy(np.stack([np.full_like(x, index), x, y], axis=-1))
    again = cameras.rays(pixels, with_radii=True)
    torch.testing.assert_close(again.origins, rays.origins, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.directions, rays.directions, rtol=0, atol=1e-6)
    assert again.radii is not None and float(again.radii.max()) < 0.35  # no jump between the eyes


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def planned(path: Path, json_of_scene: dict[str, Any] | None = None, **asked: Any) -> Plan:
    """What `nerf render --path` would show of a scene."""
    if json_of_scene is None:
        json_of_scene = scene_json(looking(ring(0, 6, 9, 0.5), torch.zeros(9, 3).double()))
    request = PathRequest(path=str(path), **asked)
    request.ensure_possible()
    run: Any = SimpleNamespace(scene_json=json_of_scene)
    return plan_path(run, request)


@pytest.mark.parametrize("camera_type", TYPES)
def test_nerfstudio_paths_show_its_rays_in_the_frame_of_the_scene(
    camera_type: str | None, tmp_path: Path
) -> None:
    """x_model = scale * transform * x_original, x_source = applied_scale * applied * x_original."""
    path = camera_path(camera_type, poses(3))
    file = write(tmp_path / "camera_path.json", path)
    applied, model = poses(2, seed=1)  # nerfstudio turns what applied_transform has turned
    frame = {"transform": (model @ applied)[:3].tolist(), "scale": 0.3 * 0.5}
    write(tmp_path / "dataparser_transforms.json", frame)
    scene_from = Similarity(2.0, tuple(map(tuple, poses(1, 5)[0, :3, :3].tolist())))
    cameras = looking(ring(0, 6, 9, 0.5), torch.zeros(9, 3).double())
    changes = {"applied_transform": applied[:3], "applied_scale": 0.5}
    plan = planned(file, scene_json(cameras, scene_from_source=scene_from, **changes))
    assert plan.fps == pytest.approx(24)
    assert len(plan.cameras) == 3
    for i in range(3):
        origins, directions = image_of(path, i)
        # from model space: undo scale 0.3 and the turn; then from the source to scene space
        turn, move = model[:3, :3], model[:3, 3]
        rotation = np.array(scene_from.rotation)
        origins = 2.0 * ((origins / 0.3 - move) @ turn @ rotation.T)
        assert_rays(plan.cameras, i, origins, directions @ turn @ rotation.T)


def test_without_a_transform_a_nerfstudio_path_is_in_the_frame_of_the_scene(tmp_path: Path) -> None:
    path = camera_path("perspective", poses(2))
    file = write(tmp_path / "camera_path.json", path)
    plan = planned(file)
    assert "scene's own frame" in plan.remark and "--path-transform" in plan.remark
    other = tmp_path / "elsewhere.json"
    write(other, {"applied_transform": poses(1, 3)[0][:3].tolist(), "applied_scale": 2.0})
    moved = planned(file, path_transform=other)
    assert str(other) in moved.remark
    matrix, source = poses(1, 3)[0], np.array(path["camera_path"][1]["camera_to_world"])
    wanted = (source.reshape(4, 4)[:3, 3] / 2 - matrix[:3, 3]) @ matrix[:3, :3]
    rotation = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))  # of test_paths.scene_json
    found = moved.cameras.positions[1].numpy()
    np.testing.assert_allclose(found, np.array(rotation) @ wanted, atol=1e-9)
    with pytest.raises(NerfError, match="states no frame"):
        planned(file, path_transform=write(tmp_path / "empty.json", {"a": 1}))


def ngp_path(c2w: Array, scale: float, offset: Array) -> list[dict[str, Any]]:
    """Key frames of OpenGL poses in the frame of instant-ngp's unit cube."""
    entries = []
    for i, pose in enumerate(c2w):
        matrix = pose[:3].copy()
        matrix[:, 1:3] *= -1
        matrix[:, 3] = matrix[:, 3] * scale + offset
        matrix = matrix[[1, 2, 0]]  # x, y, z are its y, z, x
        quaternion = Rotation.from_matrix(matrix[:, :3]).as_quat() * (-1) ** i  # of any sign
        entry = {"R": (2 * quaternion).tolist(), "T": matrix[:, 3].tolist(), "slice": 0.0}
        entries.append(entry | {"scale": 1.0, "fov": 40.0 + i, "aperture_size": 0.0})
    return entries


def test_instant_ngp_paths_are_flown_in_its_frame(tmp_path: Path) -> None:
    c2w = poses(4)
    offset = np.array([0.1, 0.4, 0.7])
    frames = {"scale": 0.25, "offset": offset.tolist(), "aabb_scale": 4}
    write(tmp_path / "transforms.json", frames)
    path = {"path": ngp_path(c2w, 0.25, offset), "loop": False, "spline_order": 1}
    file = write(tmp_path / "base_cam.json", path | {"duration_seconds": 2.0})
    found = read_path(file, KnownFrames(), SIZE)
    expected = [opengl_matrix(pose) for pose in found.cameras.c2w.numpy()]
    np.testing.assert_allclose(expected, c2w, atol=1e-12)
    assert found.cameras.focal[1].tolist() == pytest.approx([4 / math.tan(math.radians(20.5))] * 2)
    assert len(planned(file).cameras) == 60  # two seconds
    straight = planned(file, frames=6).cameras  # frame i at i / 6 of 3 ways
    move = Similarity(rotation=((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)))
    keys = move_cameras(found.cameras, move)
    torch.testing.assert_close(straight.c2w[[0, 2, 4]], keys.c2w[:3])
    torch.testing.assert_close(straight.positions[1], keys.positions[:2].mean(0))
    # a cubic B-spline is near the key frame between its neighbours
    write(file, {"path": path["path"]})
    smooth = planned(file, frames=3, path_transform=tmp_path / "transforms.json").cameras
    wanted = (keys.positions[0] + 4 * keys.positions[1] + keys.positions[2]) / 6
    torch.testing.assert_close(smooth.positions[1], wanted)
    (tmp_path / "transforms.json").unlink()
    assert "instant-ngp's defaults" in read_path(file, KnownFrames(), SIZE).notes[0]


def test_a_blender_test_file_is_a_list_of_poses_in_its_order(tmp_path: Path) -> None:
    c2w = poses(3)
    names = ("test/r_2", "test/r_10", "test/r_1")
    frames = [
        {"file_path": name, "transform_matrix": pose.tolist()}
        for name, pose in zip(names, c2w, strict=True)
    ]
    data = {"camera_angle_x": 0.7, "frames": frames}
    file = write(tmp_path / "transforms_test.json", data)
    found = read_path(file, KnownFrames(), SIZE)
    assert found.are == "views"
    focal = 6 / math.tan(0.35)
    u, v = np.meshgrid(np.arange(12) + 0.5 - 6, 4 - np.arange(8) - 0.5)
    local = np.stack([u / focal, v / focal, -np.ones_like(u)], axis=-1).reshape(-1, 3)
    for i in range(3):
        directions = local @ c2w[i, :3, :3].T
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        assert_rays(found.cameras, i, np.tile(c2w[i, :3, 3], (96, 1)), directions)
    with pytest.raises(NerfError, match="--frames: .* a list of 3 views"):
        planned(file, frames=9)
    assert planned(file).cameras.size[0].tolist() == [41, 31]  # as the photos of the scene


def test_frames_of_a_transforms_file_have_their_own_lenses(tmp_path: Path) -> None:
    c2w = poses(2)
    first = {"w": 20, "h": 10, "fl_x": 15.0, "fl_y": 14.0, "cx": 9.0, "cy": 6.0, "k1": 0.1}
    second = {"w": 30, "h": 30, "fl_x": 9.0}
    frames = [
        {"transform_matrix": pose.tolist(), **lens}
        for pose, lens in zip(c2w, (first, second), strict=True)
    ]
    found = read_path(write(tmp_path / "poses.json", {"frames": frames}), KnownFrames(), SIZE)
    assert found.cameras.size.tolist() == [[20, 10], [30, 30]]
    assert found.cameras.lenses[0].named["k1"] == 0.1
    assert found.cameras.lenses[1].is_pinhole
    assert found.cameras.principal.tolist() == [[9.0, 6.0], [15.0, 15.0]]


def test_a_colmap_model_is_a_path_without_its_images(tmp_path: Path) -> None:
    scene = capture(tmp_path)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    del scene
    found = read_path(tmp_path, KnownFrames(), SIZE)
    assert found.are == "views"
    assert len(found.cameras) == len(found.cameras.lenses) > 1


LENSES = {
    "pinhole": Lens(),
    "brown": Lens("brown", (0.1, -0.02, 0.0, 0.0, 1e-3, 2e-3)),
    "fisheye": Lens("fisheye", (0.01, 0.0, 0.0, 0.0)),
    "equirectangular": Lens("equirectangular"),
    "ods": Lens("ods", (0.07,)),
    "vr180": Lens("vr180", (0.05,)),
}


@pytest.mark.parametrize("name", LENSES)
def test_our_own_path_reads_back_the_same_rays(name: str, tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    write(source, camera_path("perspective", poses(3)))
    cameras = planned(source).cameras
    lens = LENSES[name]
    cameras = Cameras(
        cameras.c2w,
        cameras.focal * torch.tensor([1.0, 1.1]),
        cameras.principal + 0.3,
        cameras.size,
        (lens,) * 3,
    )
    if lens.is_panorama:
        camera = {"equirectangular": (12, 8), "ods": (12, 16), "vr180": (24, 8)}[name]
        high = 2 * math.pi if name == "ods" else math.pi
        focal = torch.tensor([camera[0] / 2 / math.pi, camera[1] / high]).double()
        size = torch.tensor(camera)
        cameras = Cameras(
            cameras.c2w,
            focal.repeat(3, 1),
            (size / 2).double().repeat(3, 1),
            size.repeat(3, 1),
            (lens,) * 3,
        )
    file = tmp_path / "own.json"
    write_own_path(file, cameras, fps=25, is_loop=True)
    found = read_path(file, KnownFrames(), SIZE)
    assert (found.fps, found.is_loop, found.are) == (25, True, "frames")
    for i in range(3):
        rays = cameras.image_rays(i)
        assert_rays(found.cameras, i, rays.origins.numpy(), rays.directions.numpy(), 1e-6)


def test_a_saved_path_shows_what_was_planned(tmp_path: Path) -> None:
    """In source units, of which the scene has two here."""
    rotation = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
    similarity = Similarity(2.0, rotation, (1.0, 0.0, 0.0))
    cameras = looking(ring(0, 6, 30, 0.5), torch.zeros(30, 3).double())
    data = scene_json(cameras, scene_from_source=similarity)
    run: Any = SimpleNamespace(scene_json=data)
    plan = plan_path(run, PathRequest(path="orbit", frames=40))
    saved = move_cameras(plan.cameras, plan.source_from_scene)
    offsets = (saved.positions - saved.positions.mean(0)).norm(dim=-1)
    assert float(offsets.max()) == pytest.approx(2 * math.cos(0.5), abs=1e-3)
    file = tmp_path / "own.json"
    write_own_path(file, saved, fps=30, is_loop=plan.is_loop)
    again = planned(file, data).cameras
    for i in (0, 17):
        rays = plan.cameras.image_rays(i)
        assert_rays(again, i, rays.origins.numpy(), rays.directions.numpy(), 1e-6)

    write_own_path(file, saved, fps=30, is_loop=plan.is_loop, key_frames=10)
    table = json.loads(file.read_text())
    assert len(table["key_frames"]) == 10 and table["n_frames"] == 40
    flown = planned(file, data).cameras
    assert len(flown) == 40
    off = (flown.positions - plan.cameras.positions).norm(dim=-1)
    assert float(off.max()) < 0.05  # of a circle of radius 4
    steps = (flown.positions.roll(-1, 0) - flown.positions).norm(dim=-1)
    assert float(steps.max() / steps.min()) < 1.03  # the round closes


def test_a_path_by_hand_needs_little(tmp_path: Path) -> None:
    key = {"camera_to_world": np.eye(4).tolist()}
    moved = np.eye(4)
    moved[0, 3] = 1.0
    table = {"format": "nerf camera path", "version": 1, "width": 16, "height": 8, "fov": 60}
    keys = [key, {"camera_to_world": moved.reshape(-1).tolist(), "fov": 30}]
    file = write(tmp_path / "mine.json", table | {"key_frames": keys, "n_frames": 3})
    plan = planned(file)
    positions = plan.cameras.positions
    torch.testing.assert_close(positions[1], positions[[0, 2]].mean(0), atol=1e-3, rtol=0)
    wanted = [4 / math.tan(math.radians(angle)) for angle in (30, 15)]
    assert plan.cameras.focal[[0, 2], 1].tolist() == pytest.approx(wanted)


def test_lengths_and_rates_are_what_is_asked_for(tmp_path: Path) -> None:
    c2w = np.tile(np.eye(4), (24, 1, 1))
    c2w[:, 0, 3] = np.arange(24)
    file = write(tmp_path / "camera_path.json", camera_path(None, c2w))

    def shape(**asked: Any) -> tuple[int, float]:
        plan = planned(file, **asked)
        return len(plan.cameras), plan.fps

    assert shape() == (24, pytest.approx(24))
    assert shape(speed=2.0) == (12, pytest.approx(24))
    assert shape(frames=47) == (47, pytest.approx(24))
    assert shape(seconds=2.0) == (48, pytest.approx(24))
    assert shape(seconds=2.0, fps=10) == (20, 10)
    assert shape(frames=24, seconds=4.0) == (24, 6)
    between = planned(file, frames=47).cameras.positions
    steps = (between[1:] - between[:-1]).norm(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5))


def test_a_panorama_sees_depth_along_its_rays(tmp_path: Path) -> None:
    """A point straight behind is as far as it is away."""
    file = write(tmp_path / "camera_path.json", camera_path("equirectangular", poses(1)))
    cameras = planned(file).cameras
    rays = cameras.image_rays(0)
    lengths = rays.directions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert rays.z_scale is not None
    assert float(rays.z_scale.min()) < -0.9  # behind the camera, at a positive distance
    ends = rays.origins + 3.0 * rays.directions
    xy, _ = cameras.project(0, ends.double())
    x, y = np.meshgrid(np.arange(12) + 0.5, np.arange(8) + 0.5)
    np.testing.assert_allclose(xy.numpy(), np.stack([x, y], -1).reshape(-1, 2), atol=1e-4)


def edited(edit: Callable[[dict[str, Any]], Any], kind: str = "nerfstudio") -> dict[str, Any]:
    """A sound file with one fault."""
    if kind == "nerfstudio":
        data = camera_path("perspective", poses(3))
    elif kind == "ngp":
        data = {"path": ngp_path(poses(3), 0.33, np.full(3, 0.5))}
    else:
        rows = [{"camera_to_world": pose.tolist()} for pose in poses(3)]
        data = {"format": "nerf camera path", "version": 1, "width": 8, "height": 8, "fov": 60}
        data["frames"] = rows
    edit(data)
    return data


FAULTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("nerfstudio", lambda d: d.pop("render_width"), "a.json: render_width is missing"),
    ("nerfstudio", lambda d: d.update(render_height=0), "render_height must be from 1"),
    ("nerfstudio", lambda d: d.update(camera_path=[]), "camera_path is empty"),
    ("nerfstudio", lambda d: d.update(camera_path=3), "camera_path is no list"),
    ("nerfstudio", lambda d: d["camera_path"].append(1), "camera_path 3: must be an object"),
    ("nerfstudio", lambda d: d["camera_path"][1].pop("fov"), "camera_path 1: fov must be"),
    ("nerfstudio", lambda d: d["camera_path"][1].update(fov=180), "1: fov: .* is impossible"),
    ("nerfstudio", lambda d: d.update(seconds=0), "seconds must be above 0"),
    ("nerfstudio", lambda d: d.update(camera_type="ortho"), "camera_type 'ortho' is not known; kn"),
    (
        "nerfstudio",
        lambda d: d["camera_path"][2].pop("camera_to_world"),
        "camera_path 2 has no camera_to_world",
    ),
    (
        "nerfstudio",
        lambda d: d["camera_path"][2].update(camera_to_world=[1.0] * 15),
        "camera_path 2: camera_to_world must be 4x4 or 3x4",
    ),
    (
        "nerfstudio",
        lambda d: d["camera_path"][2].update(camera_to_world=[1.0] * 16),
        "camera_path 2: the rotation",
    ),
    ("ngp", lambda d: d["path"][1].update(R=[0, 0, 0, 0]), "path 1: R must be a quaternion"),
    ("ngp", lambda d: d["path"][1].update(T=[0, 0]), "path 1: T must be 3 numbers"),
    ("ngp", lambda d: d["path"][1].update(T=[0, 0, "x"]), "path 1: T must be a finite number"),
    ("ngp", lambda d: d["path"][0].pop("fov"), "path 0: fov must be"),
    ("ngp", lambda d: d.update(path=[]), "path is empty"),
    ("ngp", lambda d: d.update(duration_seconds=-1), "duration_seconds must be above 0"),
    ("own", lambda d: d.update(version=2), "version 2 is not known"),
    ("own", lambda d: d.pop("frames"), "needs either frames or key_frames"),
    ("own", lambda d: d.pop("fov"), "frames 0 has neither fov"),
    ("own", lambda d: d.update(feild=1), "unknown key 'feild'"),
    ("own", lambda d: d["frames"][1].update(f=1), "frames 1: unknown key 'f'"),
    ("own", lambda d: d["frames"][1].update(lens={"model": "x"}), "frames 1: lens must be"),
    ("own", lambda d: d["frames"][1].update(lens={"model": "brown", "k9": 1}), "lens brown: unkn"),
    ("own", lambda d: d["frames"][1].update(fl_x=-1), "frames 1: fl_x and fl_y must be above 0"),
    ("own", lambda d: d.update(fps=0), "fps must be above 0"),
    ("own", lambda d: d.pop("width"), "frames 0: width is missing"),
]


@pytest.mark.parametrize(
    ("kind", "edit", "message"), FAULTS, ids=[f"{k}-{m}" for k, _, m in FAULTS]
)
def test_a_fault_in_a_file_is_named(
    kind: str, edit: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.json", edited(edit, kind))
    with pytest.raises(NerfError, match=message) as caught:
        read_path(file, KnownFrames(), SIZE)
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": 1}, "is no camera path: it holds a. Known are .*camera_path.json .*base_cam.json"),
        ({"keyframes": [{}]}, "but no camera_path"),
        ([1], "must hold a JSON object"),
        ({"frames": [{"transform_matrix": np.eye(4).tolist()}]}, "frame 0 has no focal length"),
        ({"frames": []}, "frames is empty"),
    ],
)
def test_what_is_no_path_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(NerfError, match=message):
        read_path(write(tmp_path / "a.json", data), KnownFrames(), SIZE)
    with pytest.raises(NerfError, match="is a folder without a COLMAP model"):
        read_path(tmp_path, KnownFrames(), SIZE)


def test_other_places_and_lenses_are_put_on_a_path(tmp_path: Path) -> None:
    file = write(tmp_path / "camera_path.json", camera_path("perspective", poses(2)))
    wide = planned(file, resolution="30x10", fov=90.0).cameras
    assert wide.size.tolist() == [[30, 10]] * 2
    assert wide.focal.tolist() == [[pytest.approx(5.0)] * 2] * 2
    both = planned(file, camera="vr180", resolution="30x20", ipd=0.1)
    assert both.cameras.size.tolist() == [[60, 20]] * 2
    assert both.cameras.lenses[0] == Lens("vr180", (0.1,))
    file = write(tmp_path / "camera_path.json", camera_path("fisheye", poses(2)))
    with pytest.raises(NerfError, match="--fov: .* fisheye lens"):
        planned(file, fov=50.0)
    with pytest.raises(NerfError, match="--ipd is between two eyes"):
        planned(file, ipd=0.1)


def test_the_example_of_the_docs_is_a_path(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "rendering.md").read_text(encoding="utf-8")
    file = tmp_path / "path.json"
    file.write_text(text.split("```json")[1].split("```")[0])
    found = planned(file)
    assert (len(found.cameras), found.is_loop) == (120, True)

"""Other people's loaders read every format that we write, from every format that we read.

nerfstudio's data parsers are run as installed. nerf-pytorch is on no registry: NERF_PYTORCH names a
folder with its load_blender.py and load_llff.py, for example a clone.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import source_writers
import test_convert
import test_export_cameras
import test_scenes_colmap
import test_scenes_llff
import torch
from PIL import Image

from conftest import write_blender_scene
from nerfcli.scenes import Source, load_scene, read_source
from nerfcli.scenes.source import Frame, opengl_matrix
from nerfcli.scenes.writers.convert import WriteOptions, write_scene

pytestmark = pytest.mark.peers
SPLITS = ("train", "val", "test")
READ = ["blender", "blender without val and test", "transforms", "transforms with lists", "colmap",
        "llff", *source_writers.WRITERS]  # fmt: skip


def write_source(kind: str, folder: Path) -> Source:
    """Write a small scene of a format that we read."""
    folder.mkdir()
    if kind.startswith("blender"):
        write_blender_scene(folder)
        if "without" in kind:
            (folder / "transforms_test.json").unlink()
    elif kind.startswith("transforms"):
        names = [f"images/v_{i}.png" for i in range(12)]
        lists = {"train_filenames": names[:9], "test_filenames": names[9:]}
        lens = {"camera_model": "OPENCV", "k1": 0.05, "p2": -0.002}
        test_convert.capture(folder, 12, **lens, **(lists if "lists" in kind else {}))
    elif kind == "colmap":
        test_scenes_colmap.capture(folder)
    elif kind == "llff":
        test_scenes_llff.capture(folder)
    else:
        source_writers.WRITERS[kind](folder, source_writers.rig(12))
    return read_source(folder)


def parse(folder: Path, target: str, split: str, *, points: bool = False) -> Any:
    """Run nerfstudio's parser of a format, without its own moves of the scene."""
    pytest.importorskip("nerfstudio", reason="the peer, nerfstudio, is not installed")
    kept = {"orientation_method": "none", "center_method": "none", "auto_scale_poses": False}
    module, config, options = {
        "blender": ("blender", "BlenderDataParserConfig", {}),
        "transforms": ("nerfstudio", "NerfstudioDataParserConfig", kept),
        "colmap": (
            "colmap",
            "ColmapDataParserConfig",
            # by itself it looks in colmap/sparse/0, and wants points
            kept
            | {"colmap_path": Path("sparse/0"), "load_3D_points": points}
            | {"assume_colmap_world_coordinate_convention": False},
        ),
    }[target]
    parser = importlib.import_module(f"nerfstudio.data.dataparsers.{module}_dataparser")
    return getattr(parser, config)(data=folder, **options).setup().get_dataparser_outputs(split)


def assert_same_cameras(parsed: Any, source: Source, target: str) -> None:
    """nerfstudio's cameras are ours, in its float32."""
    frames = {frame.image: frame for frame in source.frames}
    assert len(parsed.image_filenames) == len(parsed.cameras)
    for i, path in enumerate(parsed.image_filenames):
        frame, camera = frames[path], parsed.cameras[i]
        pose = np.array(opengl_matrix(frame.c2w))[:3]
        np.testing.assert_allclose(camera.camera_to_worlds.numpy(), pose, rtol=1e-6, atol=1e-6)
        values = [float(x) for x in (camera.fx, camera.fy, camera.cx, camera.cy)]
        if frame.lens.model != "equirectangular":
            np.testing.assert_allclose(values, [*frame.focal, *frame.principal], rtol=1e-6)
        if target == "blender":
            continue
        assert (int(camera.width), int(camera.height)) == frame.size
        if frame.lens.model in ("brown", "fisheye"):
            named = [frame.lens.named.get(k, 0.0) for k in ("k1", "k2", "k3", "k4", "p1", "p2")]
            np.testing.assert_allclose(camera.distortion_params.numpy(), named, rtol=1e-6)


def is_known_to_nerfstudio(frame: Frame) -> bool:
    """Whether its COLMAP parser has a model for the lens: not beyond OPENCV and OPENCV_FISHEYE."""
    lens = frame.lens
    brown = lens.model == "brown" and not lens.named.get("k3") and not lens.named.get("k4")
    return lens.is_pinhole or brown or lens.model == "fisheye"


@pytest.mark.parametrize("target", ["blender", "colmap", "transforms"])  # it has no LLFF parser
@pytest.mark.parametrize("kind", READ)
def test_nerfstudio_reads_what_we_write(tmp_path: Path, kind: str, target: str) -> None:
    source = write_source(kind, tmp_path / "source")
    root = tmp_path / "written"
    root.mkdir()
    write_scene(source, root, WriteOptions(target))
    again = read_source(root)
    if target == "colmap" and not all(map(is_known_to_nerfstudio, again.frames)):
        pytest.skip("nerfstudio's COLMAP parser refuses this lens")
    has_points = again.points is not None
    parsed = {s: parse(root, target, s, points=has_points) for s in SPLITS}
    for outputs in parsed.values():
        assert_same_cameras(outputs, again, target)
    if has_points and target == "colmap":
        assert again.points is not None
        assert len(parsed["train"].metadata["points3D_xyz"]) == len(again.points)
    if any(frame.split for frame in again.frames):  # else nerfstudio splits by a rule of its own
        scene = load_scene(root)
        for split, outputs in parsed.items():
            ours = scene.splits[split] or scene.splits["test"]
            assert set(outputs.image_filenames) == {scene.image_paths[i] for i in ours}


@pytest.mark.parametrize("n_views", [1, 3, 9])
def test_nerfstudio_reads_exported_views(tmp_path: Path, n_views: int) -> None:
    fields = test_export_cameras
    model = fields.analytic_model(
        lambda p: fields.density_of(fields.ball(p)), cameras=fields.sphere_cameras(6, size=16)
    )
    cameras = fields.sphere_cameras(n_views, size=12)
    fields.write_views(model, cameras, tmp_path, fields.QUIET)
    source = read_source(tmp_path)
    n = {s: len(parse(tmp_path, "blender", s).image_filenames) for s in SPLITS}
    assert n["val"] == n["test"] == 1 and n["train"] == max(1, n_views - 1)
    for split in SPLITS:
        assert_same_cameras(parse(tmp_path, "blender", split), source, "blender")


def test_nerfstudio_reads_exported_cameras_beside_the_images(tmp_path: Path) -> None:
    scene = test_export_cameras.scene_with(*[test_export_cameras.BROWN] * 4)
    test_export_cameras.export_cameras(scene, tmp_path)
    for name, size in zip(scene.names, scene.cameras.size.tolist(), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", tuple(size)).save(tmp_path / name)
    source = read_source(tmp_path)
    for split, n in (("train", 3), ("val", 1), ("test", 1)):
        outputs = parse(tmp_path, "transforms", split)
        assert len(outputs.image_filenames) == n
        assert_same_cameras(outputs, source, "transforms")


@pytest.fixture
def nerf_pytorch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a loader of nerf-pytorch by name."""
    folder = os.environ.get("NERF_PYTORCH")
    if not folder:
        pytest.skip("NERF_PYTORCH names no clone of nerf-pytorch")
    pytest.importorskip("cv2", reason="nerf-pytorch needs OpenCV, which is not installed")
    import imageio.v2

    read = imageio.v2.imread  # its argument ignoregamma is of an imageio that is no longer there
    monkeypatch.setitem(sys.modules, "imageio", imageio.v2)
    monkeypatch.setattr(imageio.v2, "imread", lambda path, ignoregamma=None: read(path))
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module


@pytest.mark.parametrize("target", ["blender", "llff"])
@pytest.mark.parametrize("kind", READ)
def test_nerf_pytorch_reads_what_we_write(
    tmp_path: Path, nerf_pytorch: Any, kind: str, target: str
) -> None:
    source = write_source(kind, tmp_path / "source")
    (tmp_path / "written").mkdir()
    write_scene(source, tmp_path / "written", WriteOptions(target))
    again = read_source(tmp_path / "written")
    want = [np.array(opengl_matrix(frame.c2w)) for frame in again.frames]
    if target == "blender":
        loader = nerf_pytorch("load_blender").load_blender_data
        images, poses, _, (height, width, focal), parts = loader(str(tmp_path / "written"))
        assert min(len(part) for part in parts) > 0
        assert focal == pytest.approx(again.frames[0].focal[0], rel=1e-6)
        assert again.frames[0].size == (width, height) == images.shape[2:0:-1]
        of = {
            s: [p for p, f in zip(want, again.frames, strict=True) if f.split == s] for s in SPLITS
        }
        want = [*of["train"], *(of["val"] or of["test"]), *(of["test"] or of["val"])]
        np.testing.assert_allclose(poses, want, rtol=1e-6, atol=1e-6)
        return
    loader = nerf_pytorch("load_llff")
    poses, bounds, images = loader._load_data(str(tmp_path / "written"))
    assert images.shape[-1] == len(want) and (bounds[0] < bounds[1]).all()
    np.testing.assert_allclose(poses[2, 4], [f.focal[0] for f in again.frames], rtol=1e-6)
    columns = np.stack([poses[:, 1], -poses[:, 0], poses[:, 2], poses[:, 3]], axis=1)
    np.testing.assert_allclose(
        np.moveaxis(columns, -1, 0), np.array(want)[:, :3], rtol=1e-6, atol=1e-6
    )
    loader.load_llff_data(str(tmp_path / "written"), factor=None)


@pytest.mark.parametrize("model", ["brown", "fisheye"])
def test_nerfstudios_rays_are_ours(tmp_path: Path, model: str) -> None:
    """Through its own search for the inverse of the lens, to its float32."""
    lens = {"k1": 0.05, "k2": -0.01} | ({"p1": 0.002, "p2": -0.001} if model == "brown" else {})
    name = "OPENCV" if model == "brown" else "OPENCV_FISHEYE"
    test_convert.capture(tmp_path / "source", 9, camera_model=name, **lens)
    (tmp_path / "written").mkdir()
    write_scene(read_source(tmp_path / "source"), tmp_path / "written", WriteOptions("transforms"))
    outputs = parse(tmp_path / "written", "transforms", "train")
    scene = load_scene(tmp_path / "written")
    moves = torch.tensor(scene.scene_from_source.rotation, dtype=torch.float64)
    worst = 0.0
    for i, path in enumerate(outputs.image_filenames):
        bundle = outputs.cameras.generate_rays(camera_indices=i)
        camera = scene.image_paths.index(path)
        ys, xs = torch.meshgrid(
            torch.arange(test_convert.HEIGHT), torch.arange(test_convert.WIDTH), indexing="ij"
        )
        pixels = torch.stack([torch.full_like(xs, camera), xs, ys], dim=-1).reshape(-1, 3)
        ours = scene.cameras.rays(pixels).directions.double() @ moves
        theirs = bundle.directions.reshape(-1, 3).double()
        worst = max(worst, float((ours - theirs).abs().max()))
    assert worst < 1e-5

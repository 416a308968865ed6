"""nerf export --to cameras and --to views: what is written is what the scene readers read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from analytic_field import analytic_model, ball, density_of, sphere_cameras
from PIL import Image

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.core.progress import Progress
from nerfcli.engine.runs import Run
from nerfcli.extraction.export import export_run
from nerfcli.extraction.multiview import write_views
from nerfcli.scenes import read_source
from nerfcli.scenes.build import source_from_scene
from nerfcli.scenes.scene import Scene, Similarity
from nerfcli.scenes.writers.transforms import camera_table
from nerfcli.shapes.convert_shape import ExportOptions

QUIET = Progress("quiet", None, "step", "test")
MOVED = Similarity(0.25, ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), (0.5, -0.25, 2.0))
BROWN = Lens.of("brown", k1=0.1, k2=-0.02, p1=0.001)
FISHEYE = Lens.of("fisheye", k1=0.05)
BEYOND = [
    Lens.of("rational", k1=0.1, d1=0.05),
    Lens.of("division", k=0.1),
    Lens.of("fov", omega=0.8),
    Lens.of("eucm", alpha=0.6, beta=1.1),
]


def scene_with(*lenses: Lens, similarity: Similarity = MOVED) -> Scene:
    """A scene in which camera i has lens i."""
    cameras = sphere_cameras(len(lenses), size=16)
    scene = analytic_model(lambda p: density_of(ball(p)), cameras=cameras).scene
    cameras = replace(cameras, lenses=lenses)
    splits = {"train": tuple(range(1, len(lenses))), "val": (), "test": (0,)}
    return replace(scene, cameras=cameras, splits=splits, scene_from_source=similarity)


def panoramas(n: int) -> Cameras:
    focal, principal = panorama((16, 8))
    return replace(
        sphere_cameras(n),
        focal=torch.tensor([focal] * n, dtype=torch.float64),
        principal=torch.tensor([principal] * n, dtype=torch.float64),
        size=torch.tensor([(16, 8)] * n),
        lenses=(Lens("equirectangular"),) * n,
    )


def export_cameras(scene: Scene, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The value of the command, and transforms.json."""
    run = cast(Run, SimpleNamespace(path=Path("run"), step=1, scene_json=scene.to_json()))
    value = export_run(run, out, ExportOptions("cameras"), "torch", QUIET)
    return value, json.loads((out / "transforms.json").read_text())


def assert_reads_back(scene: Scene, folder: Path) -> None:
    """The exported cameras, read as a scene, are those of the run."""
    for name, size in zip(scene.names, scene.cameras.size.tolist(), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", tuple(size)).save(folder / name)
    source = read_source(folder / "transforms.json")
    c2w = scene.scene_from_source.inverse().apply_c2w(scene.cameras.c2w).numpy()
    for i, frame in enumerate(source.frames):
        assert frame.name == scene.names[i]
        np.testing.assert_allclose(frame.c2w, c2w[i], rtol=0, atol=1e-12)
        np.testing.assert_allclose(frame.focal, scene.cameras.focal[i], rtol=1e-12)
        np.testing.assert_allclose(frame.principal, scene.cameras.principal[i], rtol=1e-12)
        assert frame.lens == scene.cameras.lenses[i]
        assert frame.split == ("test" if i in scene.splits["test"] else "train")
    assert source.box is not None
    center = scene.scene_from_source.inverse().apply(torch.tensor(scene.box.center).double())
    np.testing.assert_allclose(source.box.center, center, atol=1e-12)
    half_size = scene.box.half_size / scene.scene_from_source.scale
    assert source.box.half_size == pytest.approx(half_size)
    assert source.box.n_cascades == scene.box.n_cascades


@pytest.mark.parametrize("lens", BEYOND, ids=lambda lens: lens.model)
def test_a_lens_that_the_file_cannot_hold_is_reported(lens: Lens, tmp_path: Path) -> None:
    value, table = export_cameras(scene_with(lens, lens, Lens()), tmp_path)
    (lost,) = value["lost"]
    assert lost["what"] == "lens"
    assert lost["detail"].startswith(f"2 images have a lens ({lens.model})")
    assert table["camera_model"] == "OPENCV" and "the nearest brown lens" in lost["detail"]
    stated = json.loads((tmp_path / "export.json").read_text())
    assert stated["lost"] == value["lost"]


@pytest.mark.parametrize("lenses", [(Lens(),) * 3, (BROWN,) * 3, (FISHEYE,) * 3,
                                    (BROWN, FISHEYE, Lens())],
                         ids=["pinhole", "brown", "fisheye", "mixed"])  # fmt: skip
def test_a_lens_that_the_file_holds_reads_back(lenses: tuple[Lens, ...], tmp_path: Path) -> None:
    scene = scene_with(*lenses)
    value, _ = export_cameras(scene, tmp_path)
    assert value["lost"] == []
    assert_reads_back(scene, tmp_path)


def test_panoramas_read_back(tmp_path: Path) -> None:
    scene = replace(scene_with(*[Lens()] * 3), cameras=panoramas(3))
    value, table = export_cameras(scene, tmp_path)
    assert value["lost"] == []
    assert table["camera_model"] == "EQUIRECTANGULAR"
    assert_reads_back(scene, tmp_path)


def test_the_circle_of_a_fisheye_and_a_wide_box_are_kept_or_reported(tmp_path: Path) -> None:
    scene = scene_with(FISHEYE, FISHEYE)
    _, table = export_cameras(replace(scene, crop_radius=7.5), tmp_path / "circle")
    assert table["fisheye_crop_radius"] == 7.5
    wide = replace(scene, box=Box((0.0, 0.0, 0.0), 1.0, 9))
    value, _ = export_cameras(wide, tmp_path / "wide")
    assert [lost["what"] for lost in value["lost"]] == ["cascades"]


@pytest.mark.parametrize("similarity", [MOVED, Similarity()], ids=["moved", "as it was"])
def test_views_are_a_scene_with_the_box_of_the_run(similarity: Similarity, tmp_path: Path) -> None:
    model = analytic_model(
        lambda p: density_of(ball(p)), cameras=sphere_cameras(6, size=16), similarity=similarity
    )
    cameras = sphere_cameras(9, size=12)
    files, unsupported = write_views(model, cameras, tmp_path, QUIET)
    assert [file.name for file in files] == [
        f"transforms_{s}.json" for s in ("train", "val", "test")
    ]
    assert unsupported == []
    source = read_source(tmp_path)
    assert [frame.split for frame in source.frames] == ["train"] * 8 + ["test"]
    c2w = similarity.inverse().apply_c2w(cameras.c2w).numpy()
    for frame, pose in zip(source.frames, c2w[[0, 1, 2, 3, 4, 5, 6, 8, 7]], strict=True):
        np.testing.assert_allclose(frame.c2w, pose, rtol=0, atol=1e-12)
        np.testing.assert_allclose(frame.focal, cameras.focal[0], rtol=1e-12)
        assert frame.size == (12, 12) and frame.has_alpha
    assert source.keep_frame == (similarity == Similarity())
    if not source.keep_frame:
        assert source.box is not None
        assert source.box.center == pytest.approx(similarity.inverse().translation)
        assert source.box.half_size == pytest.approx(model.scene.box.half_size / similarity.scale)


def test_views_report_a_box_that_is_too_wide(tmp_path: Path) -> None:
    model = analytic_model(lambda p: density_of(ball(p)), cameras=sphere_cameras(2, size=8))
    wide = replace(model.scene, box=Box((0.0, 0.0, 0.0), 1.0, 9))
    _, unsupported = write_views(replace(model, scene=wide), wide.cameras, tmp_path, QUIET)
    assert [item.what for item in unsupported] == ["cascades"]


def test_the_camera_of_an_mpi_has_its_lens(tmp_path: Path) -> None:
    frame = source_from_scene(scene_with(FISHEYE, Lens.of("fov", omega=0.8))).frames[0]
    table = camera_table(frame, frame.name)
    assert table["is_fisheye"] and table["k1"] == 0.05
    assert table["file_path"] == frame.name and len(table["transform_matrix"]) == 4

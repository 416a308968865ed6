"""nerf export and eval --geometry as users run them, and conversions between files."""

from __future__ import annotations

import contextlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import trimesh

from conftest import Call, Nerf
from nerfcli.cli import main
from nerfcli.cli.export import _summary
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.extraction import export
from nerfcli.scenes import load_scene
from nerfcli.shapes import convert_shape as conversions
from nerfcli.shapes.convert_shape import KINDS, POSSIBLE, ExportOptions, convert_shape, kind_of
from nerfcli.shapes.inside import closedness
from nerfcli.shapes.mesh_files import load_shape, save_shape
from nerfcli.shapes.remesh import icosphere
from nerfcli.shapes.splat_files import load_splats
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, Shape, VoxelGrid

QUIET = Progress("quiet", None, "step", "test")


@pytest.fixture(scope="module")
def shapes() -> dict[str, Shape]:
    """A ball of radius 1 in each representation that a file can hold."""
    ball = icosphere(3)
    ball = Mesh(ball.vertices, ball.faces, (0.5 + 0.5 * ball.vertices).astype(np.float32))
    axis = np.linspace(-1.25, 1.25, 26)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = np.sqrt(x * x + y * y + z * z) - 1.0
    origin, spacing = np.full(3, -1.25), np.full(3, 0.1)
    return {
        "mesh": ball,
        "points": PointCloud(ball.vertices, ball.vertices, ball.vertex_colors),
        "voxels": VoxelGrid((distance < 0).astype(np.float32), origin, spacing),
        "sdf": SdfGrid(distance.astype(np.float32), origin, spacing),
    }


@pytest.mark.parametrize("kind", list(POSSIBLE))
@pytest.mark.parametrize("to", [kind for kind in KINDS if kind != "cameras"])
def test_the_table_of_conversions_is_true(shapes: dict[str, Shape], kind: str, to: str) -> None:
    options = ExportOptions(to, resolution=None if kind == to else 20, points=2000)
    if to not in POSSIBLE[kind]:
        with pytest.raises(
            NerfError, match=f"holds {kind}, from which there are {POSSIBLE[kind][0]}"
        ):
            convert_shape("x", shapes[kind], options, QUIET)
        return
    made = convert_shape("x", shapes[kind], options, QUIET)
    assert kind_of(made) == to
    points = made.vertices if isinstance(made, Mesh) else None
    points = made.points if isinstance(made, PointCloud) else points
    if points is not None:  # voxels of 0.1 place a surface to half their diagonal
        assert np.abs(np.linalg.norm(points, axis=1) - 1.0).max() < 0.09
        return
    assert isinstance(made, VoxelGrid | SdfGrid)
    index = np.moveaxis(np.indices(made.values.shape), 0, -1)
    radius = np.linalg.norm(made.origin + made.spacing * index, axis=-1)
    if isinstance(made, SdfGrid):
        error = made.values - (radius - 1.0)
        assert np.abs(error).max() < (0.09 if kind == "voxels" else 0.02)
    elif kind != "points":
        clear = np.abs(radius - 1.0) > 0.09
        assert np.array_equal((made.values >= made.threshold)[clear], (radius < 1.0)[clear])
    else:
        assert np.abs(radius[made.values > 0] - 1.0).max() < 0.1  # half a voxel's diagonal


def test_an_open_mesh_has_no_inside(shapes: dict[str, Shape]) -> None:
    ball = shapes["mesh"]
    assert isinstance(ball, Mesh)
    torn = Mesh(ball.vertices, ball.faces[1:])
    for to in ("voxels", "sdf"):
        with pytest.raises(NerfError, match="not watertight: 3 boundary edges"):
            convert_shape("torn.ply", torn, ExportOptions(to), QUIET)
    assert kind_of(convert_shape("torn.ply", torn, ExportOptions("points"), QUIET)) == "points"


def test_a_file_becomes_another_through_the_command(nerf: Nerf, tmp_path: Path) -> None:
    save_shape(icosphere(2), tmp_path / "ball.ply")
    done = nerf(
        "export", "ball.ply", "--to", "voxels", "--resolution", 16, "--out", "b.npz", "--json"
    )
    value = json.loads(done.stdout)
    assert value["frame"] == "source"
    assert value["resolution"] == 16
    assert json.loads((tmp_path / "b.npz.json").read_text())["from"] == "mesh"
    assert isinstance(load_shape(tmp_path / "b.npz"), VoxelGrid)


def test_the_summary_says_what_is_wrong_with_a_mesh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cubes = [trimesh.creation.box(), trimesh.creation.box()]
    cubes[1].apply_translation((1.0, 1.0, 0.0))  # they share an edge
    trimesh.util.concatenate(cubes).export(tmp_path / "cubes.stl")
    with contextlib.suppress(SystemExit):
        main(["export", "cubes.stl", "--out", "cubes.ply"])
    told = capsys.readouterr().out
    assert "not watertight for every program: more than two faces meet at 1 edge" in told
    value = {"to": "mesh", "faces": 8, "files": ["m.ply"], "doubts": ["the surface is a block"]}
    assert "warning: the surface is a block" in _summary(value).splitlines()


def test_bad_usage_is_one_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_shape(icosphere(2), tmp_path / "ball.ply")
    (tmp_path / "there.npz").touch()
    for words, said in [
        (["--to", "voxels", "--out", "there.npz"], "--overwrite"),
        (["--to", "mpi", "--out", "m"], "mesh, points, voxels, sdf"),
        (["--to", "clouds", "--out", "m"], "known: mesh, points"),
        (["--to", "sdf", "--out", "x.ply"], "choose .npz"),
        (["--to", "sdf"], "--out is missing"),
        (["--resolution", "1", "--out", "x.ply"], "between 2 and"),
        (["--resolution", "0", "--out", "x.ply"], "--resolution 0: must lie between 2 and"),
        (["--faces", "0", "--out", "x.ply"], "--faces 0"),
        (["--to", "points", "--points", "0", "--out", "x.ply"], "--points 0"),
        (["--to", "points", "--seed", "-1", "--out", "x.ply"], "--seed -1"),
        (["--threshold", "-1", "--out", "x.ply"], "above 0"),
        (["--texture", "256", "--out", "x.obj"], "name a run"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(["export", "ball.ply", *words])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_a_trained_run_leaves_as_everything(
    call: Call, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (conversions, export):
        monkeypatch.setattr(module, "MESH_RESOLUTION", 64)
    call("train", ball, "--out", "run", "--steps", 150, "--quiet")
    save_shape(icosphere(4), tmp_path / "truth.ply")
    words = ("--geometry", "truth.ply", "--no-images", "--json", "--quiet")
    value = call("eval", "run", *words).value
    # eight views of 16 pixels, so one pixel is 8 % of the diagonal: this is about the way there
    assert value["geometry"]["iou"] > 0.7
    assert value["geometry"]["chamfer_percent"] < 4.0
    mesh = load_shape(tmp_path / "run" / "exports" / "mesh.ply")
    assert isinstance(mesh, Mesh)
    assert mesh.vertex_colors is not None
    found = closedness(mesh)
    assert found.closed and found.oriented and mesh.volume > 0
    call("export", "run", "--to", "mpi", "--planes", 4, "--scale", 0.5, "--quiet")
    camera = json.loads((tmp_path / "run/exports/mpi/export.json").read_text())["camera"]
    assert (camera["w"], camera["h"]) == (8, 8)  # as its planes
    page = (tmp_path / "run/exports/mpi/index.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http" not in page
    call("export", "run", "--to", "views", "--views", 9, "--out", "views", "--quiet")
    again = load_scene(tmp_path / "views")
    assert len(again.splits["train"]) == 8
    assert len(again.splits["test"]) == 1
    assert again.has_alpha
    words = ("export", "run", "--to", "splats", "--points", 300, "--fit-steps", 2, "--quiet")
    value = call(*words, "--json").value
    splats = tmp_path / "run/exports/splats.ply"
    assert value["splats"] == len(load_splats(splats))
    assert value["bytes"] == splats.stat().st_size
    assert value["scored_split"] == "test"
    assert min(value["psnr"], value["field_psnr"], value["psnr_to_field"]) > 8.0
    assert json.loads(splats.with_name("splats.ply.json").read_text())["fit_steps"] == 2
    call("export", "run", "--to", "cameras", "--quiet")
    again = call("export", "run", "--to", "cameras", "--json", "--quiet").value
    assert "run/exports/cameras-2/" in again["files"][0]  # nothing is replaced unasked
    table = json.loads((tmp_path / "run/exports/cameras/transforms.json").read_text())
    stated = json.loads((ball / "transforms_train.json").read_text())["frames"]
    first = next(f for f in table["frames"] if f["file_path"] == "train/r_0.png")
    assert np.allclose(first["transform_matrix"], stated[0]["transform_matrix"], atol=1e-12)
    record = tmp_path / "run/scene.json"
    scene = json.loads(record.read_text())
    scene["frames"][0] |= {"lens": "fov", "lens_params": [0.8]}
    record.write_text(json.dumps(scene))
    done = call("export", "run", "--to", "cameras", "--quiet", "--overwrite")
    assert "lost: lens: 1 image has a lens (fov)" in done.out


@pytest.mark.slow
def test_the_bundled_scene_reaches_its_shape(nerf: Nerf) -> None:
    """README's training, README's figures: the bounds are those that the project promises."""
    from conftest import ROOT

    scene = ROOT / "datasets" / "biplane"
    nerf("train", scene, "--out", "run", "--steps", 2000, "--quiet")
    done = nerf("eval", "run", "--geometry", scene / "mesh.ply", "--no-images", "--json", "--quiet")
    geometry = json.loads(done.stdout)["geometry"]
    assert geometry["f_score"] >= 0.90
    assert geometry["iou"] >= 0.90
    assert geometry["chamfer_percent"] <= 0.6


@pytest.mark.slow
def test_memory_stays_bounded_at_1024(nerf: Nerf, ball: Path, tmp_path: Path) -> None:
    nerf("train", ball, "--out", "run", "--steps", 150, "--quiet")
    nerf("export", "run", "--resolution", 1024, "--out", "big.ply", "--quiet")
    mesh = load_shape(tmp_path / "big.ply")
    assert isinstance(mesh, Mesh)
    assert closedness(mesh).closed
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak < 4.0e9  # the samples alone, 1024**3 float32, would take 4.3e9 bytes

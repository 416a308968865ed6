"""nerf compare as users run it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_geometry_shapes import box

from conftest import Nerf
from nerfcli.shapes.mesh_files import save_shape
from nerfcli.shapes.remesh import icosphere
from nerfcli.shapes.types import Mesh, SdfGrid, transform_mesh


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    ball = icosphere(2)
    ball = Mesh(ball.vertices * [1.0, 0.8, 0.5], ball.faces)  # no turn but the half ones
    save_shape(ball, tmp_path / "ball.ply")
    save_shape(ball, tmp_path / "ball.stl")
    matrix = np.hstack([2 * np.eye(3), [[5.0], [0], [0]]])
    save_shape(transform_mesh(ball, matrix), tmp_path / "moved.glb")
    save_shape(Mesh(box().vertices, box().faces[2:]), tmp_path / "open.ply")
    save_shape(SdfGrid(np.ones((4, 4, 4)), np.zeros(3), np.ones(3)), tmp_path / "empty.npz")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    return tmp_path


def test_json_is_one_object_with_every_measure(nerf: Nerf, shapes: Path) -> None:
    done = nerf("compare", "ball.ply", "ball.stl", "--samples", 500, "--radius", 0.1,
                "--radius", "0.2", "--json")  # fmt: skip
    value = json.loads(done.stdout)
    # STL rounds to float32
    assert value["chamfer"]["sum"] < 1e-6 and value["hausdorff"]["max"] < 1e-6
    assert [score["radius"] for score in value["f_scores"]] == [0.1, 0.2]
    assert all(score["f_score"] == 1.0 for score in value["f_scores"])
    assert value["volume"]["iou"] > 0.9999
    assert value["samples"] == {"a": 500, "b": 500, "seed": 0}
    assert value["bootstrap"]["draws"] == 200 and value["noise_floor"]["chamfer_sum"] > 0
    assert "798 repeated vertices" in done.stderr and "merged" in done.stderr


def test_the_table_states_how_it_was_measured(nerf: Nerf, shapes: Path) -> None:
    done = nerf("compare", "moved.glb", "ball.ply", "--align", "similarity", "--samples", 800,
                "--seed", 7, "--voxels", 40, "--quiet")  # fmt: skip
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "A  moved.glb: mesh of 162 vertices, 320 faces"
    assert lines[2].startswith("samples 800 and 800, seed 7; diagonal of B 2.7")
    assert lines[3] == "A aligned to B by a similarity, scale 0.5"
    rows = {line[:22].strip(): line[22:].split() for line in lines}
    assert len(rows["Chamfer"]) == len(rows["Hausdorff"]) + 1 == 4
    assert float(rows["B to A"][0]) < 1e-3
    text = done.stdout
    found = re.search(r"volumetric IoU ([01]\.\d{5}) on", text)
    assert found is not None and float(found[1]) > 0.97  # 20 voxels across
    for words in ("on 40 x 3", " voxels; volumes", "noise floor", "95 % interval"):
        assert words in text


def test_an_open_shape_is_measured_without_volume_and_refused_with(
    nerf: Nerf, shapes: Path
) -> None:
    done = nerf("compare", "open.ply", "ball.ply", "--samples", 300)
    assert "volumetric IoU: none (open.ply is not watertight: 4 boundary edges" in done.stdout
    done = nerf("compare", "open.ply", "ball.ply", "--voxels", 32, "--json", code=2)
    assert "4 boundary edges" in json.loads(done.stdout)["error"]
    assert "open.ply" in done.stderr
    quiet = nerf("compare", "open.ply", "ball.ply", "--samples", 300, "--voxels", 0, "--json")
    assert json.loads(quiet.stdout)["volume"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ball.ply", "gone.ply"], "cannot read gone.ply"),
        (["ball.ply", "."], "is a folder"),
        (["ball.ply", "run"], "run is a run; give a shape file, as `nerf export run` writes"),
        (["empty.npz", "ball.ply"], "empty.npz is empty"),
        (["ball.ply", "ball.ply", "--align", "affine"], "known: none, similarity"),
        (["ball.ply", "ball.ply", "--radius", "-1"], "--radius: -1.0"),
        (["ball.ply", "ball.ply", "--samples", "0"], "--samples: 0 must lie between"),
        (["ball.ply"], "Missing argument 'B'"),
    ],
)
def test_faults_end_with_code_2_and_one_message(
    nerf: Nerf, shapes: Path, words: list[str], message: str
) -> None:
    done = nerf("compare", *words, code=2)
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""

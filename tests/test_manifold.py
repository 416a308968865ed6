"""Meshes with more than two faces at an edge become watertight by other programs' rule."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import trimesh

from nerfcli.shapes.inside import closedness
from nerfcli.shapes.manifold import count_nonmanifold_edges, split_nonmanifold_edges
from nerfcli.shapes.mesh_files import save_shape
from nerfcli.shapes.remesh import icosphere
from nerfcli.shapes.simplify import simplify_mesh
from nerfcli.shapes.types import Mesh, merge_vertices


def joined(*parts: trimesh.Trimesh) -> Mesh:
    whole = trimesh.util.concatenate(parts)
    assert isinstance(whole, trimesh.Trimesh)
    return merge_vertices(Mesh(np.array(whole.vertices), np.array(whole.faces)))[0]


def cube(x: float, y: float, z: float, size: float = 1.0) -> trimesh.Trimesh:
    made = trimesh.creation.box((size, size, size))
    made.apply_translation((x, y, z))
    return made


TOUCHING = {
    "two cubes at an edge": (joined(cube(0, 0, 0), cube(1, 1, 0)), 1),
    "four cubes around an edge": (joined(*(cube(x, y, x != y) for x in (0, 1) for y in (0, 1))), 6),
    "three cubes at three edges": (joined(cube(0, 0, 0), cube(1, 1, 0), cube(1, 0, 1)), 3),
}


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb", ".stl"])
@pytest.mark.parametrize("name", list(TOUCHING))
def test_sheets_that_touch_are_split(name: str, suffix: str, tmp_path: Path) -> None:
    mesh, n_edges = TOUCHING[name]
    assert closedness(mesh).closed and count_nonmanifold_edges(mesh) == n_edges
    split = split_nonmanifold_edges(mesh)
    assert count_nonmanifold_edges(split) == 0
    assert split.volume == pytest.approx(mesh.volume, rel=0.03)  # copies moved by a hundredth
    save_shape(split, tmp_path / f"m{suffix}")
    back = trimesh.load_mesh(tmp_path / f"m{suffix}")  # which welds equal positions
    assert back.is_watertight and back.is_winding_consistent
    assert back.volume == pytest.approx(split.volume, rel=1e-5)


def test_an_edge_that_is_there_twice_gets_a_vertex_of_its_own() -> None:
    """The hole of a ring shut to an edge: its sheets stay joined around both ends."""
    ring = trimesh.creation.torus(2.0, 1.0, major_sections=3, minor_sections=4)
    inner = np.argsort(np.linalg.norm(ring.vertices, axis=1))[:3]
    number = np.arange(len(ring.vertices))
    number[inner[2]] = inner[1]
    faces = number[ring.faces]
    mesh = Mesh(np.array(ring.vertices), faces[[len(set(face)) == 3 for face in faces.tolist()]])
    assert closedness(mesh).closed and closedness(mesh).oriented
    assert count_nonmanifold_edges(mesh) == 1
    split = split_nonmanifold_edges(mesh)
    assert len(split.faces) == len(mesh.faces) + 2
    back = trimesh.Trimesh(split.vertices, split.faces)
    assert back.is_watertight and back.is_winding_consistent
    assert split.volume == pytest.approx(mesh.volume, rel=0.02)


def test_sheets_that_lie_on_each_other_are_left_out() -> None:
    ball = icosphere(1)
    fold = np.stack([ball.faces[3], ball.faces[3][::-1]])
    split = split_nonmanifold_edges(Mesh(ball.vertices, np.concatenate([ball.faces, fold])))
    assert len(split.faces) == len(ball.faces)
    assert trimesh.Trimesh(split.vertices, split.faces).is_watertight


def test_other_meshes_stay_as_they_are() -> None:
    ball = icosphere(2)
    assert split_nonmanifold_edges(ball) is ball
    torn = TOUCHING["two cubes at an edge"][0]
    torn = Mesh(torn.vertices, torn.faces[1:])
    assert split_nonmanifold_edges(torn) is torn


def test_a_thinned_mesh_is_watertight_by_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library collapses edges without a look at what they touch; here, to two cubes."""
    cubes = TOUCHING["two cubes at an edge"][0]
    library = types.SimpleNamespace(simplify=lambda *_, **__: (cubes.vertices, cubes.faces))
    monkeypatch.setitem(sys.modules, "fast_simplification", library)
    assert count_nonmanifold_edges(simplify_mesh(icosphere(2), 24)) == 0

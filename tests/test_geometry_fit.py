"""Remeshing keeps what it must; a sphere reaches other shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from test_geometry_distance import bumpy
from test_geometry_metrics import meshes_folder
from test_geometry_shapes import box

from nerfcli.core.errors import NerfError
from nerfcli.shapes.distance import Surface
from nerfcli.shapes.fit import FitWeights, fit_mesh, opposing_faces
from nerfcli.shapes.inside import closedness
from nerfcli.shapes.mesh_files import load_shape
from nerfcli.shapes.remesh import (
    collapse_short_edges,
    flip_edges,
    icosphere,
    remesh,
    split_long_edges,
    subdivide,
)
from nerfcli.shapes.shape_metrics import chamfer, neighbours
from nerfcli.shapes.surface import surface_of
from nerfcli.shapes.surface_samples import SurfaceSamples, sample_surface
from nerfcli.shapes.topology import topology_of
from nerfcli.shapes.types import Mesh, PointCloud, VoxelGrid, bounds, diagonal, unit


def euler(mesh: Mesh) -> int:
    n_edges = len(topology_of(mesh.faces, len(mesh.vertices)).edges)
    return len(np.unique(mesh.faces)) - n_edges + len(mesh.faces)


def edge_lengths(mesh: Mesh) -> np.ndarray:
    ends = mesh.vertices[topology_of(mesh.faces, len(mesh.vertices)).edges]
    return np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)


def chamfer_share(mesh: Mesh, target: Mesh, n: int = 20_000) -> float:
    """Mean of both directions over the diagonal, independent samples."""
    p = sample_surface(mesh, n, np.random.default_rng(1))
    q = sample_surface(target, n, np.random.default_rng(2))
    return chamfer(neighbours(p, q)).mean / diagonal(bounds(target))


def test_an_icosphere_is_a_sphere() -> None:
    ball = icosphere(3, 2.0, np.array([1.0, 0, 0]))
    assert len(ball.faces) == 20 * 4**3 and euler(ball) == 2
    assert np.allclose(np.linalg.norm(ball.vertices - [1, 0, 0], axis=1), 2.0)
    assert ball.volume == pytest.approx(4 / 3 * math.pi * 8, rel=0.02)


def test_subdividing_and_splitting_keep_the_surface() -> None:
    mesh = box((0, 0, 0), (3, 1, 1))
    fine = subdivide(mesh)
    assert len(fine.faces) == 48 and fine.area == pytest.approx(14.0)
    split = mesh
    for _ in range(6):
        split = split_long_edges(split, 0.5)
    assert edge_lengths(split).max() <= 0.5
    assert split.area == pytest.approx(14.0) and split.volume == pytest.approx(3.0)
    assert closedness(split).closed and closedness(split).oriented and euler(split) == 2


def test_collapsing_keeps_the_genus_and_turns_no_face() -> None:
    ball = icosphere(3)
    coarse = collapse_short_edges(ball, 0.3, 0.6, rounds=8)
    assert len(coarse.faces) < 0.6 * len(ball.faces)
    assert euler(coarse) == 2 and closedness(coarse).closed and closedness(coarse).oriented
    outwards = np.sum(coarse.triangles.mean(axis=1) * coarse.face_normals, axis=1)
    assert outwards.min() > 0.5
    # a tetrahedron has nothing to give away: each collapse would join two sides
    corners = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    least = Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]))
    assert len(collapse_short_edges(least, 100.0, 100.0).faces) == 4


def test_a_collapse_that_turns_a_face_or_pinches_is_refused() -> None:
    outline = [[0.0, 0, 0], [1, 0, 0], [0.5, 1, 0], [0.5, -1, 0], [0.45, 1.3, 0], [2, 0.5, 0]]
    patch = np.array([[0, 1, 2], [0, 3, 1], [1, 4, 2], [1, 5, 4], [1, 3, 5]])
    # only 0-1 is short; at its middle, vertex 4 would be on the wrong side of 2
    assert len(collapse_short_edges(Mesh(np.array(outline), patch), 1.05, 99.0).faces) == 5
    outline[4] = [1.5, 1.3, 0]
    assert len(collapse_short_edges(Mesh(np.array(outline), patch), 1.05, 99.0).faces) == 3
    ring = np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 1, 0], [0.5, -3, 0], [-3, -1, 0], [4, -1, 0]])
    loop = np.array([[0, 1, 2], [0, 4, 3], [1, 3, 5]])  # a border edge with two common neighbours
    assert len(collapse_short_edges(Mesh(ring, loop), 1.05, 99.0).faces) == 3


def test_a_neck_is_not_pinched() -> None:
    """A three-sided tube: the loop around it is made of short edges and is no face."""
    around = [[math.cos(2 * k), math.sin(2 * k), 0] for k in np.arange(3) * math.pi / 3]
    rings = np.concatenate([0.3 * np.array(around) + [0, 0, 3.0 * i] for i in range(3)])
    vertices = np.concatenate([rings, [[0, 0, -3], [0, 0, 9]]])
    faces = []
    for k in range(3):
        after = (k + 1) % 3
        faces += [(after, k, 9), (6 + k, 6 + after, 10)]
        for low in (0, 3):
            faces += [
                (low + k, low + after, low + 3 + after),
                (low + k, low + 3 + after, low + 3 + k),
            ]
    tube = Mesh(vertices, np.array(faces))
    assert closedness(tube).closed and tube.volume > 0
    assert np.array_equal(collapse_short_edges(tube, 0.6, 99.0).faces, tube.faces)


def test_flipping_makes_a_thin_pair_delaunay_and_leaves_a_fold() -> None:
    vertices = np.array([[0.0, 0, 0], [4, 0, 0], [2, 0.3, 0], [2, -0.3, 0]])
    pair = Mesh(vertices, np.array([[0, 1, 2], [1, 0, 3]]))
    flipped = flip_edges(pair)
    assert {frozenset(face) for face in flipped.faces.tolist()} == {
        frozenset({0, 2, 3}),
        frozenset({1, 2, 3}),
    }
    assert np.allclose(flipped.face_normals, [0, 0, 1])
    assert np.array_equal(flip_edges(flipped).faces, flipped.faces)
    folded = Mesh(vertices * [1, 1, 0] + [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]], pair.faces)
    assert np.array_equal(flip_edges(folded).faces, folded.faces)


def test_remeshing_brings_edges_to_the_wanted_length() -> None:
    mesh = bumpy()
    for _ in range(6):
        mesh = remesh(mesh, 0.3)
    assert euler(mesh) == 2 and closedness(mesh).closed and closedness(mesh).oriented
    lengths = edge_lengths(mesh)
    assert 0.2 < np.median(lengths) < 0.35
    assert np.mean((lengths > 0.15) & (lengths < 0.45)) > 0.95
    assert mesh.volume == pytest.approx(bumpy().volume, rel=0.05)


def test_a_sphere_reaches_a_blob() -> None:
    target, seen = bumpy(), []
    mesh = fit_mesh(target, steps=50, edge_length=0.05, note=lambda i, terms: seen.append(terms))
    assert chamfer_share(mesh, target) < 0.01
    assert len(opposing_faces(mesh, target)) == 0
    assert closedness(mesh).closed and mesh.volume == pytest.approx(target.volume, rel=0.02)
    assert len(seen) == 50 and seen[-1]["chamfer"] < 1e-3
    again = fit_mesh(target, steps=3, edge_length=0.05, seed=4)
    once_more = fit_mesh(target, steps=3, edge_length=0.05, seed=4)
    assert np.allclose(again.vertices, once_more.vertices, rtol=0, atol=1e-9)


def test_a_near_mesh_reaches_a_surface_given_by_a_function() -> None:
    """As for a field: points and normals of an ellipsoid, from its level set; far from 0."""
    axes, center = np.array([3.0, 2.0, 1.5]), np.array([10.0, 0, -4])

    def ellipsoid(n: int, rng: np.random.Generator) -> SurfaceSamples:
        direction = rng.standard_normal((n, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        normals = direction / axes
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return SurfaceSamples(center + axes * direction, normals)

    start = icosphere(2, 2.0, center)
    mesh = fit_mesh(ellipsoid, start, steps=25, edge_length=0.06)
    level = np.linalg.norm((mesh.vertices - center) / axes, axis=1)
    assert np.abs(level - 1.0).max() < 0.03
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * axes.prod(), rel=0.03)


def test_faces_that_oppose_are_found() -> None:
    ball = icosphere(2)
    assert len(opposing_faces(ball, ball)) == 0
    turned = ball.faces.copy()
    turned[[3, 30]] = turned[[3, 30], ::-1]
    assert opposing_faces(Mesh(ball.vertices, turned), ball).tolist() == [3, 30]


def test_faces_left_turned_are_smoothed_away() -> None:
    ball = icosphere(3)
    topology = topology_of(ball.faces, len(ball.vertices))
    folded = ball.vertices.copy()
    for vertex in (100, 400):  # drawn over a neighbour, just outside the others: a fold
        edge = topology.edges[(topology.edges == vertex).any(axis=1)][0]
        over = ball.vertices[edge.sum() - vertex] - ball.vertices[vertex]
        folded[vertex] = 1.05 * unit(ball.vertices[vertex] + 2.2 * over)
    start = Mesh(folded, ball.faces)
    assert len(opposing_faces(start, ball)) > 2
    mended = fit_mesh(ball, start, steps=0)
    assert len(opposing_faces(mended, ball)) == 0
    moved = np.linalg.norm(mended.vertices - folded, axis=1) > 1e-9
    assert 0 < moved.sum() < 0.2 * len(moved)  # and nothing else is touched


def test_a_sphere_finds_its_way_between_two_legs() -> None:
    """Sheets span the gap at first, below, before and behind, and must not meet in the middle."""
    axis = np.arange(28)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    solid = (x > 3) & (x < 24) & (y > 9) & (y < 18) & (z > 3) & (z < 24)
    solid &= ~((x > 9) & (x < 18) & (z < 17))
    place = (np.zeros(3), np.ones(3))
    target = surface_of("legs", VoxelGrid(gaussian_filter(solid.astype(np.float32), 0.8), *place))
    assert isinstance(target, Mesh)
    mesh = fit_mesh(target, steps=120, edge_length=0.05)
    size = diagonal(bounds(target))
    for one, other in ((mesh, target), (target, mesh)):
        points = sample_surface(one, 5_000, np.random.default_rng(0)).points
        assert Surface(other).closest(points)[0].max() < 0.02 * size  # 0.4 of an edge
    assert len(opposing_faces(mesh, target)) == 0
    assert mesh.volume == pytest.approx(target.volume, rel=0.05)


def test_the_weights_do_what_the_docs_say() -> None:
    """More smoothness: flatter hinges. Far too much edge: the surface shrinks off the target."""
    target = bumpy()

    def fitted(weights: FitWeights) -> Mesh:
        return fit_mesh(target, icosphere(3), weights, steps=12, edge_length=0.06)

    plain, tight = fitted(FitWeights()), fitted(FitWeights(edge=20.0))
    assert tight.area < 0.9 * plain.area
    off = [Surface(target).closest(mesh.vertices)[0].mean() for mesh in (plain, tight)]
    assert off[1] > 5 * off[0]


def test_what_cannot_be_fitted_is_refused() -> None:
    ball = icosphere(2)
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    up = np.array([[0.0, 0, 1]])
    cases: list[tuple[Mesh | PointCloud, Mesh | None, str]] = [
        (PointCloud(ball.vertices), None, "without normals"),
        (PointCloud(np.zeros((4, 3)), np.repeat(up, 4, axis=0)), None, "no extent"),
        (nothing, None, "target of a fit is empty"),
        (ball, nothing, "no area"),
        (Mesh(ball.vertices, ball.faces[:, ::-1]), ball, "faces inwards"),
    ]
    for target, start, message in cases:
        with pytest.raises(NerfError, match=message):
            fit_mesh(target, start, steps=4, edge_length=0.1)
    with pytest.raises(NerfError, match="must be positive"):
        fit_mesh(ball, edge_length=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spot", "bunny"])
def test_a_sphere_reaches_real_shapes(name: str) -> None:
    target = load_shape(meshes_folder() / f"{name}.obj")
    assert isinstance(target, Mesh)
    mesh = fit_mesh(target)
    share = chamfer_share(mesh, target, 100_000)
    assert 2 * share < 0.01  # even the sum of both directions
    assert len(opposing_faces(mesh, target)) == 0
    assert closedness(mesh).closed and euler(mesh) == 2

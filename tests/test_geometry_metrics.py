"""Shape measures against brute force, closed forms and SciPy; alignment; the whole comparison."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import directed_hausdorff
from scipy.spatial.transform import Rotation
from test_geometry_distance import bumpy, joined
from test_geometry_shapes import box

from nerfcli.core.errors import NerfError
from nerfcli.shapes.align import align_similarity, scale_of, umeyama
from nerfcli.shapes.compare import CompareOptions, compare_shapes
from nerfcli.shapes.mesh_files import load_shape
from nerfcli.shapes.remesh import icosphere
from nerfcli.shapes.shape_metrics import (
    bootstrap,
    chamfer,
    chamfer_squared,
    f_score,
    hausdorff,
    hausdorff_95,
    neighbours,
    normal_distance,
)
from nerfcli.shapes.surface_samples import SurfaceSamples, sample_shape, sample_surface
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, VoxelGrid, transform_mesh

QUICK = CompareOptions(samples=2_000, voxels=32, bootstrap=20)


def meshes_folder() -> Path:
    folder = Path(os.environ.get("NERF_DATA", "/nowhere")) / "meshes"
    if not folder.is_dir():
        pytest.skip("NERF_DATA does not name a folder with meshes/")
    return folder


def cloud(n: int, seed: int) -> SurfaceSamples:
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((n, 3))
    return SurfaceSamples(
        rng.random((n, 3)), normals / np.linalg.norm(normals, axis=1, keepdims=True)
    )


def test_all_measures_equal_brute_force_in_float64() -> None:
    """Both are exact up to rounding; the definitions are those of docs/geometry.md."""
    p, q = cloud(83, 0), cloud(120, 1)
    assert p.normals is not None and q.normals is not None
    table = np.sqrt(((p.points[:, None] - q.points[None]) ** 2).sum(-1))
    d_ab, d_ba = table.min(axis=1), table.min(axis=0)
    cosines = np.abs(p.normals @ q.normals.T)
    cos_ab = cosines[np.arange(83), table.argmin(axis=1)]
    cos_ba = cosines[table.argmin(axis=0), np.arange(120)]
    found = neighbours(p, q)
    both = chamfer(found)
    assert both.a_to_b == pytest.approx(d_ab.mean(), rel=1e-12)
    assert both.b_to_a == pytest.approx(d_ba.mean(), rel=1e-12)
    assert both.sum == pytest.approx(d_ab.mean() + d_ba.mean(), rel=1e-12)
    assert both.mean == pytest.approx(0.5 * both.sum)
    squared = chamfer_squared(found)
    assert squared.a_to_b == pytest.approx((d_ab**2).mean(), rel=1e-12)
    assert squared.sum == pytest.approx((d_ab**2).mean() + (d_ba**2).mean(), rel=1e-12)
    turned = normal_distance(found)
    assert turned is not None
    assert turned.a_to_b == pytest.approx(-cos_ab.mean(), rel=1e-12)
    assert turned.b_to_a == pytest.approx(-cos_ba.mean(), rel=1e-12)
    precision, recall = (d_ab <= 0.1).mean(), (d_ba <= 0.1).mean()
    score = f_score(found, 0.1)
    assert (score.precision, score.recall) == (precision, recall) and 0 < precision < 1
    assert score.f_score == pytest.approx(2 * precision * recall / (precision + recall))
    assert hausdorff(found).a_to_b == directed_hausdorff(p.points, q.points)[0]
    assert hausdorff(found).max == max(d_ab.max(), d_ba.max())
    assert hausdorff_95(found).b_to_a == pytest.approx(np.percentile(d_ba, 95), rel=1e-12)


def test_two_points_by_hand() -> None:
    p = SurfaceSamples(np.array([[0.0, 0, 0], [0, 0, 1]]), np.array([[1.0, 0, 0], [0, 1, 0]]))
    q = SurfaceSamples(np.array([[3.0, 4, 0]]), np.array([[-0.6, 0.8, 0]]))
    found = neighbours(p, q)
    far = math.sqrt(26)
    assert chamfer(found).a_to_b == pytest.approx((5 + far) / 2)
    assert chamfer_squared(found).sum == pytest.approx((25 + 26) / 2 + 25)
    turned = normal_distance(found)
    assert turned is not None and turned.sum == pytest.approx(-(0.6 + 0.8) / 2 - 0.6)
    assert f_score(found, 5.0).precision == 0.5  # at the radius is within it
    assert f_score(found, 5.0).f_score == pytest.approx(2 / 3)
    assert f_score(found, 1.0).f_score == 0.0
    bare = neighbours(p, SurfaceSamples(q.points, None))
    assert normal_distance(bare) is None


def test_samples_are_uniform_by_area() -> None:
    mesh = Mesh(
        np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [10, 0, 0], [13, 0, 0], [10, 2, 0]]),
        np.array([[0, 1, 2], [3, 4, 5], [2, 2, 4]]),
    )
    n = 40_000
    found = sample_surface(mesh, n, np.random.default_rng(0))
    first = found.points[:, 0] < 5
    # 0.5 of an area of 3.5; 4 standard deviations
    assert first.mean() == pytest.approx(1 / 7, abs=4 * math.sqrt(6 / 49 / n))
    centroid = found.points[~first].mean(axis=0)
    assert np.allclose(centroid, [11, 2 / 3, 0], atol=0.02)
    assert found.normals is not None and np.allclose(found.normals, [0, 0, 1])
    again = sample_surface(mesh, n, np.random.default_rng(0))
    assert np.array_equal(found.points, again.points)
    with pytest.raises(NerfError, match="without area"):
        sample_surface(Mesh(mesh.vertices, mesh.faces[2:]), 10, np.random.default_rng(0))


def test_a_cloud_is_its_own_sample_and_thinned_if_larger() -> None:
    points = np.random.default_rng(0).random((50, 3))
    rng = np.random.default_rng(1)
    assert np.array_equal(sample_shape(PointCloud(points), 80, rng).points, points)
    thinned = sample_shape(PointCloud(points, points), 20, rng)
    assert len(np.unique(thinned.points, axis=0)) == 20
    assert thinned.normals is not None and np.array_equal(thinned.normals, thinned.points)


def test_bootstrap_intervals_have_the_width_of_the_standard_error() -> None:
    found = neighbours(cloud(400, 0), cloud(500, 1))
    value = bootstrap(found, [0.1], 2_000, np.random.default_rng(0))
    low, high = value["chamfer_sum"]
    error = math.sqrt(found.d_ab.var() / 400 + found.d_ba.var() / 500)
    assert low < chamfer(found).sum < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)  # of 2000 draws
    low, high = value["f_scores"][0]
    assert low < f_score(found, 0.1).f_score < high


def random_similarity(seed: int, scale: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.random(rng=rng).as_matrix()
    matrix[:3, 3] = rng.standard_normal(3)
    return matrix


def test_umeyama_recovers_a_similarity_and_never_mirrors() -> None:
    points = np.random.default_rng(0).random((20, 3))
    want = random_similarity(1, 2.5)
    assert np.allclose(umeyama(points, points @ want[:3, :3].T + want[:3, 3]), want, atol=1e-12)
    mirrored = umeyama(points, points * [1, 1, -1])
    assert np.linalg.det(mirrored[:3, :3]) > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_alignment_finds_any_similarity(seed: int) -> None:
    a, want = bumpy(), random_similarity(seed, 0.3 + seed)
    b = transform_mesh(a, want)
    found = align_similarity(a, b, np.random.default_rng(0))
    assert scale_of(found) == pytest.approx(0.3 + seed, rel=1e-9)
    assert np.abs(found - want).max() < 1e-7  # Gauss-Newton has converged, rounding is left


def test_a_part_that_only_one_shape_has_does_not_pull_the_alignment() -> None:
    body, want = bumpy(), random_similarity(4, 2.0)
    knob = transform_mesh(icosphere(1), np.hstack([0.15 * np.eye(3), [[1.6], [0], [0]]]))
    found = align_similarity(
        joined(body, knob), transform_mesh(body, want), np.random.default_rng(0)
    )
    assert np.abs(found - want).max() < 1e-3


def test_alignment_of_points_is_as_close_as_they_are_dense() -> None:
    a, want = bumpy(), random_similarity(3, 1.7)
    p = sample_surface(a, 4_000, np.random.default_rng(0)).points
    q = sample_surface(transform_mesh(a, want), 4_000, np.random.default_rng(1)).points
    found = align_similarity(PointCloud(p), PointCloud(q), np.random.default_rng(0))
    assert scale_of(found) == pytest.approx(1.7, rel=0.01)
    moved, exact = (p @ m[:3, :3].T + m[:3, 3] for m in (found, want))
    assert np.linalg.norm(moved - exact, axis=1).max() < 0.1  # the samples lie 0.1 apart


def test_equal_shapes_score_what_they_must() -> None:
    value = compare_shapes(bumpy(), bumpy(), QUICK)
    assert value["volume"]["iou"] == 1.0
    assert all(score["f_score"] == 1.0 for score in value["f_scores"])
    assert value["chamfer"]["sum"] == value["chamfer_squared"]["sum"] == 0.0
    assert value["hausdorff"]["max"] == value["hausdorff_95"]["max"] == 0.0
    assert value["normal_distance"]["a_to_b"] == pytest.approx(-1.0)
    assert value["point_to_surface"]["a_to_b"]["max"] < 1e-14
    floor = value["noise_floor"]
    # nearest neighbour among n random points on an area: 0.5 sqrt(area / n) in the mean
    want = 0.5 * math.sqrt(value["b"]["area"] / 2_000)
    assert floor["chamfer_sum"] == pytest.approx(2 * want, rel=0.05)


def test_two_parallel_squares() -> None:
    """Point to surface is the gap exactly; Chamfer lies a little above it."""
    square = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]),
                  np.array([[0, 1, 2], [0, 2, 3]]))  # fmt: skip
    lifted = Mesh(square.vertices + [0, 0, 0.5], square.faces)
    value = compare_shapes(lifted, square, CompareOptions(samples=2_000, bootstrap=0))
    direct = value["point_to_surface"]["b_to_a"]
    assert direct["mean"] == pytest.approx(0.5, rel=1e-12)
    assert direct["max"] == pytest.approx(0.5, rel=1e-12)
    assert value["chamfer"]["a_to_b"] == pytest.approx(0.5, rel=1e-12)  # shared samples
    assert value["volume"] is None and "4 boundary edges" in value["volume_reason"]
    assert value["diagonal"] == pytest.approx(math.sqrt(2))
    assert [s["radius"] for s in value["f_scores"]] == pytest.approx(
        [0.005 * 2**0.5, 0.01 * 2**0.5, 0.02 * 2**0.5]
    )
    assert [s["f_score"] for s in value["f_scores"]] == [0, 0, 0]


def test_every_pair_of_representations_compares() -> None:
    axis = np.linspace(-1.2, 1.2, 25)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = (np.sqrt(x**2 + y**2 + z**2) - 1.0).astype(np.float32)
    place = (np.full(3, -1.2), np.full(3, 0.1))
    ball = icosphere(3)
    shapes = {
        "mesh": ball,
        "points": PointCloud(ball.vertices),
        "voxels": VoxelGrid((distance < 0).astype(np.float32), *place),
        "sdf": SdfGrid(distance, *place),
    }
    options = CompareOptions(samples=1_000, radii=(0.15,), bootstrap=0)
    for kind_a, a in shapes.items():
        for kind_b, b in shapes.items():
            value = compare_shapes(a, b, options)
            assert (value["a"]["kind"], value["b"]["kind"]) == (kind_a, kind_b)
            assert value["f_scores"][0]["f_score"] > 0.95
            assert (value["volume"] is None) == ("points" in (kind_a, kind_b))
            assert (value["point_to_surface"]["a_to_b"] is None) == (kind_b == "points")
            assert (value["normal_consistency"] is None) == ("points" in (kind_a, kind_b))


def test_alignment_is_stated_and_moves_the_volume_too() -> None:
    matrix = random_similarity(5, 0.25)
    options = CompareOptions(samples=2_000, align="similarity", voxels=32, bootstrap=0)
    value = compare_shapes(transform_mesh(bumpy(), matrix), bumpy(), options)
    assert value["align"]["scale"] == pytest.approx(4.0)
    assert np.allclose(np.array(value["align"]["b_from_a"]) @ matrix, np.eye(4), atol=1e-7)
    assert value["volume"]["iou"] > 0.999 and value["chamfer"]["sum"] < 1e-7


def test_a_grid_can_be_aligned() -> None:
    axis = np.linspace(-2, 2, 33)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    ellipsoid = (np.sqrt(x**2 + (y / 0.8) ** 2 + (z / 0.5) ** 2) - 1.5).astype(np.float32)
    grid = SdfGrid(ellipsoid, np.full(3, -2.0), np.full(3, 0.125))
    ball = icosphere(3)
    truth = Mesh(ball.vertices * [3.0, 2.4, 1.5] + 5.0, ball.faces)
    options = CompareOptions(samples=2_000, align="similarity", voxels=48, bootstrap=0)
    value = compare_shapes(grid, truth, options)
    assert value["align"]["scale"] == pytest.approx(2.0, rel=0.01)
    assert value["volume"]["iou"] > 0.97


def test_faults_are_named() -> None:
    flat = Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]))
    with pytest.raises(NerfError, match="flat is degenerate"):
        compare_shapes(box(), flat, QUICK, ("box", "flat"))
    spot = PointCloud(np.ones((5, 3)))
    with pytest.raises(NerfError, match="B is degenerate: all its points"):
        compare_shapes(box(), spot, CompareOptions(samples=10, voxels=0))
    none, nan = PointCloud(np.zeros((0, 3))), Mesh(box().vertices * math.nan, box().faces)
    for a, b, message in (
        (none, box(), "A is empty"),
        (box(), Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)), "B is empty"),
        (box(), nan, "B: a coordinate is NaN"),
    ):
        with pytest.raises(NerfError, match=message):
            compare_shapes(a, b, QUICK)
    two = PointCloud(np.array([[0.0, 0, 0], [1, 0, 0], [1, 0, 0]]))
    with pytest.raises(NerfError, match="at least 3 different points"):
        align_similarity(two, box(), np.random.default_rng(0))
    open_box = Mesh(box().vertices, box().faces[2:])
    with pytest.raises(NerfError, match="A is not watertight: 4 boundary edges"):
        compare_shapes(open_box, box(), QUICK)
    wrongs: tuple[dict[str, Any], ...] = (
        {"samples": 0},
        {"samples": 10**9},
        {"voxels": 1},
        {"voxels": -3},
        {"radii": (0.1, -1.0)},
        {"radii": (math.nan,)},
        {"align": "rigid"},
        {"bootstrap": -1},
        {"seed": -1},
    )
    for wrong in wrongs:
        with pytest.raises(NerfError, match="--"):
            CompareOptions(**wrong)


def test_spot_has_a_volume_and_bunny_is_refused() -> None:
    folder = meshes_folder()
    notes: list[str] = []
    spot = load_shape(folder / "spot.obj", notes.append)
    assert isinstance(spot, Mesh) and len(spot.vertices) == 2930 and len(spot.faces) == 5856
    assert "295 repeated vertices" in notes[0]
    shift = np.hstack([np.eye(3), [[0.05], [0], [0]]])
    options = CompareOptions(samples=2_000, voxels=128, bootstrap=0)
    value = compare_shapes(transform_mesh(spot, shift), spot, options)
    # the exact volume of the mesh; the grid counts it within 0.1 %
    assert value["volume"]["volume_b"] == pytest.approx(spot.volume, rel=1e-3)
    assert value["volume"]["iou"] == pytest.approx(0.80, abs=0.01)
    bunny = load_shape(folder / "bunny.obj")
    with pytest.raises(NerfError, match="B is not watertight: 42 boundary edges"):
        compare_shapes(spot, bunny, options)


@pytest.mark.slow
def test_a_million_points_in_ten_seconds() -> None:
    """Stated for 2 cores."""
    p = sample_surface(icosphere(4), 1_000_000, np.random.default_rng(0))
    q = sample_surface(icosphere(4), 1_000_000, np.random.default_rng(1))
    start = time.process_time()
    found = chamfer(neighbours(p, q))
    assert time.process_time() - start < 20.0  # of both cores
    assert found.mean == pytest.approx(0.5 * math.sqrt(4 * math.pi / 1e6), rel=0.01)

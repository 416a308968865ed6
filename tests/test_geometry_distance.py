"""Exact distances against a brute force over all faces, and inside tests against solid angles."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh.triangles
from scipy.spatial.transform import Rotation
from test_geometry_shapes import box

from nerfcli.core.errors import NerfError
from nerfcli.shapes import inside
from nerfcli.shapes.distance import Surface, closest_points_on_triangles
from nerfcli.shapes.inside import closedness, inside_grid
from nerfcli.shapes.iou import volumetric_iou
from nerfcli.shapes.remesh import icosphere
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, VoxelGrid, transform_mesh

AB = ("A", "B")


def bumpy() -> Mesh:
    """A closed, oriented, asymmetric blob."""
    ball = icosphere(3)
    x, y, z = ball.vertices.T
    radius = 1 + 0.3 * np.sin(3 * x + 1) * np.cos(2 * y + 0.7) + 0.2 * z**2
    return Mesh(ball.vertices * radius[:, None], ball.faces)


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]
    return Mesh(np.concatenate([m.vertices for m in meshes]), np.concatenate(faces))


def brute_force(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """trimesh's closest point on one triangle, over all pairs."""
    best = []
    for point in points:
        each = np.broadcast_to(point, (len(mesh.faces), 3))
        feet = trimesh.triangles.closest_point(mesh.triangles, each)
        best.append(np.linalg.norm(feet - point, axis=1).min())
    return np.array(best)


def test_the_three_kinds_of_nearest_point() -> None:
    triangle = np.array([[[0.0, 0, 0], [2, 0, 0], [0, 2, 0]]])
    queries = np.array([[0.5, 0.5, 3], [1.0, -2, 0], [5.0, -1, 1], [2.0, 2, 0], [1.95, -2, 0]])
    found = closest_points_on_triangles(queries, np.repeat(triangle, 5, axis=0))
    assert np.allclose(found, [[0.5, 0.5, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0], [1.95, 0, 0]])


@pytest.mark.parametrize("width", [1.0, 1e-3, 1e-5, 1e-7, 1e-9, 1e-12])
def test_thin_triangles_keep_their_distance(width: float) -> None:
    """Points above the middle of slivers of length 1: the height is the distance."""
    rng, n = np.random.default_rng(3), 500
    turns = Rotation.random(n, rng=rng).as_matrix()
    flat = np.zeros((n, 3, 3))
    flat[:, 1, 0], flat[:, 2, 0], flat[:, 2, 1] = 1.0, rng.random(n), width
    height = 10.0 ** rng.uniform(-3, 0, n)
    above = flat.mean(axis=1) + height[:, None] * [0.0, 0.0, 1.0]
    triangles = np.einsum("nij,nkj->nki", turns, flat) + 1.0
    points = np.einsum("nij,nj->ni", turns, above) + 1.0
    found = closest_points_on_triangles(points, triangles)
    # the corners themselves are rounded to 1e-16: at width w their plane turns by 1e-16 / w, and
    # once that is more than w / length the edges answer, off by no more than w
    bound = min(4e-15 / width, 2.0 * width) + 4e-15
    assert np.abs(np.linalg.norm(points - found, axis=1) - height).max() < bound


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.5, 20.0])
def test_distances_equal_brute_force(spread: float) -> None:
    mesh, rng = bumpy(), np.random.default_rng(1)
    points = mesh.vertices[rng.integers(len(mesh.vertices), size=150)]
    points = points + spread * rng.standard_normal(points.shape)
    distance, foot, face = Surface(mesh).closest(points)
    # both sides are exact: what differs is rounding
    assert np.allclose(distance, brute_force(mesh, points), rtol=1e-12, atol=1e-14)
    assert np.allclose(np.linalg.norm(points - foot, axis=1), distance)
    on_face = closest_points_on_triangles(foot, mesh.triangles[face])
    assert np.abs(on_face - foot).max() < 1e-14


def test_distances_to_a_mesh_of_very_unlike_faces() -> None:
    """A huge plate, a tiny ball above it, a sliver, a face without area and a lone vertex."""
    plate = box((-50, -50, -1), (50, 50, 0))
    ball = transform_mesh(icosphere(2), np.hstack([0.01 * np.eye(3), [[0], [0], [0.1]]]))
    odd = Mesh(
        np.array([[0, 0, 3.0], [40, 0, 3], [40, 1e-6, 3], [7, 7, 7]]),
        np.array([[0, 1, 2], [3, 3, 3]]),
    )
    mesh = joined(plate, ball, odd)
    rng = np.random.default_rng(2)
    near_ball = 0.05 * rng.standard_normal((60, 3)) + [0, 0, 0.1]
    points = np.concatenate([near_ball, rng.uniform(-60, 60, (60, 3)), [[7, 7, 7.5]]])
    distance = Surface(mesh).closest(points)[0]
    assert np.allclose(distance, brute_force(mesh, points), rtol=1e-12, atol=1e-13)
    assert distance[-1] == pytest.approx(0.5)


def test_distances_far_from_the_origin_keep_their_digits() -> None:
    far, shift = bumpy().vertices + 2.0**40, 2.0**40
    points = np.random.default_rng(3).uniform(-2, 2, (50, 3)) + shift
    # coordinates of 2**40 round to 2**-12, but taking the shift off again is exact
    near = Surface(Mesh(far - shift, bumpy().faces)).closest(points - shift)[0]
    assert np.abs(Surface(Mesh(far, bumpy().faces)).closest(points)[0] - near).max() < 1e-12


def test_no_points_give_no_distances() -> None:
    assert Surface(box()).closest(np.zeros((0, 3)))[0].shape == (0,)


def winding_number(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Sum of solid angles over 4 pi: Van Oosterom and Strackee (1983), eq. 8."""
    total = np.zeros(len(points))
    for triangle in mesh.triangles:
        a, b, c = (corner - points for corner in triangle)
        la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
        top = np.einsum("ij,ij->i", a, np.cross(b, c))
        dot = lambda u, v: np.einsum("ij,ij->i", u, v)  # noqa: E731
        total += np.arctan2(top, la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb)
    return total / (2 * np.pi)


def grid_points(origin: np.ndarray, spacing: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return origin + spacing * index.reshape(-1, 3)


def test_inside_equals_the_winding_number() -> None:
    mesh = bumpy()
    origin, spacing, shape = np.full(3, -1.6), np.array([0.21, 0.23, 0.19]), (16, 15, 17)
    want = winding_number(mesh, grid_points(origin, spacing, shape)).reshape(shape) > 0.5
    found = inside_grid(mesh, origin, spacing, shape)
    assert np.array_equal(found, want) and 100 < want.sum() < want.size / 2


def test_a_box_on_the_grid_itself_holds_exactly_its_volume() -> None:
    """Every line runs through edges, vertices and faces seen edge-on; the rule is half-open."""
    found = inside_grid(box((1, 1, 1), (5, 5, 5)), np.zeros(3), np.ones(3), (8, 8, 8))
    want = np.zeros((8, 8, 8), dtype=bool)
    want[1:5, 1:5, 1:5] = True
    assert np.array_equal(found, want)


def test_no_line_slips_through_a_shared_edge() -> None:
    """Lids are cut along diagonals that run through grid points, up to rounding."""
    rng, index = np.random.default_rng(0), np.arange(10)
    for low, size in zip(rng.uniform(-0.9, -0.1, 200), rng.uniform(5, 8, 200), strict=True):
        mesh = box((low, low, -0.5), (low + size, low + size, 9.5))
        within = (index > low) & (index < low + size)
        want = within[:, None, None] & within[None, :, None] & np.ones(10, dtype=bool)
        assert np.array_equal(inside_grid(mesh, np.zeros(3), np.ones(3), (10, 10, 10)), want)


def test_lines_through_vertices_do_not_leak() -> None:
    """A turned octahedron-like ball whose vertices lie on grid lines."""
    ball = icosphere(2)
    snapped = Mesh(np.round(ball.vertices * 6), ball.faces)
    shape = (17, 17, 17)
    found = inside_grid(snapped, np.full(3, -8.0), np.ones(3), shape)
    points = grid_points(np.full(3, -8.0), np.ones(3), shape)
    off_surface = (Surface(snapped).closest(points)[0] > 1e-9).reshape(shape)
    want = winding_number(snapped, points).reshape(shape) > 0.5
    assert np.array_equal(found[off_surface], want[off_surface])
    assert not found[:, :, -1].any() and not found[:, :, 0].any()


def test_overlapping_nested_turned_and_muddled_boxes() -> None:
    outer, inner = box((0, 0, 0), (9, 9, 9)), box((3, 3, 3), (6, 6, 6))
    hole = Mesh(inner.vertices, inner.faces[:, ::-1])
    grid = (np.zeros(3) - 0.5, np.ones(3), (12, 12, 12))

    def count(mesh: Mesh) -> int:
        return int(inside_grid(mesh, *grid).sum())

    assert count(outer) == 9**3
    assert count(joined(outer, inner)) == 9**3  # a union, not a hole
    assert count(joined(outer, hole)) == 9**3 - 3**3
    assert count(Mesh(outer.vertices, outer.faces[:, ::-1])) == 9**3  # turned inside out
    muddled = outer.faces.copy()
    muddled[::3] = muddled[::3, ::-1]
    state = closedness(Mesh(outer.vertices, muddled))
    assert state.closed and not state.oriented
    assert count(Mesh(outer.vertices, muddled)) == 9**3


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    args = (bumpy(), np.full(3, -1.6), np.full(3, 0.1), (33, 33, 33))
    whole = inside_grid(*args)
    monkeypatch.setattr(inside, "_BLOCK", 4 * 33 * 33)
    assert np.array_equal(inside_grid(*args), whole)


def test_boundary_edges_are_counted() -> None:
    mesh = box()
    assert closedness(mesh).n_boundary == 0 and closedness(mesh).oriented
    open_box = Mesh(mesh.vertices, mesh.faces[2:])
    assert closedness(open_box).n_boundary == 4
    spiked = Mesh(mesh.vertices, np.concatenate([mesh.faces, [[0, 0, 5]]]))  # bounds nothing
    assert closedness(spiked).closed


def test_iou_of_shifted_boxes_is_the_closed_form() -> None:
    a, b = box((0, 0, 0), (2, 1, 1)), box((1, 0, 0), (3, 1, 1))
    found = volumetric_iou(a, b, 60, AB)
    assert found.iou == pytest.approx(1 / 3) and found.volume_a == pytest.approx(2.0)
    assert found.intersection == pytest.approx(1.0) and found.resolution == (60, 20, 20)
    assert volumetric_iou(a, a, 30, AB).iou == 1.0
    apart = volumetric_iou(a, box((9, 9, 9), (10, 10, 10)), 40, AB)
    assert apart.iou == 0.0 and apart.volume_b > 0


@pytest.mark.parametrize("inner", [0.5, 0.9])
def test_concentric_balls_have_the_iou_of_their_radii(inner: float) -> None:
    big = icosphere(4)
    small = Mesh(inner * big.vertices, big.faces)
    found = volumetric_iou(small, big, 96, AB)
    # the grid misjudges cubes at the surface either way: their sum errs by far less than a layer
    assert found.iou == pytest.approx(inner**3, rel=0.005)
    assert found.volume_b == pytest.approx(big.volume, rel=0.005)
    distance = Surface(big).closest(small.vertices)[0]
    # faces of 5120 lie up to 0.13 % inside their sphere
    assert np.all((distance < 1.0 - inner + 1e-12) & (distance > 1.0 - inner - 0.002))


def test_iou_between_representations() -> None:
    axis = np.linspace(-1.2, 1.2, 25)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = (np.sqrt(x**2 + y**2 + z**2) - 1.0).astype(np.float32)
    place = (np.full(3, -1.2), np.full(3, 0.1))
    sdf, voxels = SdfGrid(distance, *place), VoxelGrid(distance < 0, *place)
    ball = icosphere(4)
    assert volumetric_iou(sdf, ball, 64, AB).iou > 0.98
    assert volumetric_iou(voxels, ball, 64, AB).iou > 0.92  # blocks of 0.1 on a radius of 1
    assert volumetric_iou(voxels, voxels, 64, AB).iou == 1.0
    assert volumetric_iou(sdf, sdf, 64, AB).volume_a == pytest.approx(4 / 3 * np.pi, rel=0.02)


def test_what_has_no_volume_is_refused() -> None:
    mesh = box()
    with pytest.raises(NerfError, match="B is not watertight: 4 boundary edges"):
        volumetric_iou(mesh, Mesh(mesh.vertices, mesh.faces[2:]), 16, AB)
    with pytest.raises(NerfError, match="A is a point cloud"):
        volumetric_iou(PointCloud(mesh.vertices), mesh, 16, AB)
    thin = box((0, 0, 0), (1, 1, 1e-9))
    with pytest.raises(NerfError, match="too thin"):
        volumetric_iou(thin, transform_mesh(thin, np.hstack([np.eye(3), [[0], [0], [0.4]]])), 4, AB)

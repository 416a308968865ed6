"""Align shape A to shape B by a similarity: rotation, translation and one scale.

First coarse: from 25 starts (as it is, and 24 turns of the principal axes with centroids and
sizes matched) a few rounds of nearest neighbours both ways and Umeyama's closed form. Then fine,
for meshes: Gauss-Newton on the distance along the normal of the exact nearest surface points,
both ways, which does not shrink A as one-way matching would. No reflection.
"""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from nerfcli.core.errors import NerfError
from nerfcli.shapes.distance import Surface
from nerfcli.shapes.surface_samples import sample_shape
from nerfcli.shapes.types import Mesh, PointCloud

_FEWEST_POINTS = 3  # two leave the turn about their line open
_COARSE_POINTS = 1_500
_COARSE_ROUNDS = 12
_FINE_POINTS = 8_000
_FINE_ROUNDS = 30
_DONE = 1e-10  # largest change of a unit-sized shape in one round


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find the similarity [4, 4] of least sum |s R source + t - target|^2 over pairs [n, 3].

    Source: Umeyama (1991), eqs. 40-43. Points that are all equal give scale 1.
    """
    center_s, center_t = source.mean(axis=0), target.mean(axis=0)
    s, t = source - center_s, target - center_t
    u, d, vt = np.linalg.svd(t.T @ s / len(s))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = (u * signs) @ vt
    variance = np.mean(np.sum(s * s, axis=1))
    scale = float(d @ signs) / variance if variance > 0 else 1.0
    return _matrix(scale * rotation, center_t - scale * rotation @ center_s)


def align_similarity(
    a: Mesh | PointCloud, b: Mesh | PointCloud, rng: np.random.Generator
) -> np.ndarray:
    """Find the matrix b_from_a [4, 4] that aligns a to b, by a global search.

    Raises:
        NerfError: a shape of fewer than 3 different points.
    """
    p = sample_shape(a, _COARSE_POINTS, rng).points
    q = sample_shape(b, _COARSE_POINTS, rng).points
    if min(len(np.unique(points, axis=0)) for points in (p, q)) < _FEWEST_POINTS:
        raise NerfError(
            f"a similarity needs at least {_FEWEST_POINTS} different points on each shape; "
            "leave --align out."
        )
    tree = KDTree(q)
    found = [_coarse(p, q, tree, start) for start in _starts(p, q)]
    best = min(found, key=lambda pair: pair[0])[1]
    if isinstance(a, Mesh) and isinstance(b, Mesh):
        return _fine(a, b, best, rng)
    p, q = (sample_shape(shape, _FINE_POINTS, rng).points for shape in (a, b))
    return _coarse(p, q, KDTree(q), best, _FINE_ROUNDS)[1]


def scale_of(b_from_a: np.ndarray) -> float:
    return float(np.cbrt(np.linalg.det(b_from_a[:3, :3])))


def _starts(p: np.ndarray, q: np.ndarray) -> list[np.ndarray]:
    center_p, center_q = p.mean(axis=0), q.mean(axis=0)
    _, size_p, axes_p = np.linalg.svd(p - center_p, full_matrices=False)
    _, size_q, axes_q = np.linalg.svd(q - center_q, full_matrices=False)
    scale = np.linalg.norm(size_q) / len(q) ** 0.5 / (np.linalg.norm(size_p) / len(p) ** 0.5)
    starts = [np.eye(4)]
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        turn = np.eye(3)[list(order)] * np.array(signs)[:, None]
        rotation = axes_q.T @ turn @ axes_p
        if np.linalg.det(rotation) > 0:
            starts.append(_matrix(scale * rotation, center_q - scale * rotation @ center_p))
    return starts


def _coarse(
    p: np.ndarray, q: np.ndarray, tree: KDTree, b_from_a: np.ndarray, rounds: int = _COARSE_ROUNDS
) -> tuple[float, np.ndarray]:
    """Match and fit for some rounds; return the mean distance both ways, and the matrix."""
    mean = np.inf
    for round_ in range(rounds + 1):
        moved = p @ b_from_a[:3, :3].T + b_from_a[:3, 3]
        d_ab, q_of_p = tree.query(moved)
        d_ba, p_of_q = KDTree(moved).query(q)
        mean = float(d_ab.mean() + d_ba.mean())
        if round_ < rounds:
            b_from_a = umeyama(np.concatenate([p, p[p_of_q]]), np.concatenate([q[q_of_p], q]))
    return mean, b_from_a


def _fine(a: Mesh, b: Mesh, b_from_a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    surface_a, surface_b = Surface(a), Surface(b)
    p = sample_shape(a, _FINE_POINTS, rng).points
    q = sample_shape(b, _FINE_POINTS, rng).points
    center, size = q.mean(axis=0), float(np.linalg.norm(q.std(axis=0)))
    best, best_mean = b_from_a, np.inf
    for _ in range(_FINE_ROUNDS):
        linear, shift = b_from_a[:3, :3], b_from_a[:3, 3]
        moved = p @ linear.T + shift
        d_ab, foot_b, face_b = surface_b.closest(moved)
        back = (q - shift) @ np.linalg.inv(linear).T
        d_ba, foot_a, face_a = surface_a.closest(back)
        scale = scale_of(b_from_a)
        mean = float(d_ab.mean() + d_ba.mean() * scale)
        if mean < best_mean:
            best, best_mean = b_from_a, mean
        movers = np.concatenate([moved, foot_a @ linear.T + shift])
        targets = np.concatenate([foot_b, q])
        normals = np.concatenate(
            [b.face_normals[face_b], a.face_normals[face_a] @ linear.T / scale]
        )
        step, change = _plane_step((movers - center) / size, (targets - center) / size, normals)
        # the step acts about the centre and in units of the size of B
        frame = _matrix(size * np.eye(3), center)
        b_from_a = frame @ step @ np.linalg.inv(frame) @ b_from_a
        if change < _DONE:
            break
    return best


def _plane_step(
    movers: np.ndarray, targets: np.ndarray, normals: np.ndarray
) -> tuple[np.ndarray, float]:
    """Take a Gauss-Newton step on sum (normal . (s R mover + t - target))^2: matrix and size."""
    gap = np.einsum("ij,ij->i", normals, targets - movers)
    # a far point is likelier matched wrongly: weights of Geman-McClure about the median
    width = 3.0 * np.median(np.abs(gap)) + 1e-12
    weight = width**2 / (width**2 + gap**2)
    jacobian = np.column_stack(
        [np.cross(movers, normals), normals, np.einsum("ij,ij->i", normals, movers)]
    )
    # lstsq takes the smallest step where the shape (a sphere) leaves a direction open
    x = np.linalg.lstsq(jacobian * weight[:, None], gap * weight, rcond=1e-9)[0]
    rotation = Rotation.from_rotvec(x[:3]).as_matrix()
    return _matrix(np.exp(x[6]) * rotation, x[3:6]), float(np.abs(x).max())


def _matrix(linear: np.ndarray, shift: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, shift
    return matrix

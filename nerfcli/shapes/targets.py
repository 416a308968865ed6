"""Match the samples of a mesh to a target surface, or to an offset surface of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from nerfcli.shapes.surface_samples import SurfaceSamples
from nerfcli.shapes.types import unit

SurfaceSampler = Callable[[int, np.random.Generator], SurfaceSamples]
"""Draws about n points of a surface with outward unit normals; lets a fit target a field."""

# lengths in diagonals of the target's box
_REACH = 0.04  # weight of normals in matching (x, reach * n): keeps the sides of an ear apart
_TRACE_STEPS, _TRACE_NEAR = 16, 0.015
_OFF_SURFACE = 0.02  # further than this from where it belongs, a part of the mesh is on its way
# lengths in edges of the finished mesh
_THICK = 1.6  # sheets back to back stay this far apart
_BESIDE = 0.6  # further than this, a wall does not draw the rim of a sheet along itself


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of samples of the mesh, and points that draw the nearest sample.

    drawn: [n] bool, samples that are drawn to for_p; the others are left to the regularisers.
    for_p, p_normals: [n, 3]. points, normals: [m, 3]. p_of_q: [m].
    """

    drawn: np.ndarray
    for_p: np.ndarray
    p_normals: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    p_of_q: np.ndarray


def targets_of(
    p: np.ndarray, p_normals: np.ndarray, q: SurfaceSamples, offset: float, edge_length: float
) -> Targets:
    """Match samples p of the mesh with the surface at `offset` outside the samples q.

    edge_length: of the finished mesh. All lengths in diagonals of the target's box.
    """
    assert q.normals is not None
    of_q = KDTree(_with_normals(q.points, q.normals))
    _, nearest = of_q.query(_with_normals(p, p_normals), workers=-1)
    foot, foot_normals = q.points[nearest], q.normals[nearest]
    away = p - foot
    outside = _dot(away, foot_normals) > 0
    direction = unit(np.where(outside[:, None], away, foot_normals))
    for_p = foot + offset * direction
    near, beside = map(np.asarray, KDTree(q.points).query(p, workers=-1))
    rows, onward, hit = _across_gaps(p, p_normals, q, near, beside, offset)
    for_p[rows], direction[rows] = onward, p_normals[rows]
    drawn = np.ones(len(p), dtype=bool)
    drawn[rows[~hit]] = False
    of_p = KDTree(_with_normals(p, p_normals))
    rows, apart = _keep_apart(p, p_normals, of_p, _THICK * edge_length)
    far = near[rows] > offset + _OFF_SURFACE  # thin parts of the target itself may stay thin
    rows, apart = rows[far], apart[far]
    for_p[rows], direction[rows], drawn[rows] = apart, p_normals[rows], True
    points, normals = q.points + offset * q.normals, q.normals
    if offset > 0.0:
        # a point nearer to another part of the surface is not on the offset surface
        free = KDTree(q.points).query(points, workers=-1)[0] > 0.95 * offset
        points, normals = points[free], normals[free]
    p_of_q = np.asarray(of_p.query(_with_normals(points, normals), workers=-1)[1])
    # a sample that faces the other way belongs to another side: it would be turned over
    agree = _dot(p_normals[p_of_q], normals) > 0.2
    # sheets go their own way: walls that they meet must not draw them in
    gap = p[p_of_q] - points
    reach = np.linalg.norm(gap, axis=1)
    agree &= (reach < _BESIDE * edge_length) | (_dot(gap, normals) > 0.5 * reach)
    own_way = ~drawn
    own_way[rows] = True
    agree &= ~own_way[p_of_q]
    return Targets(drawn, for_p, direction, points[agree], normals[agree], p_of_q[agree])


def _across_gaps(
    p: np.ndarray,
    p_normals: np.ndarray,
    q: SurfaceSamples,
    near: np.ndarray,
    nearest: np.ndarray,
    offset: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find samples of sheets that span a gap, their next points, and whether they move on.

    Such a sheet faces neither side of its gap, though both sides face it. It goes on against its
    normal, by no more than the sides are away, so that it meets nothing; and only if that way
    leads, by sphere tracing, to a part of the surface that it does face. Otherwise (a gap that is
    open behind) it belongs nowhere, and its own tension has to draw it back.
    """
    assert q.normals is not None
    away = p - q.points[nearest]
    spans = (_dot(away, q.normals[nearest]) > 0.5 * near) & (near > offset + 1e-3)
    rows = np.flatnonzero(spans & (_dot(away, p_normals) < 0.5 * near))
    normals, tree = p_normals[rows], KDTree(q.points)
    at, hit = p[rows].copy(), np.zeros(len(rows), dtype=bool)
    for _ in range(_TRACE_STEPS):
        ahead, index = tree.query(at, workers=-1)
        hit |= (ahead < _TRACE_NEAR) & (_dot(q.normals[index], normals) > 0.5)
        at -= np.where(hit, 0.0, np.maximum(ahead, _TRACE_NEAR))[:, None] * normals
    return rows, p[rows] - (hit * (near[rows] - offset))[:, None] * normals, hit


def _keep_apart(
    p: np.ndarray, p_normals: np.ndarray, of_p: KDTree, thickness: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find samples with a sheet closer than `thickness` behind them, and their targets.

    Two sheets that came from both ends of a gap would pass through each other and be inside out
    from then on. Held apart, they are a plate whose rim is drawn back by its own tension.
    """
    _, other = of_p.query(_with_normals(p, -p_normals), workers=-1)
    gap = p[other] - p
    close = np.linalg.norm(gap, axis=1) < thickness
    rows = np.flatnonzero(close & (_dot(p_normals, p_normals[other]) < -0.5))
    lack = thickness + _dot(gap[rows], p_normals[rows])  # the dot product is minus the depth
    return rows, p[rows] + 0.5 * lack[:, None] * p_normals[rows]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


def _with_normals(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return np.concatenate([points, _REACH * normals], axis=1)

"""Where the samples of a mesh belong on a target surface, or on an offset surface of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from nerfcli.geometry.sampling import SurfaceSamples
from nerfcli.geometry.shapes import unit

SurfaceSampler = Callable[[int, np.random.Generator], SurfaceSamples]
"""Gives about n points of a surface with outward unit normals: how a field is fitted to."""

# lengths in diagonals of the target's box
_REACH = 0.04  # what normals weigh when points are matched by (x, reach * n): sides of an ear
_TRACE_STEPS, _TRACE_NEAR = 16, 0.015


@dataclass(frozen=True, eq=False)
class Targets:
    """Where samples of the mesh are drawn to, and points that draw the nearest sample.

    for_p, p_normals: [n, 3]. points, normals: [m, 3]. p_of_q: [m].
    """

    for_p: np.ndarray
    p_normals: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    p_of_q: np.ndarray


def targets_of(p: np.ndarray, p_normals: np.ndarray, q: SurfaceSamples, offset: float) -> Targets:
    """Match samples p of the mesh with the surface at `offset` outside the samples q."""
    assert q.normals is not None
    of_q = KDTree(_with_normals(q.points, q.normals))
    _, nearest = of_q.query(_with_normals(p, p_normals), workers=-1)
    foot, foot_normals = q.points[nearest], q.normals[nearest]
    away = p - foot
    outside = _dot(away, foot_normals) > 0
    direction = unit(np.where(outside[:, None], away, foot_normals))
    for_p = foot + offset * direction
    rows, onward, onward_normals = _across_gaps(p, p_normals, q, offset)
    for_p[rows], direction[rows] = onward, onward_normals
    points, normals = q.points + offset * q.normals, q.normals
    if offset > 0.0:
        # what another part of the surface lies nearer to is not on the offset surface
        free = KDTree(q.points).query(points, workers=-1)[0] > 0.95 * offset
        points, normals = points[free], normals[free]
    of_p = KDTree(_with_normals(p, p_normals))
    _, p_of_q = of_p.query(_with_normals(points, normals), workers=-1)
    # a sample that faces the other way belongs to another side: it would be turned over
    agree = _dot(p_normals[p_of_q], normals) > 0.2
    return Targets(for_p, direction, points[agree], normals[agree], np.asarray(p_of_q)[agree])


def _across_gaps(
    p: np.ndarray, p_normals: np.ndarray, q: SurfaceSamples, offset: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The samples of sheets that span a gap, where these go on to, and their normals.

    Such a sheet faces neither side of its gap, though both sides face it. It goes on against its
    normal, by no more than the sides are away, so that it meets nothing; and only if that way
    leads, by sphere tracing, to a part of the surface that it does face.
    """
    assert q.normals is not None
    tree = KDTree(q.points)
    distance, nearest = tree.query(p, workers=-1)
    away = p - q.points[nearest]
    spans = (_dot(away, q.normals[nearest]) > 0.5 * distance) & (distance > offset + 1e-3)
    rows = np.flatnonzero(spans & (_dot(away, p_normals) < 0.5 * distance))
    normals = p_normals[rows]
    at, hit = p[rows].copy(), np.zeros(len(rows), dtype=bool)
    for _ in range(_TRACE_STEPS):
        near, index = tree.query(at, workers=-1)
        hit |= (near < _TRACE_NEAR) & (_dot(q.normals[index], normals) > 0.5)
        at -= np.where(hit, 0.0, np.maximum(near, _TRACE_NEAR))[:, None] * normals
    return rows, p[rows] - (hit * (distance[rows] - offset))[:, None] * normals, normals


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


def _with_normals(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return np.concatenate([points, _REACH * normals], axis=1)

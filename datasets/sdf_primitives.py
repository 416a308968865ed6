"""Signed distance functions of single solids, exact inside and outside.

Every function takes the three coordinates of points in the solid's own frame (arrays [n], float64)
and returns distances [n]: negative inside, positive outside, in scene units.

Formulas follow Inigo Quilez, "Distance functions" (https://iquilezles.org/articles/distfunctions/).
Only solids that are unions of balls around a skeleton (sphere, capsule, round cone, torus, tube) or
a convex body rounded by a radius (plate, box) are used: for those the formula is the true Euclidean
distance on both sides of the surface, because a ball that touches the surface at the nearest point
lies wholly inside the solid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def sphere(x: Array, y: Array, z: Array, radius: float) -> Array:
    """Ball around the origin."""
    return np.sqrt(x * x + y * y + z * z) - radius


def capsule(x: Array, y: Array, z: Array, half_length: float, radius: float) -> Array:
    """Segment from -half_length to half_length on the z axis, swept by a ball."""
    over = np.maximum(np.abs(z) - half_length, 0.0)
    return np.sqrt(x * x + y * y + over * over) - radius


def round_cone(
    x: Array, y: Array, z: Array, length: float, radius0: float, radius1: float
) -> Array:
    """Convex hull of a ball (radius0) at the origin and a ball (radius1) at z = length."""
    slope = (radius0 - radius1) / length
    across = np.sqrt(1.0 - slope * slope)
    rho2 = x * x + y * y
    rho = np.sqrt(rho2)
    along = across * z - slope * rho
    side = across * rho + slope * z - radius0
    first = np.sqrt(rho2 + z * z) - radius0
    second = np.sqrt(rho2 + (z - length) ** 2) - radius1
    return np.where(along < 0.0, first, np.where(along > across * length, second, side))


def torus(x: Array, y: Array, z: Array, ring: float, radius: float) -> Array:
    """Circle of radius `ring` in the xy plane, swept by a ball (radius < ring)."""
    q = np.sqrt(x * x + y * y) - ring
    return np.sqrt(q * q + z * z) - radius


def tube(x: Array, y: Array, z: Array, ring: float, half_length: float, radius: float) -> Array:
    """Open cylinder wall around the z axis (a revolved segment), swept by a ball."""
    q = np.sqrt(x * x + y * y) - ring
    over = np.maximum(np.abs(z) - half_length, 0.0)
    return np.sqrt(q * q + over * over) - radius


def plate(
    x: Array,
    y: Array,
    z: Array,
    half_length: float,
    radius: float,
    half_height: float,
    rounding: float,
) -> Array:
    """Stadium in the xy plane (segment along y grown by `radius`), extruded in z, rounded."""
    over = np.maximum(np.abs(y) - half_length, 0.0)
    u = np.sqrt(x * x + over * over) - radius
    w = np.abs(z) - half_height
    a, b = np.maximum(u, 0.0), np.maximum(w, 0.0)
    return np.sqrt(a * a + b * b) + np.minimum(np.maximum(u, w), 0.0) - rounding


def box(x: Array, y: Array, z: Array, half: tuple[float, float, float], rounding: float) -> Array:
    """Box with half sizes `half`, rounded outwards."""
    u, v, w = np.abs(x) - half[0], np.abs(y) - half[1], np.abs(z) - half[2]
    a, b, c = np.maximum(u, 0.0), np.maximum(v, 0.0), np.maximum(w, 0.0)
    inside = np.minimum(np.maximum(np.maximum(u, v), w), 0.0)
    return np.sqrt(a * a + b * b + c * c) + inside - rounding

"""Find the pixels that triangles cover: for texture atlases and pictures of meshes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_PIXELS = 4_000_000  # candidates tested together


@dataclass(frozen=True, eq=False)
class Covered:
    """m pairs of a face and a pixel whose centre it covers.

    face, pixel: [m] (pixel = y * width + x). weights: [m, 3] barycentric.
    """

    face: np.ndarray
    pixel: np.ndarray
    weights: np.ndarray


def covered_pixels(corners: np.ndarray, width: int, height: int) -> Iterator[Covered]:
    """Yield the pixels of triangles [f, 3 corners, 2] in pixel coordinates (first centre 0.5, 0.5).

    Faces come in their order, many at a time. A centre on an edge belongs to both neighbours.
    """
    size = np.array([width, height])
    low = np.clip(np.ceil(corners.min(axis=1) - 0.5), 0, size).astype(np.int64)
    high = np.clip(np.floor(corners.max(axis=1) - 0.5) + 1, 0, size).astype(np.int64)
    extent = np.maximum(high - low, 0)
    counts = extent.prod(axis=1)
    ends = np.cumsum(counts)
    start = 0
    while start < len(corners):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PIXELS, side="right")))
        face = start + np.repeat(np.arange(stop - start), counts[start:stop])
        offset = np.arange(len(face)) - (np.repeat(ends[start:stop], counts[start:stop])
                                         - counts[face] - before)  # fmt: skip
        x = low[face, 0] + offset % np.maximum(extent[face, 0], 1)
        y = low[face, 1] + offset // np.maximum(extent[face, 0], 1)
        weights = _barycentric(corners[face], np.stack([x, y], axis=1) + 0.5)
        inside = (weights >= -1e-9).all(axis=1)
        yield Covered(face[inside], (y * width + x)[inside], weights[inside])
        start = stop


def _barycentric(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Weights [m, 3] of points [m, 2] in triangles [m, 3, 2]; -1 where a triangle has no area."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    area = _cross(b - a, c - a)
    safe = np.where(area != 0, area, 1.0)
    wb, wc = _cross(points - a, c - a) / safe, _cross(b - a, points - a) / safe
    weights = np.stack([1.0 - wb - wc, wb, wc], axis=1)
    return np.where((area != 0)[:, None], weights, -1.0)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

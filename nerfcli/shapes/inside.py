"""Find the points of a grid inside a closed mesh, and check that a mesh is closed.

Inside by winding number, counted along scan lines: a line parallel to z through a column of
grid points enters the shape where it crosses a face from outside (+1) and leaves it where it
crosses one from inside (-1); a point is inside where the sum below it is not 0. A mesh that is
closed but not consistently oriented is counted by parity.

A crossing is decided edge by edge in the xy plane: within one row of grid points each triangle
covers the half-open span between two of its edges, and an edge's crossing of the row is computed
once from its ordered ends. Faces that share an edge thus share the bit-same end of their spans:
no line slips through an edge or a vertex, and none is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nerfcli.shapes.types import Mesh

_BLOCK = 8_000_000  # grid points held at a time: a 1024**3 grid needs no more memory than 200**3


@dataclass(frozen=True)
class Closedness:
    """n_boundary: edges with an odd number of faces. oriented: every edge runs both ways alike."""

    n_boundary: int
    oriented: bool

    @property
    def closed(self) -> bool:
        return self.n_boundary == 0


def closedness(mesh: Mesh) -> Closedness:
    """Check whether every edge has an even number of faces, and as many one way as the other.

    Faces that name a vertex twice bound nothing and are left out.
    """
    faces = _proper(mesh.faces)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    if not len(edges):
        return Closedness(0, True)
    forwards = edges[:, 0] < edges[:, 1]
    keys = np.sort(edges, axis=1) @ np.array([len(mesh.vertices), 1])
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    balance = np.bincount(inverse.ravel(), weights=np.where(forwards, 1.0, -1.0))
    return Closedness(int(np.sum(counts % 2)), bool(np.all(balance == 0)))


def inside_grid(
    mesh: Mesh, origin: np.ndarray, spacing: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """Find the points origin + spacing * (i, j, k) inside a closed mesh: bool `shape`."""
    blocks = list(inside_blocks(mesh, origin, spacing, shape))
    return np.concatenate([block for _, block in blocks])


def inside_blocks(
    mesh: Mesh, origin: np.ndarray, spacing: np.ndarray, shape: tuple[int, int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the grid of inside_grid in slabs along x: the first index, and bool [few, ny, nz]."""
    oriented = closedness(mesh).oriented
    corners = (mesh.vertices - origin) / spacing  # grid points at whole numbers
    faces = _proper(mesh.faces)
    low, high = corners[faces, 0].min(axis=1), corners[faces, 0].max(axis=1)
    rows = slab_rows(shape)
    for start in range(0, shape[0], rows):
        n = min(rows, shape[0] - start)
        mine = faces[(high >= start) & (low <= start + n - 1)]
        yield start, _inside_slab(corners - [start, 0, 0], mine, (n, *shape[1:]), oriented)


def slab_rows(shape: tuple[int, int, int]) -> int:
    """Return the number of layers of a grid to work on at a time."""
    return max(1, _BLOCK // (shape[1] * shape[2]))


def _inside_slab(
    corners: np.ndarray, faces: np.ndarray, shape: tuple[int, int, int], oriented: bool
) -> np.ndarray:
    face, x, y, sign = _crossings(corners, faces, shape)
    z = _heights(corners[faces[face]], x, y)
    first = np.ceil(z)  # the first grid point on or above the face
    inside = first < shape[2]
    k = np.maximum(first[inside], 0).astype(np.int64)
    flat = (x[inside].astype(np.int64) * shape[1] + y[inside].astype(np.int64)) * shape[2] + k
    steps = np.zeros(shape, dtype=np.int16)
    np.add.at(steps.reshape(-1), flat, sign[inside].astype(np.int16))
    winding = np.cumsum(steps, axis=2, dtype=np.int16)
    return winding != 0 if oriented else winding % 2 != 0


def _crossings(
    corners: np.ndarray, faces: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find pairs of a face and a column (x, y) of grid points whose vertical line meets it.

    Returns face [m], x [m], y [m], and sign [m]: +1 where the line, going up, enters the shape.
    """
    xs = corners[faces, 0]
    first = np.clip(np.ceil(xs.min(axis=1)), 0, shape[0]).astype(np.int64)
    last = np.clip(np.floor(xs.max(axis=1)) + 1, 0, shape[0]).astype(np.int64)
    face, x = _expand(first, np.maximum(last - first, 0))
    ends, rises = np.full((2, len(face)), np.nan), np.zeros((2, len(face)), dtype=bool)
    found = np.zeros(len(face), dtype=np.int64)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        above = corners[faces[face, end], 0] > x
        hit = np.flatnonzero((corners[faces[face, start], 0] > x) != above)
        tail, head = faces[face[hit], start], faces[face[hit], end]
        # from the lower vertex number to the higher: bit-equal for both faces of the edge
        one, two = corners[np.minimum(tail, head)], corners[np.maximum(tail, head)]
        share = (x[hit] - one[:, 0]) / (two[:, 0] - one[:, 0])
        ends[found[hit], hit] = one[:, 1] + share * (two[:, 1] - one[:, 1])
        rises[found[hit], hit] = above[hit]
        found[hit] += 1
    pair = found == 2  # otherwise the row only touches a vertex or lies in an edge: no span
    face, x, ends, rises = face[pair], x[pair], ends[:, pair], rises[:, pair]
    # seen from above, a face that looks up runs towards +x along its lower end: the sign comes
    # from the edges, not from the normal, so that the sums over a closed surface cancel exactly
    looks_up = rises[0] == (ends[0] <= ends[1])
    low = np.clip(np.ceil(ends.min(axis=0)), 0, shape[1]).astype(np.int64)
    high = np.clip(np.ceil(ends.max(axis=0)), 0, shape[1]).astype(np.int64)
    row, y = _expand(low, high - low)
    return face[row], x[row], y, np.where(looks_up, -1, 1)[row]


def _heights(triangles: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute z of the plane of each triangle [m, 3 corners, 3] above (x, y)."""
    a = triangles[:, 0]
    normal = np.cross(triangles[:, 1] - a, triangles[:, 2] - a)
    slope = normal[:, 0] * (x - a[:, 0]) + normal[:, 1] * (y - a[:, 1])
    z = a[:, 2] - slope / np.where(normal[:, 2] != 0, normal[:, 2], 1.0)
    # a face seen edge-on has an ill-conditioned plane: its own extent bounds the answer
    return np.clip(z, triangles[..., 2].min(axis=1), triangles[..., 2].max(axis=1))


def _expand(first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List first[i] ... first[i] + counts[i] - 1 for each i: (i repeated, the numbers)."""
    owner = np.repeat(np.arange(len(first)), counts)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, first[owner] + offset


def _proper(faces: np.ndarray) -> np.ndarray:
    a, b, c = faces.T
    return faces[(a != b) & (b != c) & (c != a)]

"""Split a closed mesh where more than two faces meet at an edge, so that each edge has two.

Thinning lets sheets touch: four faces meet at an edge, which many programs do not call watertight.
The faces around such an edge are paired over the solid between them, and each sheet gets vertices
of its own (Guéziec et al. 2001, "Cutting and stitching"). The copies are moved apart a little, for
programs weld equal positions.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from nerfcli.shapes.inside import closedness
from nerfcli.shapes.types import Mesh, merge_vertices

APART = 0.01  # of the way to the neighbours' mean, by which a copy is moved
_ROUNDS = 20  # of cutting edges in two: each takes one edge of a face


def count_nonmanifold_edges(mesh: Mesh) -> int:
    """Count the edges at which more than two faces meet."""
    counts = np.unique(_keys(mesh.faces, len(mesh.vertices)), return_counts=True)[1]
    return int(np.sum(counts > 2))


def split_nonmanifold_edges(mesh: Mesh) -> Mesh:
    """Return a closed, oriented mesh with two faces at each edge; another mesh as it is.

    Colours are dropped where something is split.
    """
    welded, _ = merge_vertices(mesh)
    if not count_nonmanifold_edges(welded):
        return mesh
    found = closedness(welded)
    if not (found.closed and found.oriented):
        return mesh
    points, faces = welded.vertices, _without_folds(welded.faces)
    if not len(faces):
        return mesh
    for _ in range(_ROUNDS):
        pairs = _pair_faces(points, faces)
        points, split = _split_vertices(points, faces, pairs)
        doubled = _doubled(split, pairs, len(points))
        if not len(doubled):
            return Mesh(points, split)
        points, faces = _cut_in_two(points, split, pairs, doubled)
    return Mesh(points, faces)


def _keys(faces: np.ndarray, n_vertices: int) -> np.ndarray:
    """Return one number [f, 3] for each side of each face, equal where they are of one edge."""
    ends = np.stack([faces, np.roll(faces, -1, axis=1)])
    return ends.min(axis=0) * n_vertices + ends.max(axis=0)


def _without_folds(faces: np.ndarray) -> np.ndarray:
    """Leave out faces without an area and pairs of faces that are each other's back."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    order = np.argsort(faces, axis=1)
    turned = np.isin(order @ [9, 3, 1], [0 * 9 + 2 * 3 + 1, 1 * 9 + 0 * 3 + 2, 2 * 9 + 1 * 3 + 0])
    _, group = np.unique(np.sort(faces, axis=1), axis=0, return_inverse=True)
    group = group.ravel()
    n_backs = np.bincount(group, weights=turned).astype(int)
    n_folds = np.minimum(n_backs, np.bincount(group) - n_backs)
    keep = np.ones(len(faces), dtype=bool)
    for side in (turned, ~turned):
        rows = np.flatnonzero(side & (n_folds[group] > 0))
        rows = rows[np.argsort(group[rows], kind="stable")]
        first = np.searchsorted(group[rows], group[rows])
        keep[rows[np.arange(len(rows)) - first < n_folds[group[rows]]]] = False
    return faces[keep]


def _pair_faces(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Pair the sides of faces [n, 2]; side 3 f + k of face f runs from its corner k to the next."""
    keys = _keys(faces, len(points)).ravel()
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
    counts = np.diff(np.r_[starts, len(order)])
    plain = starts[counts == 2]
    pairs = [np.stack([order[plain], order[plain + 1]], axis=1)]
    for start, count in zip(starts[counts > 2], counts[counts > 2], strict=True):
        pairs.append(_pair_around(points, faces, order[start : start + count]))
    return np.concatenate(pairs)


def _pair_around(points: np.ndarray, faces: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Pair the sides at one edge over the solid between their faces, by the angle around it."""
    tails, heads = faces.ravel()[sides], faces[sides // 3, (sides % 3 + 1) % 3]
    tips = points[faces[sides // 3, (sides % 3 + 2) % 3]]
    forwards = tails < heads
    low, high = points[min(tails[0], heads[0])], points[max(tails[0], heads[0])]
    axis = (high - low) / max(float(np.linalg.norm(high - low)), 1e-300)
    across = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    local = tips - low
    angle = np.arctan2(local @ np.cross(axis, across), local @ across)
    turn = np.lexsort([forwards, angle])
    # from a face that runs backwards, the solid reaches in the sense of the angle to one that runs
    # forwards: matched like brackets, around the circle
    waiting: list[int] = []
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for i in (*turn, *turn):
        if i in used:
            continue
        if not forwards[i]:
            if i not in waiting:
                waiting.append(i)
        elif waiting:
            other = waiting.pop()
            used |= {i, other}
            pairs.append((int(sides[other]), int(sides[i])))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _split_vertices(
    points: np.ndarray, faces: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give each fan of faces that are joined by pairs its own vertex; return points and faces."""
    n = faces.size
    one, two = pairs.T
    sides = np.arange(n)
    after = sides - sides % 3 + (sides % 3 + 1) % 3  # the corner where a side ends
    tails = np.concatenate([one, after[one]])
    heads = np.concatenate([after[two], two])  # the sides of a pair run in opposite directions
    joined = sparse.coo_matrix((np.ones(len(tails), dtype=bool), (tails, heads)), shape=(n, n))
    _, fan = connected_components(joined.tocsr(), directed=False)
    _, first, number = np.unique(fan, return_index=True, return_inverse=True)
    origin = faces.ravel()[first]
    new = points[origin].copy()
    split = number.reshape(faces.shape)
    # a copy moves towards its own fan
    copies = np.flatnonzero(np.bincount(origin, minlength=len(points))[origin] > 1)
    if len(copies):
        is_copy = np.zeros(len(new), dtype=bool)
        is_copy[copies] = True
        sums, weights = np.zeros_like(new), np.zeros(len(new))
        for k in range(3):
            rows = np.flatnonzero(is_copy[split[:, k]])
            for other in (1, 2):
                np.add.at(sums, split[rows, k], points[faces[rows, (k + other) % 3]])
                np.add.at(weights, split[rows, k], 1.0)
        order = copies[np.argsort(origin[copies], kind="stable")]
        rank = np.arange(len(order)) - np.searchsorted(origin[order], origin[order])
        mean = sums[order] / weights[order, None]
        new[order] += APART * (1.0 + rank[:, None]) * (mean - new[order])
    return new, split


def _doubled(faces: np.ndarray, pairs: np.ndarray, n_vertices: int) -> np.ndarray:
    """Find the pairs beyond the first that still share their edge with another pair."""
    keys = _keys(faces, n_vertices).ravel()[pairs[:, 0]]
    order = np.argsort(keys, kind="stable")
    same = np.r_[False, keys[order][1:] == keys[order][:-1]]
    return order[same]


def _cut_in_two(
    points: np.ndarray, faces: np.ndarray, pairs: np.ndarray, doubled: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put a vertex into the edge between both faces of pairs; of a face only one edge is cut."""
    added, cut, touched = [], {}, set()
    for one, two in pairs[doubled].tolist():
        if {one // 3, two // 3} & touched:
            continue
        touched |= {one // 3, two // 3}
        a, b = (points[faces[one // 3, (one % 3 + k) % 3]] for k in range(2))
        tips = [points[faces[side // 3, (side % 3 + 2) % 3]] for side in (one, two)]
        middle = 0.5 * (a + b)
        cut[one] = cut[two] = len(points) + len(added)
        added.append(middle + APART * (0.5 * (tips[0] + tips[1]) - middle))
    keep = np.ones(len(faces), dtype=bool)
    more = []
    for side, middle in cut.items():
        face, k = divmod(side, 3)
        a, b, c = np.roll(faces[face], -k)
        keep[face] = False
        more += [(a, middle, c), (middle, b, c)]
    return np.concatenate([points, added]), np.concatenate([faces[keep], np.array(more)])

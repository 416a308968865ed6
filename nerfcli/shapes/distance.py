"""Exact distance from points to a triangle mesh, without a compiled tree of triangles.

Every face is cut into congruent pieces; a k-d tree holds the pieces' centroids. A query first
measures the face of the nearest centroid. That distance d is an upper bound, and a piece of
radius r around centroid c can hold a nearer point only if |q - c| < d + r: all faces with such
pieces are measured too, so the answer is exact. Queries are taken in groups of neighbours: one
ball around the group finds the pieces, one matrix product their distances to every query.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from nerfcli.shapes.types import Mesh

_CHUNK = 200_000  # queries at a time
_GROUP = 64  # queries that share one search: fewer cost more calls, more a wider ball
_BATCH = 256  # groups at a time: bounds the lists of neighbours
_DENSE = 4_000_000  # entries of one distance matrix
_BLOCK = 512  # columns of one small product
_PAIRS = 1_000_000  # pairs of query and face measured at a time
_THIN = 1e-4  # sine of a face's angle, below which rounding spoils its plane


def closest_points_on_triangles(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Find the nearest point of each triangle to its point; triangles may be degenerate.

    points: [n, 3]. triangles: [n, 3 corners, 3]. Returns [n, 3].
    Source: the regions of Ericson (2005), Real-Time Collision Detection, 5.1.5.
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    ab, ac, ap = b - a, c - a, points - a
    normal = np.cross(ab, ac)
    area2 = _dot(normal, normal)
    # weights of b and c at the foot of the perpendicular, times the squared double area; through
    # products of vectors, as those of their dot products cancel where a triangle is thin
    v, w = _dot(np.cross(ap, ac), normal), _dot(np.cross(ab, ap), normal)
    inside = (v > 0) & (w > 0) & (v + w < area2)
    safe = np.where(inside, area2, 1.0)
    best = a + (v / safe)[:, None] * ab + (w / safe)[:, None] * ac
    # of the thinnest not even that foot is certain: an edge may be nearer
    thin = area2 <= _THIN**2 * _dot(ab, ab) * _dot(ac, ac)
    rest = np.flatnonzero(~inside | thin)
    if len(rest):
        p, foot = points[rest], best[rest]
        edge = _closest_on_edges(p, triangles[rest])
        nearer = ~inside[rest] | (_dot(p - edge, p - edge) < _dot(p - foot, p - foot))
        best[rest] = np.where(nearer[:, None], edge, foot)
    return best


def _closest_on_edges(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    best = triangles[:, 0].copy()
    best2 = np.full(len(points), np.inf)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        origin = triangles[:, start]
        edge = triangles[:, end] - origin
        length2 = _dot(edge, edge)
        t = _dot(points - origin, edge) / np.where(length2 > 0, length2, 1.0)
        foot = origin + np.clip(t, 0.0, 1.0)[:, None] * edge
        distance2 = _dot(points - foot, points - foot)
        nearer = distance2 < best2
        best[nearer], best2[nearer] = foot[nearer], distance2[nearer]
    return best


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


class Surface:
    """A mesh prepared for exact nearest-point queries."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        # about the mesh's own centre: far from the origin float64 would lose digits
        self._center = mesh.vertices[np.unique(mesh.faces)].mean(axis=0)
        self._triangles = mesh.triangles - self._center
        self._centroids, self._owners, self._radii = _pieces(self._triangles)
        self._normals = _sure_normals(mesh)
        self._tree = KDTree(self._centroids)

    def closest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find distance [n], nearest point of the mesh [n, 3] and its face [n] of points [n, 3]."""
        found = _Best(self._triangles, points - self._center)
        for start in range(0, len(points), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(points)))
            _, nearest = self._tree.query(found.points[rows], workers=-1)
            found.offer(rows, self._owners[nearest])
            for groups in _batches(_groups(found.points, rows)):
                self._prove(found, groups)
        return found.distance, found.foot + self._center, found.face

    def _prove(self, found: _Best, groups: list[np.ndarray]) -> None:
        """Offer each query of the groups every face that could still be nearer."""
        middles = np.stack([found.points[rows].mean(axis=0) for rows in groups])
        reaches = np.array([
            np.max(np.linalg.norm(found.points[rows] - middle, axis=1) + found.distance[rows])
            for rows, middle in zip(groups, middles, strict=True)
        ])  # fmt: skip
        radii = (reaches + self._radii.max()) * (1 + 1e-12)
        lists = self._tree.query_ball_point(middles, radii, workers=-1)
        pairs: list[np.ndarray] = []
        for rows, middle, members in zip(groups, middles, lists, strict=True):
            pieces = np.array(members, dtype=np.int64)
            step = max(1, _DENSE // len(rows))
            for start in range(0, len(pieces), step):
                pairs.append(self._candidates(found, rows, middle, pieces[start : start + step]))
                if sum(map(len, pairs)) > _PAIRS:
                    self._offer(found, pairs)
        self._offer(found, pairs)

    def _candidates(
        self, found: _Best, rows: np.ndarray, middle: np.ndarray, pieces: np.ndarray
    ) -> np.ndarray:
        """Find pairs of a query and a piece near enough, as query * n_faces + face."""
        q, p = found.points[rows] - middle, self._centroids[pieces] - middle
        d, r = found.distance[rows], self._radii[pieces]
        q2, p2 = _dot(q, q), _dot(p, p)
        slack = 1e-14 * (q2.max() + p2.max() + d.max() ** 2 + r.max() ** 2)  # of rounding
        # |q - p|^2 <= (d + r)^2 as the sign of one matrix product
        left = np.column_stack([q, d, np.ones(len(q)), 0.5 * (d * d - q2) + slack])
        right = np.column_stack([p, r, 0.5 * (r * r - p2), np.ones(len(p))])
        block, row, column = np.nonzero(_products(left, right) >= 0)
        column += block * _BLOCK
        # the piece lies in a disk: at height h over its plane, rho along it, nothing is nearer
        # than sqrt(h^2 + (rho - r)^2), a sharper bound than the ball's for what lies far in front
        gap = q[row] - p[column]
        height, gap2 = _dot(gap, self._normals[self._owners[pieces[column]]]), _dot(gap, gap)
        beyond = np.maximum(np.sqrt(np.maximum(gap2 - height * height, 0.0)) - r[column], 0.0)
        # 1e-11: the rounding of a normal whose face is only just not thin
        near = height * height + beyond * beyond <= d[row] ** 2 + slack + 1e-11 * gap2
        query, face = rows[row[near]], self._owners[pieces[column[near]]]
        other = face != found.face[query]
        return query[other] * len(self._triangles) + face[other]

    def _offer(self, found: _Best, pairs: list[np.ndarray]) -> None:
        if pairs:
            query, face = np.divmod(np.unique(np.concatenate(pairs)), len(self._triangles))
            found.offer(query, face)
        pairs.clear()


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compute left @ right.T [m, n] in blocks of columns [n / _BLOCK, m, _BLOCK]; below 0 beyond n.

    Blocks this small stay on one thread of the BLAS: its helpers would spin more than they help.
    """
    padded = np.zeros((-(-len(right) // _BLOCK) * _BLOCK, right.shape[1]))
    padded[: len(right)] = right
    padded[len(right) :, 4] = -1.0  # the column that `left` holds at 1
    return left @ padded.reshape(-1, _BLOCK, right.shape[1]).transpose(0, 2, 1)


class _Best:
    """The best answer so far for each query."""

    def __init__(self, triangles: np.ndarray, points: np.ndarray) -> None:
        self.triangles = triangles
        self.points = points
        self.distance = np.full(len(points), np.inf)
        self.foot = np.zeros_like(points)
        self.face = np.full(len(points), -1, dtype=np.int64)

    def offer(self, rows: np.ndarray, faces: np.ndarray) -> None:
        """Keep the faces that are nearer than the best so far; rows ascending, repeats allowed."""
        if not len(rows):
            return
        points = self.points[rows]
        foot = closest_points_on_triangles(points, self.triangles[faces])
        distance = np.linalg.norm(points - foot, axis=1)
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        least = np.repeat(np.minimum.reduceat(distance, starts), np.diff(starts, append=len(rows)))
        best = (distance == least) & (distance < self.distance[rows])
        rows = rows[best]
        self.distance[rows] = distance[best]
        self.foot[rows] = foot[best]
        self.face[rows] = faces[best]


def _groups(points: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Split rows into ascending lists of queries that lie close together."""
    size = 2 ** max(0, int(np.ceil(np.log2(len(rows) / _GROUP))))
    ends = [rows]
    while len(ends) < size:
        halves = []
        for part in ends:
            axis = np.argmax(np.ptp(points[part], axis=0))
            middle = len(part) // 2
            order = np.argpartition(points[part, axis], middle)
            halves += [part[order[:middle]], part[order[middle:]]]
        ends = halves
    return [np.sort(part) for part in ends if len(part)]


def _sure_normals(mesh: Mesh) -> np.ndarray:
    """Unit normals [f, 3]; zero where a face is too thin for a precise normal."""
    a, b, c = mesh.triangles.transpose(1, 0, 2)
    longest2 = np.maximum(np.maximum(_dot(b - a, b - a), _dot(c - b, c - b)), _dot(a - c, a - c))
    sure = 2.0 * mesh.face_areas > _THIN * longest2
    return np.where(sure[:, None], mesh.face_normals, 0.0)


def _batches(groups: list[np.ndarray]) -> list[list[np.ndarray]]:
    return [groups[start : start + _BATCH] for start in range(0, len(groups), _BATCH)]


def _pieces(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut each triangle into n**2 congruent ones: centroids [m, 3], owners [m], radii [m].

    n is chosen so that the pieces are of like size and about twice as many as faces.
    """
    reach = np.linalg.norm(triangles - triangles.mean(axis=1, keepdims=True), axis=2).max(axis=1)
    budget = 2 * len(triangles) + 2_000
    size = max(np.median(reach), reach.max() * 1e-6, np.finfo(float).tiny)
    while np.sum(np.ceil(reach / size) ** 2) > budget:
        size *= 1.25
    while np.sum(np.ceil(reach / (size * 0.8)) ** 2) <= budget:
        size *= 0.8
        if reach.max() == 0.0:
            break  # a mesh of points: nothing to cut
    cuts = np.maximum(np.ceil(reach / size), 1).astype(np.int64)
    centroids, owners, radii = [], [], []
    for n in np.unique(cuts):
        mine = np.flatnonzero(cuts == n)
        weights = _piece_weights(int(n))
        centroids.append(np.einsum("pk,fkd->fpd", weights, triangles[mine]).reshape(-1, 3))
        owners.append(np.repeat(mine, len(weights)))
        # a hair more than the geometry says, so that rounding cannot undo the proof
        radii.append(np.repeat(reach[mine] / n * (1 + 1e-9), len(weights)))
    return np.concatenate(centroids), np.concatenate(owners), np.concatenate(radii)


def _piece_weights(n: int) -> np.ndarray:
    """Barycentric weights [n * n, 3] of the centroids of the n**2 pieces of a triangle."""
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    upright = np.stack([i, j], axis=-1)[i + j < n] + 1 / 3
    inverted = np.stack([i, j], axis=-1)[i + j < n - 1] + 2 / 3
    bc = np.concatenate([upright, inverted]) / n
    return np.column_stack([1.0 - bc.sum(axis=1), bc])

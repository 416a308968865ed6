"""Remesh to triangles of like size: split long edges, collapse short ones, flip.

All three keep a closed surface closed and its genus; none turns a face over. Source of the
scheme: Botsch and Kobbelt (2004), A Remeshing Approach to Multiresolution Modeling, section 4.
"""

from __future__ import annotations

import numpy as np

from nerfcli.shapes.topology import Topology, topology_of
from nerfcli.shapes.types import Mesh, unit

_LONG, _SHORT = (
    4 / 3,
    4 / 5,
)  # of the wanted length: the halves of a split edge do not collapse next
_SAME_SIDE = 0.3  # least cosine between the normals of a face before and after


def remesh(mesh: Mesh, length: float) -> Mesh:
    """Remesh to edges of about `length`; colours are dropped."""
    mesh = split_long_edges(Mesh(mesh.vertices, mesh.faces), _LONG * length)
    mesh = collapse_short_edges(mesh, _SHORT * length, _LONG * length)
    return flip_edges(mesh)


def icosphere(subdivisions: int, radius: float = 1.0, center: np.ndarray | None = None) -> Mesh:
    """Make a sphere of 20 * 4**subdivisions nearly equal triangles, oriented outwards."""
    g = (1.0 + 5.0**0.5) / 2.0
    corners = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g)]
    corners += [(0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]
    faces = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11)]
    faces += [(1, 5, 9), (5, 11, 4), (11, 10, 2), (10, 7, 6), (7, 1, 8)]
    faces += [(3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9)]
    faces += [(4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1)]
    mesh = Mesh(unit(np.array(corners, dtype=np.float64)), np.array(faces, dtype=np.int64))
    for _ in range(subdivisions):
        mesh = subdivide(mesh)
        mesh = Mesh(unit(mesh.vertices), mesh.faces)
    middle = np.zeros(3) if center is None else center
    return Mesh(mesh.vertices * radius + middle, mesh.faces)


def subdivide(mesh: Mesh) -> Mesh:
    """Cut every face into four at the middles of its edges."""
    topology = topology_of(mesh.faces, len(mesh.vertices))
    return _split(mesh, topology, np.ones(len(topology.edges), dtype=bool))


def split_long_edges(mesh: Mesh, longest: float) -> Mesh:
    """Cut every edge longer than `longest` in the middle."""
    topology = topology_of(mesh.faces, len(mesh.vertices))
    return _split(mesh, topology, _lengths(mesh, topology) > longest)


def _split(mesh: Mesh, topology: Topology, marked: np.ndarray) -> Mesh:
    n = len(mesh.vertices)
    ends = topology.edges[marked]
    number = np.full(len(marked), -1)
    number[marked] = n + np.arange(len(ends))
    keys = topology.edges @ np.array([n, 1])
    sides = np.sort(np.stack([mesh.faces, mesh.faces[:, [1, 2, 0]]], axis=-1), axis=-1)
    middles = number[np.searchsorted(keys, sides @ np.array([n, 1]))]  # [f, 3], -1: not cut
    cuts = (middles >= 0).sum(axis=1)
    new = [mesh.faces[cuts == 0]]
    # turn each face so that its cut edges come first: ab; ab and bc; all
    one = np.argmax(middles >= 0, axis=1)
    turn = np.where(cuts == 2, np.argmin(middles, axis=1) + 1, one)
    order = (turn[:, None] + np.arange(3)) % 3
    a, b, c = np.take_along_axis(mesh.faces, order, axis=1).T
    ab, bc, ca = np.take_along_axis(middles, order, axis=1).T
    patterns = {
        1: ((a, ab, c), (ab, b, c)),
        2: ((ab, b, bc), (a, ab, bc), (a, bc, c)),
        3: ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)),
    }
    for n_cuts, triangles in patterns.items():
        mine = cuts == n_cuts
        new += [np.stack(corners, axis=1)[mine] for corners in triangles]
    vertices = np.concatenate([mesh.vertices, mesh.vertices[ends].mean(axis=1)])
    return Mesh(vertices, np.concatenate(new))


def collapse_short_edges(mesh: Mesh, shortest: float, longest: float, rounds: int = 4) -> Mesh:
    """Draw edges shorter than `shortest` into their middles, the shortest first.

    Left alone: an edge whose loss would join two parts of the surface, turn a face, or make an
    edge longer than `longest`. A round draws in edges that have no neighbourhood in common.
    """
    for _ in range(rounds):
        n_faces = len(mesh.faces)
        mesh = _collapse_once(mesh, shortest, longest)
        if len(mesh.faces) == n_faces:
            break
    return mesh


def _collapse_once(mesh: Mesh, shortest: float, longest: float) -> Mesh:
    topology = topology_of(mesh.faces, len(mesh.vertices))
    lengths = _lengths(mesh, topology)
    order = np.argsort(lengths)
    order = order[lengths[order] < shortest]
    around = _faces_around(mesh)
    vertices, faces = mesh.vertices.copy(), mesh.faces
    target = np.arange(len(vertices))
    busy = np.zeros(len(vertices), dtype=bool)
    for a, b in topology.edges[order]:
        if busy[a] or busy[b]:
            continue
        near = np.concatenate([around(a), around(b)])
        ring = np.unique(faces[near])
        if busy[ring].any() or not _may_collapse(vertices, faces, a, b, near, longest):
            continue
        vertices[a] = vertices[b] = 0.5 * (vertices[a] + vertices[b])
        target[b] = a
        busy[ring] = True
    return _drop_unused_vertices(vertices, target[faces])


def _may_collapse(
    vertices: np.ndarray, faces: np.ndarray, a: int, b: int, near: np.ndarray, longest: float
) -> bool:
    corners = faces[near]
    has_a, has_b = (corners == a).any(axis=1), (corners == b).any(axis=1)
    shared = has_a & has_b
    common = np.intersect1d(corners[has_a], corners[has_b])
    if len(common) != 4 or shared.sum() != 4:  # a, b and two tips; both faces listed twice
        return False
    rest = corners[~shared]
    if len(np.unique(np.sort(np.where(rest == b, a, rest), axis=1), axis=0)) < len(rest):
        return False  # of a tetrahedron two faces would fall onto each other
    before = vertices[rest]
    middle = 0.5 * (vertices[a] + vertices[b])
    after = np.where(((rest == a) | (rest == b))[..., None], middle, before)
    if np.max(np.linalg.norm(after - middle, axis=2)) > longest:
        return False
    return bool(np.all(np.einsum("ij,ij->i", _normals(before), _normals(after)) > _SAME_SIDE))


def flip_edges(mesh: Mesh, rounds: int = 3) -> Mesh:
    """Turn edges whose opposite angles sum to more than pi (not Delaunay), where none folds."""
    faces = mesh.faces.copy()
    for _ in range(rounds):
        topology = topology_of(faces, len(mesh.vertices))
        chosen = _flips(mesh.vertices, topology)
        if not len(chosen):
            break
        one, two = topology.hinges[chosen].T
        new_one, new_two = _turn(topology, chosen)
        faces[one], faces[two] = new_one, new_two
    return Mesh(mesh.vertices, faces)


def _turn(topology: Topology, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make the two faces that replace each hinge's two."""
    tip, other = topology.hinge_tips[rows].T
    first = topology.faces[topology.hinges[rows, 0]]
    place = np.argmax(first == tip[:, None], axis=1)
    at = np.arange(len(rows))
    a, b = first[at, (place + 1) % 3], first[at, (place + 2) % 3]  # face (tip, a, b)
    return np.stack([tip, a, other], axis=1), np.stack([tip, other, b], axis=1)


def _flips(vertices: np.ndarray, topology: Topology) -> np.ndarray:
    """Choose hinges to turn; no two of them share a vertex."""
    rows = np.arange(len(topology.hinges))
    excess = _opposite_angles(vertices, topology) - np.pi
    rows = rows[excess > 1e-3]
    old = _normals(vertices[topology.faces[topology.hinges[rows]]].reshape(-1, 3, 3))
    new = _normals(vertices[np.stack(_turn(topology, rows), axis=1)].reshape(-1, 3, 3))
    old, new = old.reshape(-1, 2, 3), new.reshape(-1, 2, 3)
    agree = np.einsum("nid,njd->nij", old, new).min(axis=(1, 2)) > _SAME_SIDE
    n = topology.n_vertices
    keys = np.sort(topology.hinge_tips[rows], axis=1) @ np.array([n, 1])
    known = np.isin(keys, topology.edges @ np.array([n, 1]))
    rows = rows[agree & ~known]
    busy = np.zeros(n, dtype=bool)
    chosen = []
    for row in rows[np.argsort(-excess[rows])]:
        corners = (*topology.edges[topology.hinge_edges[row]], *topology.hinge_tips[row])
        if not any(busy[corner] for corner in corners):
            chosen.append(row)
            busy[list(corners)] = True
    return np.array(chosen, dtype=np.int64)


def _opposite_angles(vertices: np.ndarray, topology: Topology) -> np.ndarray:
    ends = vertices[topology.edges[topology.hinge_edges]]
    total = np.zeros(len(ends))
    for side in range(2):
        tip = vertices[topology.hinge_tips[:, side]]
        arms = unit(ends - tip[:, None])
        total += np.arccos(np.clip(np.einsum("ij,ij->i", arms[:, 0], arms[:, 1]), -1.0, 1.0))
    return total


def _faces_around(mesh: Mesh):  # a function from a vertex to the faces that hold it
    flat = mesh.faces.ravel()
    order = np.argsort(flat, kind="stable") // 3
    ends = np.cumsum(np.bincount(flat, minlength=len(mesh.vertices)))
    starts = np.concatenate([[0], ends])
    return lambda vertex: order[starts[vertex] : starts[vertex + 1]]


def _drop_unused_vertices(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """Drop faces that name a vertex twice, and vertices that no face names."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    used, inverse = np.unique(faces, return_inverse=True)
    return Mesh(vertices[used], inverse.reshape(-1, 3))


def _normals(triangles: np.ndarray) -> np.ndarray:
    return unit(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]))


def _lengths(mesh: Mesh, topology: Topology) -> np.ndarray:
    ends = mesh.vertices[topology.edges]
    return np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)

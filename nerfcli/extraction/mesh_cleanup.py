"""Clean up a mesh: snap vertices to the level set, drop unseen components."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from nerfcli.core.errors import NerfError
from nerfcli.extraction.solid import Solid
from nerfcli.extraction.visibility import Visibility
from nerfcli.shapes.types import Mesh

SEARCH = 0.75  # cells to each side of a vertex: the level is there, or it is left alone
HALVINGS = 6  # of that interval: to a hundredth of a cell
PROBES = 2000  # vertices of a component that are searched for in the training views
CRUMB_CELLS = 2.0  # across: the grid resolves nothing that is smaller
SHOWN_CELLS = 1.5  # a pixel shows a vertex if its light stops within this many cells of it


def refine_mesh(mesh: Mesh, solid: Solid) -> Mesh:
    """Move vertices along their normals to where the density is the threshold (bisection).

    Vertices where the solid is filled, and those without a change of sign nearby, stay.
    """
    step = SEARCH * solid.grid.spacing
    normals = mesh.vertex_normals
    rows = np.flatnonzero(solid.behind(mesh.vertices) < 0)
    ends = []
    for side in (-1.0, 1.0):  # inside, then outside
        ends.append(solid.log_ratio(mesh.vertices[rows] + side * step * normals[rows]))
    rows = rows[(ends[0] > 0) & (ends[1] < 0)]
    low, high = np.full(len(rows), -step), np.full(len(rows), step)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        dense = solid.log_ratio(mesh.vertices[rows] + middle[:, None] * normals[rows]) > 0
        low, high = np.where(dense, middle, low), np.where(dense, high, middle)
    vertices = mesh.vertices.copy()
    vertices[rows] += (0.5 * (low + high))[:, None] * normals[rows]
    return Mesh(vertices, mesh.faces)


def drop_unseen_components(mesh: Mesh, solid: Solid, visibility: Visibility) -> tuple[Mesh, int]:
    """Drop the components that no pixel of a training view shows, and count them.

    Only whole components go, so the surface stays closed. Crumbs beside the largest component go
    too: a rough surface leaves them around single samples. So do cavities (components that enclose
    outside), unless a training camera stands in the box of one.

    Raises:
        NerfError: no component is left.
    """
    n_parts, labels = label_components(mesh)
    source = solid.source
    probes = _probes(labels, n_parts)
    tolerance = max(SHOWN_CELLS * solid.grid.spacing * source.scale, source.step)
    shown = visibility.shown(source.to_scene(mesh.vertices[probes]), tolerance).numpy()
    keep = np.bincount(labels[probes], weights=shown, minlength=n_parts) > 0
    low, high = _boxes(mesh, labels, n_parts)
    crumb = (high - low).max(axis=1) < CRUMB_CELLS * solid.grid.spacing
    crumb[np.bincount(labels).argmax()] = False
    keep &= ~crumb
    scene = source.model.scene
    cameras = source.to_source(scene.cameras[list(scene.splits["train"])].positions)
    for part in np.flatnonzero(keep & (_volumes(mesh, labels, n_parts) < 0)):
        inside = (cameras > low[part]) & (cameras < high[part])
        keep[part] = bool(inside.all(axis=1).any())
    if not keep.any():
        raise NerfError(
            f"no training camera sees a surface at --threshold {solid.threshold:.4g}: what is "
            "that dense lies hidden. Give another --threshold."
        )
    return select_faces(mesh, keep[labels[mesh.faces[:, 0]]]), int(n_parts - keep.sum())


def label_components(mesh: Mesh) -> tuple[int, np.ndarray]:
    """Count the connected components, and return the component of each vertex [v]."""
    n = len(mesh.vertices)
    tails, heads = mesh.faces[:, [0, 1]].ravel(), mesh.faces[:, [1, 2]].ravel()
    graph = sparse.coo_matrix((np.ones(len(tails), dtype=bool), (tails, heads)), shape=(n, n))
    n_parts, labels = connected_components(graph.tocsr(), directed=False)
    return int(n_parts), labels


def select_faces(mesh: Mesh, keep: np.ndarray) -> Mesh:
    """Keep the faces where keep [f] is true, and the vertices that they use."""
    used, inverse = np.unique(mesh.faces[keep], return_inverse=True)
    colors = None if mesh.vertex_colors is None else mesh.vertex_colors[used]
    return Mesh(mesh.vertices[used], inverse.reshape(-1, 3), colors)


def _probes(labels: np.ndarray, n_parts: int) -> np.ndarray:
    """Choose at most PROBES vertices of each component, evenly."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=n_parts)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    stride = -(-counts // PROBES)
    return order[rank % np.repeat(stride, counts) == 0]


def _boxes(mesh: Mesh, labels: np.ndarray, n_parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corners [n_parts, 3] of the components' boxes."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(n_parts))
    points = mesh.vertices[order]
    return np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)


def _volumes(mesh: Mesh, labels: np.ndarray, n_parts: int) -> np.ndarray:
    """Signed volume of each component."""
    center = mesh.vertices.mean(axis=0)
    a, b, c = (mesh.triangles - center).transpose(1, 0, 2)
    volumes = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6.0
    return np.bincount(labels[mesh.faces[:, 0]], weights=volumes, minlength=n_parts)

"""Find the neighbours among vertices and faces of a mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Topology:
    """The neighbourhoods of a mesh with v vertices, e edges and h hinges.

    faces: [f, 3]. edges: [e, 2], each once, the lower vertex first.
    hinges: [h, 2] the two faces of each edge that has exactly two.
    hinge_edges: [h] the index of that edge. hinge_tips: [h, 2] each face's vertex off the edge.
    hinge_signs: [h] 1 where both faces are wound in the same sense, else -1.
    """

    n_vertices: int
    faces: np.ndarray
    edges: np.ndarray
    hinges: np.ndarray
    hinge_edges: np.ndarray
    hinge_tips: np.ndarray
    hinge_signs: np.ndarray


def topology_of(faces: np.ndarray, n_vertices: int) -> Topology:
    """Find edges and hinges of faces [f, 3]; edges with one face or more than two make no hinge."""
    tails = faces.T.ravel()  # corner 0 of all faces, then corner 1, then corner 2
    heads = faces[:, [1, 2, 0]].T.ravel()
    tips = faces[:, [2, 0, 1]].T.ravel()
    owners = np.tile(np.arange(len(faces)), 3)
    keys = np.minimum(tails, heads) * n_vertices + np.maximum(tails, heads)
    unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    first = np.cumsum(counts) - counts
    paired = np.flatnonzero(counts == 2)
    sides = np.stack([order[first[paired]], order[first[paired] + 1]], axis=1)
    edges = np.stack([unique // n_vertices, unique % n_vertices], axis=1)
    # faces of one sense run along their common edge in opposite directions
    rises = (tails < heads)[sides]
    signs = np.where(rises[:, 0] != rises[:, 1], 1.0, -1.0)
    return Topology(n_vertices, faces, edges, owners[sides], paired, tips[sides], signs)


def degrees(topology: Topology) -> np.ndarray:
    """Count the neighbours of each vertex [v]."""
    return np.bincount(topology.edges.ravel(), minlength=topology.n_vertices)

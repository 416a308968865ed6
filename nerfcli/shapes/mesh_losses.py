"""Losses that move a mesh: Chamfer, normals, edges, smoothness, Laplacian; differentiable.

The definitions and what each weight does are in docs/geometry.md. Points and vertices have any
leading batch dimensions, [..., n, 3]; meshes of a batch share one topology. A loss has the
leading dimensions as its shape. Nearest neighbours are found outside the graph: their choice is
constant almost everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.spatial import KDTree
from torch import Tensor

from nerfcli.core.errors import NerfError
from nerfcli.shapes.topology import Topology, degrees


@dataclass(frozen=True, eq=False)
class NearestPairs:
    """q_of_p [..., n]: index in q of each p's nearest neighbour; p_of_q [..., m] likewise."""

    q_of_p: Tensor
    p_of_q: Tensor


def nearest_neighbours(p: Tensor, q: Tensor) -> NearestPairs:
    """Find nearest neighbours both ways between p [..., n, d] and q [..., m, d].

    Raises:
        NerfError: a set without points, which has no nearest one.
    """
    if p.shape[-2] == 0 or q.shape[-2] == 0:
        raise NerfError(f"No nearest points between {p.shape[-2]} and {q.shape[-2]} points.")
    flat_p = p.detach().reshape(-1, *p.shape[-2:]).cpu().numpy()
    flat_q = q.detach().reshape(-1, *q.shape[-2:]).cpu().numpy()
    q_of_p, p_of_q = [], []
    for one, two in zip(flat_p, flat_q, strict=True):
        q_of_p.append(torch.from_numpy(KDTree(two).query(one, workers=-1)[1]))
        p_of_q.append(torch.from_numpy(KDTree(one).query(two, workers=-1)[1]))
    return NearestPairs(
        torch.stack(q_of_p).reshape(p.shape[:-1]).to(p.device),
        torch.stack(p_of_q).reshape(q.shape[:-1]).to(q.device),
    )


def chamfer_squared_loss(p: Tensor, q: Tensor, matches: NearestPairs | None = None) -> Tensor:
    """Compute mean |p - q(p)|^2 + mean |q - p(q)|^2 for points [..., n, 3] and [..., m, 3]."""
    matches = matches or nearest_neighbours(p, q)
    to_q = mean_squared_gap(p, _take(q, matches.q_of_p))
    return to_q + mean_squared_gap(q, _take(p, matches.p_of_q))


def mean_squared_gap(p: Tensor, matched: Tensor) -> Tensor:
    """Compute mean |p - p'|^2 over pairs [..., n, 3]: one direction of the Chamfer loss."""
    return (p - matched).square().sum(-1).mean(-1)


def chamfer_loss(p: Tensor, q: Tensor, matches: NearestPairs | None = None) -> Tensor:
    """Compute mean |p - q(p)| + mean |q - p(q)|; the gradient of a distance of 0 is 0."""
    matches = matches or nearest_neighbours(p, q)
    to_q, to_p = p - _take(q, matches.q_of_p), q - _take(p, matches.p_of_q)
    norm = torch.linalg.vector_norm
    return norm(to_q, dim=-1).mean(-1) + norm(to_p, dim=-1).mean(-1)


def normal_loss(normals_p: Tensor, normals_q: Tensor, matches: NearestPairs) -> Tensor:
    """Compute -mean |u_q(p) . u_p| - mean |u_p(q) . u_q|: -2 where all normals agree up to sign."""
    cos_p = (normals_p * _take(normals_q, matches.q_of_p)).sum(-1)
    cos_q = (normals_q * _take(normals_p, matches.p_of_q)).sum(-1)
    return -cos_p.abs().mean(-1) - cos_q.abs().mean(-1)


def edge_loss(vertices: Tensor, topology: Topology) -> Tensor:
    """Compute mean |v - v'|^2 over the edges; 0 without edges."""
    ends = vertices[..., torch.from_numpy(topology.edges).to(vertices.device), :]
    return (ends[..., 0, :] - ends[..., 1, :]).square().sum(-1).sum(-1) / max(ends.shape[-3], 1)


def smoothness_loss(vertices: Tensor, topology: Topology) -> Tensor:
    """Sum over hinges of (cos theta + 1)^2 = (1 - n1 . n2)^2, theta = pi where flat.

    Normals are of faces turned to the same sense, whatever way they are wound.
    """
    normals = face_normals(vertices, topology.faces)
    pairs = normals[..., torch.from_numpy(topology.hinges).to(vertices.device), :]
    signs = torch.from_numpy(topology.hinge_signs).to(vertices)
    return (1.0 - signs * (pairs[..., 0, :] * pairs[..., 1, :]).sum(-1)).square().sum(-1)


def laplacian_loss(vertices: Tensor, topology: Topology) -> Tensor:
    """Compute mean |delta|^2, delta = vertex minus the mean of its neighbours; 0 of nothing."""
    return laplacian(vertices, topology).square().sum(-1).sum(-1) / max(vertices.shape[-2], 1)


def laplacian_change_loss(before: Tensor, after: Tensor, topology: Topology) -> Tensor:
    """Sum |delta' - delta|^2 between two states of one mesh: bending counts, shifting does not."""
    # delta is linear in the vertices
    return laplacian(after - before, topology).square().sum(-1).sum(-1)


def laplacian(vertices: Tensor, topology: Topology) -> Tensor:
    """Compute delta [..., v, 3] of each vertex; 0 for a vertex without neighbours."""
    edges = torch.from_numpy(topology.edges).to(vertices.device)
    n_neighbours = torch.from_numpy(degrees(topology)).to(vertices)[:, None]
    sums = torch.zeros_like(vertices)
    sums = sums.index_add(-2, edges[:, 0], vertices[..., edges[:, 1], :])
    sums = sums.index_add(-2, edges[:, 1], vertices[..., edges[:, 0], :])
    return torch.where(n_neighbours > 0, vertices - sums / n_neighbours.clamp(min=1), 0.0)


def face_normals(vertices: Tensor, faces: object) -> Tensor:
    """Compute unit normals [..., f, 3] of faces [f, 3]; 0 without area, with gradient 0."""
    corners = vertices[..., torch.as_tensor(faces, device=vertices.device), :]
    a, b, c = corners.unbind(-2)
    normals = torch.linalg.cross(b - a, c - a)
    length2 = normals.square().sum(-1, keepdim=True)
    safe = torch.where(length2 > 0, length2, 1.0)  # before the root: its slope at 0 is infinite
    return torch.where(length2 > 0, normals * safe.rsqrt(), 0.0)


def _take(values: Tensor, index: Tensor) -> Tensor:
    return torch.take_along_dim(values, index[..., None], dim=-2)

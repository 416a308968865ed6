"""Move a mesh onto a surface with the losses of mesh_losses.py.

    fit_mesh(target, start=None, weights=FitWeights(), steps=200, edge_length=0.02, seed=0, note)

`target` is a mesh, points with normals, or a function (n, rng) -> SurfaceSamples; `start` a closed
mesh near it, such as marching cubes of a field, or None for a sphere around it.

Everything happens in a frame where the target's bounding box has diagonal 1, so the weights have
no unit. One step: sample the mesh and the target, match the samples, take the gradient g of the
weighted losses by autograd, and move the vertices by -H^-1 g, H being the Gauss-Newton matrix of
the quadratic terms (Chamfer with its matches fixed, edges, Laplacian): the step needs no
learning rate, and a pull at few vertices carries its neighbourhood along. Every few steps the
mesh is remeshed, so that triangles keep their shape while the surface shrinks or grows.

A sphere that is pulled onto legs and ears at once folds. The fit therefore leads it through the
target's offset surfaces, all points at a distance d outside, with d falling to 0: each lies just
within the one before it (targets.py). At the end, local smoothing turns the faces that still oppose
the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial import KDTree

from nerfcli.core.errors import NerfError
from nerfcli.shapes.distance import Surface
from nerfcli.shapes.mesh_losses import (
    edge_loss,
    face_normals,
    laplacian,
    laplacian_loss,
    mean_squared_gap,
    smoothness_loss,
)
from nerfcli.shapes.remesh import flip_edges, icosphere, remesh
from nerfcli.shapes.surface import ensure_points
from nerfcli.shapes.surface_samples import SurfaceSamples, barycentric, sample_faces, sample_shape
from nerfcli.shapes.targets import SurfaceSampler, Targets, targets_of
from nerfcli.shapes.topology import Topology, degrees, topology_of
from nerfcli.shapes.types import Mesh, PointCloud, diagonal

# lengths in diagonals of the target's box
_START_OFFSET = 0.25
_OFFSET_SHARE = 0.7  # of the steps: in the rest the offset is 0
_COARSE = 3.0  # edges are this much longer at the start
_MANY = 100_000  # samples that stand for a surface without faces
_REMESH_EVERY = 4
_UNTURN_ROUNDS = 60  # of local smoothing where faces oppose the target, at most
_LOST = (
    "the mesh lost its target while it was fitted: the target faces inwards, or lies far from the "
    "start. Turn the target's faces, or start from its marching-cubes mesh."
)
_LARGEST_MOVE = 0.4  # of the edge length, in one step: further, matches are stale


@dataclass(frozen=True)
class FitWeights:
    """Weights of the losses; docs/geometry.md shows too little and too much of each."""

    chamfer: float = 1.0
    normal: float = 3e-4
    edge: float = 0.03
    smoothness: float = 3e-7
    laplacian: float = 0.05


def fit_mesh(
    target: Mesh | PointCloud | SurfaceSampler,
    start: Mesh | None = None,
    weights: FitWeights = FitWeights(),  # noqa: B008 - frozen
    steps: int = 200,
    edge_length: float = 0.02,
    seed: int = 0,
    note: Callable[[int, dict[str, float]], None] = lambda step, terms: None,
) -> Mesh:
    """Move the vertices of `start` onto the target's surface.

    target: a mesh, points with normals, or a function that gives points with normals.
    start: a closed mesh near the target; None takes a sphere around it. The result has its genus.
    edge_length: of the finished mesh, as a share of the diagonal of the target's box.
    note: called after each step with its number and the value of each loss.

    Raises:
        NerfError: a target without normals or extent, a start without area, a mesh that loses its
            target (which faces inwards, or lies far from the start).
    """
    if not edge_length > 0:
        raise NerfError(f"edge_length {edge_length} must be positive.")
    rng = np.random.default_rng(seed)
    sampler = _sampler(target)
    probe = sampler(_MANY, rng).points
    box = np.stack([probe.min(axis=0), probe.max(axis=0)])
    center, size = box.mean(axis=0), diagonal(box)
    if not size > 0:
        raise NerfError("the target of a fit has no extent: all its points are equal.")
    if start is None:
        mesh, offset, coarse = icosphere(3, 0.5 + _START_OFFSET), _START_OFFSET, _COARSE
    else:
        mesh, offset, coarse = Mesh((start.vertices - center) / size, start.faces), 0.0, 1.0
    _ensure_area(mesh, "the mesh that a fit starts from has no area.")
    topology = topology_of(mesh.faces, len(mesh.vertices))
    for step in range(steps):
        left = max(0.0, 1.0 - step / (_OFFSET_SHARE * steps))
        length = edge_length * (1.0 + (coarse - 1.0) * left)
        if step % _REMESH_EVERY == 0:
            mesh = remesh(mesh, length)
            _ensure_area(mesh, _LOST)
            topology = topology_of(mesh.faces, len(mesh.vertices))
        n = int(np.clip(2 * len(mesh.faces), 4_000, 20_000))
        found = sampler(n, rng)
        q = SurfaceSamples((found.points - center) / size, found.normals)
        moves, terms = _step(mesh, topology, q, n, weights, offset * left, edge_length, rng)
        far = max(float(np.linalg.norm(moves, axis=1).max()), _LARGEST_MOVE * length)
        mesh = Mesh(mesh.vertices + moves * (_LARGEST_MOVE * length / far), mesh.faces)
        note(step + 1, terms)
    mesh = Mesh(mesh.vertices * size + center, mesh.faces)
    if isinstance(target, Mesh):
        return _unturn(mesh, _normals_of_mesh(target))
    return _unturn(mesh, _normals_of_points(sampler(_MANY, rng)))


def opposing_faces(mesh: Mesh, target: Mesh) -> np.ndarray:
    """Find the faces of `mesh` whose normal opposes that of the target at the nearest point."""
    return _opposing(mesh, _normals_of_mesh(target))


NormalsAt = Callable[[np.ndarray], np.ndarray]


def _normals_of_mesh(target: Mesh) -> NormalsAt:
    surface = Surface(target)
    return lambda points: target.face_normals[surface.closest(points)[2]]


def _normals_of_points(samples: SurfaceSamples) -> NormalsAt:
    normals, tree = samples.normals, KDTree(samples.points)
    assert normals is not None
    return lambda points: normals[tree.query(points, workers=-1)[1]]


def _opposing(mesh: Mesh, normals_at: NormalsAt) -> np.ndarray:
    normals = normals_at(mesh.triangles.mean(axis=1))
    return np.flatnonzero(np.einsum("ij,ij->i", mesh.face_normals, normals) < 0)


def _unturn(mesh: Mesh, normals_at: NormalsAt) -> Mesh:
    """Smooth around faces that oppose the target until none does; return the best state."""
    best, fewest = mesh, len(mesh.faces) + 1
    for _ in range(_UNTURN_ROUNDS):
        opposing = _opposing(mesh, normals_at)
        if len(opposing) < fewest:
            best, fewest = mesh, len(opposing)
        if not len(opposing):
            break
        near = np.zeros(len(mesh.vertices), dtype=bool)
        near[mesh.faces[opposing]] = True
        for _ in range(2):
            near[mesh.faces[near[mesh.faces].any(axis=1)]] = True
        topology = topology_of(mesh.faces, len(mesh.vertices))
        for _ in range(4):
            delta = laplacian(torch.from_numpy(mesh.vertices), topology).numpy()
            mesh = Mesh(mesh.vertices - 0.5 * near[:, None] * delta, mesh.faces)
        mesh = flip_edges(mesh)
    return best


def _ensure_area(mesh: Mesh, message: str) -> None:
    if not (len(mesh.faces) and 0.0 < mesh.area < np.inf):
        raise NerfError(message)


def _sampler(target: Mesh | PointCloud | SurfaceSampler) -> SurfaceSampler:
    if isinstance(target, PointCloud) and target.normals is None:
        raise NerfError("points without normals cannot be fitted to: estimate normals first.")
    if isinstance(target, Mesh | PointCloud):
        ensure_points("the target of a fit", target)
        shape = target
        return lambda n, rng: sample_shape(shape, n, rng)
    return target


def _step(
    mesh: Mesh,
    topology: Topology,
    q: SurfaceSamples,
    n: int,
    weights: FitWeights,
    offset: float,
    edge_length: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, float]]:
    """Compute the move of each vertex [v, 3], and the value of each loss."""
    vertices = torch.tensor(mesh.vertices, requires_grad=True)
    owners = sample_faces(mesh.face_areas, n, rng)
    shares = barycentric(rng.random((n, 2)))
    corners = mesh.faces[owners]
    p = (vertices[torch.from_numpy(corners)] * torch.from_numpy(shares)[..., None]).sum(1)
    p_normals = face_normals(vertices, mesh.faces)[torch.from_numpy(owners)]
    to = targets_of(p.detach().numpy(), p_normals.detach().numpy(), q, offset, edge_length)
    if not len(to.p_of_q):
        raise NerfError(_LOST)
    p_of_q = torch.from_numpy(to.p_of_q)
    drawn = torch.from_numpy(to.drawn).to(p)
    chamfer = (drawn * (p - torch.from_numpy(to.for_p)).square().sum(-1)).mean()
    chamfer = chamfer + mean_squared_gap(torch.from_numpy(to.points), p[p_of_q])
    normals = torch.from_numpy(np.concatenate([to.p_normals, to.normals]))
    # the first n of `normals` belong to p one by one, the others to the samples they draw
    paired = torch.cat([p_normals, p_normals[p_of_q]])
    terms = {
        "chamfer": chamfer,
        "normal": -(drawn * (paired[:n] * normals[:n]).sum(-1)).mean()
        - (paired[n:] * normals[n:]).sum(-1).mean(),
        "edge": edge_loss(vertices, topology),
        "smoothness": smoothness_loss(vertices, topology),
        "laplacian": laplacian_loss(vertices, topology),
    }
    total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    (gradient,) = torch.autograd.grad(total, vertices)
    matrix = _curvature(mesh, topology, corners, shares, to, weights)
    moves = splu(matrix).solve(-gradient.numpy())
    return moves, {name: float(term.detach()) for name, term in terms.items()}


def _curvature(
    mesh: Mesh,
    topology: Topology,
    corners: np.ndarray,
    shares: np.ndarray,
    to: Targets,
    weights: FitWeights,
) -> sparse.csc_matrix:
    """Assemble the Gauss-Newton matrix [v, v] of the losses, the same for x, y and z."""
    n, v = len(corners), topology.n_vertices
    # each sample of the mesh is drawn to its own target and by those that chose it
    pulls = to.drawn / n + np.bincount(to.p_of_q, minlength=n) / len(to.p_of_q)
    rows = sparse.csr_matrix(
        (shares.ravel(), (np.repeat(np.arange(n), 3), corners.ravel())), shape=(n, v)
    )
    data = rows.T @ sparse.diags(pulls) @ rows
    a, b = topology.edges.T
    adjacency = sparse.csr_matrix((np.ones(len(a)), (a, b)), shape=(v, v))
    adjacency = adjacency + adjacency.T
    degree = np.maximum(degrees(topology), 1)
    laplace = sparse.diags(degree.astype(float)) - adjacency
    delta = sparse.identity(v) - sparse.diags(1.0 / degree) @ adjacency
    length2 = float(np.mean(np.sum((mesh.vertices[a] - mesh.vertices[b]) ** 2, axis=1)))
    # normals turn with differences of neighbours: their terms are stiff as edges are
    bend = weights.normal / v / length2 + 4.0 * weights.smoothness / length2
    matrix = 2.0 * weights.chamfer * data + 2.0 * weights.laplacian / v * (delta.T @ delta)
    matrix = matrix + (2.0 * weights.edge / len(a) + bend) * laplace
    return sparse.csc_matrix(matrix + sparse.identity(v) * (1e-3 / v))

"""Mesh losses: closed forms, gradients against finite differences, batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_geometry_shapes import box
from torch import Tensor

from nerfcli.core.errors import NerfError
from nerfcli.shapes.mesh_losses import (
    NearestPairs,
    chamfer_loss,
    chamfer_squared_loss,
    edge_loss,
    face_normals,
    laplacian,
    laplacian_change_loss,
    laplacian_loss,
    nearest_neighbours,
    normal_loss,
    smoothness_loss,
)
from nerfcli.shapes.remesh import icosphere
from nerfcli.shapes.topology import Topology, topology_of

TETRAHEDRON = topology_of(np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]), 4)
CORNERS = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)


def noisy(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def ball() -> tuple[Tensor, Topology]:
    mesh = icosphere(1)
    return torch.from_numpy(mesh.vertices), topology_of(mesh.faces, len(mesh.vertices))


def gradient_agrees(loss, *inputs: Tensor) -> bool:
    """Analytic against central differences in float64."""
    leaves = [x.clone().requires_grad_(True) for x in inputs]
    return torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-7, rtol=1e-5)


def test_topology_of_a_tetrahedron_and_of_an_open_fan() -> None:
    assert len(TETRAHEDRON.edges) == 6 and len(TETRAHEDRON.hinges) == 6
    fan = topology_of(np.array([[0, 1, 2], [0, 2, 3], [0, 2, 4]]), 6)
    assert fan.edges.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [2, 4]]
    assert len(fan.hinges) == 0  # the edge 0-2 has three faces
    two = topology_of(np.array([[0, 1, 2], [1, 0, 3]]), 4)
    assert two.hinges.tolist() == [[0, 1]] and two.hinge_tips.tolist() == [[2, 3]]
    assert two.edges[two.hinge_edges].tolist() == [[0, 1]]


def test_smoothness_does_not_depend_on_how_faces_are_wound() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.5]], dtype=torch.float64)
    same = smoothness_loss(corners, topology_of(np.array([[0, 1, 2], [1, 3, 2]]), 4))
    for faces in ([[0, 1, 2], [1, 2, 3]], [[2, 1, 0], [1, 3, 2]], [[2, 1, 0], [3, 1, 2]]):
        turned = smoothness_loss(corners, topology_of(np.array(faces), 4))
        assert turned.item() == pytest.approx(same.item())
    flat = corners * torch.tensor([1.0, 1.0, 0.0])
    turned = smoothness_loss(flat, topology_of(np.array([[0, 1, 2], [1, 2, 3]]), 4))
    assert turned.item() == pytest.approx(0.0)


def test_losses_of_nothing() -> None:
    nothing = topology_of(np.zeros((0, 3), np.int64), 0)
    vertices = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    for loss in (edge_loss, smoothness_loss, laplacian_loss):
        assert loss(vertices, nothing).item() == 0.0
    single = torch.zeros(1, 3)
    for loss in (chamfer_loss, chamfer_squared_loss):
        for pair in ((vertices, single), (single, vertices)):
            with pytest.raises(NerfError, match="No nearest points between"):
                loss(*pair)


def test_chamfer_by_hand() -> None:
    p = torch.tensor([[0.0, 0, 0], [0, 0, 1]], dtype=torch.float64)
    q = torch.tensor([[3.0, 4, 0]], dtype=torch.float64)
    assert chamfer_squared_loss(p, q).item() == pytest.approx((25 + 26) / 2 + 25)
    assert chamfer_loss(p, q).item() == pytest.approx((5 + math.sqrt(26)) / 2 + 5)
    assert chamfer_loss(p, p).item() == 0.0
    same = p.clone().requires_grad_(True)
    chamfer_loss(same, p).backward()
    assert same.grad is not None and torch.equal(same.grad, torch.zeros_like(p))


def test_normal_loss_by_hand() -> None:
    normals_p = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    normals_q = torch.tensor([[-0.6, 0.8, 0]], dtype=torch.float64)
    matches = NearestPairs(torch.tensor([0, 0]), torch.tensor([1]))
    assert normal_loss(normals_p, normals_q, matches).item() == pytest.approx(-0.7 - 0.8)
    own = NearestPairs(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert normal_loss(normals_p, -normals_p, own).item() == -2.0


def test_edge_and_laplacian_of_a_regular_tetrahedron() -> None:
    assert edge_loss(CORNERS, TETRAHEDRON).item() == pytest.approx(8.0)  # edges of sqrt(8)
    # the others' mean is -p / 3, so delta = 4 p / 3 with |p|^2 = 3
    assert torch.allclose(laplacian(CORNERS, TETRAHEDRON), CORNERS * 4 / 3)
    assert laplacian_loss(CORNERS, TETRAHEDRON).item() == pytest.approx(16 / 3)


def test_smoothness_is_zero_when_flat_one_at_right_angles_four_when_folded() -> None:
    faces = np.array([[0, 1, 2], [1, 0, 3]])
    hinge = topology_of(faces, 4)
    for theta, want in ((math.pi, 0.0), (math.pi / 2, 1.0), (0.0, 4.0), (2 * math.pi / 3, 0.25)):
        tip = [0.5, math.cos(theta), math.sin(theta)]
        corners = torch.tensor([[0, 0, 0], [1, 0, 0], [0.5, 1, 0], tip], dtype=torch.float64)
        assert smoothness_loss(corners, hinge).item() == pytest.approx(want, abs=1e-12)
    cube = box()
    whole = topology_of(cube.faces, 8)
    # 12 edges at right angles, 6 flat diagonals
    assert smoothness_loss(torch.from_numpy(cube.vertices), whole).item() == pytest.approx(12.0)


def test_laplacian_change_sees_bending_and_not_shifting() -> None:
    vertices, topology = ball()
    assert laplacian_change_loss(vertices, vertices + 3.0, topology).item() < 1e-25
    moved = vertices.clone()
    moved[0, 0] += 0.3  # delta of the vertex changes by 0.3, of each of its k neighbours by 0.3 / m
    degree = np.bincount(topology.edges.ravel())
    around = topology.edges[(topology.edges == 0).any(axis=1)].sum(axis=1)
    want = 0.09 * (1 + np.sum(1.0 / degree[around] ** 2))
    assert laplacian_change_loss(vertices, moved, topology).item() == pytest.approx(want)


def test_a_vertex_without_neighbours_and_a_face_without_area_add_nothing() -> None:
    topology = topology_of(np.array([[0, 1, 2]]), 4)
    vertices = noisy(0, 4, 3)
    vertices.requires_grad_(True)
    delta = laplacian(vertices, topology)
    assert torch.equal(delta[3], torch.zeros(3, dtype=torch.float64))
    delta.square().sum().backward()
    assert vertices.grad is not None and bool(torch.isfinite(vertices.grad).all())
    flat = torch.zeros((3, 3), dtype=torch.float64, requires_grad=True)
    normals = face_normals(flat, np.array([[0, 1, 2]]))
    normals.sum().backward()
    assert flat.grad is not None and bool(torch.isfinite(flat.grad).all())
    assert torch.equal(normals.detach(), torch.zeros((1, 3), dtype=torch.float64))


def test_gradients_equal_finite_differences() -> None:
    p, q = noisy(1, 2, 7, 3), noisy(2, 2, 5, 3)
    vertices, topology = ball()
    vertices = vertices[None] + 0.05 * noisy(3, 2, 42, 3)
    matches = nearest_neighbours(p, q)
    assert gradient_agrees(chamfer_squared_loss, p, q)
    assert gradient_agrees(chamfer_loss, p, q)
    assert gradient_agrees(lambda a, b: normal_loss(a, b, matches), p, q)
    for loss in (edge_loss, smoothness_loss, laplacian_loss):
        assert gradient_agrees(lambda x, loss=loss: loss(x, topology), vertices[:, :, :])
    assert gradient_agrees(
        lambda a, b: laplacian_change_loss(a, b, topology), vertices, vertices + 0.1 * noisy(4, 3)
    )


def test_a_batch_is_its_members() -> None:
    p, q = noisy(1, 2, 3, 7, 3), noisy(2, 2, 3, 5, 3)
    vertices, topology = ball()
    meshes = vertices + 0.05 * noisy(3, 2, 3, 42, 3)
    for batch, single in (
        (chamfer_squared_loss(p, q), lambda i, j: chamfer_squared_loss(p[i, j], q[i, j])),
        (chamfer_loss(p, q), lambda i, j: chamfer_loss(p[i, j], q[i, j])),
        (edge_loss(meshes, topology), lambda i, j: edge_loss(meshes[i, j], topology)),
        (smoothness_loss(meshes, topology), lambda i, j: smoothness_loss(meshes[i, j], topology)),
        (laplacian_loss(meshes, topology), lambda i, j: laplacian_loss(meshes[i, j], topology)),
        (
            laplacian_change_loss(vertices, meshes, topology),
            lambda i, j: laplacian_change_loss(vertices, meshes[i, j], topology),
        ),
    ):
        assert batch.shape == (2, 3)
        want = torch.stack([torch.stack([single(i, j) for j in range(3)]) for i in range(2)])
        assert torch.allclose(batch, want, rtol=1e-12)

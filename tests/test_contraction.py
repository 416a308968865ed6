"""Spaces against the papers' formulas one position at a time, their inverses and derivatives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from step_cases import BOX, F64, SPACES, SPEC, some_network, some_rays, unit_by_hand
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Rays
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, PerspectiveSpace, Space
from nerfcli.reference.radiance import NetParams, Network, density
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import intersect_box
from nerfcli.reference.volume import composite

CENTER = torch.tensor(BOX.center, dtype=F64)
CONTRACTED, PERSPECTIVE = SPACES["contraction"], SPACES["perspective"]
assert isinstance(PERSPECTIVE, PerspectiveSpace)


def uniform(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


def positions(n: int = 60) -> Tensor:
    """Positions in the detail cube, around it, and far away."""
    reach = torch.logspace(-1, 2, n, dtype=F64)[:, None]
    return CENTER + BOX.half_size * reach * (2 * uniform(n) - 1)


def awkward_positions() -> Tensor:
    """The centre, points on the axes and on the cubes' faces, inside and outside."""
    rows = [[0.0, 0.0, 0.0]]
    for axis in range(3):
        for reach in (-3.0, -2.0, -1.0, -0.4, 0.4, 1.0, 2.0, 3.0):
            rows.append([0.0] * 3)
            rows[-1][axis] = reach
            rows.append([0.3, -0.2, 0.1])
            rows[-1][axis] = reach
    return CENTER + BOX.half_size * torch.tensor(rows, dtype=F64)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_to_unit_is_the_papers_formula(space: Space) -> None:
    for points in (positions(), awkward_positions()):
        expected = torch.tensor([unit_by_hand(space, p) for p in points.tolist()], dtype=F64)
        got = space.to_unit(points)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        assert (got >= 0).all() and (got <= 1).all()
        assert torch.equal(space.to_unit(points.view(-1, 1, 3)), got.view(-1, 1, 3))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_from_unit_is_the_inverse(space: Space) -> None:
    unit = 0.01 + 0.98 * uniform(200, 1)
    points = space.from_unit(unit)
    torch.testing.assert_close(space.to_unit(points), unit, rtol=0, atol=1e-12)
    torch.testing.assert_close(space.from_unit(space.to_unit(points)), points)
    assert torch.equal(space.from_unit(unit.view(-1, 2, 3)), points.view(-1, 2, 3))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_from_unit_is_finite_on_the_cubes_faces(space: Space) -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    points = space.from_unit(corners)
    assert points.isfinite().all()
    # float32: the contraction has 1e-6 of its distance left there
    torch.testing.assert_close(space.to_unit(points), corners, rtol=0, atol=2e-6)


def jacobian(space: Space, x: Tensor, h: float = 1e-6) -> Tensor:
    """du_i / dx_k by central differences, [n, 3, 3]."""
    columns = []
    for k in range(3):
        step = torch.zeros(3, dtype=F64)
        step[k] = h
        columns.append((space.to_unit(x + step) - space.to_unit(x - step)) / (2 * h))
    return torch.stack(columns, dim=2)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_pull_back_is_autograds(space: Space) -> None:
    for points in (positions(), awkward_positions()):
        cotangent = uniform(len(points), 2) - 0.5
        leaf = points.clone().requires_grad_()
        (expected,) = torch.autograd.grad(space.to_unit(leaf), leaf, cotangent)
        got = space.pull_back(points, cotangent)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(space.pull_back(points[:, None], cotangent[:, None]), got[:, None])


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_pull_back_is_the_transposed_jacobian(space: Space) -> None:
    points = positions()  # the awkward ones lie on bends, where differences see both sides
    cotangent = uniform(len(points), 2) - 0.5
    expected = torch.einsum("nik,ni->nk", jacobian(space, points), cotangent)
    got = space.pull_back(points, cotangent)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    assert (got.norm(dim=1) > 1e-9).sum() >= 20


def test_pull_back_is_zero_where_a_coordinate_is_clamped() -> None:
    box, perspective = SPACES["box"], SPACES["perspective"]
    outside = CENTER + torch.tensor([[2.0, 0.1, -0.3]], dtype=F64)  # half the outer side is 1.4
    grad = box.pull_back(outside, torch.ones(1, 3, dtype=F64))
    torch.testing.assert_close(grad, torch.tensor([[0.0, 1 / 2.8, 1 / 2.8]], dtype=F64))
    # behind the mean camera everything is in the plane z = z_near: no slope along its axis
    assert isinstance(perspective, PerspectiveSpace)
    rows = torch.tensor(perspective.rotation, dtype=F64).view(3, 3)
    behind = torch.tensor(perspective.origin, dtype=F64) + rows @ torch.tensor(
        [0.2, 0.1, -1.0], dtype=F64
    )
    grad = perspective.pull_back(behind[None], torch.ones(1, 3, dtype=F64))[0]
    across = [1 / (2 * t * perspective.z_near) for t in perspective.tan]
    torch.testing.assert_close(rows.T @ grad, torch.tensor([*across, 0.0], dtype=F64))


def test_pull_back_at_two_equal_coordinates_is_one_of_its_sides() -> None:
    x = CENTER + BOX.half_size * torch.tensor([[2.0, 2.0, 0.5]], dtype=F64)
    d_u = torch.tensor([[0.3, -0.8, 0.4]], dtype=F64)
    sides = [
        CONTRACTED.pull_back(x + torch.tensor([[e, 0.0, 0.0]], dtype=F64), d_u)
        for e in (1e-9, -1e-9)
    ]
    got = CONTRACTED.pull_back(x, d_u)
    assert min((got - side).abs().max() for side in sides) < 1e-7


# the contraction


def test_the_detail_cube_fills_the_middle_half() -> None:
    y = 2 * uniform(100, 3) - 1
    unit = CONTRACTED.to_unit(CENTER + BOX.half_size * y)
    torch.testing.assert_close(unit, 0.5 + y / 4)
    faces = torch.tensor([[1.0, 0.2, -0.1], [-0.3, -1.0, 0.9]], dtype=F64)
    unit = CONTRACTED.to_unit(CENTER + BOX.half_size * faces)
    assert unit[0, 0].item() == pytest.approx(0.75) and unit[1, 1].item() == pytest.approx(0.25)


def test_the_maximum_norm_grows_and_directions_stay() -> None:
    directions = 2 * uniform(20, 4) - 1
    reach = torch.logspace(-3, 6, 400, dtype=F64)
    points = CENTER + BOX.half_size * reach[:, None, None] * directions
    away = CONTRACTED.to_unit(points) - 0.5
    assert (away.abs().amax(-1).diff(dim=0) > 0).all()
    cosine = torch.nn.functional.cosine_similarity(away, directions.expand_as(away), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_the_contraction_is_smooth_at_the_cubes_face() -> None:
    direction = torch.tensor([1.0, -0.4, 0.7], dtype=F64)

    def at(m: float) -> Tensor:
        return CONTRACTED.to_unit(CENTER + BOX.half_size * m * direction)

    torch.testing.assert_close(at(1 - 1e-9), at(1 + 1e-9), rtol=0, atol=1e-9)
    h = 1e-5
    before, after = (at(1.0) - at(1 - h)) / h, (at(1 + h) - at(1.0)) / h
    torch.testing.assert_close(before, direction / 4)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)  # the slope 1/m^2 bends at h


def test_infinity_is_on_the_faces() -> None:
    directions = 2 * uniform(20, 5) - 1
    largest = directions.abs().amax(1, keepdim=True)
    expected = 0.5 + 0.5 * directions / largest
    far = CONTRACTED.to_unit(CENTER + 1e12 * directions)
    torch.testing.assert_close(far, expected, rtol=0, atol=1e-9)
    far = CONTRACTED.to_unit((CENTER + 1e30 * directions).float())
    torch.testing.assert_close(far.double(), expected, rtol=0, atol=1e-6)


# the perspective


def test_perspective_is_nerfs_projection_in_front_of_the_camera() -> None:
    """M of appendix C with a far plane of 1e9, in the camera's OpenGL frame."""
    space = PERSPECTIVE
    assert isinstance(space, PerspectiveSpace)
    near, far = space.z_near, 1e9
    right, top = near * space.tan[0], near * space.tan[1]
    m = torch.tensor(
        [
            [near / right, 0, 0, 0],
            [0, near / top, 0, 0],
            [0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, -1, 0],
        ],
        dtype=F64,
    )
    points = space.from_unit(0.02 + 0.96 * uniform(50, 6))
    rows = torch.tensor(space.rotation, dtype=F64).view(3, 3)
    camera = (points - torch.tensor(space.origin, dtype=F64)) @ rows
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=F64)
    clip = torch.cat([camera * flip, torch.ones(50, 1, dtype=F64)], dim=1) @ m.T
    ndc = clip[:, :3] / clip[:, 3:]
    expected = 0.5 + 0.5 * ndc * torch.tensor([1.0, -1.0, 1.0], dtype=F64)
    torch.testing.assert_close(space.to_unit(points), expected, rtol=0, atol=1e-7)


def test_perspective_keeps_rays_straight_as_ndc_does() -> None:
    """pi(o + t d) = o' + t' d' with t' = t d_z / (o_z + t d_z), appendix C."""
    space = PERSPECTIVE
    assert isinstance(space, PerspectiveSpace)
    origin, forward = (torch.tensor(v, dtype=F64) for v in (space.origin, space.rotation[2::3]))
    o = space.from_unit(torch.tensor([0.4, 0.6, 0.1], dtype=F64))
    d = space.from_unit(torch.tensor([0.55, 0.45, 0.5], dtype=F64)) - o
    t = torch.linspace(0.0, 3.0, 9, dtype=F64)[:, None]
    along = (t * (d @ forward)) / ((o - origin) @ forward + t * (d @ forward))
    start, end = space.to_unit(o), space.to_unit(o + 1e12 * d)
    torch.testing.assert_close(end[2].item(), 1.0)
    got = space.to_unit(o + t * d)
    torch.testing.assert_close(got, start + along * (end - start), rtol=0, atol=1e-10)


# what does not depend on the space


def fog(space: Space, sigma: float) -> Network:
    """A field of density `sigma` per scene unit everywhere, carried by the table."""
    network = some_network(space)
    first = torch.zeros(SPEC.width, SPEC.grid.n_outputs, dtype=F64)
    first[0, 0], first[1, 0] = 1.0, -1.0  # relu(v) and relu(-v)
    last = torch.zeros(SPEC.n_geometry, SPEC.width, dtype=F64)
    last[0, 0], last[0, 1] = 1.0, -1.0
    raw = math.log(sigma * space.unit_length)
    table = torch.full((SPEC.grid.n_params,), raw, dtype=F64)
    weights = torch.cat([first.ravel(), last.ravel()])
    return replace(network, params=NetParams(table, weights, network.params.color))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_fog_has_the_same_optical_depth_in_every_space(space: Space) -> None:
    """Density is per scene unit: no Jacobian, near the centre or far from it."""
    rays = some_rays()
    starts = torch.linspace(0.5, 50.0, len(rays), dtype=F64)
    edges = starts[:, None] + torch.linspace(0, 2.0, 9, dtype=F64).square()
    samples = Samples.from_edges(edges)
    sigmas = density(fog(space, 0.3), samples.positions(rays))
    torch.testing.assert_close(sigmas, torch.full_like(sigmas, 0.3))
    black = torch.zeros(samples.capacity, 3, dtype=F64)
    pixels = composite(sigmas, black, samples, torch.ones(3, dtype=F64))
    expected = torch.full_like(starts, 1 - math.exp(-0.3 * 4.0))
    torch.testing.assert_close(pixels.opacity, expected)


def test_unit_length_is_the_side_of_what_the_detail_fills() -> None:
    lengths = {name: space.unit_length for name, space in SPACES.items()}
    assert lengths == pytest.approx({"box": 2.8, "contraction": 1.4, "perspective": 1.4})
    kinds = {name: space.kind for name, space in SPACES.items()}
    assert kinds == {name: name for name in SPACES}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_bounds(space: Space) -> None:
    rays = some_rays()
    bounds = space.bounds(rays)
    if isinstance(space, BoxSpace):  # tests/test_sampling.py has it against six half-spaces
        for got, want in zip(bounds, intersect_box(rays, BOX, 0.1, 10.0), strict=True):
            assert torch.equal(got, want)
        assert (bounds.t_max <= bounds.t_min)[[2, -1]].all()
    else:
        assert bounds.t_min.tolist() == [0.1] * len(rays)
        assert bounds.t_max.tolist() == [10.0] * len(rays)
    assert all(b.dtype == F64 for b in bounds)
    none = Rays(rays.origins[:0], rays.directions[:0])
    assert [len(b) for b in space.bounds(none)] == [0, 0]


def test_a_space_without_limits_reaches_to_infinity() -> None:
    bounds = ContractedSpace(Box((0.0, 0.0, 0.0), 1.0)).bounds(some_rays())
    assert not bounds.t_min.any() and bounds.t_max.isinf().all()


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_stretch_is_the_root_of_the_determinant(space: Space) -> None:
    points = positions()
    determinant = torch.linalg.det(jacobian(space, points)).abs()
    seen = determinant > 1e-12  # elsewhere a coordinate is clamped
    assert seen.sum() >= 20
    got = space.stretch(points)
    torch.testing.assert_close(got[seen], determinant[seen] ** (1 / 3), rtol=1e-5, atol=0)
    assert torch.equal(space.stretch(points[:, None]), got[:, None])


def test_stretch_of_a_contraction_by_hand() -> None:
    space = SPACES["contraction"]  # half size 0.7: 1 / 2.8 within, and at m = 2 times 3^(2/3) / 4
    points = CENTER + 0.7 * torch.tensor([[0.9, 0.1, 0.0], [0.5, -2.0, 1.0]], dtype=F64)
    want = torch.tensor([1 / 2.8, 3 ** (2 / 3) / 4 / 2.8], dtype=F64)
    torch.testing.assert_close(space.stretch(points), want)

"""Encodings against closed forms, scipy, quadrature and a scalar hash grid in uint32."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf, sph_harm_y

from nerfcli.reference.encoding import (
    GridLevel,
    GridSpec,
    frequency_encoding,
    grid_index,
    hash_grid,
    level_weights,
    spherical_harmonics,
)

# two dense levels, then hashed ones, the last of them above 1625
SMALL = GridSpec(6, n_features=3, log2_table_size=13, base_resolution=5, max_resolution=2000)


def unit_vectors(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return v / v.norm(dim=1, keepdim=True)


def random_positions(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))


def random_table(spec: GridSpec, seed: int = 1) -> torch.Tensor:
    return torch.randn(spec.n_params, generator=torch.Generator().manual_seed(seed))


# frequencies


@pytest.mark.parametrize("identity", [True, False])
def test_frequency_encoding_is_its_formula(identity: bool) -> None:
    x = torch.tensor([[0.3, -1.7], [2.5, 0.0]], dtype=torch.float64)
    expected = []
    for row in x.tolist():
        values = list(row) if identity else []
        for level in range(4):
            values += [math.sin(2**level * v) for v in row]
            values += [math.cos(2**level * v) for v in row]
        expected.append(values)
    torch.testing.assert_close(
        frequency_encoding(x, 4, identity), torch.tensor(expected, dtype=torch.float64)
    )


def test_frequency_encoding_by_hand() -> None:
    quarter = math.pi / 2  # sin, cos of pi/2 and of pi: no factor pi inside
    got = frequency_encoding(torch.tensor([[quarter]], dtype=torch.float64), 2)
    expected = torch.tensor([[quarter, 1.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(got, expected)


def test_frequency_encoding_has_the_papers_counts() -> None:
    assert frequency_encoding(torch.zeros(5, 3), 10).shape == (5, 63)
    assert frequency_encoding(torch.zeros(5, 3), 4).shape == (5, 27)
    assert frequency_encoding(torch.zeros(5, 3), 10, identity=False).shape == (5, 60)
    assert frequency_encoding(torch.zeros(0, 3), 10).shape == (0, 63)


# spherical harmonics


def test_spherical_harmonics_are_orthonormal_by_quadrature() -> None:
    # Gauss-Legendre in z times equal steps in phi is exact for products of degree 3
    z, weight = np.polynomial.legendre.leggauss(8)
    phi = np.arange(16) * (2 * math.pi / 16)
    z, phi = (a.ravel() for a in np.meshgrid(z, phi, indexing="ij"))
    area = np.repeat(weight, 16) * (2 * math.pi / 16)
    r = np.sqrt(1 - z * z)
    values = spherical_harmonics(torch.tensor(np.stack([r * np.cos(phi), r * np.sin(phi), z], 1)))
    gram = (values * torch.tensor(area)[:, None]).T @ values
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)


def test_spherical_harmonics_are_scipys_in_order_and_sign() -> None:
    """Entry l^2 + l + m is sqrt(2) Re or Im of Y_l^|m| with the Condon-Shortley phase."""
    directions = unit_vectors(50)
    x, y, z = directions.numpy().T
    theta, phi = np.arccos(z), np.arctan2(y, x)
    columns = []
    for degree in range(4):
        for m in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(m), theta, phi)
            part = value.imag if m < 0 else value.real
            columns.append(part * (math.sqrt(2) if m else 1.0))
    expected = torch.tensor(np.stack(columns, 1))
    torch.testing.assert_close(spherical_harmonics(directions), expected, atol=1e-12, rtol=0)


def test_spherical_harmonics_by_hand_on_an_axis() -> None:
    got = spherical_harmonics(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64))[0]
    expected = torch.zeros(16, dtype=torch.float64)
    for degree in range(4):  # only m = 0 is left on the z axis, with P_l(1) = 1
        expected[degree**2 + degree] = math.sqrt((2 * degree + 1) / (4 * math.pi))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


# the layout of the hash grid


def test_hash_grid_has_the_published_parameter_count() -> None:
    spec = GridSpec()  # 16 levels x 2 features, 2^19 entries, 16 -> 2048
    assert spec.n_params == 12_196_240
    assert spec.n_outputs == 32
    assert spec.levels[-1].resolution == 2048


def test_scales_are_rounded_to_float32_as_tiny_cuda_nn_does() -> None:
    last = GridSpec().levels[-1]
    assert last.scale == 2046.9986572265625
    # log2 of the float32 growth is a little high here, and the ceiling makes 2^k + 1 of it
    resolutions = [level.resolution for level in GridSpec(max_resolution=512).levels]
    assert resolutions == [16, 21, 26, 33, 41, 51, 65, 81, 102, 129, 162, 204, 257, 323, 407, 513]
    # a growth of exactly 2 rounds nowhere
    doubling = GridSpec(n_levels=5, base_resolution=16, max_resolution=256)
    assert [level.scale for level in doubling.levels] == [15.0, 31.0, 63.0, 127.0, 255.0]


def test_levels_lie_one_after_another_in_multiples_of_eight() -> None:
    offset = 0
    for level in SMALL.levels:
        assert level.offset == offset
        assert level.n_entries % 8 == 0
        assert level.n_entries == min(math.ceil(level.resolution**3 / 8) * 8, 2**13)
        assert level.hashed == (level.resolution**3 > 2**13)
        offset += level.n_entries
    assert SMALL.n_params == offset * 3
    assert {level.hashed for level in SMALL.levels} == {True, False}


@pytest.mark.parametrize(("resolution", "hashed"), [(1625, False), (1626, True)])
def test_a_cube_beyond_32_bits_is_always_hashed(resolution: int, hashed: bool) -> None:
    spec = GridSpec(n_levels=1, log2_table_size=33, base_resolution=resolution)
    assert spec.levels[0].resolution == resolution
    assert spec.levels[0].hashed is hashed


def scalar_index(corner: Iterable[int], resolution: int, n_entries: int) -> int:
    """The entry of a corner, in wrapping unsigned 32-bit arithmetic."""
    x, y, z = (np.array(c, dtype=np.uint32) for c in corner)
    if resolution**3 <= n_entries and resolution <= 0x659:
        r = np.uint32(resolution)
        index = x + y * r + z * (r * r)
    else:
        index = x ^ (y * np.uint32(2654435761)) ^ (z * np.uint32(805459861))
    return int(index % np.uint32(n_entries))


# powers of two hide the upper bits of the hash, so one level has a prime count of entries
ODD_LEVEL = GridLevel(2046.9, 2048, offset=0, n_entries=1_000_003, hashed=True)


@pytest.mark.parametrize("level", [*SMALL.levels, *GridSpec().levels[::5], ODD_LEVEL])
def test_grid_index_wraps_as_unsigned_32_bit(level) -> None:
    rng = np.random.default_rng(level.resolution)
    corners = rng.integers(0, level.resolution + 1, (64, 3))
    corners[0], corners[1] = 0, level.resolution
    expected = [scalar_index(c, level.resolution, level.n_entries) for c in corners]
    assert grid_index(torch.tensor(corners), level).tolist() == expected


def scalar_corners(position: np.ndarray, spec: GridSpec) -> list[list[tuple[int, float]]]:
    """For each level, the eight (entry in the whole table, trilinear weight)."""
    result = []
    for level in spec.levels:
        scaled = position.astype(np.float32) * np.float32(level.scale) + np.float32(0.5)
        low = np.floor(scaled)
        fraction = (scaled - low).astype(np.float64)
        corners = []
        for bits in itertools.product((0, 1), repeat=3):
            corner = [int(c) + b for c, b in zip(low, bits, strict=True)]
            weight = math.prod(f if b else 1 - f for f, b in zip(fraction, bits, strict=True))
            entry = level.offset + scalar_index(corner, level.resolution, level.n_entries)
            corners.append((entry, weight))
        result.append(corners)
    return result


def awkward_positions() -> torch.Tensor:
    """Corners, faces and the middle of the unit cube, and random points."""
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3)))
    return torch.cat([corners, random_positions(10)])


@pytest.mark.parametrize("spec", [SMALL, GridSpec(n_levels=4, n_features=1, log2_table_size=14)])
def test_hash_grid_equals_a_scalar_implementation(spec: GridSpec) -> None:
    positions, table = awkward_positions(), random_table(spec)
    entries = table.double().numpy().reshape(-1, spec.n_features)
    expected = [
        np.concatenate([sum(w * entries[i] for i, w in level) for level in scalar_corners(p, spec)])
        for p in positions.numpy()
    ]
    # float32 sums of eight values of order 1
    torch.testing.assert_close(
        hash_grid(positions, table, spec).double(),
        torch.tensor(np.array(expected)),
        atol=2e-6,
        rtol=0,
    )


def test_hash_grid_gradient_scatters_the_trilinear_weights() -> None:
    positions, table = awkward_positions(), random_table(SMALL).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    cotangent = torch.randn(len(positions), SMALL.n_outputs, generator=generator)
    (got,) = torch.autograd.grad(hash_grid(positions, table, SMALL), table, cotangent)
    expected = np.zeros((SMALL.n_entries, 3))
    for position, row in zip(positions.numpy(), cotangent.double().numpy(), strict=True):
        for number, level in enumerate(scalar_corners(position, SMALL)):
            for entry, weight in level:
                expected[entry] += weight * row[3 * number : 3 * number + 3]
    # wrapped corners collect several float32 terms of order 1 each
    torch.testing.assert_close(got.double(), torch.tensor(expected.ravel()), atol=1e-5, rtol=0)


def test_hash_grid_gradient_is_the_same_on_any_number_of_threads() -> None:
    positions = random_positions(20_000)  # so many that threads share the work
    before, gradients = torch.get_num_threads(), []
    for n_threads in (1, 2, 2, 2, 2):
        torch.set_num_threads(n_threads)
        table = random_table(SMALL).requires_grad_()
        loss = hash_grid(positions, table, SMALL).square().sum()
        gradients.append(torch.autograd.grad(loss, table)[0])
    torch.set_num_threads(before)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_dense_level_reproduces_linear_functions() -> None:
    spec = GridSpec(n_levels=1, n_features=1, log2_table_size=15, base_resolution=17)
    level = spec.levels[0]
    assert not level.hashed
    slope = np.array([0.7, -1.3, 0.4])
    z, y, x = np.meshgrid(*(np.arange(17),) * 3, indexing="ij")
    table = np.zeros(spec.n_params)
    table[: 17**3] = (slope[0] * x + slope[1] * y + slope[2] * z + 2.0).ravel()
    # beyond (scale - 0.5) / scale the upper corner wraps, by design
    positions = random_positions(200).double() * (level.scale - 0.5) / level.scale
    expected = (positions * level.scale + 0.5) @ torch.tensor(slope) + 2.0
    got = hash_grid(positions, torch.tensor(table), spec)[:, 0]
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_upper_face_wraps_into_the_next_row() -> None:
    spec = GridSpec(n_levels=1, n_features=1, log2_table_size=15, base_resolution=8)
    table = torch.zeros(spec.n_params)
    table[7], table[8] = 1.0, 10.0  # corner x = 7, and x = 0 of the next row
    # scaled to 7.5: half of corner 7, half of corner 8 = resolution; y and z sit at 0.5
    got = hash_grid(torch.tensor([[1.0, 0.0, 0.0]]), table, spec)
    # (x, y) weights are 1/4 each, z = 0 has 1/2: corner (7,0), corner (8,0) = (0,1)
    assert got.item() == pytest.approx((1.0 + 10.0) / 8)


coordinate = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0, width=32))


@settings(max_examples=25, deadline=None)
@given(st.tuples(coordinate, coordinate, coordinate))
def test_trilinear_weights_sum_to_one(position: tuple[float, float, float]) -> None:
    got = hash_grid(torch.tensor([position]), torch.ones(SMALL.n_params), SMALL)
    torch.testing.assert_close(got, torch.ones(1, SMALL.n_outputs), atol=1e-6, rtol=0)


def test_hash_grid_of_no_positions() -> None:
    assert hash_grid(torch.zeros(0, 3), random_table(SMALL), SMALL).shape == (0, 18)


# derivatives in positions and directions


@pytest.mark.parametrize("spec", [SMALL, GridSpec(n_levels=4, n_features=1, log2_table_size=14)])
def test_hash_grid_is_differentiable_in_positions_within_a_cell(spec: GridSpec) -> None:
    """The trilinear weights are linear along an axis, so central differences are exact there."""
    positions, table = random_positions(40).double(), random_table(spec).double()
    h = 1e-7
    scales = torch.tensor([level.scale for level in spec.levels], dtype=torch.float64)
    to_border = (positions[:, None] * scales[:, None] + 0.5) % 1.0  # [n, L, 3]
    room = torch.minimum(to_border, 1 - to_border) / scales[:, None]
    positions = positions[room.amin(dim=(1, 2)) > 2 * h]  # all levels within one cell
    assert len(positions) > 30
    generator = torch.Generator().manual_seed(4)
    cotangent = torch.randn(
        len(positions), spec.n_outputs, generator=generator, dtype=torch.float64
    )
    leaf = positions.clone().requires_grad_()
    (got,) = torch.autograd.grad(hash_grid(leaf, table, spec), leaf, cotangent)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = h
        there, back = (hash_grid(positions + s * step, table, spec) for s in (1, -1))
        slope = ((there - back) * cotangent).sum(1) / (2 * h)
        # slopes are up to 2000 times the values, whose rounding 2e-16 is divided by h
        torch.testing.assert_close(got[:, axis], slope, rtol=1e-6, atol=1e-5)
    assert (got.abs() > 1.0).any(0).all()


def test_hash_grid_slope_of_a_linear_function_is_its_slope() -> None:
    spec = GridSpec(n_levels=1, n_features=1, log2_table_size=15, base_resolution=17)
    level = spec.levels[0]
    slope = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)
    z, y, x = torch.meshgrid(*[torch.arange(17, dtype=torch.float64)] * 3, indexing="ij")
    table = torch.zeros(spec.n_params, dtype=torch.float64)
    table[: 17**3] = (slope[0] * x + slope[1] * y + slope[2] * z).ravel()
    leaf = random_positions(50).double() * (level.scale - 0.5) / level.scale
    leaf.requires_grad_()
    (got,) = torch.autograd.grad(hash_grid(leaf, table, spec).sum(), leaf)
    torch.testing.assert_close(got, (slope * level.scale).expand(50, 3))


def test_spherical_harmonics_are_differentiable_in_directions() -> None:
    """Also off the sphere, where each is its polynomial."""
    directions = unit_vectors(8)
    for scale in (1.0, 0.7):
        leaf = (scale * directions).requires_grad_()
        assert torch.autograd.gradcheck(spherical_harmonics, (leaf,))
    leaf = directions.clone().requires_grad_()
    (grad,) = torch.autograd.grad(spherical_harmonics(leaf)[:, 1].sum(), leaf)
    expected = torch.tensor([0.0, -math.sqrt(3 / (4 * math.pi)), 0.0], dtype=torch.float64)
    torch.testing.assert_close(grad, expected.expand(8, 3))


# cones


def test_level_weights_are_the_error_function() -> None:
    scales = torch.logspace(-6, 1, 200, dtype=torch.float64)
    cells = np.array([level.scale for level in SMALL.levels])
    x = 1 / np.sqrt(8 * scales.numpy()[:, None] ** 2 * cells**2)
    got = level_weights(scales, SMALL).numpy()
    np.testing.assert_allclose(got, np.sqrt(1 - np.exp(-4 / np.pi * x**2)), atol=1e-7)
    np.testing.assert_allclose(got, erf(x), atol=7e-3)  # how good that approximation is
    np.testing.assert_allclose(level_weights(scales.float(), SMALL).numpy(), got, rtol=2e-6)


def test_level_weights_fall_with_the_scale_and_finest_first() -> None:
    weights = level_weights(torch.logspace(-4, 0, 50), SMALL)
    assert (weights.diff(dim=0) <= 0).all() and (weights.diff(dim=1) <= 0).all()
    assert weights[0, 0] > 0.999 and weights[-1, -1] < 1e-3


def test_a_point_has_the_bits_of_no_weights() -> None:
    positions, table = awkward_positions(), random_table(SMALL)
    points = torch.zeros(len(positions))
    got = hash_grid(positions, table, SMALL, points)
    assert torch.equal(got, hash_grid(positions, table, SMALL))
    assert hash_grid(positions, table, SMALL, points + 1e6).abs().max() < 1e-5


def test_the_gradient_under_cones_is_the_slope() -> None:
    spec = GridSpec(3, 2, 9, 4, 32)
    positions, scales = random_positions(20).double(), torch.logspace(-3, 0, 20).double()
    table = random_table(spec).double()[: spec.n_params]
    assert torch.autograd.gradcheck(
        lambda part: hash_grid(positions, torch.cat([part, table[60:]]), spec, scales),
        table[:60].requires_grad_(),
    )

"""Networks and the field of the Triton backend against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from cases import (
    BOX,
    DTYPES,
    EMBEDDED,
    F32,
    GRADIENTS,
    OUTPUTS,
    PAIRS,
    QUADS,
    REFERENCE,
    SPACES,
    assert_near,
    leaves_of,
    network_of,
    normal,
    params_of,
    positions_of,
    uniform,
)

from nerfcli.backends.triton import triton_mlp
from nerfcli.backends.triton.backend import TritonBackend
from nerfcli.core.errors import NerfError
from nerfcli.reference import mlp, radiance
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.radiance import NetParams, NetSpec, Network

WIDTHS = [(32, 64, 16), (32, 64, 64, 3), (24, 48, 5), (6, 16, 16, 1)]


def weights_of(widths: tuple[int, ...]) -> torch.Tensor:
    return mlp.init_mlp(widths, torch.Generator().manual_seed(3))


def compare(
    n: int, widths: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0, columns: bool = False
) -> None:
    """columns: of a cotangent that lies column by column."""
    x, weights = normal(1, n, widths[0]), weights_of(widths)
    mine, right = ((x.clone().requires_grad_(), weights.clone().requires_grad_()) for _ in "ab")
    got = TritonBackend(dtype).mlp(*mine, widths)
    want = mlp.mlp(*right, widths)
    assert_near(got, want, OUTPUTS[dtype])
    cotangent = scale * normal(2, *want.shape)
    if columns:
        cotangent = cotangent.T.contiguous().T
    pairs = zip(
        torch.autograd.grad(got, mine, cotangent),
        torch.autograd.grad(want, right, cotangent),
        strict=True,
    )
    for d_got, d_want in pairs:
        assert_near(d_got, d_want, GRADIENTS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", WIDTHS)
def test_mlp(widths: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(300, widths, dtype)


@pytest.mark.parametrize("n", [0, 1, 63, 1000])
def test_mlp_of_odd_sizes(n: int) -> None:
    compare(n, (32, 64, 64, 3), F32)


def test_cotangents_may_lie_column_by_column() -> None:
    compare(63, (32, 64, 16), F32, columns=True)
    field, x = network_of(PAIRS), positions_of(63)
    grads = []
    for ops in (TritonBackend(F32), REFERENCE):
        leaves = leaves_of(field)
        outputs = ops.radiance(leaves, x, normal(3, 63, 16))
        cotangents = [normal(4, 63), normal(5, 3, 63).T]
        grads.append(torch.autograd.grad(outputs, leaves.params.tensors(), cotangents))
    for a, b in zip(*grads, strict=True):
        assert_near(a, b, GRADIENTS[F32])


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_half_precision_holds_tiny_and_huge_gradients(scale: float) -> None:
    compare(63, (32, 64, 16), torch.float16, scale)


def test_what_half_precision_does_not_hold_is_its_largest_number() -> None:
    """Infinity times zero would be NaN everywhere a step later."""
    widths, n_live = (16, 16, 16, 16), torch.tensor([40])
    weights = torch.full((3 * 256,), 40.0)
    x, d_y = torch.full((40, 16), 100.0).half(), torch.full((40, 16), 1e4).half()
    y = torch.empty(40, 16, dtype=torch.float16)
    triton_mlp.forward(triton_mlp.Rows.plain(x), weights, widths, n_live, y)
    assert (y == 65504).all()
    d_weights = torch.zeros_like(weights)
    rows, one = triton_mlp.Rows.plain(x), torch.ones(1)
    d_x = triton_mlp.backward(rows, weights, widths, d_y, n_live, d_weights, one)
    assert (d_x == 65504).all()
    assert d_weights.isfinite().all() and d_weights.min() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_the_weights_shows(dtype: torch.dtype) -> None:
    """A diverged run must be seen: ReLU and rounding keep what is not a number."""
    widths = (32, 64, 64, 3)
    weights = weights_of(widths)
    weights[5] = torch.nan
    assert TritonBackend(dtype).mlp(normal(1, 9, 32), weights, widths).isnan().all()


def test_rows_beyond_the_live_count_are_left_alone() -> None:
    widths, n_live = (32, 64, 16), torch.tensor([150])
    x, weights, d_y = normal(1, 400, 32), weights_of(widths), normal(2, 400, 20)
    x[150:], d_y[150:] = torch.nan, torch.nan
    rows = triton_mlp.Rows.plain(x)
    y = triton_mlp.forward(rows, weights, widths, n_live, torch.empty(400, 16))
    assert_near(y[:150], mlp.mlp(x[:150], weights, widths), OUTPUTS[F32])
    assert y[150:].isnan().all()
    d_weights = torch.zeros_like(weights)
    d_x = triton_mlp.backward(rows, weights, widths, d_y, n_live, d_weights, torch.ones(1))
    leaves = x[:150].requires_grad_(), weights.requires_grad_()
    want = torch.autograd.grad(mlp.mlp(*leaves, widths), leaves, d_y[:150, :16])
    assert_near(d_x[:150], want[0], GRADIENTS[F32])
    assert_near(d_weights, want[1], GRADIENTS[F32])
    assert d_x[150:].isnan().all()


@pytest.mark.parametrize("widths", [(8, 4), (16, 256, 3), (16, 32, 16, 3), (16, *[16] * 3, 3)])
def test_shapes_without_a_kernel_go_to_torch(widths: tuple[int, ...]) -> None:
    x, weights = normal(1, 9, widths[0]), weights_of(widths)
    got = TritonBackend().mlp(x, weights, widths)
    assert torch.equal(got, mlp.mlp(x, weights, widths))


def compare_fields(network: Network, n: int, dtype: torch.dtype) -> None:
    """Densities, colours, and gradients in everything that they depend on."""
    x = BOX.from_unit(uniform(10, n, 3))
    found = []
    for ops in (TritonBackend(dtype), REFERENCE):
        field = leaves_of(network)
        of_rays = normal(7, n, network.spec.n_ray_inputs).requires_grad_()
        leaves = (*field.params.tensors(), x.clone().requires_grad_(), of_rays)
        outputs = ops.radiance(field, leaves[3], of_rays)
        assert torch.equal(ops.density(field, leaves[3]), outputs[0])
        cotangents = [normal(4, n), normal(5, n, 3)]
        found.append((outputs, torch.autograd.grad(outputs, leaves, cotangents)))
    (got, mine), (want, right) = found
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, OUTPUTS[dtype])
    for a, b in zip(mine, right, strict=True):
        assert_near(a, b, GRADIENTS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("net", [PAIRS, QUADS])
def test_field(net: NetSpec, dtype: torch.dtype) -> None:
    compare_fields(network_of(net, scale=0.5), 63, dtype)


@pytest.mark.parametrize("kind", ["contraction", "perspective"])
def test_field_of_a_thin_fog_with_an_embedding_in_other_spaces(kind: str) -> None:
    compare_fields(network_of(EMBEDDED, kind, opacity=0.2), 63, F32)


def test_field_of_no_positions() -> None:
    nothing = torch.zeros(0, 3)
    sigmas, rgbs = TritonBackend(F32).radiance(network_of(PAIRS), nothing, torch.zeros(0, 16))
    assert sigmas.shape == (0,) and rgbs.shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_density", [-100.0, 14.9, 88.0])
def test_density_and_gradients_are_finite_at_extremes(log_density: float, dtype) -> None:
    first = torch.zeros(PAIRS.width, PAIRS.grid.n_outputs)
    first[0, 0], first[1, 0] = 1.0, -1.0
    last = torch.zeros(PAIRS.n_geometry, PAIRS.width)
    last[0, 0], last[0, 1] = 1.0, -1.0
    weights = torch.cat([first.ravel(), last.ravel()])
    table = torch.full((PAIRS.grid.n_params,), log_density)
    params = NetParams(table, weights, params_of(PAIRS).color)
    field = leaves_of(Network(PAIRS, params, SPACES["box"]))
    sigmas = TritonBackend(dtype).density(field, positions_of(8)) * BOX.side
    want = torch.full((8,), math.exp(min(log_density, radiance.MAX_LOG_DENSITY)))
    # half precision holds 14.9 and 100 within 0.01 and 0.03
    rtol = 1e-4 if dtype == F32 else 0.04
    torch.testing.assert_close(sigmas, want, rtol=rtol, atol=1e-40)
    grads = torch.autograd.grad(sigmas.sum(), field.params.tensors()[:2])
    assert all(g.isfinite().all() for g in grads)


def test_a_field_without_kernels_is_refused_with_a_way_out() -> None:
    wide = NetSpec(GridSpec(3, 2, 9, 4, 32), width=256)
    with pytest.raises(NerfError, match=r"hashgrid\.width.*--backend torch"):
        TritonBackend(F32).density(network_of(wide), positions_of(3))
    triples = NetSpec(GridSpec(2, 3, 9, 4, 32), width=16)
    with pytest.raises(NerfError, match=r"n_features must be 1, 2, 4 or 8, got 3"):
        TritonBackend(F32).density(network_of(triples), positions_of(3))

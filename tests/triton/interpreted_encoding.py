"""Hash grid and harmonics of the Triton backend against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    BOX,
    DTYPES,
    F16,
    F32,
    GRADIENTS,
    OUTPUTS,
    PAIRS,
    QUADS,
    REFERENCE,
    SPACES,
    assert_near,
    directions_of,
    normal,
    params_of,
    positions_of,
)
from triton.runtime import interpreter

from nerfcli.backends.triton import triton_encoding, triton_harmonics, triton_spaces
from nerfcli.backends.triton.backend import TritonBackend
from nerfcli.reference import encoding
from nerfcli.reference.encoding import GridSpec


def compare(n: int, spec: GridSpec, dtype: torch.dtype) -> None:
    leaves = [(normal(0, spec.n_params).requires_grad_(), positions_of(n)) for _ in "ab"]
    for _, x in leaves:
        x.requires_grad_()
    got, want = (
        ops.hash_grid(x, table, spec)
        for ops, (table, x) in zip((TritonBackend(dtype), REFERENCE), leaves, strict=True)
    )
    assert_near(got, want, OUTPUTS[dtype])
    cotangent = normal(1, *want.shape)
    mine, right = (
        torch.autograd.grad(out, pair, cotangent.clone())
        for out, pair in zip((got, want), leaves, strict=True)
    )
    # the table's precision does not enter its gradient
    assert_near(mine[0], right[0], GRADIENTS[F32])
    assert torch.equal(mine[0] != 0, right[0] != 0)
    assert_near(mine[1], right[1], OUTPUTS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("net", [PAIRS, QUADS])
def test_hash_grid(net, dtype: torch.dtype) -> None:
    compare(63, net.grid, dtype)


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_hash_grid_of_odd_sizes(n: int) -> None:
    compare(n, PAIRS.grid, F32)


def test_a_level_too_fine_for_32_bits_is_hashed() -> None:
    compare(33, GridSpec(2, 1, 10, 8, 2048), F32)


def test_rows_beyond_the_live_count_are_left_alone() -> None:
    x, table = positions_of(40), params_of(PAIRS).table
    x[21:] = torch.nan
    n_live, half = torch.tensor([21]), torch.tensor([0.5])
    features = triton_encoding.new_features(len(x), PAIRS.grid, F32, x.device)
    triton_encoding.encode(x, table, PAIRS.grid, n_live, features)
    want = encoding.hash_grid(x[:21], table, PAIRS.grid).view(21, 3, 2).permute(1, 0, 2)
    assert_near(features[:, :21], want, OUTPUTS[F32])
    assert features[:, 21:].isnan().all()
    grads = torch.zeros_like(table)
    triton_encoding.scatter(x, features, grads, PAIRS.grid, n_live, half)
    again = torch.zeros_like(table)
    triton_encoding.scatter(x[:21], features[:, :21].contiguous(), again, PAIRS.grid, n_live, half)
    assert torch.equal(grads, again) and grads.abs().max() > 0
    triton_encoding.scatter(x, features, again, PAIRS.grid, n_live, 2 * half)  # adds, whole
    torch.testing.assert_close(again, 3 * grads)
    d_x = triton_encoding.position_gradients(x, features, table, PAIRS.grid, n_live)
    assert d_x[:21].isfinite().all() and d_x[21:].isnan().all()


def along_a_ray(n: int) -> torch.Tensor:
    """[n, 3], neighbours often in one cell, the last ones in that of the origin."""
    steps = torch.linspace(0.9, -0.02, n)[:, None].clamp(min=0.0)
    return steps * torch.tensor([1.0, 0.7, 0.9])


@pytest.mark.parametrize(("n", "n_dead"), [(1, 0), (37, 0), (37, 6), (600, 1)])
def test_gradients_of_neighbours(n: int, n_dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sum goes out, once for every cell that RUN rows in a row lie in."""
    grid, x = PAIRS.grid, along_a_ray(n + n_dead)
    sent: list[int] = []
    builder = interpreter.interpreter_builder
    add = builder.create_atomic_rmw

    def counted(op: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
        sent.append(int(mask.data.sum()))
        return add(op, ptr, value, mask, *rest)

    monkeypatch.setattr(builder, "create_atomic_rmw", counted)
    d_features, grads = normal(3, grid.n_levels, n + n_dead, 2), torch.zeros(grid.n_params)
    n_live, one = torch.tensor([n]), torch.ones(1)
    triton_encoding.scatter(x, d_features, grads, grid, n_live, one)

    table = torch.zeros(grid.n_params, requires_grad=True)
    out = encoding.hash_grid(x[:n], table, grid)
    d_out = d_features[:, :n].permute(1, 0, 2).reshape(out.shape)
    assert_near(grads, torch.autograd.grad(out, table, d_out)[0], GRADIENTS[F32])

    cells = [torch.floor(x[:n] * level.scale + 0.5) for level in grid.levels]
    new = [(c[1:] != c[:-1]).any(dim=1) for c in cells]
    new = [torch.cat([torch.ones(1, dtype=torch.bool), ones]) for ones in new]
    for ones in new:
        ones[:: triton_encoding.RUN] = True
    assert sum(sent) == 8 * grid.n_features * sum(int(ones.sum()) for ones in new)
    assert n < 600 or sum(sent) < 0.5 * 8 * grid.n_features * grid.n_levels * n


@pytest.mark.parametrize("n", [0, 1, 63, 300])
def test_harmonics(n: int) -> None:
    d = directions_of(n).requires_grad_()
    got, want = (ops.spherical_harmonics(d) for ops in (TritonBackend(), REFERENCE))
    assert_near(got, want, 1e-6)
    assert_near(triton_harmonics.harmonics(d.detach(), F16).float(), want, 5e-4)
    # of a transposed cotangent, which is not row-major
    mine, right = (torch.autograd.grad(out, d, normal(2, 16, n).T)[0] for out in (got, want))
    assert_near(mine, right, 1e-6)


def test_an_unknown_entry_size_goes_to_torch() -> None:
    spec, x = GridSpec(2, 3, 9, 4, 32), positions_of(5)
    table = normal(1, spec.n_params)
    assert torch.equal(
        TritonBackend().hash_grid(x, table, spec), encoding.hash_grid(x, table, spec)
    )


@pytest.mark.parametrize("kind", SPACES)
def test_spaces(kind: str) -> None:
    """Positions in the unit cube, and cotangents on their way back, also where it is clamped."""
    space, n = SPACES[kind], 300
    x = (torch.tensor(BOX.center) + 1.5 * normal(5, n, 3)).requires_grad_()
    got, want = triton_spaces.map_to_unit(x, space), space.to_unit(x)
    assert_near(got, want, 2e-6)
    assert kind == "contraction" or ((want == 0) | (want == 1)).any(1).sum() > 30
    cotangent = normal(6, n, 3)
    mine, right = (torch.autograd.grad(out, x, cotangent)[0] for out in (got, want))
    assert_near(mine, right, 2e-5)
    assert_near(mine, space.pull_back(x.detach(), cotangent), 2e-5)

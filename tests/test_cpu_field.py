"""The compiled field against the reference: outputs and all gradients, in every space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cpu_cases import (
    CPU,
    GRADIENTS,
    NAMES,
    NETS,
    OUTPUTS,
    PAIRS,
    QUADS,
    SINGLES,
    SIZES,
    SPACE_NAMES,
    SPACES,
    TORCH,
    TURNED,
    UNIT,
    assert_near,
    field,
    generator,
    kernels,  # noqa: F401
    points,
    unit_points,
)
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.core.errors import NerfError
from nerfcli.reference.contraction import Space
from nerfcli.reference.radiance import NetParams, NetSpec

Op = Callable[..., Tensor | tuple[Tensor, ...]]


def with_gradients(
    op: Op, inputs: list[Tensor], wanted: list[bool] | None = None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs, and the gradients of the inputs under random cotangents."""
    flags = wanted or [True] * len(inputs)
    leaves = [t.clone().requires_grad_(w) for t, w in zip(inputs, flags, strict=True)]
    out = op(*leaves)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    g = generator(3)
    torch.autograd.backward(outputs, [torch.randn(o.shape, generator=g) for o in outputs])
    return outputs, [t.grad for t in leaves]


def assert_agree(op: Callable[[Backend], Op], inputs: list[Tensor], slack: float = 1.0) -> None:
    (got, mine), (want, theirs) = (with_gradients(op(b), inputs) for b in (CPU, TORCH))
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, OUTPUTS * slack)
    for a, b in zip(mine, theirs, strict=True):
        if b is not None:  # None: the op does not read it
            assert_near(a, b, GRADIENTS * slack)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("space", SPACES, ids=SPACE_NAMES)
@pytest.mark.parametrize("spec", NETS, ids=NAMES)
def test_density(spec: NetSpec, space: Space, n: int) -> None:
    network = field(spec, space)

    def op(backend: Backend) -> Op:
        return lambda x, *p: backend.density(replace(network, params=NetParams(*p)), x)

    inputs = [points(n, spec, space)[0], *network.params.tensors()]
    assert_agree(op, inputs)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("space", SPACES, ids=SPACE_NAMES)
@pytest.mark.parametrize("spec", NETS, ids=NAMES)
def test_radiance(spec: NetSpec, space: Space, n: int) -> None:
    network = field(spec, space)

    def op(backend: Backend) -> Op:
        return lambda x, r, *p: backend.radiance(replace(network, params=NetParams(*p)), x, r)

    inputs = [*points(n, spec, space), *network.params.tensors()]
    assert_agree(op, inputs)


def test_a_camera_that_looks_askew() -> None:
    """Its products are rounded in another order: 1e-7 of the cube is 1e-5 of a cell here."""
    network = field(SINGLES, TURNED)

    def op(backend: Backend) -> Op:
        return lambda x, *p: backend.density(replace(network, params=NetParams(*p)), x)

    assert_agree(op, [points(1000, SINGLES, TURNED)[0], *network.params.tensors()], 10)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("spec", NETS, ids=NAMES)
def test_hash_grid(spec: NetSpec, n: int) -> None:
    inputs = [unit_points(n, spec.grid), field(spec, UNIT).params.table]
    assert_agree(lambda b: lambda x, table: b.hash_grid(x, table, spec.grid), inputs)


@pytest.mark.parametrize("n", SIZES)
def test_spherical_harmonics(n: int) -> None:
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator(1)), dim=1)
    assert_agree(lambda b: b.spherical_harmonics, [directions])


@pytest.mark.parametrize("space", SPACES, ids=SPACE_NAMES)
def test_positions_that_are_far_or_no_numbers_stay_in_the_table(space: Space) -> None:
    x = torch.tensor([[1e30, -1e30, 0.0], [float("nan")] * 3, [float("inf"), 0.0, float("-inf")]])
    assert CPU.density(field(PAIRS, space), x).isfinite().all()


@pytest.mark.parametrize("wanted", range(5))
def test_a_gradient_alone_is_the_same(wanted: int) -> None:
    network = field(QUADS, SPACES[1])

    def op(x: Tensor, r: Tensor, *p: Tensor) -> tuple[Tensor, Tensor]:
        return CPU.radiance(replace(network, params=NetParams(*p)), x, r)

    inputs = [*points(100, QUADS, SPACES[1]), *network.params.tensors()]
    flags = [i == wanted for i in range(5)]
    alone, together = with_gradients(op, inputs, flags)[1], with_gradients(op, inputs)[1]
    assert [grad is not None for grad in alone] == flags
    got, want = alone[wanted], together[wanted]
    assert got is not None and want is not None and torch.equal(got, want)


@pytest.mark.parametrize("name", ["density", "radiance", "hash_grid"])
def test_the_same_gradients_on_any_number_of_threads(name: str) -> None:
    network, results = field(PAIRS, SPACES[1]), []
    x, r = points(9000, PAIRS, SPACES[1])  # more than one block of samples

    def op(x: Tensor, r: Tensor, *p: Tensor) -> Tensor | tuple[Tensor, ...]:
        if name == "hash_grid":
            return CPU.hash_grid(x.clamp(0, 1), p[0], PAIRS.grid)
        learning = replace(network, params=NetParams(*p))
        return CPU.density(learning, x) if name == "density" else CPU.radiance(learning, x, r)

    for n_threads in (1, 2, 3, 20):  # 20: more threads than levels of the grid
        torch.set_num_threads(n_threads)
        grads = with_gradients(op, [x, r, *network.params.tensors()])[1]
        results.append([g for g in grads if g is not None])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_second_derivative_is_refused() -> None:
    """The kernels have none, and without a graph it would be zero in silence."""
    x = unit_points(5, PAIRS.grid).requires_grad_()
    sigmas = CPU.density(field(PAIRS, UNIT), x)
    with pytest.raises(NerfError, match="no second derivative"):
        torch.autograd.grad(sigmas.sum(), x, create_graph=True)

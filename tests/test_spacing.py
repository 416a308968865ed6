"""Spacings along a ray, and the samplers in them, against the formulas in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from nerfcli.cameras.rays import Bounds
from nerfcli.reference.sampling import (
    LINEAR,
    Disparity,
    Linear,
    Spacing,
    Steps,
    importance,
    stratified,
)

F64 = torch.float64
SPACINGS = {
    "linear": Linear(),
    "disparity": Disparity(),
    "steps": Steps(0.05),
    "cone": Steps(0.05, 1 / 16),
}
S_OF_T = {
    "linear": lambda t: t,
    "disparity": lambda t: -1 / t,
    "steps": lambda t: t / 0.05,
    "cone": lambda t: t / 0.05 if t <= 0.8 else 16 + float(np.log(t / 0.8) / np.log(17 / 16)),
}
all_spacings = pytest.mark.parametrize("name", SPACINGS)


def bounds(n: int) -> Bounds:
    """Ranges that begin near and end far, some beyond where the cone takes over."""
    t_min = torch.linspace(0.1, 2.0, n, dtype=F64)
    return Bounds(t_min, t_min + torch.linspace(0.5, 60.0, n, dtype=F64))


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@all_spacings
def test_spacings_are_their_formulas_and_invert(name: str) -> None:
    spacing = SPACINGS[name]
    t = torch.logspace(-3, 4, 300, dtype=F64)
    s = spacing.s_from_t(t)
    torch.testing.assert_close(s, torch.tensor([S_OF_T[name](v) for v in t.tolist()], dtype=F64))
    torch.testing.assert_close(spacing.t_from_s(s), t, rtol=1e-10, atol=0)
    assert (s.diff() > 0).all()


def test_disparity_reaches_the_horizon() -> None:
    s = Disparity().s_from_t(torch.tensor([1.0, float("inf")]))
    assert s.tolist() == [-1.0, 0.0]
    t = stratified(
        Bounds(torch.tensor([2.0]), torch.tensor([float("inf")])),
        torch.full((1, 4), 0.5),
        Disparity(),
    )
    # 1 / t runs from 1/2 to 0: middles at 7/16, 5/16, 3/16, 1/16
    torch.testing.assert_close(t, torch.tensor([[16 / 7, 16 / 5, 16 / 3, 16.0]]))


def test_disparity_is_even_in_inverse_distance() -> None:
    t = stratified(bounds(5), torch.full((5, 12), 0.5, dtype=F64), Disparity())
    steps = (1 / t).diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand(-1, 11))


@all_spacings
def test_stratified_equals_plain_python(name: str) -> None:
    spacing, limits, jitter = SPACINGS[name], bounds(4), uniform(4, 9)
    t = stratified(limits, jitter, spacing)
    assert (t.diff(dim=1) > 0).all()
    for i in range(4):
        low, high = (S_OF_T[name](v[i].item()) for v in limits)
        for k in range(9):
            s = low + (high - low) * (k + jitter[i, k].item()) / 9
            assert S_OF_T[name](t[i, k].item()) == pytest.approx(s, rel=1e-9, abs=1e-9)


@all_spacings
def test_importance_equals_plain_python(name: str) -> None:
    """The inverse of a cumulated histogram whose bins are flat in s, by numpy's interpolation."""
    spacing, limits, u = SPACINGS[name], bounds(4), uniform(4, 11, seed=1)
    edges = stratified(limits, uniform(4, 8, seed=2), spacing)
    weights = uniform(4, 7, seed=3)
    weights[1] = 0.0
    weights[2, 3] = 0.0
    t = importance(edges, weights, u, 1e-3, spacing)
    for i in range(4):
        share = weights[i].numpy() + 1e-3
        cdf = np.concatenate([[0.0], np.cumsum(share / share.sum())])
        s_edges = [S_OF_T[name](v) for v in edges[i].tolist()]
        expected = np.interp(u[i].numpy(), cdf, s_edges)
        got = [S_OF_T[name](v) for v in t[i].tolist()]
        assert got == pytest.approx(expected.tolist(), rel=1e-9)


def test_importance_in_disparity_is_uniform_in_inverse_distance_within_a_bin() -> None:
    edges = torch.tensor([[1.0, 2.0, 50.0]], dtype=F64)
    t = importance(
        edges, torch.tensor([[1.0, 3.0]], dtype=F64), uniform(1, 20000), 0.0, Disparity()
    )
    far = t[t > 2]
    assert len(far) == pytest.approx(15000, abs=300)
    flat = (1 / 2 - 1 / far) / (1 / 2 - 1 / 50)
    assert stats.kstest(flat.numpy(), "uniform").pvalue > 1e-3  # fixed seed


def test_linear_is_bit_for_bit_the_formula_without_a_spacing() -> None:
    limits = Bounds(*(v.float() for v in bounds(50)))
    jitter, u = uniform(50, 13).float(), uniform(50, 32, seed=1).float()
    t_min, t_max = limits
    part = (torch.arange(13.0) + jitter) / 13
    t = t_min[:, None] + part * (t_max - t_min)[:, None]
    assert torch.equal(stratified(limits, jitter), t)
    assert torch.equal(stratified(limits, jitter, LINEAR), t)
    weights = uniform(50, 12, seed=2).float()
    cdf = ((weights + 1e-5) / (weights + 1e-5).sum(-1, keepdim=True)).cumsum(-1)
    cdf = torch.cat([torch.zeros(50, 1), cdf], dim=-1)
    right = torch.searchsorted(cdf, u, right=True).clamp(1, 12)
    low, high = cdf.gather(1, right - 1), cdf.gather(1, right)
    start, end = t.gather(1, right - 1), t.gather(1, right)
    share = ((u - low) / (high - low).clamp(min=1e-12)).clamp(0.0, 1.0)
    assert torch.equal(importance(t, weights, u), start + share * (end - start))


@all_spacings
def test_a_spacing_keeps_the_ends_of_the_range(name: str) -> None:
    spacing: Spacing = SPACINGS[name]
    limits = bounds(6)
    first = stratified(limits, torch.zeros(6, 5, dtype=F64), spacing)[:, 0]
    last = stratified(limits, torch.ones(6, 5, dtype=F64), spacing)[:, -1]
    torch.testing.assert_close(first, limits.t_min)
    torch.testing.assert_close(last, limits.t_max)

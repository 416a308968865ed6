"""Losses against hand values, double sums, Monte Carlo and torch's own Huber loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nerfcli.reference.losses import (
    HUBER_DELTA,
    PHOTOMETRIC,
    depth_loss,
    distortion_loss,
    huber,
    mse,
    opacity_loss,
)
from nerfcli.reference.samples import Samples

F64 = torch.float64
COUNTS = [0, 3, 0, 7, 1, 0]


def test_mse_by_hand() -> None:
    rgb = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 0.0]])
    target = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    assert mse(rgb, target).item() == pytest.approx((0.25 + 1.0 + 0.25) / 6)


def test_huber_equals_mse_for_small_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(40, 3, generator=generator)
    rgb = target + (torch.rand(40, 3, generator=generator) - 0.5) * 2 * (HUBER_DELTA * 0.99)
    torch.testing.assert_close(huber(rgb, target), mse(rgb, target))


def test_huber_is_twice_torchs() -> None:
    generator = torch.Generator().manual_seed(1)
    rgb, target = torch.rand(2, 50, 3, generator=generator)
    expected = 2 * torch.nn.functional.huber_loss(rgb, target, delta=HUBER_DELTA)
    torch.testing.assert_close(huber(rgb, target), expected)


def test_huber_by_hand() -> None:
    one = torch.tensor([[0.6]]), torch.tensor([[0.1]])
    assert huber(*one).item() == pytest.approx(0.1 * (2 * 0.5 - 0.1))


def test_huber_and_its_slope_are_continuous() -> None:
    error = torch.tensor(
        [[HUBER_DELTA - 1e-9, HUBER_DELTA + 1e-9, -HUBER_DELTA + 1e-9, -HUBER_DELTA - 1e-9]],
        dtype=torch.float64,
    ).T
    error.requires_grad_()
    values = torch.stack([huber(e, torch.zeros_like(e)) for e in error])
    assert values.detach().tolist() == pytest.approx([HUBER_DELTA**2] * 4, rel=1e-7)
    (slope,) = torch.autograd.grad(values.sum(), error)
    expected = [2 * HUBER_DELTA] * 2 + [-2 * HUBER_DELTA] * 2
    assert slope.ravel().tolist() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_gradients_match_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    rgb, target = torch.rand(2, 6, 3, generator=generator, dtype=torch.float64)
    inputs = (rgb.requires_grad_(), target)
    assert torch.autograd.gradcheck(PHOTOMETRIC[name], inputs)


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_a_perfect_picture_costs_nothing(name: str) -> None:
    rgb = torch.rand(4, 3, requires_grad=True)
    value = PHOTOMETRIC[name](rgb, rgb.detach())
    (grad,) = torch.autograd.grad(value, rgb)
    assert value.item() == 0.0 and not grad.any()


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_photometric_weight_is_of_the_ray(name: str) -> None:
    rgb, target = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(3), dtype=F64)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0], dtype=F64)
    each = [PHOTOMETRIC[name](rgb[i : i + 1], target[i : i + 1]).item() for i in range(5)]
    expected = sum(w * e for w, e in zip(weight.tolist(), each, strict=True)) / 5
    assert PHOTOMETRIC[name](rgb, target, weight).item() == pytest.approx(expected)


# functions of the weights


def packed(counts: list[int] = COUNTS, seed: int = 0) -> tuple[Tensor, Samples, Tensor]:
    """Random weights, samples with gaps between the intervals, and a weight for each ray."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(n: int) -> Tensor:
        return torch.rand(n, generator=generator, dtype=F64)

    starts, ends, weights = [], [], []
    for count in counts:
        borders = 1.0 + (0.05 + uniform(2 * count)).cumsum(0)
        starts.append(borders[::2])
        ends.append(borders[1::2])
        weights.append(uniform(count) / max(count, 1))
    offsets = torch.tensor([0, *counts]).cumsum(0)
    samples = Samples(torch.cat(starts), torch.cat(ends), offsets)
    return torch.cat(weights), samples, 0.2 + uniform(len(counts))


def rays_of(weights: Tensor, samples: Samples) -> list[list[tuple[float, float, float]]]:
    """(weight, start, end) of the samples of each ray, as plain numbers."""
    rows = list(
        zip(weights.tolist(), samples.t_starts.tolist(), samples.t_ends.tolist(), strict=True)
    )
    offsets = samples.ray_offsets.tolist()
    return [rows[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


DEPTHS = torch.tensor([2.0, 2.5, 0.0, 3.0, 0.0, 1.0], dtype=F64)
SCALE = 0.37


def plain_opacity(ray) -> float:
    o = max(sum(w for w, _, _ in ray), 1e-6)
    return -o * math.log(o)


def plain_distortion(ray) -> float:
    """The double sum of mip-NeRF 360 (2022), eq. 15."""
    total = 0.0
    for w, start, end in ray:
        for v, other_start, other_end in ray:
            total += w * v * abs((start + end) - (other_start + other_end)) / 2 * SCALE
        total += w**2 * (end - start) * SCALE / 3
    return total


def plain_depth(ray, depth: float) -> float:
    return abs(sum(w * ((start + end) / 2 - depth) for w, start, end in ray)) if depth > 0 else 0.0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["opacity", "depth", "distortion"])
def test_losses_of_weights_equal_their_sums(name: str, weighted: bool) -> None:
    weights, samples, own = packed()
    weight = own if weighted else None
    each = []
    for ray, depth in zip(rays_of(weights, samples), DEPTHS.tolist(), strict=True):
        plain = {
            "opacity": plain_opacity(ray),
            "depth": plain_depth(ray, depth),
            "distortion": plain_distortion(ray),
        }
        each.append(plain[name])
    factors = own.tolist() if weighted else [1.0] * len(COUNTS)
    expected = sum(f * e for f, e in zip(factors, each, strict=True)) / len(COUNTS)
    got = {
        "opacity": opacity_loss(weights, samples, weight),
        "depth": depth_loss(weights, samples, DEPTHS, weight),
        "distortion": distortion_loss(weights, samples, SCALE, weight),
    }[name]
    assert expected > 1e-3 and got.ndim == 0
    assert got.item() == pytest.approx(expected, rel=1e-10)


def test_distortion_is_the_mean_distance_of_two_places_on_the_ray() -> None:
    """Eq. 14: the integral of w(u) w(v) |u - v|, with w constant within an interval."""
    weights, samples, _ = packed([6], seed=4)
    generator = torch.Generator().manual_seed(5)
    n, places = 200_000, []
    for _ in range(2):
        index = torch.multinomial(weights, n, replacement=True, generator=generator)
        inside = torch.rand(n, generator=generator, dtype=F64)
        length = (samples.t_ends - samples.t_starts)[index]
        places.append(samples.t_starts[index] + inside * length)
    apart = (places[0] - places[1]).abs() * SCALE * weights.sum().square()
    error = apart.std().item() / math.sqrt(n)
    got = distortion_loss(weights, samples, SCALE).item()
    assert abs(got - apart.mean().item()) < 4 * error < 0.02 * got


def test_distortion_by_hand() -> None:
    samples = Samples.from_edges(torch.tensor([[0.0, 1.0, 3.0]], dtype=F64))
    weights = torch.tensor([0.5, 0.25], dtype=F64)
    # middles 0.5 and 2; lengths 1 and 2
    expected = 2 * 0.5 * 0.25 * 1.5 + (0.25 * 1 + 0.0625 * 2) / 3
    assert distortion_loss(weights, samples, 1.0).item() == pytest.approx(expected)
    assert distortion_loss(weights, samples, 4.0).item() == pytest.approx(4 * expected)
    # all weight in one thin sample costs next to nothing
    thin = Samples.from_edges(torch.tensor([[2.0, 2.001]], dtype=F64))
    one = torch.ones(1, dtype=F64)
    assert distortion_loss(one, thin, 1.0).item() == pytest.approx(0.001 / 3)


def test_opacity_is_free_where_a_ray_is_empty_or_opaque() -> None:
    samples = Samples.from_edges(torch.tensor([[0.0, 1.0, 2.0]], dtype=F64).expand(4, 3))
    weights = torch.tensor([[0.0, 0.0], [0.4, 0.6], [0.5, 0.0], [0.0, 1 / math.e]], dtype=F64)
    rays = [
        opacity_loss(w, Samples.from_edges(samples.t_starts.new_tensor([[0.0, 1.0, 2.0]]))).item()
        for w in weights
    ]
    assert rays == pytest.approx([0.0, 0.0, 0.5 * math.log(2), 1 / math.e], abs=2e-5)
    assert opacity_loss(weights.ravel(), samples).item() == pytest.approx(sum(rays) / 4)


def test_depth_counts_light_in_front_and_behind() -> None:
    samples = Samples.from_edges(torch.tensor([[1.0, 2.0, 4.0]], dtype=F64))  # middles 1.5, 3
    weights = torch.tensor([0.5, 0.25], dtype=F64)

    def at(depth: float) -> float:
        return depth_loss(weights, samples, torch.tensor([depth], dtype=F64)).item()

    assert at(2.0) == pytest.approx(abs(0.5 * -0.5 + 0.25 * 1.0), abs=1e-12)
    assert at(1.0) == pytest.approx(0.5 * 0.5 + 0.25 * 2.0)
    assert at(5.0) == pytest.approx(0.5 * 3.5 + 0.25 * 2.0)
    assert at(0.0) == 0.0  # not known


@pytest.mark.parametrize("name", ["opacity", "depth", "distortion"])
def test_gradients_in_the_weights_match_finite_differences(name: str) -> None:
    weights, samples, own = packed()

    def loss(w: Tensor) -> Tensor:
        if name == "opacity":
            return opacity_loss(w, samples, own)
        if name == "depth":
            return depth_loss(w, samples, DEPTHS, own)
        return distortion_loss(w, samples, SCALE, own)

    assert torch.autograd.gradcheck(loss, (weights.requires_grad_(),))
    (grad,) = torch.autograd.grad(loss(weights), weights)
    assert grad.count_nonzero() >= 10  # the ray of one sample has no depth


@pytest.mark.parametrize("n_rays", [1, 4])
def test_rays_without_samples_cost_what_an_empty_ray_costs(n_rays: int) -> None:
    none = torch.zeros(0, dtype=F64, requires_grad=True)
    samples = Samples(none.detach(), none.detach(), torch.zeros(n_rays + 1, dtype=torch.int64))
    depth = torch.full((n_rays,), 2.0, dtype=F64)
    assert distortion_loss(none, samples, 1.0).item() == 0.0
    assert depth_loss(none, samples, depth).item() == 0.0
    assert opacity_loss(none, samples).item() == pytest.approx(0.0, abs=2e-5)


def test_distortion_of_many_rays_keeps_its_precision() -> None:
    """The running sums cross rays; each ray's share must not drown in them."""
    edges = 2.0 + torch.linspace(0, 1, 33).expand(4000, -1)
    samples = Samples.from_edges(edges)
    weights = torch.rand(samples.capacity, generator=torch.Generator().manual_seed(6)) / 16
    got = distortion_loss(weights, samples, 1.0)
    dense, middles = samples.dense(weights).double(), samples.dense(samples.t_mids).double()
    apart = (middles[0][:, None] - middles[0][None]).abs()
    expected = ((dense @ apart) * dense).sum(1) + dense.square().sum(1) / 32 / 3
    assert got.item() == pytest.approx(expected.mean().item(), rel=1e-5)  # float32 middles

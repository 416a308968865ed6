"""Volume rendering against closed forms, scalar loops, Monte Carlo and float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.volume import (
    composite,
    sum_per_ray,
    transmittance_and_alphas,
    visible,
    weights_from_density,
)

F64 = torch.float64
WHITE = torch.ones(3, dtype=F64)


def slab(edges: list[float]) -> Samples:
    return Samples.from_edges(torch.tensor([edges], dtype=F64))


def packed(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Samples]:
    """Random sigmas, rgbs and samples with gaps between the intervals, counts[i] for ray i."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=F64)

    starts, ends = [], []
    for count in counts:
        borders = 1.0 + (0.05 + uniform(2 * count)).cumsum(0)
        starts.append(borders[::2])
        ends.append(borders[1::2])
    offsets = torch.tensor([0, *counts]).cumsum(0)
    n = sum(counts)
    return uniform(n) * 3, uniform(n, 3), Samples(torch.cat(starts), torch.cat(ends), offsets)


def scalar_pixel(ray, background: list[float]):
    """One ray (sigmas, rgbs, starts, ends), sample after sample, by multiplying (1 - alpha)."""
    sigmas, rgbs, starts, ends = ray
    light, rgb, opacity, distance, weights = 1.0, [0.0] * 3, 0.0, 0.0, []
    for sigma, color, start, end in zip(sigmas, rgbs, starts, ends, strict=True):
        alpha = 1 - math.exp(-sigma * (end - start))
        weight = light * alpha
        light *= 1 - alpha
        weights.append(weight)
        opacity += weight
        distance += weight * (start + end) / 2
        rgb = [a + weight * b for a, b in zip(rgb, color, strict=True)]
    rgb = [a + (1 - opacity) * b for a, b in zip(rgb, background, strict=True)]
    median, reached = 0.0, 0.0
    for weight, start, end in zip(weights, starts, ends, strict=True):
        reached += weight
        if reached >= opacity / 2:
            median = (start + end) / 2
            break
    return rgb, opacity, distance / opacity if opacity else 0.0, median


COUNTS = [[0, 3, 0, 0, 7, 1, 0], [5], [1], [0], [0, 0, 4], [4, 0]]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("per_ray_background", [False, True])
def test_composite_equals_a_scalar_loop(counts: list[int], per_ray_background: bool) -> None:
    sigmas, rgbs, samples = packed(counts)
    n = len(counts)
    background = torch.rand(n, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    background = background if per_ray_background else background[0]
    pixels = composite(sigmas, rgbs, samples, background)
    for i in range(n):
        part = slice(*samples.ray_offsets[i : i + 2].tolist())
        values = (sigmas, rgbs, samples.t_starts, samples.t_ends)
        own = background.expand(n, 3)[i].tolist()
        expected = scalar_pixel([v[part].tolist() for v in values], own)
        got = (pixels.rgb[i], pixels.opacity[i], pixels.depth[i], pixels.median_depth[i])
        for a, b in zip(got, expected, strict=True):
            assert a.tolist() == pytest.approx(b, abs=1e-12)


def test_two_slabs_by_hand() -> None:
    # sigma = ln 2 over length 1: each stops half of what arrives
    samples, sigmas = slab([2.0, 3.0, 4.0]), torch.full((2,), math.log(2), dtype=F64)
    assert weights_from_density(sigmas, samples).tolist() == pytest.approx([0.5, 0.25])
    red_blue = torch.tensor([[1.0, 0, 0], [0, 0, 1]], dtype=F64)
    pixels = composite(sigmas, red_blue, samples, WHITE)
    assert pixels.rgb[0].tolist() == pytest.approx([0.75, 0.25, 0.5])
    assert pixels.opacity.item() == pytest.approx(0.75)
    assert pixels.depth.item() == pytest.approx((0.5 * 2.5 + 0.25 * 3.5) / 0.75)
    assert pixels.median_depth.item() == 2.5  # 0.5 is past the half of 0.75


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 0.3, 7.0])
def test_constant_slab_has_its_closed_form(sigma: float) -> None:
    edges = torch.linspace(2.0, 6.0, 33, dtype=F64)
    samples, sigmas = slab(edges.tolist()), torch.full((32,), sigma, dtype=F64)
    pixels = composite(sigmas, torch.zeros(32, 3, dtype=F64), samples, WHITE)
    opacity = -math.expm1(-sigma * 4)
    assert pixels.opacity.item() == pytest.approx(opacity, rel=1e-12, abs=1e-15)
    assert pixels.rgb[0].tolist() == pytest.approx([1 - opacity] * 3)
    transmittance, _ = transmittance_and_alphas(sigmas, samples)
    torch.testing.assert_close(transmittance, torch.exp(-sigma * (edges[:-1] - 2)))


def test_depths_of_an_exponential_medium() -> None:
    sigma, far, n = 0.8, 5.0, 4000
    samples = slab(torch.linspace(0, far, n + 1).tolist())
    ones = torch.ones(n, 3, dtype=F64)
    pixels = composite(torch.full((n,), sigma, dtype=F64), ones, samples, WHITE)
    expected = 1 / sigma - far / math.expm1(sigma * far)
    # the midpoint rule is good to (far / n)^2; the median to one interval
    assert pixels.depth.item() == pytest.approx(expected, abs=1e-5)
    median = -math.log(1 - 0.5 * -math.expm1(-sigma * far)) / sigma
    assert pixels.median_depth.item() == pytest.approx(median, abs=far / n)


def test_depth_of_a_thin_dense_sphere_is_its_surface() -> None:
    impact = torch.linspace(0.0, 1.4, 15, dtype=F64)  # distance of the ray from the centre
    step = 0.005
    samples = Samples.from_edges(torch.arange(1.0, 5.0 + step, step, dtype=F64).expand(15, -1))
    radius = torch.hypot(samples.t_mids - 3.0, impact[samples.ray_indices()])
    sigmas = torch.where((radius < 1.0) & (radius > 0.95), 1e5, 0.0).to(F64)
    pixels = composite(sigmas, torch.zeros(samples.capacity, 3, dtype=F64), samples, WHITE)
    hit = impact < 1.0
    torch.testing.assert_close(pixels.opacity, hit.to(F64))
    surface = torch.where(hit, 3.0 - (1 - impact**2).clamp(min=0).sqrt(), 0.0)
    for depth in (pixels.depth, pixels.median_depth):
        torch.testing.assert_close(depth, surface, atol=step, rtol=0)


def test_weights_are_where_photons_stop() -> None:
    sigmas, _, samples = packed([9])
    n = 20000
    generator = torch.Generator().manual_seed(11)
    # optical depth at the first collision is exponential
    free_path = -torch.log1p(-torch.rand(n, generator=generator, dtype=F64))
    borders = (sigmas * (samples.t_ends - samples.t_starts)).cumsum(0)
    stops = torch.bincount(torch.searchsorted(borders, free_path), minlength=10)
    weights = weights_from_density(sigmas, samples)
    share = torch.cat([weights, 1 - weights.sum(0, keepdim=True)])
    assert stats.chisquare(stops.numpy(), (n * share).numpy()).pvalue > 1e-3  # fixed seed


lengths = st.lists(st.floats(1e-3, 2.0), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(lengths, st.data())
def test_splitting_an_interval_changes_nothing(parts: list[float], data: st.DataObject) -> None:
    n = len(parts)
    values = st.lists(st.floats(0.0, 50.0), min_size=n, max_size=n)
    sigmas = torch.tensor(data.draw(values), dtype=F64)
    where, cut = data.draw(st.integers(0, n - 1)), data.draw(st.floats(0.01, 0.99))
    edges = [1.0, *(1.0 + torch.tensor(parts, dtype=F64).cumsum(0)).tolist()]
    rgbs = torch.linspace(0, 1, 3 * n, dtype=F64).reshape(n, 3)
    whole = composite(sigmas, rgbs, slab(edges), WHITE)
    split = edges[where] + cut * (edges[where + 1] - edges[where])
    repeats = torch.ones(n, dtype=torch.int64)
    repeats[where] = 2
    halves = composite(
        sigmas.repeat_interleave(repeats),
        rgbs.repeat_interleave(repeats, dim=0),
        slab([*edges[: where + 1], split, *edges[where + 1 :]]),
        WHITE,
    )
    # depth moves, as the parts have middles of their own
    torch.testing.assert_close(halves.rgb, whole.rgb, atol=1e-12, rtol=0)
    torch.testing.assert_close(halves.opacity, whole.opacity, atol=1e-12, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1e30)), max_size=30))
def test_weights_are_a_partial_distribution(values: list[float]) -> None:
    n = len(values)
    samples = Samples.from_edges(torch.linspace(0, 3, n + 1)[None])
    weights = weights_from_density(torch.tensor(values), samples)
    assert (weights >= 0).all()
    assert weights.sum() <= 1 + 1e-6  # float32 rounding of 30 terms


@pytest.mark.parametrize("sigma", [0.0, 1e-38, 1e-20, 1e-6, 1.0, 1e6, 1e20, 1e30])
@pytest.mark.parametrize("others", [0.0, 1.0, 1e30])
def test_outputs_and_gradients_are_finite_for_any_density(sigma: float, others: float) -> None:
    _, rgbs, samples = packed([0, 5, 2])
    samples = Samples(samples.t_starts.float(), samples.t_ends.float(), samples.ray_offsets)
    sigmas = torch.tensor([others, sigma, others, sigma, sigma, sigma, others])
    sigmas.requires_grad_()
    rgbs = rgbs.float().requires_grad_()
    pixels = composite(sigmas, rgbs, samples, torch.ones(3))
    outputs = (pixels.rgb, pixels.opacity, pixels.depth, pixels.median_depth)
    assert all(o.isfinite().all() for o in outputs)
    assert (pixels.opacity >= 0).all() and (pixels.opacity <= 1 + 1e-6).all()
    total = pixels.rgb.sum() + pixels.opacity.sum() + pixels.depth.sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, (sigmas, rgbs)))


def test_gradients_match_finite_differences() -> None:
    sigmas, rgbs, samples = packed([0, 3, 1, 0, 4])
    background = torch.rand(5, 3, dtype=F64, generator=torch.Generator().manual_seed(1))

    def pixels(s: torch.Tensor, c: torch.Tensor, b: torch.Tensor):
        p = composite(s, c, samples, b)
        return p.rgb, p.opacity, p.depth

    inputs = tuple(v.requires_grad_() for v in (sigmas, rgbs, background))
    assert torch.autograd.gradcheck(pixels, inputs)


@pytest.mark.parametrize("garbage", [float("nan"), 1e30, -1e30])
def test_padding_changes_neither_pixels_nor_gradients(garbage: float) -> None:
    sigmas, rgbs, samples = packed([0, 3, 0, 5])

    def pad(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, values.new_full((4, *values.shape[1:]), garbage)])

    padded = Samples(pad(samples.t_starts), pad(samples.t_ends), samples.ray_offsets)
    results = []
    for s, c, where in ((sigmas, rgbs, samples), (pad(sigmas), pad(rgbs), padded)):
        s, c = s.clone().requires_grad_(), c.clone().requires_grad_()
        p = composite(s, c, where, WHITE)
        weights = weights_from_density(s, where)
        assert weights[8:].count_nonzero() == 0
        total = p.rgb.square().sum() + p.depth.sum() + weights[:8].square().sum()
        grads = torch.autograd.grad(total, (s, c))
        assert all(g[8:].count_nonzero() == 0 for g in grads)
        results.append((p, grads[0][:8], grads[1][:8], visible(s, where, 0.0)))
    (p, gs, gc, seen), (q, hs, hc, padded_seen) = results
    for field in Pixels.__dataclass_fields__:
        assert torch.equal(getattr(p, field), getattr(q, field))
    assert torch.equal(gs, hs) and torch.equal(gc, hc)
    assert seen.all() and padded_seen.tolist() == [True] * 8 + [False] * 4


def test_visible_is_where_light_arrives() -> None:
    samples = slab([0.0, 1.0, 2.0, 3.0, 4.0])
    sigmas = torch.full((4,), math.log(10), dtype=F64)  # T = 1, 0.1, 0.01, 0.001
    assert visible(sigmas, samples, 0.005).tolist() == [True, True, True, False]
    assert visible(sigmas, samples, 0.0).all()


def test_sum_per_ray_leaves_padding_out() -> None:
    samples = Samples(torch.zeros(6), torch.ones(6), torch.tensor([0, 2, 2, 5]))
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, float("nan")])
    assert sum_per_ray(values, samples).tolist() == [3.0, 0.0, 28.0]


@pytest.mark.parametrize("n_rays", [1, 3])
def test_rays_without_samples_show_the_background(n_rays: int) -> None:
    offsets = torch.zeros(n_rays + 1, dtype=torch.int64)
    samples = Samples(torch.zeros(0), torch.zeros(0), offsets)
    sigmas = torch.zeros(0, requires_grad=True)
    pixels = composite(sigmas, torch.zeros(0, 3), samples, torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(pixels.rgb, torch.tensor([[0.1, 0.2, 0.3]]).expand(n_rays, 3))
    for value in (pixels.opacity, pixels.depth, pixels.median_depth):
        assert value.tolist() == [0.0] * n_rays


def test_running_sum_over_many_rays_keeps_its_precision() -> None:
    # 640,000 samples with optical depths of about 3: the running sum passes 10^6, where float32
    # has steps of 0.06 to 0.125
    n_rays, n = 20000, 32
    generator = torch.Generator().manual_seed(0)
    sigmas = torch.rand(n_rays, n, generator=generator) ** 4 * 480
    edges = torch.linspace(2.0, 3.0, n + 1).expand(n_rays, -1)
    samples = Samples.from_edges(edges)
    pixels = composite(sigmas.ravel(), torch.ones(n_rays * n, 3), samples, torch.zeros(3))
    alphas = -torch.expm1(-sigmas.double() * edges.double().diff(dim=1))
    light = torch.cat([torch.ones(n_rays, 1, dtype=F64), (1 - alphas).cumprod(1)], dim=1)
    weights = light[:, :-1] * alphas
    assert (sigmas.double() / n).sum() > 1e6
    depth = (weights * samples.dense(samples.t_mids).double()).sum(1) / weights.sum(1)
    # what float32 sums of 32 terms leave
    torch.testing.assert_close(pixels.opacity.double(), weights.sum(1), atol=2e-6, rtol=0)
    torch.testing.assert_close(pixels.depth.double(), depth, atol=5e-6, rtol=0)

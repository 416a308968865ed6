"""A training step's gradients against plain autograd per ray, and against differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Rays
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import StepTerms, photometric_gradients, render_rays
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec, density, radiance
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import Steps, intersect_box, march
from nerfcli.reference.volume import composite, visible

F64 = torch.float64
NET = NetSpec(GridSpec(3, 2, 9, 4, 32), width=16)
BOX = Box((0.2, -0.1, 0.3), 0.7, 2)
STEPS = Steps(0.12, 0.02)
N_RAYS = 12


def random_params(opaque: bool = False, seed: int = 0) -> NetParams:
    """A cloudy field, or one that stops most rays."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (NET.grid.n_params, mlp_n_params(NET.density_widths), mlp_n_params(NET.color_widths))
    parts = (torch.randn(n, generator=generator, dtype=F64) * 0.6 for n in sizes)
    table, density_weights, color_weights = parts
    return NetParams(table, density_weights * (8 if opaque else 1), color_weights)


def zeros_like(params: NetParams) -> NetParams:
    return NetParams(*(torch.zeros_like(p) for p in params.tensors()))


def some_rays(seed: int = 1) -> Rays:
    """Rays towards the box; the third and the last look away from it."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(N_RAYS, 3, generator=generator, dtype=F64)
    origins = 4 * origins / origins.norm(dim=1, keepdim=True)
    goals = torch.randn(N_RAYS, 3, generator=generator, dtype=F64) * 0.4
    directions = goals - origins
    directions[[2, -1]] *= -1
    return Rays(origins, directions / directions.norm(dim=1, keepdim=True))


Bounds = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def marched(rays: Rays) -> tuple[Samples, Bounds]:
    occupied = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    t_min, t_max = intersect_box(rays.origins, rays.directions, BOX, 0.1, 10.0)
    jitter = torch.rand(N_RAYS, generator=torch.Generator().manual_seed(3), dtype=F64)
    args = (t_min, t_max, jitter, occupied)
    return march(rays.origins, rays.directions, *args, BOX, STEPS), args


def colors(seed: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target, background = torch.rand(2, N_RAYS, 3, generator=generator, dtype=F64)
    return target, background


def plain_rgb(params: NetParams, rays: Rays, samples: Samples, background: torch.Tensor):
    """Each ray on its own: field at the middles, cumulated product of (1 - alpha)."""
    center, pixels = torch.tensor(BOX.center, dtype=F64), []
    for i in range(len(rays)):
        part = slice(*samples.ray_offsets[i : i + 2].tolist())
        t = samples.t_mids[part]
        unit = (rays.origins[i] + t[:, None] * rays.directions[i] - center) / 2.8
        sigmas, rgbs = radiance(unit + 0.5, rays.directions[i].expand(len(t), 3), params, NET)
        lengths = samples.t_ends[part] - samples.t_starts[part]
        through = torch.exp(-sigmas / 2.8 * lengths)  # density is per side of the outer cube
        light = torch.cat([torch.ones(1, dtype=F64), through.cumprod(0)])
        rgb = (light[:-1, None] * (1 - through)[:, None] * rgbs).sum(0) + light[-1] * background[i]
        pixels.append(rgb)
    return torch.stack(pixels)


def plain_loss(name: str, rgb: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if name == "mse":
        return torch.nn.functional.mse_loss(rgb, target)
    return 2 * torch.nn.functional.huber_loss(rgb, target, delta=0.1)


def run(
    params: NetParams, samples: Samples, limit: float = 0.0, loss: str = "huber"
) -> tuple[StepTerms, NetParams]:
    grads = zeros_like(params)
    target, background = colors()
    terms = photometric_gradients(
        params, grads, NET, BOX, some_rays(), samples, target, background,
        loss=loss, min_transmittance=limit,
    )  # fmt: skip
    return terms, grads


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_gradients_equal_plain_autograd(loss: str) -> None:
    rays, params = some_rays(), random_params()
    samples, _ = marched(rays)
    assert (samples.ray_offsets.diff() == 0).any() and samples.capacity > 100
    target, background = colors()
    terms, grads = run(params, samples, loss=loss)
    leaves = NetParams(*(p.clone().requires_grad_() for p in params.tensors()))
    rgb = plain_rgb(leaves, rays, samples, background)
    value = plain_loss(loss, rgb, target)
    expected = torch.autograd.grad(value, leaves.tensors())
    for got, want in zip(grads.tensors(), expected, strict=True):
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-13)
    assert terms.loss.item() == pytest.approx(value.item(), rel=1e-12)
    assert terms.mse.item() == pytest.approx((rgb - target).square().mean().item(), rel=1e-12)
    assert terms.n_kept.item() == samples.capacity
    assert not any(t.requires_grad for t in (terms.loss, terms.mse))


@pytest.mark.parametrize("name", ["table", "density", "color"])
def test_gradients_match_finite_differences(name: str) -> None:
    params = random_params()
    samples, _ = marched(some_rays())
    _, grads = run(params, samples)
    grad = getattr(grads, name)
    h = 1e-5
    for i in grad.abs().topk(4).indices.tolist():
        shifted = []
        for sign in (1, -1):
            value = getattr(params, name).clone()
            value[i] += sign * h
            shifted.append(run(replace(params, **{name: value}), samples)[0].loss.item())
        # a ReLU may bend within the step: central differences are good to h, not h^2, there
        assert (shifted[0] - shifted[1]) / (2 * h) == pytest.approx(grad[i].item(), rel=1e-4)


def test_gradients_are_added_to_what_is_there() -> None:
    params = random_params()
    samples, _ = marched(some_rays())
    _, once = run(params, samples)
    grads = NetParams(*(torch.ones_like(p) for p in params.tensors()))
    target, background = colors()
    for _ in range(2):
        photometric_gradients(
            params, grads, NET, BOX, some_rays(), samples, target, background,
            min_transmittance=0.0,
        )  # fmt: skip
    for got, one in zip(grads.tensors(), once.tensors(), strict=True):
        torch.testing.assert_close(got, 1 + 2 * one)


@pytest.mark.parametrize("limit", [1e-4, 1e-2, 0.3])
def test_early_end_is_bounded_by_the_light_left(limit: float) -> None:
    rays, params = some_rays(), random_params(opaque=True)
    samples, _ = marched(rays)
    _, background = colors()
    full, _ = run(params, samples, 0.0, "mse")
    terms, grads = run(params, samples, limit, "mse")
    assert terms.n_kept < full.n_kept
    # what is dropped behind T < limit changes a channel by at most limit, an error e <= 1 by
    # (e + limit)^2 - e^2
    assert abs(terms.loss - full.loss) <= 2 * limit + limit**2
    # and the step is the one of the samples in front, exactly
    indices = samples.ray_indices()
    directions = rays.directions[indices]
    positions = BOX.to_unit(rays.origins[indices] + samples.t_mids[:, None] * directions)
    keep = visible(density(positions, params, NET) / BOX.side, samples, limit)
    kept = samples.select(keep)
    shortened, expected = run(params, kept, 0.0, "mse")
    assert terms.n_kept.item() == kept.capacity
    assert terms.loss.item() == pytest.approx(shortened.loss.item(), rel=1e-12)
    for got, want in zip(grads.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(got, want)
    difference = plain_rgb(params, rays, kept, background) - plain_rgb(
        params, rays, samples, background
    )
    assert 0 < difference.abs().max() <= limit


def test_padding_takes_no_part() -> None:
    params = random_params()
    samples, _ = marched(some_rays())
    garbage = torch.full((5,), float("nan"), dtype=F64)
    padded = replace(
        samples,
        t_starts=torch.cat([samples.t_starts, garbage]),
        t_ends=torch.cat([samples.t_ends, garbage]),
    )
    for limit in (0.0, 1e-4):
        terms, grads = run(params, samples, limit)
        other, other_grads = run(params, padded, limit)
        assert other.n_kept == terms.n_kept and other.loss == terms.loss
        for got, want in zip(other_grads.tensors(), grads.tensors(), strict=True):
            assert torch.equal(got, want)


def test_no_samples_at_all_leave_the_background() -> None:
    params = random_params()
    none = torch.zeros(0, dtype=F64)
    samples = Samples(none, none, torch.zeros(N_RAYS + 1, dtype=torch.int64))
    terms, grads = run(params, samples, 1e-4, "mse")
    target, background = colors()
    assert terms.loss.item() == pytest.approx((background - target).square().mean().item())
    assert terms.n_kept.item() == 0
    assert not any(g.any() for g in grads.tensors())


def test_render_rays_is_march_then_composite() -> None:
    rays, params = some_rays(), random_params(opaque=True)
    samples, args = marched(rays)
    _, background = colors()
    pixels = render_rays(params, NET, BOX, rays, *args, STEPS, background, 0.0)
    torch.testing.assert_close(pixels.rgb, plain_rgb(params, rays, samples, background))
    assert not pixels.opacity[[2, -1]].any()  # those that look away
    # and its early end is bounded as the step's is
    short = render_rays(params, NET, BOX, rays, *args, STEPS, background, 0.1)
    assert 0 < (short.rgb - pixels.rgb).abs().max() <= 0.1
    assert 0 < (pixels.opacity - short.opacity).max() <= 0.1


def test_render_rays_reports_all_of_composite() -> None:
    rays, params = some_rays(), random_params()
    samples, args = marched(rays)
    indices = samples.ray_indices()
    directions = rays.directions[indices]
    positions = BOX.to_unit(rays.origins[indices] + samples.t_mids[:, None] * directions)
    sigmas, rgbs = radiance(positions, directions, params, NET)
    expected = composite(sigmas / BOX.side, rgbs, samples, torch.ones(3, dtype=F64))
    got = render_rays(params, NET, BOX, rays, *args, STEPS, torch.ones(3, dtype=F64), 0.0)
    for field in Pixels.__dataclass_fields__:
        torch.testing.assert_close(getattr(got, field), getattr(expected, field))

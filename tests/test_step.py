"""A training step's gradients against plain autograd per ray, and against differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from step_cases import (
    F64,
    N_RAYS,
    OPS,
    SPACES,
    marched,
    plain_pass,
    plain_photometric,
    some_batch,
    some_network,
    some_rays,
    zeros_like,
)

from nerfcli.reference.encoding import spherical_harmonics
from nerfcli.reference.fused import Objective, StepOut, render_rays, step_gradients
from nerfcli.reference.radiance import NetParams, Network, density, radiance
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.volume import composite, visible


def run(
    network: Network, samples: Samples, limit: float = 0.0, loss: Any = "huber"
) -> tuple[StepOut, NetParams]:
    grads = zeros_like(network.params)
    objective = Objective(loss, min_transmittance=limit)
    return step_gradients(OPS, network, grads, some_batch(), samples, objective), grads


def loss_of(out: StepOut) -> float:
    return out.loss(Objective()).item()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_gradients_equal_plain_autograd(loss: str, space: str) -> None:
    batch, network = some_batch(), some_network(SPACES[space])
    samples, _ = marched(batch.rays)
    assert (samples.ray_offsets.diff() == 0).any() and samples.capacity > 100
    out, grads = run(network, samples, loss=loss)
    leaves = NetParams(*(p.clone().requires_grad_() for p in network.params.tensors()))
    rgb, _ = plain_pass(replace(network, params=leaves), batch.rays, samples, batch.background)
    value = plain_photometric(loss, rgb, batch.rgb)
    expected = torch.autograd.grad(value, leaves.tensors())
    for got, want in zip(grads.tensors(), expected, strict=True):
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-13)
    assert out.terms["photometric"].item() == pytest.approx(value.item(), rel=1e-12)
    assert loss_of(out) == pytest.approx(value.item(), rel=1e-12)
    assert out.mse.item() == pytest.approx((rgb - batch.rgb).square().mean().item(), rel=1e-12)
    assert out.n_kept.item() == samples.capacity
    assert not any(t.requires_grad for t in (*out.terms.values(), out.mse))
    assert list(out.terms) == ["photometric"] and out.weights is None and out.ray_grads is None


@pytest.mark.parametrize("name", ["table", "density", "color"])
def test_gradients_match_finite_differences(name: str) -> None:
    network = some_network()
    samples, _ = marched(some_rays())
    _, grads = run(network, samples)
    grad = getattr(grads, name)
    h = 1e-5
    for i in grad.abs().topk(4).indices.tolist():
        shifted = []
        for sign in (1, -1):
            value = getattr(network.params, name).clone()
            value[i] += sign * h
            params = replace(network.params, **{name: value})
            shifted.append(loss_of(run(replace(network, params=params), samples)[0]))
        # a ReLU may bend within the step: central differences are good to h, not h^2, there
        assert (shifted[0] - shifted[1]) / (2 * h) == pytest.approx(grad[i].item(), rel=1e-4)


def test_gradients_are_added_to_what_is_there() -> None:
    network = some_network()
    samples, _ = marched(some_rays())
    _, once = run(network, samples)
    grads = NetParams(*(torch.ones_like(p) for p in network.params.tensors()))
    objective = Objective(min_transmittance=0.0)
    for _ in range(2):
        step_gradients(OPS, network, grads, some_batch(), samples, objective)
    for got, one in zip(grads.tensors(), once.tensors(), strict=True):
        torch.testing.assert_close(got, 1 + 2 * one)


@pytest.mark.parametrize("limit", [1e-4, 1e-2, 0.3])
def test_early_end_is_bounded_by_the_light_left(limit: float) -> None:
    batch, network = some_batch(), some_network(opaque=True)
    rays, background = batch.rays, batch.background
    samples, _ = marched(rays)
    full, _ = run(network, samples, 0.0, "mse")
    out, grads = run(network, samples, limit, "mse")
    assert out.n_kept < full.n_kept
    # what is dropped behind T < limit changes a channel by at most limit, an error e <= 1 by
    # (e + limit)^2 - e^2
    assert abs(loss_of(out) - loss_of(full)) <= 2 * limit + limit**2
    # and the step is the one of the samples in front, exactly
    keep = visible(density(network, samples.positions(rays)), samples, limit)
    kept = samples.select(keep)
    shortened, expected = run(network, kept, 0.0, "mse")
    assert out.n_kept.item() == kept.capacity
    assert loss_of(out) == pytest.approx(loss_of(shortened), rel=1e-12)
    for got, want in zip(grads.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(got, want)
    short, _ = plain_pass(network, rays, kept, background)
    whole, _ = plain_pass(network, rays, samples, background)
    assert 0 < (short - whole).abs().max() <= limit


def test_padding_takes_no_part() -> None:
    network = some_network()
    samples, _ = marched(some_rays())
    garbage = torch.full((5,), float("nan"), dtype=F64)
    padded = replace(
        samples,
        t_starts=torch.cat([samples.t_starts, garbage]),
        t_ends=torch.cat([samples.t_ends, garbage]),
    )
    for limit in (0.0, 1e-4):
        out, grads = run(network, samples, limit)
        other, other_grads = run(network, padded, limit)
        assert other.n_kept == out.n_kept and loss_of(other) == loss_of(out)
        for got, want in zip(other_grads.tensors(), grads.tensors(), strict=True):
            assert torch.equal(got, want)


def test_no_samples_at_all_leave_the_background() -> None:
    network, batch = some_network(), some_batch()
    none = torch.zeros(0, dtype=F64)
    samples = Samples(none, none, torch.zeros(N_RAYS + 1, dtype=torch.int64))
    out, grads = run(network, samples, 1e-4, "mse")
    expected = (batch.background - batch.rgb).square().mean().item()
    assert loss_of(out) == pytest.approx(expected)
    assert out.n_kept.item() == 0
    assert not any(g.any() for g in grads.tensors())


def test_render_rays_is_march_then_composite() -> None:
    batch, network = some_batch(), some_network(opaque=True)
    rays, background = batch.rays, batch.background
    samples, args = marched(rays)
    pixels = render_rays(OPS, network, rays, *args, background, min_transmittance=0.0)
    expected, _ = plain_pass(network, rays, samples, background)
    torch.testing.assert_close(pixels.rgb, expected)
    assert not pixels.opacity[[2, -1]].any()  # those that look away
    # and its early end is bounded as the step's is
    short = render_rays(OPS, network, rays, *args, background, min_transmittance=0.1)
    assert 0 < (short.rgb - pixels.rgb).abs().max() <= 0.1
    assert 0 < (pixels.opacity - short.opacity).max() <= 0.1


def test_render_rays_reports_all_of_composite() -> None:
    rays, network = some_rays(), some_network()
    samples, args = marched(rays)
    indices, white = samples.ray_indices(), torch.ones(3, dtype=F64)
    points = rays.origins[indices] + samples.t_mids[:, None] * rays.directions[indices]
    sigmas, rgbs = radiance(network, points, spherical_harmonics(rays.directions[indices]))
    expected = composite(sigmas, rgbs, samples, white)
    got = render_rays(OPS, network, rays, *args, white, min_transmittance=0.0)
    for field in Pixels.__dataclass_fields__:
        torch.testing.assert_close(getattr(got, field), getattr(expected, field))

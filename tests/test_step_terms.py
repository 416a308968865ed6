"""What a step offers beside the photometric loss: more terms, ray gradients, weights, live counts.

Every expectation is composed ray by ray in tests/step_cases.py, or a central difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from step_cases import (
    BOX,
    F64,
    GRID,
    N_RAYS,
    OPS,
    SPACES,
    SPEC,
    length_by_hand,
    marched,
    plain_pass,
    plain_photometric,
    some_batch,
    some_network,
    zeros_like,
)
from torch import Tensor

from nerfcli.cameras.rays import Batch
from nerfcli.reference.encoding import spherical_harmonics
from nerfcli.reference.fused import Objective, StepOut, render_rays, step_gradients
from nerfcli.reference.radiance import NetParams, NetSpec, Network, radiance
from nerfcli.reference.samples import Samples

EMBEDDED = NetSpec(GRID, width=16, n_embedding=16)
FULL = Objective("mse", opacity=0.3, depth=0.7, distortion=0.9, min_transmittance=0.0)


def full_batch() -> Batch:
    """Colours, a depth for two rays of three, and a weight for each ray."""
    generator = torch.Generator().manual_seed(7)
    depth, weight = torch.rand(2, N_RAYS, generator=generator, dtype=F64)
    depth = 3.0 + 2.0 * depth
    depth[::3] = 0.0
    return replace(some_batch(), depth=depth, weight=0.5 + weight)


def embedded_inputs(batch: Batch) -> Tensor:
    embedding = torch.randn(N_RAYS, 16, generator=torch.Generator().manual_seed(8), dtype=F64)
    return torch.cat([spherical_harmonics(batch.rays.directions), embedding], dim=1)


def step(
    network: Network, batch: Batch, samples: Samples, objective: Objective, **kwargs: Any
) -> tuple[StepOut, NetParams]:
    grads = zeros_like(network.params)
    return step_gradients(OPS, network, grads, batch, samples, objective, **kwargs), grads


def plain_terms(
    network: Network, batch: Batch, samples: Samples, inputs: Tensor | None = None
) -> dict[str, Tensor]:
    """Every term of the objective, ray after ray, by its definition."""
    rgb, weights = plain_pass(network, batch.rays, samples, batch.background, inputs)
    assert batch.weight is not None and batch.depth is not None
    scale = 1 / length_by_hand(network.space)
    opacity, depth, distortion = [], [], []
    for i, w in enumerate(weights):
        part = slice(*samples.ray_offsets[i : i + 2].tolist())
        start, end = samples.t_starts[part], samples.t_ends[part]
        middle = (start + end) / 2
        o = w.sum().clamp(min=1e-6)
        opacity.append(-o * o.log())
        known = float(batch.depth[i] > 0)
        depth.append(known * (w * (middle - batch.depth[i])).sum().abs())
        apart = (middle[:, None] - middle[None]).abs() * scale
        pairs = (w[:, None] * w[None] * apart).sum()
        distortion.append(pairs + (w**2 * (end - start) * scale).sum() / 3)
    terms = {"opacity": opacity, "depth": depth, "distortion": distortion}
    means = {name: (torch.stack(v) * batch.weight).mean() for name, v in terms.items()}
    squared = ((rgb - batch.rgb) ** 2).mean(1)
    return {"photometric": (squared * batch.weight).mean(), **means}


@pytest.mark.parametrize("space", SPACES)
def test_all_terms_equal_autograd_of_their_definitions(space: str) -> None:
    batch, network = full_batch(), some_network(SPACES[space])
    samples, _ = marched(batch.rays)
    out, grads = step(network, batch, samples, FULL)
    leaves = NetParams(*(p.clone().requires_grad_() for p in network.params.tensors()))
    terms = plain_terms(replace(network, params=leaves), batch, samples)
    total = (
        terms["photometric"] + 0.3 * terms["opacity"] + 0.7 * terms["depth"]
        + 0.9 * terms["distortion"]
    )  # fmt: skip
    expected = torch.autograd.grad(total, leaves.tensors())
    for got, want in zip(grads.tensors(), expected, strict=True):
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)
    assert {k: v.item() for k, v in out.terms.items()} == pytest.approx(
        {k: v.item() for k, v in terms.items()}, rel=1e-10
    )
    assert out.loss(FULL).item() == pytest.approx(total.item(), rel=1e-10)


@pytest.mark.parametrize("name", ["opacity", "depth", "distortion"])
def test_one_term_alone_is_the_plain_step_and_its_share(name: str) -> None:
    batch, network = full_batch(), some_network()
    samples, _ = marched(batch.rays)
    plain = Objective("huber", min_transmittance=0.0)
    one = replace(plain, **{name: 0.5})
    assert plain.is_plain and not one.is_plain
    assert one.weights() == {"photometric": 1.0, name: 0.5}
    without, grads = step(network, batch, samples, plain)
    out, with_it = step(network, batch, samples, one)
    assert set(out.terms) == {"photometric", name}
    assert out.terms["photometric"] == without.terms["photometric"]
    share = out.loss(one) - without.loss(plain)
    assert share.item() == pytest.approx(0.5 * out.terms[name].item(), rel=1e-9)
    twice, at_twice = step(network, batch, samples, replace(plain, **{name: 1.0}))
    assert twice.terms[name] == out.terms[name]
    for a, b, c in zip(grads.tensors(), with_it.tensors(), at_twice.tensors(), strict=True):
        torch.testing.assert_close(c - a, 2 * (b - a), rtol=1e-9, atol=1e-13)


def test_depth_is_left_out_where_no_ray_has_one() -> None:
    batch, network = some_batch(), some_network()
    samples, _ = marched(batch.rays)
    objective = Objective("mse", depth=0.5)
    out, grads = step(network, batch, samples, objective)
    plain, expected = step(network, batch, samples, Objective("mse"))
    assert set(out.terms) == {"photometric"}
    assert out.loss(objective) == plain.loss(Objective("mse"))
    for got, want in zip(grads.tensors(), expected.tensors(), strict=True):
        assert torch.equal(got, want)


def test_a_ray_of_weight_zero_changes_nothing() -> None:
    batch, network = full_batch(), some_network()
    samples, _ = marched(batch.rays)
    assert batch.weight is not None and batch.depth is not None
    weight = batch.weight.clone()
    weight[4] = 0.0
    rgb, depth = batch.rgb.clone(), batch.depth.clone()
    rgb[4], depth[4] = 0.9, 0.4
    _, one = step(network, replace(batch, weight=weight), samples, FULL)
    _, other = step(network, replace(batch, weight=weight, rgb=rgb, depth=depth), samples, FULL)
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        assert a.any() and torch.equal(a, b)


@pytest.mark.parametrize("objective", [FULL, Objective("huber", min_transmittance=0.0)])
def test_weights_are_those_of_the_samples(objective: Objective) -> None:
    batch, network = full_batch(), some_network()
    samples, _ = marched(batch.rays)
    _, weights = plain_pass(network, batch.rays, samples, batch.background)
    out, _ = step(network, batch, samples, objective, with_weights=True)
    assert out.weights is not None and not out.weights.requires_grad
    torch.testing.assert_close(out.weights, torch.cat(weights))


def test_weights_are_zero_where_a_sample_was_dropped_and_on_padding() -> None:
    batch, network = some_batch(), some_network(opaque=True)
    samples, _ = marched(batch.rays)
    garbage = torch.full((3,), float("nan"), dtype=F64)
    padded = replace(
        samples,
        t_starts=torch.cat([samples.t_starts, garbage]),
        t_ends=torch.cat([samples.t_ends, garbage]),
    )
    out, _ = step(network, batch, padded, Objective(min_transmittance=0.05), with_weights=True)
    _, weights = plain_pass(network, batch.rays, samples, batch.background)
    assert out.weights is not None and out.weights.shape == padded.t_starts.shape
    light = torch.cat([1 - w.cumsum(0) + w for w in weights])  # in front of each sample
    expected = torch.where(light >= 0.05, torch.cat(weights), 0.0)
    assert (light < 0.05).sum() > 0 and out.n_kept == (light >= 0.05).sum()
    torch.testing.assert_close(out.weights, torch.cat([expected, torch.zeros(3, dtype=F64)]))


def central_differences(f: Callable[[Tensor], float], x: Tensor, where: list[tuple[int, int]]):
    h, slopes = 1e-6, []
    for index in where:
        values = []
        for sign in (1, -1):
            moved = x.clone()
            moved[index] += sign * h
            values.append(f(moved))
        slopes.append((values[0] - values[1]) / (2 * h))
    return slopes


SOME = [(0, 0), (1, 1), (5, 0), (9, 2)]


@pytest.mark.parametrize("space, given", [("box", False), *((s, True) for s in SPACES)])
def test_ray_gradients_match_differences(space: str, given: bool) -> None:
    """In origins, directions and ray_inputs; the distances of the samples are held fixed."""
    batch = full_batch()
    network = some_network(SPACES[space], EMBEDDED if given else SPEC)
    samples, _ = marched(batch.rays)
    inputs = embedded_inputs(batch) if given else None

    def loss(**changes: Tensor) -> float:
        own = changes.pop("ray_inputs", inputs)
        moved = replace(batch, rays=replace(batch.rays, **changes))
        return step(network, moved, samples, FULL, ray_inputs=own)[0].loss(FULL).item()

    out, _ = step(network, batch, samples, FULL, ray_inputs=inputs, with_ray_grads=True)
    assert out.ray_grads is not None
    for name in ("origins", "directions"):
        grad = getattr(out.ray_grads, name)
        got = [grad[i].item() for i in SOME]
        want = central_differences(
            lambda v, name=name: loss(**{name: v}), getattr(batch.rays, name), SOME
        )
        assert max(map(abs, want)) > 1e-3
        # a sample may pass a cell's border or a ReLU's bend within the step
        assert got == pytest.approx(want, rel=1e-4, abs=1e-7)
        assert not grad[[2, -1]].any()  # rays without samples
    harmonics = spherical_harmonics(batch.rays.directions)
    columns = [(0, 0), (3, 7), (5, 15), *(((1, 16), (7, 31)) if given else ())]
    got = [out.ray_grads.ray_inputs[i].item() for i in columns]
    want = central_differences(
        lambda v: loss(ray_inputs=v), harmonics if inputs is None else inputs, columns
    )
    assert min(map(abs, want)) > 1e-7
    assert got == pytest.approx(want, rel=1e-4, abs=1e-9)


def test_ray_gradients_leave_the_step_as_it_is() -> None:
    batch, network = full_batch(), some_network()
    samples, _ = marched(batch.rays)
    out, grads = step(network, batch, samples, FULL)
    other, same = step(network, batch, samples, FULL, with_ray_grads=True, with_weights=True)
    assert out.loss(FULL) == other.loss(FULL) and out.n_kept == other.n_kept
    for got, want in zip(same.tensors(), grads.tensors(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_ray_gradients_without_samples_are_zero() -> None:
    none = torch.zeros(0, dtype=F64)
    samples = Samples(none, none, torch.zeros(N_RAYS + 1, dtype=torch.int64))
    out, grads = step(
        some_network(), full_batch(), samples, FULL, with_ray_grads=True, with_weights=True
    )
    assert out.ray_grads is not None and out.weights is not None
    assert out.ray_grads.origins.shape == out.ray_grads.directions.shape == (N_RAYS, 3)
    assert out.ray_grads.ray_inputs.shape == (N_RAYS, 16) and out.weights.shape == (0,)
    assert not any(g.any() for g in (*vars(out.ray_grads).values(), *grads.tensors()))


@pytest.mark.parametrize("n", [1, 5, N_RAYS])
def test_live_rays_are_a_step_of_the_first_rays(n: int) -> None:
    batch, network = full_batch(), some_network(spec=EMBEDDED)
    samples, _ = marched(batch.rays)
    end = int(samples.ray_offsets[n])
    part = Samples(samples.t_starts[:end], samples.t_ends[:end], samples.ray_offsets[: n + 1])
    assert batch.depth is not None and batch.weight is not None
    first = Batch(
        batch.rays[:n], batch.rgb[:n], batch.background[:n], batch.depth[:n], batch.weight[:n]
    )
    inputs = embedded_inputs(batch)
    asked = {"with_weights": True, "with_ray_grads": True}
    expected, want = step(network, first, part, FULL, ray_inputs=inputs[:n], **asked)
    # the others have no samples; what the batch and the padding hold for them is of no account
    offsets = samples.ray_offsets.clamp(max=end)
    spoiled = replace(samples, ray_offsets=offsets)
    out, grads = step(
        network, batch, spoiled, FULL, ray_inputs=inputs, n_live=torch.tensor(n), **asked
    )
    assert out.terms == expected.terms
    assert out.mse == expected.mse and out.n_kept == expected.n_kept == end
    for got, right in zip(grads.tensors(), want.tensors(), strict=True):
        assert torch.equal(got, right)
    assert out.ray_grads is not None and expected.ray_grads is not None
    for name in vars(expected.ray_grads):
        got, right = getattr(out.ray_grads, name), getattr(expected.ray_grads, name)
        assert len(got) == N_RAYS and torch.equal(got[:n], right) and not got[n:].any()
    assert out.weights is not None and expected.weights is not None
    assert torch.equal(out.weights[:end], expected.weights) and not out.weights[end:].any()


@pytest.mark.parametrize("space", SPACES)
def test_embedding_columns_enter_the_colour_alone(space: str) -> None:
    batch, network = full_batch(), some_network(SPACES[space], EMBEDDED)
    samples, args = marched(batch.rays)
    inputs = embedded_inputs(batch)
    expected, _ = plain_pass(network, batch.rays, samples, batch.background, inputs)
    pixels = render_rays(
        OPS, network, batch.rays, *args, batch.background, min_transmittance=0.0, ray_inputs=inputs
    )
    torch.testing.assert_close(pixels.rgb, expected)
    # an embedding of zeros is a colour network without those columns of its first layer
    silent = torch.cat([inputs[:, :16], torch.zeros(N_RAYS, 16, dtype=F64)], dim=1)
    points = samples.positions(batch.rays)
    sigmas, rgbs = radiance(network, points, silent[samples.ray_indices()])
    first = network.params.color[: 16 * 48].view(16, 48)
    color = torch.cat([first[:, :32].ravel(), network.params.color[16 * 48 :]])
    plain = Network(SPEC, replace(network.params, color=color), network.space)
    harmonics = inputs[samples.ray_indices(), :16]
    plain_sigmas, plain_rgbs = radiance(plain, points, harmonics)
    assert torch.equal(sigmas, plain_sigmas)
    torch.testing.assert_close(rgbs, plain_rgbs)
    spoken = radiance(network, points, inputs[samples.ray_indices()])
    assert torch.equal(spoken[0], sigmas) and (spoken[1] - rgbs).abs().max() > 1e-2
    assert EMBEDDED.color_widths == (48, 16, 16, 3) and EMBEDDED.n_ray_inputs == 32


@pytest.mark.parametrize("space", SPACES)
def test_the_field_is_differentiable_in_positions(space: str) -> None:
    """density and radiance through the space, against central differences."""
    network = some_network(SPACES[space])
    generator = torch.Generator().manual_seed(5)
    offsets = torch.rand(12, 3, generator=generator, dtype=F64) * 2 - 1
    points = torch.tensor(BOX.center, dtype=F64) + 1.3 * offsets
    directions = torch.nn.functional.normalize(offsets, dim=1)
    cotangent = torch.randn(12, 4, generator=generator, dtype=F64)

    def value(x: Tensor) -> Tensor:
        sigmas, rgbs = radiance(network, x, spherical_harmonics(directions))
        assert torch.equal(OPS.density(network, x), sigmas)
        return (sigmas * cotangent[:, 0]).sum() + (rgbs * cotangent[:, 1:]).sum()

    leaf = points.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(leaf), leaf)
    where = [(i, k) for i in range(12) for k in range(3)]
    want = central_differences(lambda v: value(v).item(), points, where)
    assert [grad[i].item() for i in where] == pytest.approx(want, rel=1e-4, abs=1e-7)
    assert min(grad.abs().amax(0)) > 1e-2


def test_plain_photometric_is_in_the_terms_by_name() -> None:
    batch, network = some_batch(), some_network()
    samples, _ = marched(batch.rays)
    rgb, _ = plain_pass(network, batch.rays, samples, batch.background)
    for name in ("mse", "huber"):
        out, _ = step(network, batch, samples, Objective(name, opacity=0.1, min_transmittance=0.0))
        want = plain_photometric(name, rgb, batch.rgb).item()
        assert out.terms["photometric"].item() == pytest.approx(want, rel=1e-10)
        assert set(out.terms) == {"photometric", "opacity"}

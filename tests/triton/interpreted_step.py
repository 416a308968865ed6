"""The fused wholes of the Triton backend against the reference: gradients, images, Adam."""

from __future__ import annotations

from typing import Any, Literal

import half_precision
import pytest
import torch
from cases import (
    BOX,
    DTYPES,
    EMBEDDED,
    F16,
    F32,
    OUTPUTS,
    PAIRS,
    REFERENCE,
    assert_near,
    march_arguments,
    network_of,
    normal,
    rays_of,
    uniform,
    zeros_like,
)
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.backends.triton import triton_rays, triton_render, triton_sampling, triton_step
from nerfcli.backends.triton.backend import TritonBackend
from nerfcli.cameras.rays import Batch, Bounds, ColorMap
from nerfcli.reference import radiance, sampling, volume
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.fused import Objective, StepOut
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Steps

PLAIN = Objective()
# float32: the last bit of a position makes 1e-5 of a density. float16: a log density of 4 is held
# within 0.002.
STEP_LOSS = {F32: 2e-5, F16: 5e-3}
STEP_GRADIENTS = {F32: 1e-4, F16: 2e-2}


def batch_of(n: int, **options: Any) -> Batch:
    return Batch(rays_of(n), uniform(20, n, 3), uniform(21, n, 3), **options)


def gradients(
    ops: Backend, network: Network, samples: Samples, n: int,
    objective: Objective = PLAIN, batch: Batch | None = None, **options,
) -> tuple[StepOut, NetParams]:  # fmt: skip
    grads = zeros_like(network.params)
    out = ops.step_gradients(network, grads, batch or batch_of(n), samples, objective, **options)
    return out, grads


def compare(
    network: Network, samples: Samples, n: int, dtype: torch.dtype,
    objective: Objective = PLAIN, reference: Samples | None = None, **options,
) -> int:  # fmt: skip
    """Everything that a step gives; returns how many samples took part."""
    reference = reference or sampling.march(*march_arguments(n))
    want, right = gradients(REFERENCE, network, reference, n, objective, **options)
    got, mine = gradients(TritonBackend(dtype), network, samples, n, objective, **options)
    assert got.terms.keys() == want.terms.keys()
    for name, term in want.terms.items():
        assert_near(got.terms[name], term, STEP_LOSS[dtype])
    assert_near(got.loss(objective), want.loss(objective), STEP_LOSS[dtype])
    assert_near(got.mse, want.mse, STEP_LOSS[dtype])
    for a, b in zip(mine.tensors(), right.tensors(), strict=True):
        assert_near(a, b, STEP_GRADIENTS[dtype])
    assert got.n_kept.dtype == torch.int64 and got.n_kept.shape == ()
    assert abs(int(got.n_kept) - int(want.n_kept)) <= (0 if dtype == F32 else 2)
    if want.weights is not None:
        assert got.weights is not None and got.weights.shape == samples.t_starts.shape
        assert_near(got.weights[: reference.capacity], want.weights, 10 * STEP_LOSS[dtype])
        assert not got.weights[reference.capacity :].any()
    assert (got.color_grads is None) == (want.color_grads is None)
    for a, b in zip(got.color_grads or (), want.color_grads or (), strict=True):
        assert_near(a, b, STEP_GRADIENTS[dtype])
    if want.ray_grads is not None:
        assert got.ray_grads is not None
        for name in ("origins", "directions", "ray_inputs"):
            found, right = getattr(got.ray_grads, name), getattr(want.ray_grads, name)
            assert_near(found, right, STEP_GRADIENTS[dtype])
    return int(want.n_kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("photometric", ["huber", "mse"])
def test_gradients_of_a_step(photometric: Literal["huber", "mse"], dtype: torch.dtype) -> None:
    n = 40
    samples = sampling.march(*march_arguments(n))
    objective = Objective(photometric, min_transmittance=0.3)
    kept = compare(network_of(PAIRS, opacity=2), samples, n, dtype, objective)
    assert 0 < kept < 0.8 * samples.capacity  # rays really end early


def test_a_step_with_colour_maps() -> None:
    """Composed of the backend's parts."""
    n = 20
    samples = sampling.march(*march_arguments(n))
    batch = batch_of(n, color=ColorMap(0.5 + uniform(23, n, 3), uniform(24, n, 3) - 0.5))
    compare(network_of(PAIRS, opacity=2), samples, n, F32, batch=batch, with_weights=True)


def loose(samples: Samples) -> Samples:
    """With padding that nobody may read."""
    padding = torch.full((11,), torch.nan)
    t_starts, t_ends = (torch.cat([t, padding]) for t in (samples.t_starts, samples.t_ends))
    return Samples(t_starts, t_ends, samples.ray_offsets)


@pytest.mark.parametrize("kind", ["contraction", "perspective"])
def test_all_that_a_step_can_give_in_other_spaces(kind: str) -> None:
    """Of a thin fog: every sample counts, for poses and embeddings too."""
    n = 23
    samples = sampling.march(*march_arguments(n))
    everything: Any = {"with_weights": True, "with_ray_grads": True}
    fog = network_of(EMBEDDED, kind, opacity=0.2)
    compare(fog, loose(samples), n, F32, ray_inputs=normal(22, n, 32), **everything)


@pytest.mark.parametrize("dtype", DTYPES)
def test_directions_get_the_share_of_their_harmonics(dtype: torch.dtype) -> None:
    n = 9
    samples = sampling.march(*march_arguments(n, steps=Steps(0.03)))
    assert samples.ray_offsets.diff().max() > triton_rays.AHEAD  # more than are taken together
    compare(network_of(PAIRS), samples, n, dtype, reference=samples, with_ray_grads=True)


TERMS = Objective("mse", 0.1, 0.2, 0.3, min_transmittance=0.6)


def test_every_term_of_an_objective() -> None:
    """With rays of unequal weight, and some of unknown depth."""
    n = 40
    depth = 4 * uniform(23, n) * (uniform(24, n) < 0.7)
    batch = batch_of(n, depth=depth, weight=uniform(25, n))
    samples = sampling.march(*march_arguments(n))
    network = network_of(PAIRS, "contraction", opacity=1.5)
    kept = compare(network, samples, n, F32, TERMS, batch=batch, with_weights=True)
    assert kept < 0.9 * samples.capacity  # so weights are not where they came from


def test_half_precision_is_what_its_roundings_say() -> None:
    """tests/half_precision.py, which learns a whole scene on a CPU, stands for these kernels."""
    n, network = 40, network_of(PAIRS)
    samples = sampling.march(*march_arguments(n))
    got, mine = gradients(TritonBackend(F16), network, samples, n)
    want, right = gradients(half_precision.HalfBackend(), network, samples, n)
    exact, _ = gradients(REFERENCE, network, samples, n)
    loss, rounded = (out.terms["photometric"] for out in (got, want))
    assert_near(loss, rounded, 1e-4)  # a last bit of a sum may round to the other side
    assert abs(rounded - exact.terms["photometric"]) > 1e-5 * rounded
    for a, b in zip(mine.tensors(), right.tensors(), strict=True):
        assert_near(a, b, 2e-3)


@pytest.mark.parametrize("first_round", [8, 0])
def test_what_lies_behind_a_surface_is_not_looked_at(
    first_round: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, network, limit = 40, network_of(PAIRS, opacity=2), 0.3
    samples = sampling.march(*march_arguments(n, steps=Steps(0.06, 0.02)))
    shaded = triton_step.look(network, rays_of(n), None, samples, limit, first_round)
    seen = ~shaded.geometry.isnan().any(1)  # the rest is as poisoned as it was
    indices = samples.ray_indices()
    x = samples.positions(rays_of(n), indices)
    sigmas = radiance.density(network, x)
    assert_near(shaded.geometry[seen, 0].exp(), sigmas[seen] * BOX.side, 1e-4)
    assert_near(shaded.positions[seen], BOX.to_unit(x[seen]), 1e-6)
    assert not shaded.features[:, seen].isnan().any()
    lit = volume.visible(sigmas, samples, limit)
    rank = torch.arange(samples.capacity) - samples.ray_offsets[indices]
    behind = lit.new_zeros(n).scatter(0, indices[lit & (rank == 8)], True)  # light passes eight
    want = (rank < 8) | behind[indices] if first_round else torch.ones_like(lit)
    assert torch.equal(seen, want) and seen[lit].all()
    assert seen.float().mean() < 0.9 if first_round else seen.all()
    monkeypatch.setattr(triton_step, "FIRST_ROUND", first_round)
    compare(network, samples, n, F32, Objective(min_transmittance=limit), reference=samples)


def test_a_ray_at_the_limit_is_looked_at_on() -> None:
    """One kernel decides what the next ones may read: a last bit of a sum must not part them."""
    geometry = torch.full((16, 4), torch.nan)
    geometry[:8, 0] = 0.0
    samples = Samples(torch.arange(16.0), torch.arange(16.0) + 1, torch.tensor([0, 16]))
    nothing, depth = torch.empty(0), 8.0 / BOX.side
    shaded = triton_step.Shaded(nothing, nothing, geometry)
    for limit, want in ((depth, 8), (depth * (1 - 2e-6), 8), (depth * 0.999, 0)):
        assert triton_step._wanted(shaded, samples, BOX.side, limit, 8, 16).tolist() == [0, want]


@pytest.mark.parametrize("n", [1, 63])
def test_gradients_of_odd_sizes_with_padding(n: int) -> None:
    compare(network_of(PAIRS), loose(sampling.march(*march_arguments(n))), n, F32)


def test_only_the_live_rays_count() -> None:
    """As many as the device says: the others have no samples, no loss, and no share in the mean."""
    n, n_live = 23, 14
    rays, (t_min, t_max), jitter, grid = march_arguments(n)
    bounds = Bounds(t_min, torch.where(torch.arange(n) < n_live, t_max, t_min))
    samples = sampling.march(rays, bounds, jitter, grid)
    options: Any = {"n_live": torch.tensor(n_live), "with_weights": True, "with_ray_grads": True}
    compare(network_of(PAIRS), samples, n, F32, reference=samples, **options)


def test_gradients_add_up() -> None:
    network, samples, n = network_of(PAIRS), sampling.march(*march_arguments(3)), 3
    _, once = gradients(TritonBackend(F32), network, samples, n)
    start = [g.clone() + 1.0 for g in zeros_like(network.params).tensors()]
    total = NetParams(*start)
    TritonBackend(F32).step_gradients(network, total, batch_of(n), samples, PLAIN)
    for a, b in zip(total.tensors(), once.tensors(), strict=True):
        torch.testing.assert_close(a - 1.0, b, rtol=0, atol=1e-6)  # 1 + g loses digits of g


def test_a_step_without_samples() -> None:
    n, network = 5, network_of(PAIRS)
    nothing = Samples(torch.zeros(0), torch.zeros(0), torch.zeros(n + 1, dtype=torch.int64))
    got, grads = gradients(TritonBackend(F32), network, nothing, n, with_ray_grads=True)
    want, _ = gradients(REFERENCE, network, nothing, n)
    assert_near(got.terms["photometric"], want.terms["photometric"], 1e-6)
    assert int(got.n_kept) == 0
    assert not any(g.any() for g in grads.tensors())
    assert got.ray_grads is not None and not got.ray_grads.directions.any()


def test_nothing_in_a_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    network, arguments, n = network_of(EMBEDDED, "perspective"), march_arguments(3), 3
    ops, ray_inputs = TritonBackend(F32), normal(22, n, 32)
    everything: Any = {"with_weights": True, "with_ray_grads": True, "ray_inputs": ray_inputs}
    gradients(ops, network, sampling.march(*arguments), n, TERMS, **everything)  # fills caches
    launches = []

    def refuse(tensor: torch.Tensor, *_args):
        launches.append(tensor)
        raise AssertionError("a tensor was read by the host")

    # the interpreter itself reads tensors inside a launch, through numpy: not through these
    for name in ("item", "tolist", "__int__", "__float__", "__bool__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    samples, n_fit = triton_sampling.march_within(*arguments, capacity=64)
    batch = batch_of(n, depth=uniform(23, n), weight=uniform(25, n))
    out, grads = gradients(ops, network, samples, n, TERMS, batch, **everything)
    table = network.params.table
    m, v = torch.zeros(2, len(table))
    ops.adam_step(table, grads.table, m, v, AdamConfig(), step=1, lr=0.01)
    monkeypatch.undo()
    assert not launches and int(out.n_kept) > 0


@pytest.mark.parametrize(
    ("net", "kind", "dtype"),
    [(PAIRS, "box", F32), (PAIRS, "box", F16), (EMBEDDED, "contraction", F32)],
)
def test_rendering_in_rounds(
    net: NetSpec, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, network = 24, network_of(net, kind, opacity=2 if kind == "box" else 0.5)
    monkeypatch.setattr(triton_render, "ROUND_SAMPLES", 1.5)
    arguments: Any = (network, *march_arguments(n), torch.tensor([0.2, 0.4, 0.9]))
    options: Any = {"min_transmittance": 0.3}
    if net.n_embedding:
        options["ray_inputs"] = normal(22, n, 32)
    want = REFERENCE.render_rays(*arguments, **options)
    rounds = []
    shade = triton_render._shade
    monkeypatch.setattr(triton_render, "_shade", lambda *a: rounds.append(len(a[2])) or shade(*a))
    got = TritonBackend(dtype).render_rays(*arguments, **options)
    assert len(rounds) > (2 if kind == "box" else 1) and rounds[0] == n > rounds[-1]
    for field in ("rgb", "opacity", "depth"):
        assert_near(getattr(got, field), getattr(want, field), 2 * OUTPUTS[dtype])
    same = torch.isclose(got.median_depth, want.median_depth, rtol=1e-5)
    assert same.float().mean() > 0.9  # ties


def test_rendering_rays_that_miss_and_none_at_all() -> None:
    rays, bounds, jitter, grid = march_arguments(3)
    background = torch.tensor([0.2, 0.4, 0.9])

    def render(n: int) -> Tensor:
        misses = Bounds(bounds.t_min[:n], torch.zeros(n))
        ops, network = TritonBackend(F32), network_of(PAIRS)
        return ops.render_rays(network, rays[:n], misses, jitter[:n], grid, background).rgb

    assert torch.equal(render(3), background.expand(3, 3))
    assert render(0).shape == (0, 3)


def adam_state(n: int, seed: int = 30) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    touched = uniform(seed, n) < 0.3
    touched[n // 2 :] &= n < 2000  # whole blocks without a gradient
    m, v = normal(seed + 1, n), normal(seed + 2, n).square()
    return normal(seed + 3, n), normal(seed + 4, n) * touched, m, v


@pytest.mark.parametrize("n", [1, 63, 4000])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_adam(n: int, ema_decay: float) -> None:
    mine, right = adam_state(n), adam_state(n)
    means = [normal(40, n) if ema_decay else None for _ in "ab"]
    config = AdamConfig(0.8, 0.98, 1e-12, weight_decay=0.02, ema_decay=ema_decay)
    TritonBackend().adam_step(*mine, config, step=3, lr=0.01, ema=means[0])
    REFERENCE.adam_step(*right, config, step=3, lr=0.01, ema=means[1])
    start = adam_state(n)
    for a, b, was in zip(mine, right, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # one rounding of each product
        assert torch.equal(a == was, b == was)  # the untouched are untouched
    if ema_decay:
        torch.testing.assert_close(means[0], means[1], rtol=1e-6, atol=1e-7)
    assert not mine[1].any()


def test_adam_with_its_rates_on_the_device() -> None:
    mine, right = adam_state(500), adam_state(500)
    rates = torch.tensor([0.01, 1 - 0.9**3, 1 - 0.99**3])
    TritonBackend().adam_step(*mine, AdamConfig(), rates=rates)
    TritonBackend().adam_step(*right, AdamConfig(), step=3, lr=0.01)
    for a, b in zip(mine, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_adam_keeps_the_half_precision_copy_true() -> None:
    table, grads, m, v = adam_state(3000)
    ops, alias = TritonBackend(), table.detach()
    copy = ops.copies.of(table)
    assert torch.equal(ops.copies.of(alias), copy)
    ops.adam_step(table, grads, m, v, AdamConfig(), step=1, lr=0.1)
    assert ops.copies.of(table) is copy
    assert torch.equal(copy, table.half())
    assert torch.equal(ops.copies.of(alias), copy)  # another view of the same numbers
    table += 1.0  # by somebody else: the copy is made anew
    assert torch.equal(ops.copies.of(table), table.half())
    table *= 2.0
    ops.adam_step(table, normal(50, 3000), m, v, AdamConfig(), step=2, lr=0.1)
    assert torch.equal(ops.copies.of(table), table.half())
    assert TritonBackend(F32).copies.of(table).data_ptr() == table.data_ptr()


def test_the_copy_goes_with_its_table() -> None:
    table, copies = normal(60, 100), TritonBackend().copies
    copies.of(table)
    assert len(copies) == 1
    del table
    assert len(copies) == 0

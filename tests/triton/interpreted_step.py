"""The fused wholes of the Triton backend against the reference: gradients, images, Adam."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import half_precision
import pytest
import torch
from cases import (
    BOX,
    DTYPES,
    F16,
    F32,
    OUTPUTS,
    PAIRS,
    assert_near,
    march_arguments,
    normal,
    opaque,
    params_of,
    rays_of,
    uniform,
    zeros_like,
)

from nerfcli.backends.triton import triton_adam, triton_render, triton_sampling, triton_step
from nerfcli.reference import adam, radiance, sampling, volume
from nerfcli.reference import fused as step
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Steps

# float32: the last bit of a position makes 1e-5 of a density. float16: a log density of 4 is held
# within 0.002.
STEP_LOSS = {F32: 2e-5, F16: 5e-3}
STEP_GRADIENTS = {F32: 1e-4, F16: 2e-2}


def photometric(run, params, samples: Samples, n: int, **options):
    grads = zeros_like(params)
    target, background = uniform(20, n, 3), uniform(21, n, 3)
    terms = run(params, grads, PAIRS, BOX, rays_of(n), samples, target, background, **options)
    return terms, grads


def compare(params, samples: Samples, n: int, dtype: torch.dtype, **options) -> int:
    reference = sampling.march(*march_arguments(n))
    want, right = photometric(step.photometric_gradients, params, reference, n, **options)
    got, mine = photometric(
        triton_step.photometric_gradients, params, samples, n, dtype=dtype, **options
    )
    assert_near(got.loss, want.loss, STEP_LOSS[dtype])
    assert_near(got.mse, want.mse, STEP_LOSS[dtype])
    for a, b in zip(mine.tensors(), right.tensors(), strict=True):
        assert_near(a, b, STEP_GRADIENTS[dtype])
    assert got.n_kept.dtype == torch.int64 and got.n_kept.shape == ()
    assert abs(int(got.n_kept) - int(want.n_kept)) <= (0 if dtype == F32 else 2)
    return int(want.n_kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_gradients_of_a_step(loss: str, dtype: torch.dtype) -> None:
    n = 40
    samples = sampling.march(*march_arguments(n))
    kept = compare(opaque(params_of(PAIRS)), samples, n, dtype, loss=loss, min_transmittance=0.3)
    assert 0 < kept < 0.8 * samples.capacity  # rays really end early


def test_half_precision_is_what_its_roundings_say() -> None:
    """tests/half_precision.py, which learns a whole scene on a CPU, stands for these kernels."""
    n, params = 40, params_of(PAIRS)
    samples = sampling.march(*march_arguments(n))
    got, mine = photometric(triton_step.photometric_gradients, params, samples, n, dtype=F16)
    want, right = photometric(half_precision.photometric_gradients, params, samples, n)
    exact, _ = photometric(step.photometric_gradients, params, samples, n)
    assert_near(got.loss, want.loss, 1e-4)  # a last bit of a sum may round to the other side
    assert abs(want.loss - exact.loss) > 1e-5 * exact.loss
    for a, b in zip(mine.tensors(), right.tensors(), strict=True):
        assert_near(a, b, 2e-3)


@pytest.mark.parametrize("first_round", [8, 0])
def test_what_lies_behind_a_surface_is_not_looked_at(
    first_round: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, params, limit = 40, opaque(params_of(PAIRS)), 0.3
    samples = sampling.march(*march_arguments(n, steps=Steps(0.06, 0.02)))
    arguments: Any = (rays_of(n), None, samples, BOX, params, PAIRS, limit, first_round, F32)
    shaded = triton_step.look(*arguments)
    seen = ~shaded.geometry.isnan().any(1)  # the rest is as poisoned as it was
    indices = samples.ray_indices()
    directions = rays_of(n).directions[indices]
    x = BOX.to_unit(rays_of(n).origins[indices] + samples.t_mids[:, None] * directions)
    sigmas = radiance.density(x, params, PAIRS)
    assert_near(shaded.geometry[seen, 0].exp(), sigmas[seen], 1e-4)
    assert_near(shaded.positions[seen], x[seen], 1e-6)
    assert not shaded.features[:, seen].isnan().any()
    lit = volume.visible(sigmas / BOX.side, samples, limit)
    rank = torch.arange(samples.capacity) - samples.ray_offsets[indices]
    behind = lit.new_zeros(n).scatter(0, indices[lit & (rank == 8)], True)  # light passes eight
    want = (rank < 8) | behind[indices] if first_round else torch.ones_like(lit)
    assert torch.equal(seen, want) and seen[lit].all()
    assert seen.float().mean() < 0.9 if first_round else seen.all()
    monkeypatch.setattr(triton_step, "FIRST_ROUND", first_round)
    mine, right = (
        photometric(run, params, samples, n, min_transmittance=limit, **kind)
        for run, kind in (
            (triton_step.photometric_gradients, {"dtype": F32}),
            (step.photometric_gradients, {}),
        )
    )
    assert_near(mine[0].loss, right[0].loss, STEP_LOSS[F32])
    assert int(mine[0].n_kept) == int(right[0].n_kept)
    for a, b in zip(mine[1].tensors(), right[1].tensors(), strict=True):
        assert_near(a, b, STEP_GRADIENTS[F32])


def test_a_ray_at_the_limit_is_looked_at_on() -> None:
    """One kernel decides what the next ones may read: a last bit of a sum must not part them."""
    geometry = torch.full((16, 4), torch.nan)
    geometry[:8, 0] = 0.0
    samples = Samples(torch.arange(16.0), torch.arange(16.0) + 1, torch.tensor([0, 16]))
    nothing, depth = torch.empty(0), 8.0 / BOX.side
    shaded = triton_step.Shaded(nothing, nothing, geometry)
    for limit, want in ((depth, 8), (depth * (1 - 2e-6), 8), (depth * 0.999, 0)):
        assert triton_step._wanted(shaded, samples, BOX, limit, 8, 16).tolist() == [0, want]


@pytest.mark.parametrize("n", [1, 63])
def test_gradients_of_odd_sizes_with_padding(n: int) -> None:
    samples = sampling.march(*march_arguments(n))
    padding = torch.full((11,), torch.nan)
    loose = Samples(
        torch.cat([samples.t_starts, padding]),
        torch.cat([samples.t_ends, padding]),
        samples.ray_offsets,
    )
    compare(params_of(PAIRS), loose, n, F32)


def test_only_the_live_rays_count() -> None:
    """As many as the device says: the others have no samples, no loss, and no share in the mean."""
    n, n_live = 23, 14
    o, d, t_min, t_max, *rest = march_arguments(n)
    t_max = torch.where(torch.arange(n) < n_live, t_max, t_min)
    samples = sampling.march(o, d, t_min, t_max, *rest)
    params, first = params_of(PAIRS), slice(n_live)
    target, background = uniform(20, n, 3), uniform(21, n, 3)
    mine, right = zeros_like(params), zeros_like(params)
    got = triton_step.photometric_gradients(
        params, mine, PAIRS, BOX, rays_of(n), samples, target, background,
        n_live=torch.tensor(n_live), dtype=F32,
    )  # fmt: skip
    few = Samples(samples.t_starts, samples.t_ends, samples.ray_offsets[: n_live + 1])
    want = step.photometric_gradients(
        params, right, PAIRS, BOX, rays_of(n)[first], few, target[first], background[first]
    )
    assert_near(got.loss, want.loss, STEP_LOSS[F32])
    for a, b in zip(mine.tensors(), right.tensors(), strict=True):
        assert_near(a, b, STEP_GRADIENTS[F32])


def test_gradients_add_up() -> None:
    params, samples, n = params_of(PAIRS), sampling.march(*march_arguments(3)), 3
    _, once = photometric(triton_step.photometric_gradients, params, samples, n, dtype=F32)
    start = [g.clone() + 1.0 for g in zeros_like(params).tensors()]
    total = replace(once, table=start[0], density=start[1], color=start[2])
    target, background = uniform(20, n, 3), uniform(21, n, 3)
    triton_step.photometric_gradients(
        params, total, PAIRS, BOX, rays_of(n), samples, target, background, dtype=F32
    )
    for a, b in zip(total.tensors(), once.tensors(), strict=True):
        torch.testing.assert_close(a - 1.0, b, rtol=0, atol=1e-6)  # 1 + g loses digits of g


def test_a_step_without_samples() -> None:
    n, params = 5, params_of(PAIRS)
    nothing = Samples(torch.zeros(0), torch.zeros(0), torch.zeros(n + 1, dtype=torch.int64))
    got, grads = photometric(triton_step.photometric_gradients, params, nothing, n, dtype=F32)
    want, _ = photometric(step.photometric_gradients, params, nothing, n)
    assert_near(got.loss, want.loss, 1e-6)
    assert int(got.n_kept) == 0
    assert not any(g.any() for g in grads.tensors())


def test_nothing_in_a_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    params, arguments, n = params_of(PAIRS), march_arguments(3), 3
    launches = []

    def refuse(tensor: torch.Tensor, *_args):
        launches.append(tensor)
        raise AssertionError("a tensor was read by the host")

    # the interpreter itself reads tensors inside a launch, through numpy: not through these
    for name in ("item", "tolist", "__int__", "__float__", "__bool__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    samples, n_fit = triton_sampling.march_within(*arguments, capacity=64)
    terms, grads = photometric(triton_step.photometric_gradients, params, samples, n, dtype=F32)
    state = [torch.zeros_like(params.table) for _ in range(2)]
    triton_adam.adam_step(params.table, grads.table, *state, step=1, lr=0.01)
    monkeypatch.undo()
    assert not launches and int(terms.n_kept) > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_rendering_in_rounds(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    n, params = 24, opaque(params_of(PAIRS))
    monkeypatch.setattr(triton_render, "ROUND_SAMPLES", 1.5)
    *march, box, steps = march_arguments(n)[2:]
    background = torch.tensor([0.2, 0.4, 0.9])
    arguments: Any = (params, PAIRS, box, rays_of(n), *march, steps, background)
    want = step.render_rays(*arguments, min_transmittance=0.3)
    rounds = []
    shade = triton_render._shade
    monkeypatch.setattr(triton_render, "_shade", lambda *a: rounds.append(len(a[1])) or shade(*a))
    got = triton_render.render_rays(*arguments, min_transmittance=0.3, dtype=dtype)
    assert len(rounds) > 2 and rounds[0] == n and rounds[-1] < n / 4
    for field in ("rgb", "opacity", "depth"):
        assert_near(getattr(got, field), getattr(want, field), 2 * OUTPUTS[dtype])
    same = torch.isclose(got.median_depth, want.median_depth, rtol=1e-5)
    assert same.float().mean() > 0.9  # ties


def test_rendering_rays_that_miss_and_none_at_all() -> None:
    t_min, t_max, jitter, occupied, box, steps = march_arguments(3)[2:]
    rays, background = rays_of(3), torch.tensor([0.2, 0.4, 0.9])

    def render(some: slice) -> torch.Tensor:
        bounds = (t_min[some], torch.zeros(3)[some], jitter[some])
        grid = (occupied, steps, background)
        return triton_render.render_rays(
            params_of(PAIRS), PAIRS, box, rays[some], *bounds, *grid, dtype=F32
        ).rgb

    assert torch.equal(render(slice(3)), background.expand(3, 3))
    assert render(slice(0)).shape == (0, 3)


def adam_state(n: int, seed: int = 30) -> list[torch.Tensor]:
    touched = uniform(seed, n) < 0.3
    touched[n // 2 :] &= n < 2000  # whole blocks without a gradient
    moments = [normal(seed + 1, n), normal(seed + 2, n).square()]
    return [normal(seed + 3, n), normal(seed + 4, n) * touched, *moments]


@pytest.mark.parametrize("n", [1, 63, 4000])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_adam(n: int, ema_decay: float) -> None:
    mine, right = adam_state(n), adam_state(n)
    means = [normal(40, n) if ema_decay else None for _ in "ab"]
    options = {"step": 3, "lr": 0.01, "weight_decay": 0.02, "ema_decay": ema_decay}
    triton_adam.adam_step(*mine, ema=means[0], **options)
    adam.adam_step(*right, ema=means[1], **options)
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
    triton_adam.adam_step(*mine, rates=rates)
    triton_adam.adam_step(*right, step=3, lr=0.01)
    for a, b in zip(mine, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_adam_keeps_the_half_precision_copy_true() -> None:
    params, grads, m, v = adam_state(3000)
    copy = triton_adam.table_as(params, F16)
    triton_adam.adam_step(params, grads, m, v, step=1, lr=0.1)
    assert triton_adam.table_as(params, F16) is copy
    assert torch.equal(copy, params.half())
    params += 1.0  # by somebody else: the copy is made anew
    assert torch.equal(triton_adam.table_as(params, F16), params.half())
    params *= 2.0
    triton_adam.adam_step(params, normal(50, 3000), m, v, step=2, lr=0.1)
    assert torch.equal(triton_adam.table_as(params, F16), params.half())
    assert triton_adam.table_as(params, F32).data_ptr() == params.data_ptr()


def test_the_copy_goes_with_its_table() -> None:
    table = normal(60, 100)
    triton_adam.table_as(table, F16)
    n = len(triton_adam._copies)
    del table
    assert len(triton_adam._copies) == n - 1

"""Marching and compositing of the Triton backend against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import BOX, STEPS, assert_near, march_arguments, normal, uniform

from nerfcli.backends.triton import triton_sampling, triton_volume
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Rays
from nerfcli.reference import sampling, volume
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, Steps

GRIDS = [
    (BOX, STEPS, 8),  # growing steps, two cascades, strides over empty cells
    (BOX, Steps(0.25), 6),  # a resolution whose coarse cells straddle the finer cube: no strides
    (Box((0.0, 0.1, 0.0), 1.0), Steps(0.07), 12),  # one cascade, several steps a cell
]


@pytest.mark.parametrize(("which", "n"), [(0, 0), (0, 1), (0, 63), (1, 33), (2, 17)])
def test_march(which: int, n: int) -> None:
    arguments = march_arguments(n, *GRIDS[which])
    got, want = triton_sampling.march(*arguments), sampling.march(*arguments)
    assert torch.equal(got.ray_offsets, want.ray_offsets)
    assert n < 63 or want.capacity > 100
    # the same arithmetic, but for exp and log
    torch.testing.assert_close(got.t_starts, want.t_starts, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.t_ends, want.t_ends, rtol=1e-6, atol=1e-6)


def test_an_axis_parallel_ray_crosses_empty_cells() -> None:
    """No division by the zero components; the one full cell is at the far end."""
    occupied = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    occupied[0, 4, 4, 7] = True
    rays = Rays(torch.tensor([[-2.0, 0.1, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]]))
    grid = MarchingGrid(occupied, Box((0.0, 0.0, 0.0), 1.0), Steps(0.05))
    bounds = sampling.intersect_box(rays, grid.box, 0.0, 10.0)
    samples = triton_sampling.march(rays, bounds, torch.full((1,), 0.5), grid)
    assert samples.capacity == 5
    assert samples.t_starts[0].item() == pytest.approx(2.75) and samples.t_ends[-1] == 3.0


def test_a_capacity_leaves_out_the_rays_that_do_not_fit() -> None:
    arguments = march_arguments(40)
    want = sampling.march(*arguments)
    room = want.capacity // 2
    got, n_fit = triton_sampling.march_within(*arguments, capacity=room)
    assert got.capacity == room
    right, n_right = sampling.march_within(*arguments, capacity=room)
    last = int(right.ray_offsets[-1])
    assert int(n_fit) == int(n_right) and last > 0.8 * room
    assert torch.equal(got.ray_offsets, right.ray_offsets)
    assert torch.equal(got.t_starts[:last], right.t_starts[:last])
    ample, n_fit = triton_sampling.march_within(*arguments, capacity=want.capacity + 9)
    assert int(n_fit) == 40
    assert torch.equal(ample.ray_offsets, want.ray_offsets)
    assert torch.equal(ample.t_ends[: want.capacity], want.t_ends)


def test_marching_goes_on_where_it_stopped() -> None:
    arguments = march_arguments(20)
    walk = triton_sampling.new_walk(*arguments)
    whole = sampling.march(*arguments)
    offsets, steps, begins = walk.count(3)
    first = walk.write(offsets, begins, int(offsets[-1]))
    rest = replace(walk, ids=torch.arange(20), first_steps=steps)
    more, _, begins = rest.count(triton_sampling.NO_LIMIT)
    then = rest.write(more, begins, int(more[-1]))
    for i in range(20):
        parts = [s.t_starts[slice(*s.ray_offsets[i : i + 2])] for s in (first, then, whole)]
        assert len(parts[0]) <= 3
        assert torch.equal(torch.cat(parts[:2]), parts[2])


def test_the_second_walk_begins_at_the_first_sample() -> None:
    """Or in front of it, by less than the steps that are looked at together."""
    rays, bounds, jitter, grid = march_arguments(40)
    sparse, steps = uniform(16, grid.box.n_cascades, 8, 8, 8) < 0.05, Steps(0.05, 0.02)
    arguments = (rays, bounds, jitter, MarchingGrid(sparse, grid.box, steps))
    offsets, _, begins = triton_sampling.new_walk(*arguments).count(triton_sampling.NO_LIMIT)
    want = sampling.march(*arguments)
    assert torch.equal(offsets, want.ray_offsets)
    some = offsets.diff() > 0
    s_first = steps.s_from_t(want.t_starts[offsets[:-1][some]])
    first = (s_first - (steps.s_from_t(bounds.t_min) + jitter - 0.5)[some]).round()
    ahead = first - begins[some]
    assert ((ahead >= 0) & (ahead < triton_sampling.AHEAD)).all()
    assert (begins[some] > 0).sum() > 5


def some_samples() -> Samples:
    return sampling.march(*march_arguments(40))


def padded(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values, torch.full_like(values[:7], torch.nan)])


def compare(samples: Samples, sigmas: torch.Tensor, limit: float = 2e-6) -> None:
    """Pixels and gradients, with padding that holds NaN. Beyond the largest optical depth the
    gradient is exactly zero, and what is zero is left alone by the optimiser."""
    n_rays, n = samples.n_rays, samples.capacity
    rgbs, background = uniform(2, n, 3), uniform(3, n_rays, 3)
    loose = Samples(padded(samples.t_starts), padded(samples.t_ends), samples.ray_offsets)
    mine = [padded(sigmas).requires_grad_(), padded(rgbs).requires_grad_()]
    right = [sigmas.clone().requires_grad_(), rgbs.clone().requires_grad_()]
    got = triton_volume.composite(mine[0], mine[1], loose, background)
    want = volume.composite(right[0], right[1], samples, background)
    for field in ("rgb", "opacity", "depth"):
        assert_near(getattr(got, field), getattr(want, field), limit)
    # the middle of the sample at half the opacity; a tie may fall to the next one
    same = torch.isclose(got.median_depth, want.median_depth, rtol=1e-5)
    assert same.float().mean() > 0.9
    cotangents = [normal(4, n_rays, 3), normal(5, n_rays), normal(6, n_rays)]
    d_got = torch.autograd.grad([got.rgb, got.opacity, got.depth], mine, cotangents)
    d_want = torch.autograd.grad([want.rgb, want.opacity, want.depth], right, cotangents)
    for a, b in zip(d_got, d_want, strict=True):
        assert_near(a[:n], b, 10 * limit)
        assert (a[n:] == 0).all()
    beyond = sigmas * (samples.t_ends - samples.t_starts) > volume.MAX_OPTICAL_DEPTH
    assert not d_got[0][:n][beyond].any()


def test_composite() -> None:
    samples = some_samples()
    compare(samples, 6 * uniform(1, samples.capacity))


def test_composite_of_thin_and_of_opaque_samples() -> None:
    samples = some_samples()
    compare(samples, 1e-5 * uniform(1, samples.capacity))
    sigmas = torch.where(uniform(1, samples.capacity) < 0.3, 1e7, 1.0)
    compare(samples, sigmas)


def test_composite_by_hand() -> None:
    """Two intervals of length 1 with sigma = ln 2: weights 0.5 and 0.25."""
    samples = Samples(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]), torch.tensor([0, 0, 2]))
    sigmas, rgbs = torch.full((2,), 2.0).log(), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    pixels = triton_volume.composite(sigmas, rgbs, samples, torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(pixels.rgb, torch.tensor([[0, 0, 1.0], [0.5, 0.25, 0.25]]))
    torch.testing.assert_close(pixels.opacity, torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(pixels.depth, torch.tensor([0.0, (0.75 + 0.625) / 0.75]))
    assert pixels.median_depth.tolist() == [0.0, 1.5]


def test_composite_of_nothing() -> None:
    samples = Samples(torch.zeros(0), torch.zeros(0), torch.zeros(4, dtype=torch.int64))
    background = uniform(3, 3, 3)
    pixels = triton_volume.composite(torch.zeros(0), torch.zeros(0, 3), samples, background)
    assert torch.equal(pixels.rgb, background) and not pixels.opacity.any()

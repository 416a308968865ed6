"""Sampling along rays against brute force, histograms and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import (
    MarchingGrid,
    Steps,
    edges_from_points,
    importance,
    intersect_box,
    march,
    occupancy_lookup,
    stratified,
)

F64 = torch.float64
BOX = Box((0.3, -0.2, 0.1), 0.8, 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rays(n: int, seed: int = 0, reach: float = 5.0) -> Rays:
    """Rays from in and around BOX; two of each seven are parallel to an axis."""
    g = generator(seed)
    origins = (torch.rand(n, 3, generator=g, dtype=F64) - 0.5) * 2 * reach
    directions = torch.randn(n, 3, generator=g, dtype=F64)
    aimed = torch.tensor(BOX.center, dtype=F64) + 0.3 * directions - origins
    directions[::2] = aimed[::2]
    directions[::7] = torch.tensor([0.0, 0.0, -1.0], dtype=F64)
    directions[3::7] = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    return Rays(origins, directions / directions.norm(dim=1, keepdim=True))


# points along a ray


def test_stratified_puts_one_point_in_each_part() -> None:
    t_min, t_max = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 10.0])
    bounds = Bounds(t_min, t_max)
    t = stratified(bounds, torch.rand(2, 16, generator=generator()))
    part = (t - t_min[:, None]) / (t_max - t_min)[:, None] * 16
    assert torch.equal(part.floor(), torch.arange(16.0).expand(2, -1))
    middles = stratified(bounds, torch.full((2, 2), 0.5))
    torch.testing.assert_close(middles, torch.tensor([[1.5, 2.5], [4.0, 8.0]]))


def test_stratified_points_are_uniform_over_the_whole_range() -> None:
    jitter = torch.rand(4000, 8, generator=generator(1), dtype=F64)
    bounds = Bounds(torch.full((4000,), 2.0, dtype=F64), torch.full((4000,), 6.0, dtype=F64))
    t = stratified(bounds, jitter)
    within = stats.kstest(((t[:, 3] - 3.5) / 0.5).numpy(), "uniform")
    assert within.pvalue > 1e-3  # fixed seed
    # stratification: the estimate of an integral is far better than with independent points
    error = (t**2).mean(1) - (6**3 - 2**3) / 12
    assert error.mean().abs() < 5 * error.std() / math.sqrt(4000)
    # of independent points: Var(t^2) / 8, E t^4 = (6^5 - 2^5) / 20, E t^2 = 52 / 3
    assert error.var() < 0.1 * ((6**5 - 2**5) / 20 - (52 / 3) ** 2) / 8


def test_importance_of_two_bins_is_exact() -> None:
    edges, weights = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    u = torch.tensor([[0.0, 0.125, 0.25, 0.625, 0.8125]])
    got = importance(edges, weights, u, epsilon=0.0)
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.5, 1.0, 1.5, 1.75]]))


def test_importance_follows_the_histogram() -> None:
    g = generator(2)
    edges = torch.rand(1, 13, generator=g, dtype=F64).sort(dim=1).values
    weights = torch.rand(1, 12, generator=g, dtype=F64) ** 3
    weights[0, 4] = 0.0
    t = importance(edges, weights, torch.rand(1, 20000, generator=g, dtype=F64))[0]
    counts, _ = np.histogram(t.numpy(), bins=edges[0].numpy())
    share = (weights[0] + 1e-5) / (weights[0] + 1e-5).sum()
    assert counts.sum() == 20000
    assert stats.chisquare(counts, 20000 * share.numpy()).pvalue > 1e-3  # fixed seed
    # within its bins the density is constant
    cumulative = np.concatenate([[0.0], share.cumsum(0).numpy()])
    test = stats.kstest(t.numpy(), lambda v: np.interp(v, edges[0].numpy(), cumulative))
    assert test.pvalue > 1e-3


def test_importance_of_no_weights_is_uniform() -> None:
    edges = torch.linspace(2.0, 6.0, 9).expand(3, -1)
    u = torch.rand(3, 20, generator=generator())
    got = importance(edges, torch.zeros(3, 8), u)
    torch.testing.assert_close(got, 2.0 + 4.0 * u)


def test_importance_passes_no_gradient() -> None:
    edges = torch.linspace(0, 1, 5).expand(1, -1).clone().requires_grad_()
    weights = torch.ones(1, 4, requires_grad=True)
    assert not importance(edges, weights, torch.rand(1, 3)).requires_grad


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(0.0, 1e6, width=32)), min_size=1, max_size=20),
    st.lists(st.floats(0.0, 1.0, width=32, exclude_max=True), min_size=1, max_size=20),
)
def test_importance_is_monotone_and_stays_inside(weights: list[float], u: list[float]) -> None:
    edges = torch.linspace(1.0, 3.0, len(weights) + 1)[None]
    t = importance(edges, torch.tensor([weights]), torch.tensor([sorted(u)]))[0]
    assert (t.diff() >= 0).all()
    assert t.min() >= 1.0 and t.max() <= 3.0


def test_edges_lie_halfway_between_points() -> None:
    t = torch.tensor([[1.0, 2.0, 4.0], [5.0, 5.0, 9.0]])
    edges = edges_from_points(t, Bounds(torch.tensor([0.5, 2.0]), torch.tensor([6.0, 9.0])))
    torch.testing.assert_close(edges, torch.tensor([[0.5, 1.5, 3.0, 6.0], [2.0, 5.0, 7.0, 9.0]]))
    whole = Bounds(torch.tensor([2.0]), torch.tensor([6.0]))
    one = edges_from_points(torch.tensor([[3.0]]), whole)
    assert one.tolist() == [[2.0, 6.0]]


# the box


def scalar_intersection(o: list[float], d: list[float], near: float, far: float):
    """Cut [near, far] by six half-spaces, one after another."""
    for axis in range(3):
        for sign in (1.0, -1.0):  # inside: sign * (o + t d - center) <= half
            room = BOX.outer_half_size - sign * (o[axis] - BOX.center[axis])
            speed = sign * d[axis]
            if speed == 0.0:
                if room < 0:
                    return None
            elif speed > 0:
                far = min(far, room / speed)
            else:
                near = max(near, room / speed)
    return (near, far) if far > near else None


def test_intersect_box_equals_six_half_spaces() -> None:
    rays = random_rays(400)
    t_min, t_max = intersect_box(rays, BOX, 0.05, 9.0)
    hits = 0
    for i in range(400):
        expected = scalar_intersection(
            rays.origins[i].tolist(), rays.directions[i].tolist(), 0.05, 9.0
        )
        if expected is None:
            assert t_max[i] <= t_min[i]
        else:
            assert (t_min[i].item(), t_max[i].item()) == pytest.approx(expected, abs=1e-9)
            hits += 1
    assert 100 < hits < 300  # both kinds are there


def test_intersect_box_from_inside_and_on_a_face() -> None:
    box = Box((0.0, 0.0, 0.0), 1.0)
    # from the middle, from a face, looking away, and along a face (0 / 0 there)
    origins = torch.tensor([[0.0, 0, 0], [-1.0, 0, 0], [0.0, 0, 3], [-1.0, 0, -3]])
    directions = torch.tensor([[0.0, 0, 1], [1.0, 0, 0], [0.0, 0, 1], [0.0, 0, 1]])
    t_min, t_max = intersect_box(Rays(origins, directions), box, 0.0, 100.0)
    hit = [0, 1, 3]
    assert t_min[hit].tolist() == [0.0, 0.0, 2.0] and t_max[hit].tolist() == [1.0, 2.0, 4.0]
    assert t_max[2] <= t_min[2]


# steps


@pytest.mark.parametrize("steps", [Steps(0.01), Steps(0.01, 1 / 256), Steps(0.3, 0.1)])
def test_steps_invert_each_other(steps: Steps) -> None:
    t = torch.logspace(-4, 3, 200, dtype=F64)
    torch.testing.assert_close(steps.t_from_s(steps.s_from_t(t)), t, rtol=1e-10, atol=0)
    assert (steps.s_from_t(t).diff() > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1.0), st.floats(1e-3, 0.2), st.floats(0.0, 500.0))
def test_steps_are_inverse_for_any_size_and_cone(size: float, cone: float, s: float) -> None:
    steps = Steps(size, cone)
    value = torch.tensor(s, dtype=F64)
    torch.testing.assert_close(steps.s_from_t(steps.t_from_s(value)), value, rtol=1e-9, atol=1e-9)


def test_steps_grow_from_size_to_cone_times_t() -> None:
    steps = Steps(0.01, 1 / 64)
    t_c = 0.01 * 64
    s_c = steps.s_from_t(torch.tensor(t_c, dtype=F64))
    assert s_c.item() == pytest.approx(64.0)
    s = torch.tensor([0.0, 30.0, 63.0, 64.0, 65.0, 200.0], dtype=F64)
    start, end = steps.t_from_s(s), steps.t_from_s(s + 1)
    length = torch.where(start < t_c * (1 - 1e-9), 0.01, start / 64)
    torch.testing.assert_close(end - start, length, rtol=1e-9, atol=0)
    # continuous at t_c; the slope jumps by cone / log(1 + cone), 0.8 % here
    below, above = t_c * (1 - 1e-7), t_c * (1 + 1e-7)
    around = torch.tensor([below, t_c, above], dtype=F64)
    slopes = steps.s_from_t(around).diff() / around.diff()
    assert slopes[0].item() == pytest.approx(100.0, rel=1e-6)
    assert slopes[1].item() == pytest.approx(1 / (t_c * math.log1p(1 / 64)), rel=1e-6)


# occupancy


def scalar_lookup(position: list[float], occupied: torch.Tensor, box: Box) -> bool:
    resolution = occupied.shape[1]
    offset = [p - c for p, c in zip(position, box.center, strict=True)]
    for cascade in range(box.n_cascades):
        half = box.half_size * 2**cascade
        if max(abs(v) for v in offset) <= half:
            x, y, z = (
                min(math.floor((v + half) / (2 * half) * resolution), resolution - 1)
                for v in offset
            )
            return bool(occupied[cascade, z, y, x])
    return False


def random_occupancy(resolution: int = 8, seed: int = 4, share: float = 0.4) -> torch.Tensor:
    shape = (BOX.n_cascades, *(resolution,) * 3)
    return torch.rand(shape, generator=generator(seed)) < share


def test_the_cascade_of_a_point_beside_its_face_is_exact() -> None:
    """As the kernels find it, by comparison with powers of two; one step of float32 off each."""
    n = 9
    box, cells = Box((0.0, 0.0, 0.0), 1.0, n), torch.zeros(n, 2, 2, 2, dtype=torch.bool)
    faces = torch.exp2(torch.arange(n, dtype=torch.float32))
    zero, infinity = torch.zeros(()), torch.tensor(math.inf)
    for c in range(n):
        cells[:] = False
        cells[c] = True
        for place, want in (
            (faces, torch.arange(n) == c),
            (torch.nextafter(faces, zero), torch.arange(n) == c),
            (torch.nextafter(faces, infinity), torch.arange(n) == c - 1),
        ):
            positions = torch.stack([place, torch.zeros(n), torch.zeros(n)], dim=1)
            assert torch.equal(occupancy_lookup(positions, cells, box), want)
    outside = torch.tensor([[math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0], [257.0, 0.0, 0.0]])
    assert not occupancy_lookup(outside, torch.ones_like(cells), box).any()


def test_occupancy_lookup_equals_a_scalar_search() -> None:
    occupied = random_occupancy()
    # a point of every cell of every cascade (off the finer cascades' cell borders); the inner
    # ones are answered by a finer cascade
    cells = (torch.arange(8, dtype=F64) + 0.37) / 4 - 1
    cube = torch.cartesian_prod(cells, cells, cells)
    center = torch.tensor(BOX.center, dtype=F64)
    positions = torch.cat([center + cube * BOX.half_size * 2**c for c in range(3)])
    noise = torch.rand(500, 3, generator=generator(5), dtype=F64) * 8 - 4  # a part is outside
    positions = torch.cat([positions, center + noise])
    got = occupancy_lookup(positions, occupied, BOX)
    assert got.tolist() == [scalar_lookup(p, occupied, BOX) for p in positions.tolist()]


def test_each_cascade_answers_for_its_own_shell() -> None:
    box = Box((0.0, 0.0, 0.0), 1.0, 3)
    x = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 4.5])
    positions = torch.stack([x, torch.zeros(7), torch.zeros(7)], dim=1)
    for cascade in range(3):
        occupied = torch.zeros(3, 4, 4, 4, dtype=torch.bool)
        occupied[cascade] = True
        got = occupancy_lookup(positions, occupied, box)
        expected = torch.tensor([0, 0, 1, 1, 2, 2, 9]) == cascade  # 9: outside of all
        assert torch.equal(got, expected)


# marching


def scalar_march(ray, occupied: torch.Tensor, box: Box, steps: Steps):
    """Walk one ray (o, d, t_min, t_max, jitter) step by step."""
    o, d, t_min, t_max, jitter = ray
    log_growth = math.log(1 + steps.cone) if steps.cone else 0.0
    t_c = steps.size / steps.cone if steps.cone else math.inf

    def t_of(s: float) -> float:
        if s * steps.size <= t_c:
            return s * steps.size
        return t_c * math.exp((s - t_c / steps.size) * log_growth)

    near_s = t_min / steps.size
    if t_min > t_c:
        near_s = t_c / steps.size + math.log(t_min / t_c) / log_growth
    found, k = [], 0
    while t_max > t_min:
        start = max(t_of(max(near_s + jitter - 0.5 + k, 0.0)), t_min)
        end = max(t_of(max(near_s + jitter - 0.5 + k + 1, 0.0)), t_min)
        k += 1
        middle = (start + end) / 2
        if middle >= t_max:
            break
        position = [a + middle * b for a, b in zip(o, d, strict=True)]
        if end > start and scalar_lookup(position, occupied, box):
            found.append((start, end))
    return found


@pytest.mark.parametrize("steps", [Steps(0.11), Steps(0.05, 0.04)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_march_equals_a_scalar_walk(steps: Steps, share: float) -> None:
    n = 60
    rays = random_rays(n, seed=6)
    bounds = intersect_box(rays, BOX, 0.02, 8.0)
    jitter = torch.rand(n, generator=generator(7), dtype=F64)
    occupied = random_occupancy(share=share)
    got = march(rays, bounds, jitter, MarchingGrid(occupied, BOX, steps))
    t_min, t_max = bounds
    assert (t_max <= t_min).any() and (t_max > t_min).any()
    for i in range(n):
        ray = [v[i].tolist() for v in (rays.origins, rays.directions, t_min, t_max, jitter)]
        expected = scalar_march(ray, occupied, BOX, steps)
        start, stop = got.ray_offsets[i : i + 2].tolist()
        assert stop - start == len(expected)
        pairs = torch.stack([got.t_starts[start:stop], got.t_ends[start:stop]], dim=1)
        expected = torch.tensor(expected, dtype=F64).reshape(-1, 2)
        torch.testing.assert_close(pairs, expected, rtol=1e-9, atol=1e-9)
    assert got.capacity == got.ray_offsets[-1] == got.t_ends.shape[0]
    assert (got.capacity == 0) == (share == 0.0)


@pytest.mark.parametrize("steps", [Steps(0.07), Steps(0.03, 1 / 64)])
def test_full_grid_samples_tile_the_ray(steps: Steps) -> None:
    n = 200
    exact = random_rays(n, seed=8)
    rays = Rays(exact.origins.float(), exact.directions.float())
    bounds = intersect_box(rays, BOX, 0.02, 8.0)
    jitter = torch.rand(n, generator=generator(9))
    occupied = torch.ones(3, 4, 4, 4, dtype=torch.bool)
    grid = MarchingGrid(occupied, BOX, steps)
    samples = march(rays, bounds, jitter, grid)
    (t_min, t_max), rays = bounds, samples.ray_indices()
    assert (samples.t_ends > samples.t_starts).all()
    assert (samples.t_mids >= t_min[rays]).all() and (samples.t_mids < t_max[rays]).all()
    inside = rays[1:] == rays[:-1]
    assert torch.equal(samples.t_ends[:-1][inside], samples.t_starts[1:][inside])
    # neither end of the ray is missed by more than half a step
    for i in range(n):
        start, stop = samples.ray_offsets[i : i + 2].tolist()
        length = max((t_max[i] - t_min[i]).item(), 0.0)
        covered = (samples.t_ends[start:stop] - samples.t_starts[start:stop]).sum().item()
        longest = max(steps.size, steps.cone * 8.0)
        assert abs(covered - length) <= longest + 1e-5


def test_march_through_one_occupied_cell_finds_its_span() -> None:
    box = Box((0.0, 0.0, 0.0), 1.0)
    occupied = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    occupied[0, 4, 3, 6] = True  # z in [0, .25], y in [-.25, 0], x in [.5, .75]
    origins = torch.tensor([[-3.0, -0.1, 0.1], [0.6, -3.0, 0.1], [0.6, -0.1, -3.0]])
    rays = Rays(origins, torch.eye(3))
    grid = MarchingGrid(occupied, box, Steps(0.001))
    samples = march(rays, intersect_box(rays, box, 0.0, 10.0), torch.full((3,), 0.5), grid)
    for i, (low, high) in enumerate([(3.5, 3.75), (2.75, 3.0), (3.0, 3.25)]):
        start, stop = samples.ray_offsets[i : i + 2].tolist()
        assert samples.t_starts[start].item() == pytest.approx(low, abs=0.0011)
        assert samples.t_ends[stop - 1].item() == pytest.approx(high, abs=0.0011)
        assert stop - start == pytest.approx(250, abs=1)


@pytest.mark.parametrize("n", [0, 1])
def test_march_of_no_and_of_one_ray(n: int) -> None:
    occupied = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    box = Box((0.0, 0.0, 0.0), 1.0)
    origins = torch.tensor([[0.0, 0.0, -3.0]])[:n]
    directions = torch.tensor([[0.0, 0.0, 1.0]])[:n]
    rays, grid = Rays(origins, directions), MarchingGrid(occupied, box, Steps(0.5))
    samples = march(rays, intersect_box(rays, box, 0.0, 10.0), torch.full((n,), 0.5), grid)
    assert isinstance(samples, Samples)
    assert samples.n_rays == n and samples.capacity == 4 * n

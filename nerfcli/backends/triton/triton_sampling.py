"""Marching through the occupancy grid in Triton: the twin of sampling.py.

A program walks a few rays and looks at a few steps of each at a time. The rays are walked twice:
once to count, so that samples can lie packed and in order, once, from the first sample to the last,
to write. Empty cells are crossed
in one stride: the steps that are left out are those that the reference drops, so both give the
same samples.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton.launch import blocks
from nerfcli.backends.triton.triton_packed import cut
from nerfcli.backends.triton.triton_spaces import load_point
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, Steps

RAYS = 16  # of a program, which is one warp: they wait for the slowest of them
AHEAD = 8  # steps of each ray that are looked at together
NO_LIMIT = 2**30
# A stride stops this part of a step before the cell's end, since its length is rounded.
STRIDE_MARGIN = tl.constexpr(0.05)


@triton.jit
def _s_from_t(t, size, cone, growth, CONE: tl.constexpr):
    s = t / size
    if CONE:
        t_c = size / cone
        far = 1.0 / cone + tl.log(tl.maximum(t, t_c) / t_c) / growth
        s = tl.where(t <= t_c, s, far)
    return s


@triton.jit
def _t_from_s(s, size, cone, growth, CONE: tl.constexpr):
    t = s * size
    if CONE:
        s_c = 1.0 / cone
        far = tl.exp(tl.maximum(s - s_c, 0.0) * growth) * (size * s_c)
        t = tl.where(s <= s_c, t, far)
    return t


@triton.jit
def _cell(offset, half, R: tl.constexpr):
    """Cell along one axis of a position relative to the centre."""
    cell = ((offset / half + 1.0) * (0.5 * R)).to(tl.int32)
    return tl.minimum(tl.maximum(cell, 0), R - 1)


@triton.jit
def _way_out(cell, half, origin, direction, R: tl.constexpr):
    """Distance t at which a ray leaves its cell along one axis."""
    face = (cell + (direction > 0.0).to(tl.int32)).to(tl.float32)
    still = tl.abs(direction) < 1e-12
    t = ((face * (2.0 / R) - 1.0) * half - origin) / tl.where(still, 1.0, direction)
    return tl.where(still, float("inf"), t)


@triton.jit
def _step(
    k, s_start, start, ox, oy, oz, dx, dy, dz, half_size, size, cone, growth,
    CONE: tl.constexpr, N_CASCADES: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Step k of a ray: its ends and middle, its cell, the half size of the cell's cascade."""
    s = s_start + k
    t_a = tl.maximum(_t_from_s(tl.maximum(s, 0.0), size, cone, growth, CONE), start)
    t_b = tl.maximum(_t_from_s(tl.maximum(s + 1.0, 0.0), size, cone, growth, CONE), start)
    middle = 0.5 * (t_a + t_b)
    px, py, pz = ox + middle * dx, oy + middle * dy, oz + middle * dz
    reach = tl.maximum(tl.maximum(tl.abs(px), tl.abs(py)), tl.abs(pz)) / half_size
    cascade = (reach * 0.0).to(tl.int32)
    half = reach * 0.0 + half_size
    for c in tl.static_range(N_CASCADES - 1):
        cascade += (reach > 2**c).to(tl.int32)
        half = tl.where(reach > 2**c, half_size * 2 ** (c + 1), half)
    in_box = reach <= 2 ** (N_CASCADES - 1)
    x, y, z = _cell(px, half, R), _cell(py, half, R), _cell(pz, half, R)
    return t_a, t_b, middle, x, y, z, cascade, half, in_box


@triton.jit(do_not_specialize=["n_rays", "limit"])
def _march(
    origins, directions, t_min, t_max, jitter, ids, first_steps, occupied,
    offsets, counts, next_steps, begins, t_starts, t_ends, numbers, n_rays, limit,
    FRESH: tl.constexpr, WRITE: tl.constexpr, CONE: tl.constexpr, STRIDE: tl.constexpr,
    N_CASCADES: tl.constexpr, R: tl.constexpr, RAYS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """FRESH: all rays, counted from their first step. Names of up to two letters: [RAYS]."""
    half_size, size = tl.load(numbers + 3), tl.load(numbers + 4)
    cone, growth = tl.load(numbers + 5), tl.load(numbers + 6)
    slots = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    inside = slots < n_rays
    rays = slots if FRESH else tl.load(ids + slots, inside, 0)
    ox, oy, oz = load_point(origins, rays, inside)
    dx, dy, dz = load_point(directions, rays, inside)
    ox -= tl.load(numbers)
    oy -= tl.load(numbers + 1)
    oz -= tl.load(numbers + 2)
    start = tl.load(t_min + rays, inside, 0.0)
    end = tl.load(t_max + rays, inside, 0.0)
    active = inside & (end > start)
    start = tl.where(active, start, 0.0)
    s_start = _s_from_t(start, size, cone, growth, CONE) + tl.load(jitter + rays, inside, 0.0) - 0.5
    k = start * 0.0 if FRESH and not WRITE else tl.load(first_steps + slots, inside, 0.0)
    begin = k
    n_found = tl.zeros((RAYS,), tl.int32)
    if WRITE:
        base = tl.load(offsets + slots, inside, 0)
        most = (tl.load(offsets + slots + 1, inside, 0) - base).to(tl.int32)
    else:
        base = tl.zeros((RAYS,), tl.int64)
        most = n_found + limit
    active = active & (most > 0)
    ahead = tl.arange(0, AHEAD)[None, :].to(tl.float32)
    while tl.max(active.to(tl.int32)) > 0:
        begin = tl.where(n_found == 0, k, begin)
        t_a, t_b, middle, x, y, z, cascade, half, in_box = _step(
            k[:, None] + ahead, s_start[:, None], start[:, None], ox[:, None], oy[:, None],
            oz[:, None], dx[:, None], dy[:, None], dz[:, None], half_size, size, cone, growth,
            CONE, N_CASCADES, R,
        )  # fmt: skip
        on = active[:, None] & (middle < end[:, None])
        index = ((cascade * R + z) * R + y) * R + x
        full = tl.load(occupied + index, on & in_box, 0) != 0
        found = on & full & (t_b > t_a)
        place = n_found[:, None] + tl.cumsum(found.to(tl.int32), 1) - found.to(tl.int32)
        found = found & (place < most[:, None])
        if WRITE:
            cells = base[:, None] + place
            tl.store(t_starts + cells, t_a, found)
            tl.store(t_ends + cells, t_b, found)
        n_found += tl.sum(found.to(tl.int32), 1)
        following = k + AHEAD
        if STRIDE:  # out of the last step's cell, if that is empty
            way = _way_out(x, half, ox[:, None], dx[:, None], R)
            way = tl.minimum(way, _way_out(y, half, oy[:, None], dy[:, None], R))
            way = tl.minimum(way, _way_out(z, half, oz[:, None], dz[:, None], R))
            s_out = _s_from_t(tl.maximum(way, middle), size, cone, growth, CONE)
            stride = tl.ceil(s_out - s_start[:, None] - (0.5 + STRIDE_MARGIN))
            crossed = (ahead == AHEAD - 1) & in_box & (full == 0)
            following = tl.maximum(following, tl.max(tl.where(crossed, stride, 0.0), 1))
        if not WRITE:  # the one after the last that there was room for
            last = k + 1.0 + tl.max(tl.where(found, ahead, -1.0), 1)
            following = tl.where(n_found < most, following, last)
        k = tl.where(active, following, k)
        active = active & (n_found < most) & (tl.min(on.to(tl.int32), 1) > 0)
    if WRITE:
        # were the two walks rounded apart, a place would hold what lay in memory: length zero
        short = inside & (n_found < most)
        while tl.max(short.to(tl.int32)) > 0:
            tl.store(t_starts + base + n_found, end, short)
            tl.store(t_ends + base + n_found, end, short)
            n_found += short.to(tl.int32)
            short = inside & (n_found < most)
    else:
        if tl.program_id(0) == 0:
            tl.store(counts, 0)
        tl.store(counts + 1 + slots, n_found.to(tl.int64), inside)
        tl.store(next_steps + slots, k, inside)
        tl.store(begins + slots, begin, inside)


@functools.cache
def _numbers(box: Box, steps: Steps, device: torch.device) -> Tensor:
    """What the kernel reads of a grid, float32; made once, as a copy waits."""
    numbers = [*box.center, box.half_size, steps.size, steps.cone, math.log1p(steps.cone)]
    return torch.tensor(numbers, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Walk:
    """Rays on their way through the grid."""

    rays: Rays
    bounds: Bounds
    jitter: Tensor
    grid: MarchingGrid
    ids: Tensor | None = None  # [n] int64, those that are still under way; None: all
    first_steps: Tensor | None = None  # [n] float32, the step at which each goes on; None: the 0th

    def __len__(self) -> int:
        return len(self.rays if self.ids is None else self.ids)

    def count(self, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets [n + 1] int64 of the samples of each ray until `limit` are found, and [n] of
        the steps after them, and at or a little before the first of them."""
        n, device = len(self), self.jitter.device
        counts = torch.empty(n + 1, dtype=torch.int64, device=device)  # a zero in front
        next_steps, begins = torch.empty(n, device=device), torch.empty(n, device=device)
        nothing = self.jitter
        first_steps = nothing if self.first_steps is None else self.first_steps
        outputs = (counts, counts, next_steps, begins, nothing, nothing)
        self._launch(False, limit, first_steps, outputs)
        return counts.cumsum(0), next_steps, begins

    def write(self, offsets: Tensor, begins: Tensor, capacity: int) -> Samples:
        """The samples that `offsets` [n + 1] leaves room for; begins as counted."""
        t_starts = torch.empty(capacity, device=offsets.device)
        t_ends = torch.empty(capacity, device=offsets.device)
        nothing = self.jitter
        outputs = (offsets, offsets, nothing, nothing, t_starts, t_ends)
        self._launch(True, NO_LIMIT, begins, outputs)
        return Samples(t_starts, t_ends, offsets)

    def _launch(
        self, write: bool, limit: int, first_steps: Tensor, outputs: tuple[Tensor, ...]
    ) -> None:
        box, steps, n = self.grid.box, self.grid.steps, len(self)
        occupied, resolution = self.grid.occupied.view(torch.uint8), self.grid.occupied.shape[1]
        # a coarse cell lies either inside or outside of the finer cube only if R/4 is whole
        stride = resolution % 4 == 0 or box.n_cascades == 1
        fresh = self.ids is None
        going = (outputs[0] if fresh else self.ids, first_steps)
        _march[(blocks(n, RAYS),)](
            self.rays.origins, self.rays.directions, *self.bounds, self.jitter, *going, occupied,
            *outputs, _numbers(box, steps, occupied.device), n, limit, fresh, write,
            steps.cone > 0, stride, box.n_cascades, resolution, RAYS, AHEAD, num_warps=1,
            enable_fp_fusion=False,  # so that both walks round alike
        )  # fmt: skip


def new_walk(rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid) -> Walk:
    """All rays at their first step."""
    rays = Rays(rays.origins.contiguous(), rays.directions.contiguous())
    bounds = Bounds(*(t.contiguous() for t in bounds))
    grid = replace(grid, occupied=grid.occupied.contiguous())
    return Walk(rays, bounds, jitter.contiguous(), grid)


def march(rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid) -> Samples:
    """sampling.march; waits for the number of samples."""
    walk = new_walk(rays, bounds, jitter, grid)
    offsets, _, begins = walk.count(NO_LIMIT)
    return walk.write(offsets, begins, int(offsets[-1]))  # sync


def march_within(
    rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid, capacity: int
) -> tuple[Samples, Tensor]:
    """sampling.march_within, without waiting for the device."""
    walk = new_walk(rays, bounds, jitter, grid)
    offsets, _, begins = walk.count(NO_LIMIT)
    offsets, n_fit = cut(offsets, capacity)
    return walk.write(offsets, begins, capacity), n_fit

"""Where along a ray to look: stratified, by importance, or marching through an occupancy grid.

t: distance along a ray. s: step coordinate; marching steps have length 1 in s.
t_min, t_max: where a ray enters and leaves the box; t_max <= t_min means that it misses.
Randomness is always an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.samples import Samples

__all__ = [
    "LINEAR",
    "Disparity",
    "Linear",
    "MarchingGrid",
    "Piecewise",
    "Spacing",
    "Steps",
    "edges_from_points",
    "importance",
    "intersect_box",
    "march",
    "march_within",
    "occupancy_lookup",
    "stratified",
]


class Spacing(Protocol):
    """How samples are spread along a ray: evenly in s(t), which grows with t."""

    def s_from_t(self, t: Tensor) -> Tensor: ...

    def t_from_s(self, s: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Linear:
    """s = t: even in distance."""

    def s_from_t(self, t: Tensor) -> Tensor:
        return t

    def t_from_s(self, s: Tensor) -> Tensor:
        return s


@dataclass(frozen=True)
class Disparity:
    """s = -1 / t: even in inverse distance, from a near plane to the horizon."""

    def s_from_t(self, t: Tensor) -> Tensor:
        return -1.0 / t

    def t_from_s(self, s: Tensor) -> Tensor:
        return -1.0 / s


@dataclass(frozen=True)
class Piecewise:
    """Even in distance up to `size`, in inverse distance beyond, where the two meet smoothly.

    s = t / (2 size) up to there, and 1 - size / (2 t) from there on: half of s lies within `size`,
    and the horizon is at s = 1. As the samplers of nerfacto have it.
    """

    size: float

    def s_from_t(self, t: Tensor) -> Tensor:
        share = t / self.size
        return torch.where(share < 1, 0.5 * share, 1.0 - 0.5 / share.clamp(min=1.0))

    def t_from_s(self, s: Tensor) -> Tensor:
        return self.size * torch.where(s < 0.5, 2.0 * s, 0.5 / (1.0 - s).clamp(min=1e-12))


LINEAR = Linear()


@dataclass(frozen=True)
class Steps:
    """A spacing that grows with distance: steps of `size` near the camera, of cone * t beyond.

    With t_c = size / cone, s(t) = t / size up to t_c, and beyond it
    s(t) = t_c / size + log(t / t_c) / log(1 + cone). cone = 0: equal steps everywhere.
    """

    size: float
    cone: float = 0.0

    def s_from_t(self, t: Tensor) -> Tensor:
        if self.cone == 0.0:
            return t / self.size
        t_c = self.size / self.cone
        far = 1.0 / self.cone + torch.log(t.clamp(min=t_c) / t_c) / math.log1p(self.cone)
        return torch.where(t <= t_c, t / self.size, far)

    def t_from_s(self, s: Tensor) -> Tensor:
        if self.cone == 0.0:
            return s * self.size
        s_c = 1.0 / self.cone
        far = torch.exp((s - s_c).clamp(min=0.0) * math.log1p(self.cone)) * (self.size * s_c)
        return torch.where(s <= s_c, s * self.size, far)


class Marching(Protocol):
    """A backend that marches."""

    def march(self, rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid) -> Samples: ...


@dataclass(frozen=True)
class MarchingGrid:
    """What rays march through.

    Attributes:
        occupied: [n_cascades, R, R, R] bool, indexed [cascade, z, y, x].
        box: the cascades' cubes.
        steps: lengths of the steps.
    """

    occupied: Tensor
    box: Box
    steps: Steps

    def sample(self, ops: Marching, rays: Rays, bounds: Bounds, jitter: Tensor) -> Samples:
        return ops.march(rays, bounds, jitter, self)


def intersect_box(rays: Rays, box: Box, near: float, far: float) -> Bounds:
    """Slab test against the outer cube, cut to [near, far]; t_max <= t_min where a ray misses."""
    origins, directions = rays.origins, rays.directions
    center = box.center_like(origins)
    # a zero component would give 0 * inf = nan for an origin on a face
    safe = torch.where(directions.abs() < 1e-12, torch.full_like(directions, 1e-12), directions)
    a = (center - box.outer_half_size - origins) / safe
    b = (center + box.outer_half_size - origins) / safe
    t_min = torch.minimum(a, b).amax(-1).clamp(min=near)
    t_max = torch.maximum(a, b).amin(-1).clamp(max=far)
    return Bounds(t_min, t_max)


def stratified(bounds: Bounds, jitter: Tensor, spacing: Spacing = LINEAR) -> Tensor:
    """One point in each of n equal parts of [s(t_min), s(t_max)]; NeRF (2020), eq. 2.

    Args:
        jitter: [n_rays, n] in [0, 1); 0.5 is the middle.

    Returns:
        t [n_rays, n], ascending.
    """
    n = jitter.shape[1]
    steps = torch.arange(n, device=jitter.device, dtype=jitter.dtype)
    s_min, s_max = spacing.s_from_t(bounds.t_min), spacing.s_from_t(bounds.t_max)
    return spacing.t_from_s(s_min[:, None] + (steps + jitter) / n * (s_max - s_min)[:, None])


def importance(
    edges: Tensor, weights: Tensor, u: Tensor, epsilon: float = 1e-5, spacing: Spacing = LINEAR
) -> Tensor:
    """Inverse-transform sampling of a piecewise-constant density; NeRF (2020), section 5.2.

    The density is constant in s within an interval.

    Args:
        edges: [n_rays, n + 1], ascending. weights: [n_rays, n], non-negative; `epsilon` is added
            to each so that empty rays are sampled evenly.
        u: [n_rays, m] in [0, 1).

    Returns:
        t [n_rays, m], in the order of u; no gradient flows through it.
    """
    edges, weights = spacing.s_from_t(edges.detach()), weights.detach() + epsilon
    cdf = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=-1)
    right = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, weights.shape[1])
    low, high = cdf.gather(1, right - 1), cdf.gather(1, right)
    fraction = ((u - low) / (high - low).clamp(min=1e-12)).clamp(0.0, 1.0)
    start, end = edges.gather(1, right - 1), edges.gather(1, right)
    return spacing.t_from_s(start + fraction * (end - start))


def edges_from_points(t: Tensor, bounds: Bounds) -> Tensor:
    """Interval edges halfway between sorted points; the ends are t_min and t_max.

    t [n_rays, n] -> [n_rays, n + 1].
    """
    middles = 0.5 * (t[:, 1:] + t[:, :-1])
    return torch.cat([bounds.t_min[:, None], middles, bounds.t_max[:, None]], dim=1)


def occupancy_lookup(positions: Tensor, occupied: Tensor, box: Box) -> Tensor:
    """Whether each position lies in an occupied cell of the finest cascade that holds it.

    Args:
        positions: [n, 3] in scene space; outside of the outer cube counts as empty.
        occupied: [n_cascades, R, R, R] bool, indexed [cascade, z, y, x].

    Returns:
        [n] bool.
    """
    resolution = occupied.shape[1]
    offset = positions - box.center_like(positions)
    reach = offset.abs().amax(-1) / box.half_size
    # the least c with reach <= 2^c, exactly: a logarithm in float32 errs beside powers of two
    mantissa, exponent = torch.frexp(reach)
    cascade = (exponent.long() - (mantissa <= 0.5).long()).clamp(min=0)
    inside = reach <= 2.0 ** (box.n_cascades - 1)
    cascade = cascade.clamp(max=box.n_cascades - 1)
    half = box.half_size * torch.exp2(cascade.to(positions.dtype))
    cell = ((offset / half[:, None] + 1.0) * (0.5 * resolution)).long().clamp(0, resolution - 1)
    x, y, z = cell.unbind(-1)
    return occupied[cascade, z, y, x] & inside


def march(rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid) -> Samples:
    """Steps of the ray whose middle lies in an occupied cell.

    Step k of a ray is [t(s_0 + k), t(s_0 + k + 1)] with s_0 = s(t_min) + jitter - 0.5, cut at
    t_min; steps whose middle passes t_max are left out.

    Args:
        jitter: [n_rays] in [0, 1).

    Returns:
        Samples with capacity equal to the live count.
    """
    origins, directions, (t_min, t_max), steps = rays.origins, rays.directions, bounds, grid.steps
    n_rays = origins.shape[0]
    hits = t_max > t_min
    t_min = torch.where(hits, t_min, torch.zeros_like(t_min))
    t_max = torch.where(hits, t_max, torch.zeros_like(t_max))
    s_start = steps.s_from_t(t_min) + jitter - 0.5
    n_steps = int((steps.s_from_t(t_max) - s_start).amax().ceil()) + 1 if n_rays else 0  # sync
    k = torch.arange(n_steps + 1, device=origins.device, dtype=origins.dtype)
    edges = steps.t_from_s((s_start[:, None] + k).clamp(min=0.0))  # [n_rays, n_steps + 1]
    edges = torch.maximum(edges, t_min[:, None])
    t_starts, t_ends = edges[:, :-1], edges[:, 1:]
    mids = 0.5 * (t_starts + t_ends)
    valid = hits[:, None] & (mids < t_max[:, None]) & (t_ends > t_starts)
    ray, step = valid.nonzero(as_tuple=True)
    positions = origins[ray] + mids[ray, step][:, None] * directions[ray]
    keep = occupancy_lookup(positions, grid.occupied, grid.box)
    ray, step = ray[keep], step[keep]
    counts = torch.bincount(ray, minlength=n_rays)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Samples(t_starts[ray, step], t_ends[ray, step], offsets)


def march_within(
    rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid, capacity: int
) -> tuple[Samples, Tensor]:
    """`march` into a fixed number of places.

    Returns:
        Samples of that capacity, and how many rays from the first on have room for all that is
        theirs, an int64 scalar. The others are empty.
    """
    samples = march(rays, bounds, jitter, grid)
    offsets = samples.ray_offsets
    n_fit = (offsets <= capacity).sum() - 1
    offsets = offsets.clamp(max=offsets[n_fit])
    n = min(capacity, samples.capacity)
    t_starts, t_ends = samples.t_starts.new_zeros(2, capacity)
    t_starts[:n], t_ends[:n] = samples.t_starts[:n], samples.t_ends[:n]
    return Samples(t_starts, t_ends, offsets), n_fit

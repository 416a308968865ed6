"""A training step's gradients in Triton: the twin of fused.step_gradients.

The kernels one after another, with nothing that waits for the device: every buffer has the
capacity of the samples given, and the live counts stay where they are made.

Gradients travel in half precision as those of SCALE times the sum over rays and channels, and are
divided by SCALE and by the number of terms where they are added up, in float32. Those of the mean
would be near 1e-7, below what half precision holds.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton import triton_encoding, triton_harmonics, triton_mlp
from nerfcli.backends.triton.launch import blocks, count, power_of_two
from nerfcli.backends.triton.triton_losses import losses_and_gradients
from nerfcli.backends.triton.triton_mlp import Rows
from nerfcli.backends.triton.triton_packed import find_ray, halvings, points
from nerfcli.backends.triton.triton_radiance import ensure_fits
from nerfcli.backends.triton.triton_rays import ray_gradients
from nerfcli.backends.triton.triton_volume import (
    AHEAD,
    OPAQUE,
    RAYS,
    delta_of,
    in_front,
    ray_block,
    sigma_of,
)
from nerfcli.cameras.rays import Batch, Rays
from nerfcli.reference.fused import Objective, StepOut
from nerfcli.reference.radiance import NetParams, Network
from nerfcli.reference.samples import Samples

GATHER_BLOCK = 128
# Samples of each ray that are looked at before those of the rays that light passes: of lego's and
# the biplane's, trained, half of the rest lies behind a surface. A multiple of AHEAD.
FIRST_ROUND = 16
# Of a limit, by which a ray may pass it and be looked at on: `_visible`, which adds the same depths
# up in a kernel of its own, must never find less of them and read what was not written.
ROUNDING = 1e-5


@triton.jit(do_not_specialize=["n_rays", "skip", "most"])
def _onward(
    logs, t_starts, t_ends, offsets, counts, n_rays, stride, inverse_unit, max_depth, skip, most,
    RAYS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Count the samples of each ray behind its first `skip`, up to `most`, if light gets there."""
    rays, inside, first, last = ray_block(offsets, n_rays, RAYS)
    depth = tl.zeros((RAYS,), tl.float32)
    begin, left = first, tl.minimum(last - first, skip)
    while tl.max(left) > 0:
        i = begin[:, None] + tl.arange(0, AHEAD)[None, :]
        live = (i < last[:, None]) & (left > 0)[:, None]
        sigma = sigma_of(logs, i, live, stride, inverse_unit, True)
        depth += tl.sum(tl.minimum(sigma * delta_of(t_starts, t_ends, i, live), OPAQUE), 1)
        begin += AHEAD
        left = tl.where(depth <= max_depth, left - AHEAD, 0)
    more = tl.minimum(tl.maximum(last - first - skip, 0), most)
    if tl.program_id(0) == 0:
        tl.store(counts, 0)
    tl.store(counts + 1 + rays, tl.where(depth <= max_depth, more, 0), inside)


@triton.jit(do_not_specialize=["n_rays"])
def _visible(
    logs, t_starts, t_ends, offsets, depths, counts, n_rays, stride, inverse_unit, max_depth,
    FRESH: tl.constexpr, RAYS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Count the samples of each ray that light reaches. Not FRESH: there were samples before, and
    there will be more; depths holds the optical depth so far."""
    rays, inside, first, last = ray_block(offsets, n_rays, RAYS)
    depth = tl.zeros((RAYS,), tl.float32) if FRESH else tl.load(depths + rays, inside, 0.0)
    count = tl.zeros((RAYS,), tl.int32)
    left = last - first
    while tl.max(left) > 0:
        i = first[:, None] + tl.arange(0, AHEAD)[None, :]
        live = (i < last[:, None]) & (left > 0)[:, None]
        sigma = sigma_of(logs, i, live, stride, inverse_unit, True)
        tau = tl.minimum(sigma * delta_of(t_starts, t_ends, i, live), OPAQUE)
        lit = live & (depth[:, None] + in_front(tau) <= max_depth)
        count += tl.sum(lit.to(tl.int32), 1)
        depth += tl.sum(tau, 1)
        first += AHEAD
        left = tl.where(depth <= max_depth, left - AHEAD, 0)
    if tl.program_id(0) == 0:
        tl.store(counts, 0)
    tl.store(counts + 1 + rays, count.to(tl.int64), inside)
    if not FRESH:
        tl.store(depths + rays, depth, inside)


@triton.jit(do_not_specialize=["n_rays", "n_halvings"])
def _gather(
    geometry, ray_inputs, ids, t_starts, t_ends, offsets, kept_offsets,
    inputs, kept_starts, kept_ends, sources, n_rays, n_halvings, FRESH: tl.constexpr,
    N_GEOMETRY: tl.constexpr, N_INPUTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move the kept samples together; lay out the colour network's inputs."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n = tl.load(kept_offsets + n_rays)
    if first >= n:
        return
    rows = first + tl.arange(0, BLOCK)
    live = rows < n
    slot = find_ray(kept_offsets, n_rays, n_halvings, rows)
    source = tl.load(offsets + slot) + rows - tl.load(kept_offsets + slot)
    source = tl.where(live, source, 0)
    tl.store(sources + rows, source, live)
    tl.store(kept_starts + rows, tl.load(t_starts + source, live, 0.0), live)
    tl.store(kept_ends + rows, tl.load(t_ends + source, live, 0.0), live)
    ray = slot if FRESH else tl.load(ids + slot)
    columns = tl.arange(0, COLUMNS)[None, :]
    shape = live[:, None] & (columns < N_GEOMETRY)
    value = tl.load(geometry + source[:, None] * N_GEOMETRY + columns, shape, 0.0)
    belongs = live[:, None] & (columns >= N_GEOMETRY) & (columns < N_INPUTS)
    width: tl.constexpr = N_INPUTS - N_GEOMETRY
    value += tl.load(ray_inputs + ray[:, None] * width + columns - N_GEOMETRY, belongs, 0.0)
    cells = inputs + rows[:, None] * N_INPUTS + columns
    tl.store(cells, value, live[:, None] & (columns < N_INPUTS))


@dataclass(frozen=True)
class Shaded:
    """What the density network says at packed samples."""

    positions: Tensor  # [capacity, 3] in the unit cube
    features: Tensor  # [n_levels, capacity, n_features]
    geometry: Tensor  # [capacity, n_geometry]


@dataclass(frozen=True)
class Kept:
    """The samples that light reaches, moved together."""

    samples: Samples
    sources: Tensor  # [capacity] int64, where they were
    inputs: Tensor  # [capacity, n_geometry + n_ray_inputs], of the colour network

    @property
    def n_live(self) -> Tensor:
        return self.samples.ray_offsets[-1:]


def depth_limit(min_transmittance: float) -> float:
    """The optical depth at which T = min_transmittance."""
    return -math.log(min_transmittance) if min_transmittance > 0 else math.inf


def look(
    network: Network, rays: Rays, ids: Tensor | None, samples: Samples, min_transmittance: float,
    first_round: int,
) -> Shaded:  # fmt: skip
    """Grid and density network at the middles of packed samples, in the precision of the table.

    Args:
        ids: as those of a Walk.
        first_round: samples of each ray that are looked at before the rest of the rays that light
            passes; the rest of the others is not written. 0: all at once.
    """
    net, params, space = network.spec, network.params, network.space
    n, device, dtype = samples.capacity, samples.t_starts.device, params.table.dtype
    positions = torch.empty(n, 3, device=device)
    features = triton_encoding.new_features(n, net.grid, dtype, device)
    geometry = torch.empty(n, net.n_geometry, dtype=dtype, device=device)
    shaded = Shaded(positions, features, geometry)
    for skip, most in ((0, first_round), (first_round, n)) if first_round else ((0, 0),):
        wanted = samples.ray_offsets
        if first_round:
            limit = depth_limit(min_transmittance)
            wanted = _wanted(shaded, samples, space.unit_length, limit, skip, most)
        some = wanted if first_round else None
        places, n_live = points(rays, ids, samples, space, positions, some, skip), wanted[-1:]
        triton_encoding.encode(positions, params.table, net.grid, n_live, features, places)
        triton_mlp.forward(
            Rows.of_levels(features), params.density, net.density_widths, n_live, geometry, places
        )
    return shaded


def _wanted(
    shaded: Shaded, samples: Samples, unit_length: float, max_depth: float, skip: int, most: int
) -> Tensor:
    """Offsets [n_rays + 1] of the samples of the next round."""
    n, geometry = samples.n_rays, shaded.geometry
    counts = torch.empty_like(samples.ray_offsets)  # a zero in front
    _onward[(blocks(n, RAYS),)](
        geometry, samples.t_starts, samples.t_ends, samples.ray_offsets, counts, n,
        geometry.shape[1], 1.0 / unit_length, max_depth * (1.0 + ROUNDING), skip, most, RAYS, AHEAD,
        num_warps=1,
    )  # fmt: skip
    return counts.cumsum(0)


def keep_visible(
    shaded: Shaded, samples: Samples, ray_inputs: Tensor, ids: Tensor | None, unit_length: float,
    min_transmittance: float, depths: Tensor | None = None,
) -> Kept:  # fmt: skip
    """Drop the samples behind T < min_transmittance.

    Args:
        ray_inputs: [n, n_ray_inputs] of the rays that ids, as those of a Walk, point at.
        depths: [n_rays], optical depth in front of each ray's first sample, written to; None: 0.
    """
    n_rays, capacity, device = samples.n_rays, samples.capacity, ray_inputs.device
    geometry = shaded.geometry
    n_geometry = geometry.shape[1]
    counts = torch.empty(n_rays + 1, dtype=torch.int64, device=device)  # a zero in front
    packed = (samples.t_starts, samples.t_ends, samples.ray_offsets)
    _visible[(blocks(n_rays, RAYS),)](
        geometry, *packed, samples.t_starts if depths is None else depths, counts, n_rays,
        n_geometry, 1.0 / unit_length, depth_limit(min_transmittance), depths is None, RAYS, AHEAD,
        num_warps=1,
    )  # fmt: skip
    offsets = counts.cumsum(0)
    n_inputs = n_geometry + ray_inputs.shape[1]
    inputs = torch.empty(capacity, n_inputs, dtype=geometry.dtype, device=device)
    t_starts, t_ends = (torch.empty(capacity, device=device) for _ in range(2))  # both aligned
    sources = torch.empty(capacity, dtype=torch.int64, device=device)
    _gather[(blocks(capacity, GATHER_BLOCK),)](
        geometry, ray_inputs, offsets if ids is None else ids, *packed, offsets, inputs, t_starts,
        t_ends, sources, n_rays, halvings(n_rays), ids is None, n_geometry, n_inputs,
        power_of_two(n_inputs), GATHER_BLOCK,
    )  # fmt: skip
    return Kept(Samples(t_starts, t_ends, offsets), sources, inputs)


def ray_inputs_of(rays: Rays, ray_inputs: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What the colour network is given of each ray, in its precision; None: the harmonics."""
    if ray_inputs is None:
        return triton_harmonics.harmonics(rays.directions, dtype)
    return ray_inputs.to(dtype).contiguous()


def step_gradients(
    network: Network,
    grads: NetParams,
    batch: Batch,
    samples: Samples,
    objective: Objective,
    *,
    ray_inputs: Tensor | None = None,
    n_live: Tensor | None = None,
    with_weights: bool = False,
    with_ray_grads: bool = False,
) -> StepOut:
    """fused.step_gradients, with network inputs and hidden values in the precision of the table.

    RayGrads are of all rays: those that do not count have zeros.
    """
    net, params, space, rays = network.spec, network.params, network.space, batch.rays
    ensure_fits(net)
    device, limit = batch.rgb.device, objective.min_transmittance
    if n_live is None:
        n_live = count(len(rays), device)
    shaded = look(network, rays, None, samples, limit, FIRST_ROUND)
    inputs = ray_inputs_of(rays, ray_inputs, params.table.dtype)
    kept = keep_visible(shaded, samples, inputs, None, space.unit_length, limit)
    color_rows, widths = Rows.plain(kept.inputs), net.color_widths
    colors = torch.empty(samples.capacity, 3, dtype=params.table.dtype, device=device)
    triton_mlp.forward(color_rows, params.color, widths, kept.n_live, colors)
    weights = torch.zeros_like(samples.t_starts) if with_weights else None
    found = losses_and_gradients(
        kept.inputs, colors, kept.samples, kept.sources, batch, n_live, space.unit_length,
        objective, weights,
    )  # fmt: skip
    d_inputs = triton_mlp.backward(
        color_rows, params.color, widths, found.d_colors, kept.n_live, grads.color, found.factor
    )
    d_features = triton_mlp.backward(
        Rows.of_levels(shaded.features), params.density, net.density_widths, d_inputs,
        kept.n_live, grads.density, found.factor, kept.sources, found.d_logs,
    )  # fmt: skip
    where = (net.grid, kept.n_live)
    triton_encoding.scatter(
        shaded.positions, d_features, grads.table, *where, found.factor, kept.sources
    )
    ray_grads = None
    if with_ray_grads:
        d_positions = triton_encoding.position_gradients(
            shaded.positions, d_features, params.table, *where, kept.sources
        )
        ray_grads = ray_gradients(
            rays, kept.samples, d_positions, d_inputs, net.n_geometry, space, found.factor,
            ray_inputs is None,
        )  # fmt: skip
    return StepOut(found.terms, found.mse, kept.n_live[0], weights, ray_grads)

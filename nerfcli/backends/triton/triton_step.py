"""A training step's gradients in Triton: the twin of step.photometric_gradients.

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

from nerfcli.backends.triton import triton_encoding, triton_mlp
from nerfcli.backends.triton.launch import blocks, count, power_of_two
from nerfcli.backends.triton.triton_adam import table_as
from nerfcli.backends.triton.triton_losses import SCALE, photometric
from nerfcli.backends.triton.triton_mlp import Rows
from nerfcli.backends.triton.triton_radiance import ensure_fits
from nerfcli.backends.triton.triton_sampling import (
    find_ray,
    halvings,
    offsets_from_counts,
    points,
)
from nerfcli.backends.triton.triton_volume import (
    MAX_TAU,
    RAY_BLOCK,
    delta_of,
    ray_block,
    sigma_of,
)
from nerfcli.radiance import NetParams, NetSpec
from nerfcli.rays import Rays, Samples
from nerfcli.sampling import Box
from nerfcli.step import StepTerms

GATHER_BLOCK = 128


@triton.jit(do_not_specialize=["n_rays"])
def _visible(
    logs, t_starts, t_ends, offsets, depths, kept, n_rays, stride, inverse_side, max_depth,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the samples of each ray that light reaches, and add up their optical depths."""
    rays, inside, i, last = ray_block(offsets, n_rays, BLOCK)
    depth = tl.load(depths + rays, inside, 0.0)
    count = tl.zeros((BLOCK,), tl.int32)
    live = (i < last) & (depth <= max_depth)
    while tl.max(live.to(tl.int32)) > 0:
        sigma = sigma_of(logs, i, live, stride, inverse_side, True)
        depth += tl.minimum(sigma * delta_of(t_starts, t_ends, i, live), MAX_TAU)
        count += live.to(tl.int32)
        i += 1
        live = live & (i < last) & (depth <= max_depth)
    tl.store(depths + rays, depth, inside)
    tl.store(kept + rays, count, inside)


@triton.jit(do_not_specialize=["n_rays", "n_halvings"])
def _gather(
    geometry, harmonics, ids, t_starts, t_ends, offsets, kept_offsets,
    inputs, kept_starts, kept_ends, sources, n_rays, n_halvings,
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
    ray = tl.load(ids + slot)
    columns = tl.arange(0, COLUMNS)[None, :]
    shape = live[:, None] & (columns < N_GEOMETRY)
    value = tl.load(geometry + source[:, None] * N_GEOMETRY + columns, shape, 0.0)
    shine = live[:, None] & (columns >= N_GEOMETRY) & (columns < N_INPUTS)
    width: tl.constexpr = N_INPUTS - N_GEOMETRY
    value += tl.load(harmonics + ray[:, None] * width + columns - N_GEOMETRY, shine, 0.0)
    cells = inputs + rows[:, None] * N_INPUTS + columns
    tl.store(cells, value, live[:, None] & (columns < N_INPUTS))


@triton.jit(do_not_specialize=["n_rows"])
def _gather_features(
    positions, features, sources, kept_positions, kept_features, n_live, n_rows,
    N_FEATURES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move what the way back needs of the kept samples: a level of features, or the positions."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n = tl.load(n_live)
    if first >= n:
        return
    rows = first + tl.arange(0, BLOCK)
    live = rows < n
    source = tl.load(sources + rows, live, 0)
    level = tl.program_id(1).to(tl.int64)
    if level == tl.num_programs(1) - 1:
        for axis in tl.static_range(3):
            x = tl.load(positions + source * 3 + axis, live, 0.0)
            tl.store(kept_positions + rows * 3 + axis, x, live)
    else:
        columns = tl.arange(0, N_FEATURES)[None, :]
        cells = features + (level * n_rows + source)[:, None] * N_FEATURES + columns
        kept = kept_features + (level * n_rows + rows)[:, None] * N_FEATURES + columns
        tl.store(kept, tl.load(cells, live[:, None], 0.0), live[:, None])


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
    inputs: Tensor  # [capacity, n_geometry + 16], of the colour network
    counts: Tensor  # [n_rays] int32
    depths: Tensor  # [n_rays], optical depth so far

    @property
    def n_live(self) -> Tensor:
        return self.samples.ray_offsets[-1:]


def depth_limit(min_transmittance: float) -> float:
    """The optical depth at which T = min_transmittance."""
    return -math.log(min_transmittance) if min_transmittance > 0 else math.inf


def look(
    rays: Rays, ids: Tensor, samples: Samples, box: Box, params: NetParams, net: NetSpec,
    dtype: torch.dtype,
) -> Shaded:  # fmt: skip
    """Grid and density network at the middles of packed samples; ids [n_rays] point at rays."""
    n_live = samples.ray_offsets[-1:]
    positions = points(rays.origins, rays.directions, ids, samples, box)
    table = table_as(params.table, dtype)
    features = triton_encoding.encode(positions, table, net.grid, n_live, dtype)
    rows = Rows.of_levels(features)
    geometry = triton_mlp.forward(rows, params.density, net.density_widths, n_live, dtype)
    return Shaded(positions, features, geometry)


def keep_visible(
    shaded: Shaded, samples: Samples, harmonics: Tensor, ids: Tensor, depths: Tensor, box: Box,
    min_transmittance: float,
) -> Kept:  # fmt: skip
    """Drop the samples behind T < min_transmittance.

    Args:
        harmonics: [n, 16] of the rays that ids [n_rays] point at.
        depths: [n_rays], optical depth in front of each ray's first sample; written to.
    """
    n_rays, capacity, device = samples.n_rays, samples.capacity, depths.device
    geometry = shaded.geometry
    n_geometry = geometry.shape[1]
    kept = torch.empty(n_rays, dtype=torch.int32, device=device)
    packed = (samples.t_starts, samples.t_ends, samples.ray_offsets)
    _visible[(blocks(n_rays, RAY_BLOCK),)](
        geometry, *packed, depths, kept, n_rays, n_geometry, 1.0 / box.side,
        depth_limit(min_transmittance), RAY_BLOCK, num_warps=1,
    )  # fmt: skip
    offsets = offsets_from_counts(kept)
    n_inputs = n_geometry + harmonics.shape[1]
    inputs = torch.empty(capacity, n_inputs, dtype=geometry.dtype, device=device)
    t_starts, t_ends = torch.empty(2, capacity, device=device)
    sources = torch.empty(capacity, dtype=torch.int64, device=device)
    _gather[(blocks(capacity, GATHER_BLOCK),)](
        geometry, harmonics, ids, *packed, offsets, inputs, t_starts, t_ends, sources, n_rays,
        halvings(n_rays), n_geometry, n_inputs, power_of_two(n_inputs), GATHER_BLOCK,
    )  # fmt: skip
    return Kept(Samples(t_starts, t_ends, offsets), sources, inputs, kept, depths)


def photometric_gradients(
    params: NetParams,
    grads: NetParams,
    net: NetSpec,
    box: Box,
    rays: Rays,
    samples: Samples,
    target: Tensor,
    background: Tensor,
    *,
    loss: str = "huber",
    min_transmittance: float = 1e-4,
    n_live: Tensor | None = None,
    dtype: torch.dtype,
) -> StepTerms:
    """step.photometric_gradients, with table, network inputs and hidden values in `dtype`.

    Args:
        n_live: how many rays count, an int64 scalar on the device; None: all. The others must
            have no samples.
    """
    ensure_fits(net)
    n_rays, device = len(rays), target.device
    if n_live is None:
        n_live = count(n_rays, device)
    ids = torch.arange(n_rays, device=device)
    shaded = look(rays, ids, samples, box, params, net, dtype)
    harmonics = triton_encoding.spherical_harmonics(rays.directions, dtype)
    start = torch.zeros(n_rays, device=device)
    kept = keep_visible(shaded, samples, harmonics, ids, start, box, min_transmittance)
    color_rows = Rows.plain(kept.inputs)
    colors = triton_mlp.forward(color_rows, params.color, net.color_widths, kept.n_live, dtype)
    d_logs, d_colors, terms = photometric(
        kept.inputs, colors, kept.samples, target, background, n_live, box, loss
    )

    d_inputs, d_color = triton_mlp.backward(
        color_rows, params.color, net.color_widths, d_colors, kept.n_live
    )
    d_inputs[:, 0] += d_logs
    positions, features = _of_kept(shaded, kept)
    d_features, d_density = triton_mlp.backward(
        Rows.of_levels(features), params.density, net.density_widths, d_inputs, kept.n_live
    )
    mean = 1.0 / (3 * n_live.clamp(min=1)).reshape(1)  # [1] float32
    unscale = mean / SCALE.value
    triton_encoding.scatter(positions, d_features, grads.table, net.grid, kept.n_live, unscale)
    grads.density.addcmul_(d_density, unscale)
    grads.color.addcmul_(d_color, unscale)
    value, mse = (terms.sum(0) * mean).unbind()
    return StepTerms(value, mse, kept.n_live[0])


def _of_kept(shaded: Shaded, kept: Kept) -> tuple[Tensor, Tensor]:
    """Positions and features of the kept samples; the rest of both is never written."""
    positions, features = torch.empty_like(shaded.positions), torch.empty_like(shaded.features)
    n_levels, capacity, n_features = features.shape
    _gather_features[(blocks(capacity, GATHER_BLOCK), n_levels + 1)](
        shaded.positions, shaded.features, kept.sources, positions, features, kept.n_live,
        capacity, n_features, GATHER_BLOCK,
    )  # fmt: skip
    return positions, features

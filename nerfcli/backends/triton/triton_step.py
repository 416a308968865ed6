"""A training step's gradients in Triton: the twin of step.photometric_gradients.

The kernels one after another, with nothing that waits for the device: every buffer has the
capacity of the samples given, and the live counts stay where they are made.

Gradients travel scaled by three times the number of rays: the mean in the loss makes them as
small as 1e-7, below what half precision holds, and without it they are near 1.
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
from nerfcli.backends.triton.launch import blocks, power_of_two
from nerfcli.backends.triton.triton_adam import table_as
from nerfcli.backends.triton.triton_mlp import Rows
from nerfcli.backends.triton.triton_radiance import ensure_fits
from nerfcli.backends.triton.triton_sampling import find_ray, offsets_from_counts, points
from nerfcli.backends.triton.triton_volume import (
    HUBER_DELTA,
    MAX_TAU,
    RAY_BLOCK,
    delta_of,
    ray_block,
    sigma_of,
    walk_back,
    walk_forward,
)
from nerfcli.radiance import NetParams, NetSpec
from nerfcli.rays import Rays, Samples
from nerfcli.sampling import Box
from nerfcli.step import StepTerms

GATHER_BLOCK = 128
LOSSES = {"mse": False, "huber": True}  # as the kernel's constant HUBER


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


@triton.jit(do_not_specialize=["n_rays"])
def _gather(
    geometry, harmonics, ids, t_starts, t_ends, offsets, kept_offsets,
    inputs, kept_starts, kept_ends, sources, n_rays, capacity,
    N_GEOMETRY: tl.constexpr, N_INPUTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move the kept samples together; lay out the colour network's inputs."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = rows < tl.load(kept_offsets + n_rays)
    slot = find_ray(kept_offsets, n_rays, rows)
    source = tl.load(offsets + slot) + rows - tl.load(kept_offsets + slot)
    source = tl.where(live, source, 0)
    tl.store(sources + rows, source, rows < capacity)
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


@triton.jit
def _term(value, target, inside, HUBER: tl.constexpr):
    """Loss and squared error of one channel, and the gradient of the loss."""
    error = tl.where(inside, value - target, 0.0)
    square = error * error
    term, slope = square, 2.0 * error
    if HUBER:
        size = tl.abs(error)
        term = tl.where(size <= HUBER_DELTA, square, HUBER_DELTA * (2.0 * size - HUBER_DELTA))
        slope = 2.0 * tl.minimum(tl.maximum(error, -HUBER_DELTA), HUBER_DELTA)
    return term, square, slope


@triton.jit(do_not_specialize=["n_rays"])
def _photometric(
    logs, raw_colors, t_starts, t_ends, offsets, background, target, light, d_logs, d_colors,
    terms, n_rays, stride, inverse_side, HUBER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Composite, compare, and go back to what the networks gave; the sums of the terms."""
    rays, inside, first, last = ray_block(offsets, n_rays, BLOCK)
    red, green, blue, total, _ = walk_forward(
        logs, raw_colors, t_starts, t_ends, light, first, last, stride, inverse_side, True, True
    )
    tl.debug_barrier()  # the light is read by other threads than wrote it
    back_red = tl.load(background + rays * 3, inside, 0.0)
    back_green = tl.load(background + rays * 3 + 1, inside, 0.0)
    back_blue = tl.load(background + rays * 3 + 2, inside, 0.0)
    shine = 1.0 - total
    goal = tl.load(target + rays * 3, inside, 0.0)
    term, square, d_red = _term(red + shine * back_red, goal, inside, HUBER)
    loss, squares = term, square
    goal = tl.load(target + rays * 3 + 1, inside, 0.0)
    term, square, d_green = _term(green + shine * back_green, goal, inside, HUBER)
    loss, squares = loss + term, squares + square
    goal = tl.load(target + rays * 3 + 2, inside, 0.0)
    term, square, d_blue = _term(blue + shine * back_blue, goal, inside, HUBER)
    loss, squares = loss + term, squares + square
    tl.store(terms + tl.program_id(0) * 2, tl.sum(loss))
    tl.store(terms + tl.program_id(0) * 2 + 1, tl.sum(squares))
    d_total = -(d_red * back_red + d_green * back_green + d_blue * back_blue)
    walk_back(
        logs, raw_colors, t_starts, t_ends, light, d_logs, d_colors, first, last, stride,
        inverse_side, d_red, d_green, d_blue, d_total, total * 0.0, True,
    )  # fmt: skip


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
    sources: Tensor  # [capacity] int64, where they were; 0 for padding
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
        capacity, n_geometry, n_inputs, power_of_two(n_inputs), GATHER_BLOCK,
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
    dtype: torch.dtype,
) -> StepTerms:
    """step.photometric_gradients, with table, network inputs and hidden values in `dtype`."""
    ensure_fits(net)
    n_rays, device = len(rays), target.device
    ids = torch.arange(n_rays, device=device)
    shaded = look(rays, ids, samples, box, params, net, dtype)
    harmonics = triton_encoding.spherical_harmonics(rays.directions, dtype)
    start = torch.zeros(n_rays, device=device)
    kept = keep_visible(shaded, samples, harmonics, ids, start, box, min_transmittance)
    color_rows = Rows.plain(kept.inputs)
    colors = triton_mlp.forward(color_rows, params.color, net.color_widths, kept.n_live, dtype)
    d_logs, d_colors, terms = _loss(kept, colors, target, background, box, LOSSES[loss])

    d_inputs, d_color = triton_mlp.backward(
        color_rows, params.color, net.color_widths, d_colors, kept.n_live
    )
    d_inputs[:, 0] += d_logs
    features = shaded.features.index_select(1, kept.sources)
    d_features, d_density = triton_mlp.backward(
        Rows.of_levels(features), params.density, net.density_widths, d_inputs, kept.n_live
    )
    unscale = 1.0 / (3 * max(n_rays, 1))
    positions = shaded.positions.index_select(0, kept.sources)
    triton_encoding.scatter(positions, d_features, grads.table, net.grid, kept.n_live, unscale)
    grads.density.add_(d_density, alpha=unscale)
    grads.color.add_(d_color, alpha=unscale)
    value, mse = (terms.sum(0) * unscale).unbind()
    return StepTerms(value, mse, kept.n_live[0])


def _loss(
    kept: Kept, colors: Tensor, target: Tensor, background: Tensor, box: Box, huber: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled gradients of log densities [capacity] and raw colours, and sums of the terms."""
    capacity, n_inputs = kept.inputs.shape
    n_rays, device = kept.samples.n_rays, target.device
    d_logs = torch.empty(capacity, dtype=colors.dtype, device=device)
    d_colors = torch.empty(capacity, 3, dtype=colors.dtype, device=device)
    light = torch.empty(capacity, device=device)
    programs = blocks(n_rays, RAY_BLOCK)
    terms = torch.empty(programs, 2, device=device)
    packed = (kept.samples.t_starts, kept.samples.t_ends, kept.samples.ray_offsets)
    _photometric[(programs,)](
        kept.inputs, colors, *packed, background.contiguous(), target.contiguous(), light, d_logs,
        d_colors, terms, n_rays, n_inputs, 1.0 / box.side, huber, RAY_BLOCK, num_warps=1,
    )  # fmt: skip
    return d_logs, d_colors, terms

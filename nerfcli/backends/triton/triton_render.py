"""Rendering rays in Triton: the twin of fused.render_rays.

Rays go on together in rounds and drop out as they leave the box or grow opaque; the fewer are
left, the farther each goes in a round. What light reaches is shaded and kept; at the end the
pieces of every ray are laid side by side and composited once.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton import triton_mlp
from nerfcli.backends.triton.launch import blocks
from nerfcli.backends.triton.triton_mlp import Rows
from nerfcli.backends.triton.triton_packed import find_ray, halvings
from nerfcli.backends.triton.triton_radiance import ensure_fits
from nerfcli.backends.triton.triton_sampling import new_walk
from nerfcli.backends.triton.triton_step import (
    Kept,
    depth_limit,
    keep_visible,
    look,
    ray_inputs_of,
)
from nerfcli.backends.triton.triton_volume import composite, sigma_of
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.radiance import Network
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import MarchingGrid

ROUND_SAMPLES = 8  # of a round, per ray at the start: 1 GiB for 800 x 800 rays
LEAST_SAMPLES = 4  # of a ray in a round
BLOCK = 256


@dataclass(frozen=True)
class Piece:
    """The kept samples of one round."""

    ids: Tensor  # rays of the round
    before: Tensor  # samples that each had before
    samples: Samples
    logs: Tensor  # [capacity], of the densities
    colors: Tensor  # [capacity, 3], before the sigmoid


def render_rays(
    network: Network,
    rays: Rays,
    bounds: Bounds,
    jitter: Tensor,
    grid: MarchingGrid,
    background: Tensor,
    min_transmittance: float = 1e-4,
    ray_inputs: Tensor | None = None,
) -> Pixels:
    """fused.render_rays in the precision of the table. Waits for the device every round."""
    ensure_fits(network.spec)
    n_rays, device, unit_length = len(rays), jitter.device, network.space.unit_length
    with torch.no_grad():
        walk = new_walk(rays, bounds, jitter, grid)
        inputs = ray_inputs_of(rays, ray_inputs, network.params.table.dtype)
        max_depth = depth_limit(min_transmittance)
        ids = torch.arange(n_rays, device=device)
        depths = torch.zeros(n_rays, device=device)
        totals = torch.zeros(n_rays, dtype=torch.int64, device=device)
        pieces, room = [], int(ROUND_SAMPLES * n_rays)
        while len(ids):
            limit = max(LEAST_SAMPLES, room // len(ids))
            offsets, next_steps, begins = walk.count(limit)
            samples = walk.write(offsets, begins, int(offsets[-1]))  # sync
            shaded = look(network, rays, ids, samples, min_transmittance, 0)
            kept = keep_visible(
                shaded, samples, inputs, ids, unit_length, min_transmittance, depths
            )
            pieces.append(_shade(network, kept, ids, totals[ids]))
            totals[ids] += kept.samples.ray_offsets.diff()
            goes_on = (offsets.diff() == limit) & (depths <= max_depth)
            depths, ids = depths[goes_on], ids[goes_on]  # sync
            walk = replace(walk, ids=ids, first_steps=next_steps[goes_on])
        return composite(*_joined(pieces, totals, unit_length), background)


def _shade(network: Network, kept: Kept, ids: Tensor, before: Tensor) -> Piece:
    rows = Rows.plain(kept.inputs)
    colors = torch.empty(rows.n, 3, device=ids.device)
    widths = network.spec.color_widths
    triton_mlp.forward(rows, network.params.color, widths, kept.n_live, colors)
    return Piece(ids, before, kept.samples, kept.inputs[:, 0].contiguous(), colors)


@triton.jit(do_not_specialize=["n_rays", "n_halvings"])
def _lay(
    logs, colors, t_starts, t_ends, offsets, ids, before, whole_offsets,
    sigmas, rgbs, whole_starts, whole_ends, n_rays, n_halvings, inverse_unit, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move a piece's samples to where they lie among those of all pieces."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n = tl.load(offsets + n_rays)
    if first >= n:
        return
    rows = first + tl.arange(0, BLOCK)
    live = rows < n
    slot = find_ray(offsets, n_rays, n_halvings, rows)
    place = tl.load(whole_offsets + tl.load(ids + slot)) + tl.load(before + slot)
    place += rows - tl.load(offsets + slot)
    tl.store(sigmas + place, sigma_of(logs, rows, live, 1, inverse_unit, True), live)
    tl.store(whole_starts + place, tl.load(t_starts + rows, live, 0.0), live)
    tl.store(whole_ends + place, tl.load(t_ends + rows, live, 0.0), live)
    for channel in tl.static_range(3):
        color = tl.load(colors + rows * 3 + channel, live, 0.0)
        tl.store(rgbs + place * 3 + channel, 1.0 / (1.0 + tl.exp(-color)), live)


def _joined(
    pieces: list[Piece], totals: Tensor, unit_length: float
) -> tuple[Tensor, Tensor, Samples]:
    """sigmas, rgbs and samples of all pieces, packed ray after ray."""
    offsets = F.pad(totals.cumsum(0), (1, 0))
    n, device = int(offsets[-1]), totals.device  # sync
    sigmas, t_starts, t_ends = (torch.empty(n, device=device) for _ in range(3))
    rgbs = torch.empty(n, 3, device=device)
    for piece in pieces:
        samples, n_rays = piece.samples, piece.samples.n_rays
        _lay[(blocks(samples.capacity, BLOCK),)](
            piece.logs, piece.colors, samples.t_starts, samples.t_ends, samples.ray_offsets,
            piece.ids, piece.before, offsets, sigmas, rgbs, t_starts, t_ends, n_rays,
            halvings(n_rays), 1.0 / unit_length, BLOCK,
        )  # fmt: skip
    return sigmas, rgbs, Samples(t_starts, t_ends, offsets)

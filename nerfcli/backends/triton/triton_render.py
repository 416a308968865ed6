"""Rendering rays in Triton: the twin of step.render_rays.

Rays go on together in rounds and drop out as they leave the box or grow opaque; the fewer are
left, the farther each goes in a round. What light reaches is shaded and kept; at the end the
pieces of every ray are laid side by side and composited once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfcli.backends.triton import triton_encoding, triton_mlp
from nerfcli.backends.triton.triton_mlp import Rows
from nerfcli.backends.triton.triton_radiance import ensure_fits
from nerfcli.backends.triton.triton_sampling import new_walk
from nerfcli.backends.triton.triton_step import Kept, depth_limit, keep_visible, look
from nerfcli.backends.triton.triton_volume import composite
from nerfcli.radiance import MAX_LOG_DENSITY, NetParams, NetSpec
from nerfcli.rays import Pixels, Rays, Samples
from nerfcli.sampling import Box, Steps

ROUND_SAMPLES = 8  # of a round, per ray at the start: 1 GiB for 800 x 800 rays
LEAST_SAMPLES = 4  # of a ray in a round


@dataclass(frozen=True)
class Piece:
    """The kept samples of one round."""

    ids: Tensor  # rays of the round
    before: Tensor  # samples that each had before
    samples: Samples
    sigmas: Tensor
    rgbs: Tensor


def render_rays(
    params: NetParams,
    net: NetSpec,
    box: Box,
    rays: Rays,
    t_min: Tensor,
    t_max: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    steps: Steps,
    background: Tensor,
    min_transmittance: float = 1e-4,
    *,
    dtype: torch.dtype,
) -> Pixels:
    """step.render_rays with table and networks in `dtype`. Waits for the device every round."""
    ensure_fits(net)
    n_rays = len(rays)
    with torch.no_grad():
        walk = new_walk(rays.origins, rays.directions, t_min, t_max, jitter, occupied, box, steps)
        harmonics = triton_encoding.spherical_harmonics(rays.directions, dtype)
        max_depth = depth_limit(min_transmittance)
        ids = torch.arange(n_rays, device=t_min.device)
        depths = torch.zeros(n_rays, device=t_min.device)
        totals = torch.zeros(n_rays, dtype=torch.int64, device=t_min.device)
        pieces, room = [], int(ROUND_SAMPLES * n_rays)
        while len(ids):
            limit = max(LEAST_SAMPLES, room // len(ids))
            offsets, next_steps = walk.count(limit)
            samples = walk.write(offsets, int(offsets[-1]))  # sync
            shaded = look(rays, ids, samples, box, params, net, min_transmittance, 0, dtype)
            kept = keep_visible(shaded, samples, harmonics, ids, box, min_transmittance, depths)
            pieces.append(_shade(kept, ids, totals, params, net, box))
            totals[ids] += kept.samples.ray_offsets.diff()
            goes_on = (offsets.diff() == limit) & (depths <= max_depth)
            depths, ids = depths[goes_on], ids[goes_on]  # sync
            walk = replace(walk, ids=ids, first_steps=next_steps[goes_on])
        return composite(*_joined(pieces, totals), background)


def _shade(
    kept: Kept, ids: Tensor, totals: Tensor, params: NetParams, net: NetSpec, box: Box
) -> Piece:  # fmt: skip
    rows = Rows.plain(kept.inputs)
    raw = torch.empty(rows.n, 3, device=ids.device)
    triton_mlp.forward(rows, params.color, net.color_widths, kept.n_live, raw)
    sigmas = torch.exp(kept.inputs[:, 0].float().clamp(max=MAX_LOG_DENSITY)) / box.side
    return Piece(ids, totals[ids], kept.samples, sigmas, torch.sigmoid(raw))


def _joined(pieces: list[Piece], totals: Tensor) -> tuple[Tensor, Tensor, Samples]:
    """sigmas, rgbs and samples of all pieces, packed ray after ray."""
    offsets = F.pad(totals.cumsum(0), (1, 0))
    n, device = int(offsets[-1]), totals.device  # sync
    sigmas, t_starts, t_ends = torch.empty(3, n + 1, device=device)  # the last takes the padding
    rgbs = torch.empty(n + 1, 3, device=device)
    for piece in pieces:
        samples = piece.samples
        shift = offsets[piece.ids] + piece.before - samples.ray_offsets[:-1]
        places = torch.arange(samples.capacity, device=device)
        targets = places + shift[samples.ray_indices()]
        targets = torch.where(places < samples.ray_offsets[-1], targets, n)
        for whole, part in (
            (sigmas, piece.sigmas),
            (rgbs, piece.rgbs),
            (t_starts, samples.t_starts),
            (t_ends, samples.t_ends),
        ):
            whole[targets] = part
    return sigmas[:n], rgbs[:n], Samples(t_starts[:n], t_ends[:n], offsets)

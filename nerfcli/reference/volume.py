"""Volume rendering: densities and colours along a ray become its pixel.

NeRF (2020), eq. 3:  alpha_i = 1 - exp(-sigma_i delta_i),  T_i = exp(-sum_{j<i} sigma_j delta_j),
w_i = T_i alpha_i,  C = sum_i w_i c_i + (1 - sum_i w_i) background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerfcli.reference.samples import Pixels, Samples

MAX_OPTICAL_DEPTH = 80.0  # exp(-80) = 2e-35: opaque; keeps the running sum in range


def transmittance_and_alphas(sigmas: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """T_i in front of each sample and alpha_i, both [capacity].

    The running sum crosses rays, so it is kept in float64 and the value at the ray's start is
    taken off. Padding counts as empty, whatever it holds.
    """
    live = _live(samples)
    sigmas = torch.where(live, sigmas, 0.0)
    deltas = torch.where(live, samples.t_ends - samples.t_starts, 0.0)
    depths = (sigmas * deltas).clamp(max=MAX_OPTICAL_DEPTH)
    before = depths.double().cumsum(0) - depths  # exclusive
    first = samples.ray_offsets[:-1].clamp(max=max(samples.capacity - 1, 0))
    rays = samples.ray_indices()
    start = before[first][rays] if samples.capacity else before
    return torch.exp(start - before).to(sigmas.dtype), -torch.expm1(-depths)


def weights_from_density(sigmas: Tensor, samples: Samples) -> Tensor:
    """w_i = T_i alpha_i, [capacity]; non-negative, at most 1 in sum over a ray.

    Two intervals of length 1 with sigma = ln 2: weights 0.5 and 0.25.
    """
    transmittance, alphas = transmittance_and_alphas(sigmas, samples)
    return transmittance * alphas


def visible(sigmas: Tensor, samples: Samples, min_transmittance: float) -> Tensor:
    """Samples that light reaches: T_i >= min_transmittance. [capacity] bool, false on padding."""
    transmittance = transmittance_and_alphas(sigmas, samples)[0]
    return (transmittance >= min_transmittance) & _live(samples)


def _live(samples: Samples) -> Tensor:
    """Which entries are samples and not padding, [capacity] bool."""
    n_live = samples.ray_offsets[-1]
    return torch.arange(samples.capacity, device=n_live.device) < n_live


def sum_per_ray(values: Tensor, samples: Samples) -> Tensor:
    """Sum of values [capacity, ...] over each ray, [n_rays, ...]; padding is left out."""
    live = values[: int(samples.ray_offsets[-1])] if samples.capacity else values  # sync
    out = values.new_zeros(samples.n_rays, *values.shape[1:])
    return out.index_add(0, samples.ray_indices()[: live.shape[0]], live)


def composite(sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor) -> Pixels:
    """Pixels of packed samples.

    Args:
        sigmas: [capacity] per scene unit. rgbs: [capacity, 3].
        background: [3] or [n_rays, 3].
    """
    n_live = int(samples.ray_offsets[-1])  # sync
    if n_live < samples.capacity:  # 0 * nan of the padding would spoil the gradients
        starts, ends = samples.t_starts[:n_live], samples.t_ends[:n_live]
        samples = Samples(starts, ends, samples.ray_offsets)
        sigmas, rgbs = sigmas[:n_live], rgbs[:n_live]
    weights = weights_from_density(sigmas, samples)
    opacity = sum_per_ray(weights, samples)
    rgb = sum_per_ray(weights[:, None] * rgbs, samples)
    rgb = rgb + (1.0 - opacity)[:, None] * background
    t_mids = samples.t_mids
    expected = sum_per_ray(weights * t_mids, samples)
    hit = opacity > 1e-10
    depth = torch.where(hit, expected / opacity.clamp(min=1e-10), torch.zeros_like(expected))
    return Pixels(rgb, opacity, depth, _median_depth(weights.detach(), opacity.detach(), samples))


def _median_depth(weights: Tensor, opacity: Tensor, samples: Samples) -> Tensor:
    """Middle of the first sample at which the ray's weights reach half of its opacity."""
    if samples.capacity == 0:
        return torch.zeros_like(opacity)
    rays = samples.ray_indices()
    inclusive = weights.double().cumsum(0)
    starts = samples.ray_offsets[:-1].clamp(max=samples.capacity - 1)
    before_ray = (inclusive - weights)[starts]
    reached = inclusive - before_ray[rays]
    below = (reached < 0.5 * opacity.double()[rays]).to(torch.int64)
    first = samples.ray_offsets[:-1] + sum_per_ray(below, samples)
    last = (samples.ray_offsets[1:] - 1).clamp(min=0)
    middle = samples.t_mids[torch.minimum(first, last)]
    return torch.where(opacity > 1e-10, middle, torch.zeros_like(middle))

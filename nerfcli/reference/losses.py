"""Losses of a step. Photometric ones compare pixels; the others are functions of the weights.

weights: [capacity], w_i = T_i alpha_i of packed samples without padding. Each loss is a mean over
rays; `weight` [n_rays] scales what a ray adds to it, None stands for 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import LINEAR, Spacing
from nerfcli.reference.volume import sum_per_ray

HUBER_DELTA = 0.1


def mse(rgb: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """||C^ - C||^2, averaged over rays and channels. rgb, target [n_rays, 3] -> scalar."""
    return _mean((rgb - target).square(), weight)


def huber(rgb: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Quadratic up to HUBER_DELTA, linear beyond; equals mse below it.

    e^2 where |e| <= delta, else delta (2 |e| - delta).
    """
    error = (rgb - target).abs()
    linear = HUBER_DELTA * (2 * error - HUBER_DELTA)
    return _mean(torch.where(error <= HUBER_DELTA, error.square(), linear), weight)


PHOTOMETRIC = {"mse": mse, "huber": huber}


def opacity_loss(weights: Tensor, samples: Samples, weight: Tensor | None = None) -> Tensor:
    """-o log o of each ray's opacity o: rays shall be empty or opaque."""
    opacity = sum_per_ray(weights, samples).clamp(min=1e-6)
    return _mean(-opacity * opacity.log(), weight)


def depth_loss(
    weights: Tensor, samples: Samples, depth: Tensor, weight: Tensor | None = None
) -> Tensor:
    """|sum_i w_i (t_i - D)|, over the rays whose distance D is known.

    What lies in front of D and what lies behind it both count; light that passes everything does
    not, which is the opacity's matter.

    Args:
        depth: D [n_rays] in scene units; 0 where it is not known.
    """
    known = depth > 0
    away = samples.t_mids - depth[samples.ray_indices()]
    error = sum_per_ray(weights * away, samples).abs()
    return _mean(torch.where(known, error, 0.0), weight)


def distortion_loss(
    weights: Tensor,
    samples: Samples,
    scale: float,
    weight: Tensor | None = None,
    spacing: Spacing = LINEAR,
) -> Tensor:
    """sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 d_i per ray; mip-NeRF 360 (2022), eq. 15.

    m: middles, d: lengths of the intervals, in s by the spacing, both times `scale`. Linear in the
    samples: with sorted middles the double sum is 2 sum_i w_i (m_i W_i - M_i), where W_i and M_i
    are the sums of w_j and w_j m_j in front of i.
    """
    starts, ends = (scale * spacing.s_from_t(t) for t in (samples.t_starts, samples.t_ends))
    middles, lengths = 0.5 * (starts + ends), ends - starts
    front, moment = _before(weights, samples), _before(weights * middles, samples)
    pairs = 2 * weights * (middles * front - moment)
    return _mean(sum_per_ray(pairs + weights.square() * lengths / 3, samples), weight)


def _before(values: Tensor, samples: Samples) -> Tensor:
    """Sum of the values in front of each sample within its ray, [capacity]."""
    if not samples.capacity:
        return values
    before = values.double().cumsum(0) - values
    first = samples.ray_offsets[:-1].clamp(max=samples.capacity - 1)
    return (before - before[first][samples.ray_indices()]).to(values.dtype)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of values [n_rays] or [n_rays, channels], rays scaled by `weight`."""
    if weight is not None:
        values = values * (weight if values.ndim == 1 else weight[:, None])
    return values.mean()

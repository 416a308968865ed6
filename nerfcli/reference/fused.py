"""The two fused wholes of a hash-grid field: a training step's gradients, and rendering rays.

Fast backends replace them; here they are composed of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerfcli.cameras.rays import Rays
from nerfcli.reference.losses import LOSSES, mse
from nerfcli.reference.radiance import NetParams, NetSpec, density, radiance
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import Box, Steps, march
from nerfcli.reference.volume import composite, visible


@dataclass(frozen=True)
class StepTerms:
    """What a step reports, as scalars on the device: nothing waits for them."""

    loss: Tensor
    mse: Tensor
    n_kept: Tensor  # samples that took part after the early end of rays, int64


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
) -> StepTerms:
    """Render the samples, compare with the target, add d loss / d params to `grads`.

    Samples behind T < min_transmittance are dropped first, so they cost no gradient.

    Args:
        grads: accumulated into; the optimiser step clears them.
        rays: n_rays rays. samples: their packed samples.
        target, background: [n_rays, 3]; the target is already composited over the background.
        loss: a name of losses.LOSSES.
    """
    indices = samples.ray_indices()
    directions = rays.directions[indices]
    positions = box.to_unit(rays.origins[indices] + samples.t_mids[:, None] * directions)
    with torch.no_grad():
        sigmas = density(positions, params, net) / box.side
        keep = visible(sigmas, samples, min_transmittance)
    kept = samples.select(keep)
    leaves = NetParams(*(p.detach().requires_grad_() for p in params.tensors()))
    with torch.enable_grad():
        sigmas, rgbs = radiance(positions[keep], directions[keep], leaves, net)
        pixels = composite(sigmas / box.side, rgbs, kept, background)
        value = LOSSES[loss](pixels.rgb, target)
    if kept.capacity:
        for total, grad in zip(
            grads.tensors(), torch.autograd.grad(value, leaves.tensors()), strict=True
        ):
            total += grad
    n_kept = torch.tensor(kept.capacity, device=value.device)
    return StepTerms(value.detach(), mse(pixels.rgb.detach(), target), n_kept)


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
) -> Pixels:
    """Pixels of rays through a hash-grid field, without gradients.

    Args:
        t_min, t_max, jitter: [n_rays], as for sampling.march. background: [3] or [n_rays, 3].
    """
    with torch.no_grad():
        samples = march(rays.origins, rays.directions, t_min, t_max, jitter, occupied, box, steps)
        indices = samples.ray_indices()
        directions = rays.directions[indices]
        positions = box.to_unit(rays.origins[indices] + samples.t_mids[:, None] * directions)
        keep = visible(density(positions, params, net) / box.side, samples, min_transmittance)
        sigmas, rgbs = radiance(positions[keep], directions[keep], params, net)
        return composite(sigmas / box.side, rgbs, samples.select(keep), background)

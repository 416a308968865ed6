"""The roundings of the GPU kernels in float16, done by torch in float32: for what they cost.

Table, weights, features and hidden values are rounded where the kernels store or multiply them,
their gradients where these travel between kernels; all sums stay float32, as in the kernels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfcli.backends.ops import Ops, reference
from nerfcli.cameras.rays import Rays
from nerfcli.reference.encoding import hash_grid, spherical_harmonics
from nerfcli.reference.fused import StepTerms
from nerfcli.reference.losses import LOSSES, mse
from nerfcli.reference.mlp import mlp_layers
from nerfcli.reference.radiance import NetParams, NetSpec, _Exp
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Box
from nerfcli.reference.volume import composite, visible

SCALE = 128.0  # of gradients on their way, with the loss as a sum over rays and channels


class _Round(torch.autograd.Function):
    """A value that is stored in half precision, and its gradient too."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.half().float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.clamp(-65504.0, 65504.0).half().float()


def stored(x: Tensor) -> Tensor:
    return _Round.apply(x)  # pyright: ignore[reportReturnType]


def copied(x: Tensor) -> Tensor:
    """A parameter read in half precision whose gradient is a float32 sum."""
    return x + (x.half().float() - x).detach()


def network(x: Tensor, weights: Tensor, widths: tuple[int, ...]) -> Tensor:
    *hidden, last = mlp_layers(copied(weights), widths)
    for layer in hidden:
        x = stored(torch.relu(F.linear(x, layer)))
    return stored(F.linear(x, last))


def geometry(positions: Tensor, params: NetParams, net: NetSpec) -> Tensor:
    features = stored(hash_grid(positions, copied(params.table), net.grid))
    return network(features, params.density, net.density_widths)


def density(positions: Tensor, params: NetParams, net: NetSpec) -> Tensor:
    return _Exp.apply(geometry(positions, params, net)[:, 0])  # pyright: ignore


def photometric_gradients(
    params: NetParams, grads: NetParams, net: NetSpec, box: Box, rays: Rays, samples: Samples,
    target: Tensor, background: Tensor, *, loss: str = "huber", min_transmittance: float = 1e-4,
) -> StepTerms:  # fmt: skip
    """step.photometric_gradients with the kernels' roundings."""
    indices = samples.ray_indices()
    directions = rays.directions[indices]
    positions = box.to_unit(rays.origins[indices] + samples.t_mids[:, None] * directions)
    with torch.no_grad():
        keep = visible(density(positions, params, net) / box.side, samples, min_transmittance)
    kept = samples.select(keep)
    leaves = NetParams(*(p.detach().requires_grad_() for p in params.tensors()))
    with torch.enable_grad():
        shape = geometry(positions[keep], leaves, net)
        shine = spherical_harmonics(directions[keep]).half().float()
        colors = network(torch.cat([shape, shine], dim=1), leaves.color, net.color_widths)
        sigmas = _Exp.apply(stored(shape[:, 0])) / box.side  # pyright: ignore
        pixels = composite(sigmas, torch.sigmoid(colors), kept, background)
        value = LOSSES[loss](pixels.rgb, target)
    scale = 3 * len(rays) * SCALE
    parts = torch.autograd.grad(value * scale, leaves.tensors())
    for total, grad in zip(grads.tensors(), parts, strict=True):
        total += grad / scale
    return StepTerms(value.detach(), mse(pixels.rgb.detach(), target), torch.tensor(kept.capacity))


def half_ops() -> Ops:
    return replace(
        reference(), name="half", density=density, photometric_gradients=photometric_gradients
    )

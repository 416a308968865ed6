"""The roundings of the GPU kernels in float16, done by torch in float32: for what they cost.

Table, weights, features and hidden values are rounded where the kernels store or multiply them,
their gradients where these travel between kernels; all sums stay float32, as in the kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.reference import fused
from nerfcli.reference.encoding import hash_grid
from nerfcli.reference.fused import StepOut
from nerfcli.reference.mlp import mlp_layers
from nerfcli.reference.radiance import Network, _Exp

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


def mlp(x: Tensor, weights: Tensor, widths: tuple[int, ...]) -> Tensor:
    *hidden, last = mlp_layers(copied(weights), widths)
    for layer in hidden:
        x = stored(torch.relu(F.linear(x, layer)))
    return stored(F.linear(x, last))


def geometry(field: Network, positions: Tensor, scales: Tensor | None = None) -> Tensor:
    """Outputs of the density network; positions in scene space."""
    unit, params = field.space.to_unit(positions), field.params
    features = stored(hash_grid(unit, copied(params.table), field.spec.grid, scales))
    return mlp(features, params.density, field.spec.density_widths)


class HalfBackend(Backend):
    """The reference with the kernels' roundings."""

    name = "half"

    def density(self, network: Network, positions: Tensor, scales: Tensor | None = None) -> Tensor:
        raw = geometry(network, positions, scales)[:, 0]
        return _Exp.apply(raw) / network.space.unit_length  # pyright: ignore

    def radiance(
        self,
        network: Network,
        positions: Tensor,
        ray_inputs: Tensor,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        shape, widths = geometry(network, positions, scales), network.spec.color_widths
        inputs = torch.cat([shape, ray_inputs.half().float()], dim=1)
        colors = torch.sigmoid(mlp(inputs, network.params.color, widths))
        raw = stored(shape[:, 0])
        return _Exp.apply(raw) / network.space.unit_length, colors  # pyright: ignore

    def step_gradients(self, network, grads, batch, samples, objective, **options) -> StepOut:
        n_live = options.get("n_live")
        n_rays = len(batch.rays) if n_live is None else int(n_live)
        return fused.step_gradients(
            self, network, grads, batch, samples, objective, **options, scale=3 * n_rays * SCALE
        )

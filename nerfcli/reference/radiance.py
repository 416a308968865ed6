"""The hash-grid field as functions: hash grid -> density MLP -> colour MLP.

positions: [n, 3] in scene space. sigmas: density per scene unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nerfcli.reference.contraction import Space
from nerfcli.reference.encoding import GridSpec, hash_grid
from nerfcli.reference.mlp import mlp
from nerfcli.reference.params import ParamSet, Role

MAX_LOG_DENSITY = 15.0  # exp(15) is opaque within any step; float32 overflows at 88
N_HARMONICS = 16
PARAM_ROLES = {  # in the order of NetParams; the networks need no decay
    "grid.table": Role(decays=True),
    "density.weights": Role(),
    "color.weights": Role(),
}


@dataclass(frozen=True)
class NetSpec:
    """The shape of a hash-grid field; every width is a multiple of 16 for the tensor cores."""

    grid: GridSpec = GridSpec()
    width: int = 64
    n_geometry: int = 16  # outputs of the density MLP; the first is the log density
    n_color_hidden: int = 2
    n_embedding: int = 0  # inputs of a ray to the colour network beside the harmonics

    @property
    def n_ray_inputs(self) -> int:
        return N_HARMONICS + self.n_embedding

    @property
    def density_widths(self) -> tuple[int, ...]:
        return (self.grid.n_outputs, self.width, self.n_geometry)

    @property
    def color_widths(self) -> tuple[int, ...]:
        return (self.n_geometry + self.n_ray_inputs, *(self.width,) * self.n_color_hidden, 3)


@dataclass(frozen=True)
class NetParams:
    """Parameters (or their gradients) of a hash-grid field: three flat float32 tensors."""

    table: Tensor  # [grid.n_params]
    density: Tensor  # [mlp_n_params(density_widths)]
    color: Tensor  # [mlp_n_params(color_widths)]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.table, self.density, self.color

    def named(self) -> ParamSet:
        """The same tensors by the names that they have in a checkpoint."""
        return ParamSet(dict(zip(PARAM_ROLES, self.tensors(), strict=True)), PARAM_ROLES)

    @staticmethod
    def of(named: Mapping[str, Tensor]) -> NetParams:
        """The three tensors out of a set of names, or out of a checkpoint."""
        return NetParams(*(named[name] for name in PARAM_ROLES))


@dataclass(frozen=True)
class Network:
    """A hash-grid field as the ops take it: shape, parameters, and the space it lives in."""

    spec: NetSpec
    params: NetParams
    space: Space


class _Exp(torch.autograd.Function):
    """exp, clamped above; the gradient passes the clamp so that no density gets stuck."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.exp(x.clamp(max=MAX_LOG_DENSITY))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y,) = ctx.saved_tensors
        return grad * y


def density(network: Network, positions: Tensor, scales: Tensor | None = None) -> Tensor:
    """positions [n, 3] -> sigmas [n], differentiable in both. scales: as for `radiance`."""
    geometry = _geometry(network, positions, scales)
    return _Exp.apply(geometry[:, 0]) / network.space.unit_length  # pyright: ignore


def radiance(
    network: Network, positions: Tensor, ray_inputs: Tensor, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Evaluate density and view-dependent colour.

    The colour MLP reads all density outputs (the raw log density included) and what belongs to
    the ray, in this order: the 16 spherical harmonics of its direction, and an embedding.

    Args:
        positions: [n, 3]. ray_inputs: [n, 16 + n_embedding].
        scales: [n] of what a sample averages, in the unit cube; see encoding.level_weights.

    Returns:
        sigmas [n], rgbs [n, 3] in [0, 1], differentiable in everything.
    """
    geometry = _geometry(network, positions, scales)
    inputs = torch.cat([geometry, ray_inputs], dim=1)
    rgbs = torch.sigmoid(mlp(inputs, network.params.color, network.spec.color_widths))
    return _Exp.apply(geometry[:, 0]) / network.space.unit_length, rgbs  # pyright: ignore


def _geometry(network: Network, positions: Tensor, scales: Tensor | None) -> Tensor:
    """Outputs of the density MLP, [n, n_geometry]."""
    spec, params = network.spec, network.params
    features = hash_grid(network.space.to_unit(positions), params.table, spec.grid, scales)
    return mlp(features, params.density, spec.density_widths)

"""The hash-grid field as functions: hash grid -> density MLP -> colour MLP.

positions: [n, 3] in the unit cube that the grid spans. density: per side length of that cube.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nerfcli.reference.encoding import GridSpec, hash_grid, spherical_harmonics
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

    @property
    def density_widths(self) -> tuple[int, ...]:
        return (self.grid.n_outputs, self.width, self.n_geometry)

    @property
    def color_widths(self) -> tuple[int, ...]:
        return (self.n_geometry + N_HARMONICS, *(self.width,) * self.n_color_hidden, 3)


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


def density(positions: Tensor, params: NetParams, net: NetSpec) -> Tensor:
    """positions [n, 3] in [0, 1] -> sigmas [n] per side of the unit cube."""
    features = hash_grid(positions, params.table, net.grid)
    return _Exp.apply(mlp(features, params.density, net.density_widths)[:, 0])  # pyright: ignore


def radiance(
    positions: Tensor, directions: Tensor, params: NetParams, net: NetSpec
) -> tuple[Tensor, Tensor]:
    """The field: density and view-dependent colour.

    The colour MLP reads all density outputs (the raw log density included) and the 16 spherical
    harmonics of the direction, in this order.

    Args:
        positions: [n, 3] in [0, 1]. directions: [n, 3] unit vectors.

    Returns:
        sigmas [n] per side of the unit cube, rgbs [n, 3] in [0, 1].
    """
    features = hash_grid(positions, params.table, net.grid)
    geometry = mlp(features, params.density, net.density_widths)
    inputs = torch.cat([geometry, spherical_harmonics(directions)], dim=1)
    rgbs = torch.sigmoid(mlp(inputs, params.color, net.color_widths))
    return _Exp.apply(geometry[:, 0]), rgbs  # pyright: ignore

"""The hash-grid field in Triton: the twin of radiance.py.

Here as functions that autograd knows; triton_step strings the same kernels together by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerfcli.backends.triton import triton_encoding, triton_harmonics, triton_mlp
from nerfcli.backends.triton.launch import count, unit_scale
from nerfcli.backends.triton.triton_adam import table_as
from nerfcli.backends.triton.triton_mlp import Rows
from nerfcli.core.errors import NerfError
from nerfcli.reference import radiance as reference
from nerfcli.reference.radiance import MAX_LOG_DENSITY, NetParams, NetSpec


def ensure_fits(net: NetSpec) -> None:
    """Raise NerfError for a field that the kernels have no shape for."""
    if net.grid.n_features not in (1, 2, 4, 8):
        raise NerfError(
            f"backend triton: model.n_features must be 1, 2, 4 or 8, got {net.grid.n_features}; "
            "choose one of these, or --backend torch."
        )
    for widths in (net.density_widths, net.color_widths):
        if not triton_mlp.fits(widths):
            raise NerfError(
                f"backend triton: no kernel for a network of widths {widths}; it needs one or "
                f"two hidden layers and at most {triton_mlp.MAX_WIDTH} neurons (model.width, and "
                "model.n_levels times model.n_features). Choose smaller ones, or --backend torch."
            )


class _Geometry(torch.autograd.Function):
    """Hash grid and density MLP: positions [n, 3] -> [n, n_geometry] float32."""

    @staticmethod
    def forward(ctx, table: Tensor, weights: Tensor, copy: Tensor, positions: Tensor, net: NetSpec):
        n, device = positions.shape[0], positions.device
        n_live = count(n, device)
        features = triton_encoding.new_features(n, net.grid, copy.dtype, device)
        triton_encoding.encode(positions, copy, net.grid, n_live, features)
        ctx.save_for_backward(positions, features, weights)
        ctx.net, ctx.n_params = net, table.shape[0]
        rows = Rows.of_levels(features)
        out = torch.empty(n, net.n_geometry, device=device)
        return triton_mlp.forward(rows, weights, net.density_widths, n_live, out)

    @staticmethod
    def backward(ctx, d_out: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        positions, features, weights = ctx.saved_tensors
        net, n_live = ctx.net, count(positions.shape[0], positions.device)
        scale = unit_scale(d_out)
        d_rows = (d_out / scale).to(features.dtype)
        grads, d_weights = positions.new_zeros(ctx.n_params), torch.zeros_like(weights)
        d_features = triton_mlp.backward(
            Rows.of_levels(features), weights, net.density_widths, d_rows, n_live, d_weights, scale
        )
        triton_encoding.scatter(positions, d_features, grads, net.grid, n_live, scale)
        return grads, d_weights, None, None, None


class _Exp(torch.autograd.Function):
    """radiance._Exp: clamped above, the gradient passes the clamp."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = torch.exp(x.clamp(max=MAX_LOG_DENSITY))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y,) = ctx.saved_tensors
        return grad * y


def _geometry(positions: Tensor, params: NetParams, net: NetSpec, dtype: torch.dtype) -> Tensor:
    ensure_fits(net)
    copy = table_as(params.table, dtype)
    return _Geometry.apply(params.table, params.density, copy, positions.contiguous(), net)  # pyright: ignore


def density(positions: Tensor, params: NetParams, net: NetSpec, *, dtype: torch.dtype) -> Tensor:
    """radiance.density: positions [n, 3] in [0, 1] -> sigmas [n] per side of the unit cube.

    Gradients in the positions are left to torch, here and in `radiance`.
    """
    if positions.requires_grad:
        return reference.density(positions, params, net)
    return _Exp.apply(_geometry(positions, params, net, dtype)[:, 0])  # pyright: ignore


def radiance(
    positions: Tensor, directions: Tensor, params: NetParams, net: NetSpec, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """radiance.radiance: sigmas [n] per side of the unit cube, rgbs [n, 3] in [0, 1]."""
    if positions.requires_grad:
        return reference.radiance(positions, directions, params, net)
    geometry = _geometry(positions, params, net, dtype)
    inputs = torch.cat([geometry, triton_harmonics.spherical_harmonics(directions)], dim=1)
    rgbs = torch.sigmoid(triton_mlp.mlp(inputs, params.color, net.color_widths, dtype=dtype))
    return _Exp.apply(geometry[:, 0]), rgbs  # pyright: ignore

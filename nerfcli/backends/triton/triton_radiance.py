"""The hash-grid field in Triton: the twin of radiance.py.

Here as functions that autograd knows; triton_step strings the same kernels together by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerfcli.backends.triton import triton_encoding, triton_mlp
from nerfcli.backends.triton.launch import count, unit_scale
from nerfcli.backends.triton.triton_mlp import Rows
from nerfcli.backends.triton.triton_spaces import map_to_unit
from nerfcli.core.errors import NerfError
from nerfcli.reference.radiance import NetSpec, Network, _Exp


def ensure_fits(net: NetSpec) -> None:
    """Raise NerfError for a field that the kernels have no shape for."""
    if not triton_encoding.fits(net.grid):
        raise NerfError(
            f"backend triton: hashgrid.n_features must be 1, 2, 4 or 8, got {net.grid.n_features}; "
            "choose one of these, or --backend torch."
        )
    for widths in (net.density_widths, net.color_widths):
        if not triton_mlp.fits(widths):
            raise NerfError(
                f"backend triton: no kernel for a network of widths {widths}; it needs one or "
                f"two hidden layers and at most {triton_mlp.MAX_WIDTH} neurons (hashgrid.width, "
                "and hashgrid.n_levels times hashgrid.n_features). Choose smaller ones, or "
                "--backend torch."
            )


class _Geometry(torch.autograd.Function):
    """Hash grid and density MLP: positions [n, 3] in the unit cube -> [n, n_geometry] float32."""

    @staticmethod
    def forward(ctx, table: Tensor, weights: Tensor, copy: Tensor, positions: Tensor, net: NetSpec):
        n, device = positions.shape[0], positions.device
        n_live = count(n, device)
        features = triton_encoding.new_features(n, net.grid, copy.dtype, device)
        triton_encoding.encode(positions, copy, net.grid, n_live, features)
        ctx.save_for_backward(positions, features, weights, copy)
        ctx.net, ctx.n_params = net, table.shape[0]
        rows = Rows.of_levels(features)
        out = torch.empty(n, net.n_geometry, device=device)
        return triton_mlp.forward(rows, weights, net.density_widths, n_live, out)

    @staticmethod
    def backward(ctx, d_out: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        positions, features, weights, copy = ctx.saved_tensors
        grid, n_live = ctx.net.grid, count(positions.shape[0], positions.device)
        scale = unit_scale(d_out)
        d_rows = (d_out / scale).to(features.dtype).contiguous()
        d_weights = torch.zeros_like(weights)
        rows, widths = Rows.of_levels(features), ctx.net.density_widths
        d_features = triton_mlp.backward(rows, weights, widths, d_rows, n_live, d_weights, scale)
        grads, d_positions = None, None
        if ctx.needs_input_grad[0]:
            grads = positions.new_zeros(ctx.n_params)
            triton_encoding.scatter(positions, d_features, grads, grid, n_live, scale)
        if ctx.needs_input_grad[3]:
            d_positions = scale * triton_encoding.position_gradients(
                positions, d_features, copy, grid, n_live
            )
        return grads, d_weights, None, d_positions, None


def _geometry(network: Network, copy: Tensor, positions: Tensor) -> Tensor:
    ensure_fits(network.spec)
    unit, params = map_to_unit(positions, network.space), network.params
    return _Geometry.apply(params.table, params.density, copy, unit, network.spec)  # pyright: ignore


def density(network: Network, copy: Tensor, positions: Tensor) -> Tensor:
    """radiance.density; `copy` is read in place of the table."""
    geometry = _geometry(network, copy, positions)
    return _Exp.apply(geometry[:, 0]) / network.space.unit_length  # pyright: ignore


def radiance(
    network: Network, copy: Tensor, positions: Tensor, ray_inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """radiance.radiance; `copy` is read in place of the table."""
    geometry = _geometry(network, copy, positions)
    inputs = torch.cat([geometry, ray_inputs], dim=1)
    widths = network.spec.color_widths
    rgbs = torch.sigmoid(triton_mlp.mlp(inputs, network.params.color, widths, copy.dtype))
    return _Exp.apply(geometry[:, 0]) / network.space.unit_length, rgbs  # pyright: ignore

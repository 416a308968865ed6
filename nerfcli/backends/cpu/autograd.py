"""The kernels that have a backward pass, as torch's autograd wants them."""

# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

import torch
from torch import Tensor

from nerfcli.backends.cpu import library
from nerfcli.backends.cpu.views import checked, net_view, params_view, pixels_view, samples_view
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Pixels, Samples


class HashGridFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions: Tensor, table: Tensor, grid: library.Grid) -> Tensor:
        n = positions.shape[0]
        out = torch.empty(n, grid.n_levels * grid.n_features)
        library.kernels().nerf_cpu_hash_grid(
            grid, table.data_ptr(), positions.data_ptr(), n, out.data_ptr()
        )
        ctx.save_for_backward(positions)
        ctx.grid, ctx.n_params = grid, table.shape[0]
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (positions,) = ctx.saved_tensors
        grads = torch.zeros(ctx.n_params)
        grad = grad.contiguous()
        library.kernels().nerf_cpu_hash_grid_backward(
            ctx.grid,
            positions.data_ptr(),
            grad.data_ptr(),
            positions.shape[0],
            grads.data_ptr(),
        )
        return None, grads, None


class RadianceFunction(torch.autograd.Function):
    """The networks' activations are not kept: the backward pass computes them again."""

    @staticmethod
    def forward(
        ctx,
        positions: Tensor,
        directions: Tensor,
        table: Tensor,
        density: Tensor,
        color: Tensor,
        net: NetSpec,
    ) -> tuple[Tensor, Tensor]:
        n = positions.shape[0]
        sigmas, rgbs = torch.empty(n), torch.empty(n, 3)
        library.kernels().nerf_cpu_radiance(
            net_view(net),
            params_view(NetParams(table, density, color), net),
            positions.data_ptr(),
            directions.data_ptr(),
            n,
            sigmas.data_ptr(),
            rgbs.data_ptr(),
        )
        ctx.save_for_backward(positions, directions, table, density, color)
        ctx.net = net
        return sigmas, rgbs

    @staticmethod
    def backward(ctx, grad_sigmas: Tensor, grad_rgbs: Tensor) -> tuple[Tensor | None, ...]:
        positions, directions, *tensors = ctx.saved_tensors
        grads = NetParams(*(torch.zeros_like(t) for t in tensors))
        n = positions.shape[0]
        grad_sigmas, grad_rgbs = grad_sigmas.contiguous(), grad_rgbs.contiguous()
        library.kernels().nerf_cpu_radiance_backward(
            net_view(ctx.net),
            params_view(NetParams(*tensors), ctx.net),
            positions.data_ptr(),
            directions.data_ptr(),
            n,
            grad_sigmas.data_ptr(),
            grad_rgbs.data_ptr(),
            params_view(grads, ctx.net, written=True),
        )
        return None, None, *grads.tensors(), None


class CompositeFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = samples.n_rays
        shape = (3,) if background.ndim == 1 else (n, 3)
        background = checked("background", background, shape)
        pixels = Pixels(torch.empty(n, 3), torch.empty(n), torch.empty(n), torch.empty(n))
        view, keep = samples_view(samples)
        library.kernels().nerf_cpu_composite(
            sigmas.data_ptr(),
            rgbs.data_ptr(),
            view,
            n,
            background.data_ptr(),
            0 if background.ndim == 1 else 3,
            pixels_view(pixels),
        )
        del keep
        out = (pixels.rgb, pixels.opacity, pixels.depth, pixels.median_depth)
        ctx.save_for_backward(sigmas, rgbs, background, *out)
        ctx.samples = samples
        ctx.mark_non_differentiable(pixels.median_depth)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sigmas, rgbs, background, *out = ctx.saved_tensors
        contiguous = [g.contiguous() for g in grads]
        grad_sigmas, grad_rgbs = torch.zeros_like(sigmas), torch.zeros_like(rgbs)
        view, keep = samples_view(ctx.samples)
        library.kernels().nerf_cpu_composite_backward(
            sigmas.data_ptr(),
            rgbs.data_ptr(),
            view,
            ctx.samples.n_rays,
            background.data_ptr(),
            0 if background.ndim == 1 else 3,
            pixels_view(Pixels(*out)),
            pixels_view(Pixels(*contiguous)),
            grad_sigmas.data_ptr(),
            grad_rgbs.data_ptr(),
        )
        del keep
        return grad_sigmas, grad_rgbs, None, None

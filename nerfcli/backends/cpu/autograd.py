"""The kernels that have a backward pass, as torch's autograd wants them."""

# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.cpu import library
from nerfcli.backends.cpu.views import (
    checked,
    grid_view,
    net_view,
    pixels_view,
    pointer,
    samples_view,
    space_view,
)
from nerfcli.core.errors import NerfError
from nerfcli.reference.contraction import Space
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.radiance import N_HARMONICS, NetSpec
from nerfcli.reference.samples import Pixels, Samples

_Backward = Callable[..., Any]


def _first_order(backward: _Backward) -> _Backward:
    """Refuse create_graph: the gradient would be taken for a constant, in silence."""

    @wraps(backward)
    def checked_backward(ctx, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NerfError("the compiled kernels have no second derivative; use --backend torch.")
        return backward(ctx, *grads)

    return checked_backward


class HarmonicsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, directions: Tensor) -> Tensor:
        n = directions.shape[0]
        out = torch.empty(n, N_HARMONICS)
        library.kernels().nerf_cpu_spherical_harmonics(directions.data_ptr(), n, out.data_ptr())
        ctx.save_for_backward(directions)
        return out

    @staticmethod
    @_first_order
    def backward(ctx, grad: Tensor) -> Tensor:
        (directions,) = ctx.saved_tensors
        out, grad = torch.empty_like(directions), grad.contiguous()
        library.kernels().nerf_cpu_spherical_harmonics_backward(
            directions.data_ptr(), grad.data_ptr(), directions.shape[0], out.data_ptr()
        )
        return out


class HashGridFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions: Tensor, table: Tensor, spec: GridSpec) -> Tensor:
        n = positions.shape[0]
        out = torch.empty(n, spec.n_outputs)
        library.kernels().nerf_cpu_hash_grid(
            grid_view(spec), table.data_ptr(), positions.data_ptr(), n, out.data_ptr()
        )
        ctx.save_for_backward(positions, table)
        ctx.spec = spec
        return out

    @staticmethod
    @_first_order
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        positions, table = ctx.saved_tensors
        grad = grad.contiguous()
        d_positions = torch.empty_like(positions) if ctx.needs_input_grad[0] else None
        d_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        library.kernels().nerf_cpu_hash_grid_backward(
            grid_view(ctx.spec),
            table.data_ptr(),
            positions.data_ptr(),
            grad.data_ptr(),
            positions.shape[0],
            pointer(d_table),
            pointer(d_positions),
        )
        return d_positions, d_table, None


class DensityFunction(torch.autograd.Function):
    """The network's activations are not kept: the backward pass computes them again."""

    @staticmethod
    def forward(
        ctx, positions: Tensor, table: Tensor, density: Tensor, net: NetSpec, space: Space
    ) -> Tensor:
        n = positions.shape[0]
        sigmas = torch.empty(n)
        library.kernels().nerf_cpu_density(
            net_view(net),
            library.Params(table.data_ptr(), density.data_ptr(), None),
            space_view(space),
            positions.data_ptr(),
            n,
            sigmas.data_ptr(),
        )
        ctx.save_for_backward(positions, table, density)
        ctx.net, ctx.space = net, space
        return sigmas

    @staticmethod
    @_first_order
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        positions, table, density = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d_unit = torch.empty_like(positions) if needs[0] else None
        grads = [
            torch.zeros_like(t) if n else None
            for t, n in zip((table, density), needs[1:3], strict=True)
        ]
        grad = grad.contiguous()
        library.kernels().nerf_cpu_density_backward(
            net_view(ctx.net),
            library.Params(table.data_ptr(), density.data_ptr(), None),
            space_view(ctx.space),
            positions.data_ptr(),
            positions.shape[0],
            grad.data_ptr(),
            library.Params(*map(pointer, grads), None),
            pointer(d_unit),
        )
        d_positions = None if d_unit is None else ctx.space.pull_back(positions, d_unit)
        return d_positions, *grads, None, None


class RadianceFunction(torch.autograd.Function):
    """The networks' activations are not kept: the backward pass computes them again."""

    @staticmethod
    def forward(
        ctx,
        positions: Tensor,
        ray_inputs: Tensor,
        table: Tensor,
        density: Tensor,
        color: Tensor,
        net: NetSpec,
        space: Space,
    ) -> tuple[Tensor, Tensor]:
        n = positions.shape[0]
        sigmas, rgbs = torch.empty(n), torch.empty(n, 3)
        library.kernels().nerf_cpu_radiance(
            net_view(net),
            library.Params(table.data_ptr(), density.data_ptr(), color.data_ptr()),
            space_view(space),
            positions.data_ptr(),
            ray_inputs.data_ptr(),
            n,
            sigmas.data_ptr(),
            rgbs.data_ptr(),
        )
        ctx.save_for_backward(positions, ray_inputs, table, density, color)
        ctx.net, ctx.space = net, space
        return sigmas, rgbs

    @staticmethod
    @_first_order
    def backward(ctx, grad_sigmas: Tensor, grad_rgbs: Tensor) -> tuple[Tensor | None, ...]:
        positions, ray_inputs, *params = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d_unit = torch.empty_like(positions) if needs[0] else None
        d_inputs = torch.empty_like(ray_inputs) if needs[1] else None
        grads = [
            torch.zeros_like(t) if n else None for t, n in zip(params, needs[2:5], strict=True)
        ]
        grad_sigmas, grad_rgbs = grad_sigmas.contiguous(), grad_rgbs.contiguous()
        library.kernels().nerf_cpu_radiance_backward(
            net_view(ctx.net),
            library.Params(*map(pointer, params)),
            space_view(ctx.space),
            positions.data_ptr(),
            ray_inputs.data_ptr(),
            positions.shape[0],
            grad_sigmas.data_ptr(),
            grad_rgbs.data_ptr(),
            library.Params(*map(pointer, grads)),
            pointer(d_unit),
            pointer(d_inputs),
        )
        d_positions = None if d_unit is None else ctx.space.pull_back(positions, d_unit)
        return d_positions, d_inputs, *grads, None, None


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
    @_first_order
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

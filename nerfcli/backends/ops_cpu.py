"""The compiled CPU backend: C++ kernels with run-time dispatch, called through ctypes.

What it leaves to torch: the `mlp` op by itself, and gradients in positions or directions.
"""

from __future__ import annotations

import ctypes
import dataclasses
from functools import cache

import torch
from torch import Tensor

from nerfcli.backends.cpu import library
from nerfcli.backends.cpu.autograd import CompositeFunction, HashGridFunction, RadianceFunction
from nerfcli.backends.cpu.views import (
    checked,
    grid_view,
    net_view,
    occupancy_view,
    params_view,
    pixels_view,
    rays_view,
    samples_view,
    step_lengths,
    unit_box,
)
from nerfcli.backends.ops import Ops, reference
from nerfcli.cameras.rays import Rays
from nerfcli.reference import encoding, radiance, volume
from nerfcli.reference import fused as step
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import StepTerms
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import Box, Steps

_LOSSES = {"mse": 0, "huber": 1}


def unavailable(device: str) -> str | None:
    """The kernels run on the CPU, where they have been built."""
    if device != "cpu":
        return f"it does not run on {device}"
    return library.missing()


def load() -> Ops:
    """The kernels in the place of what they replace.

    Raises:
        NerfError: NERF_THREADS is not a positive number.
    """
    library.n_threads()
    return dataclasses.replace(
        reference(),
        name="cpu",
        spherical_harmonics=spherical_harmonics,
        hash_grid=hash_grid,
        density=density,
        radiance=radiance_op,
        march=march,
        composite=composite,
        photometric_gradients=photometric_gradients,
        adam_step=adam_step,
        render_rays=render_rays,
        rays_per_chunk=2**16,
    )


@cache
def fits_grid(grid: GridSpec) -> bool:
    """Whether the kernels take this grid: they pack a cell's place into 3 x 20 bits."""
    small = max(level.resolution for level in grid.levels) < 2**20
    return small and grid.n_levels <= library.MAX_LEVELS and grid.n_features in (1, 2, 4, 8)


@cache
def fits(net: NetSpec) -> bool:
    """Whether the kernels take this shape; every op leaves other shapes to the reference."""
    return (
        fits_grid(net.grid)
        and net.grid.n_outputs % 16 == 0
        and net.grid.n_outputs <= 128
        and net.width in range(16, 129, 16)
        and net.n_geometry in (16, 32, 48, 64)
        and 1 <= net.n_color_hidden <= 3
    )


def spherical_harmonics(directions: Tensor) -> Tensor:
    if directions.requires_grad:
        return encoding.spherical_harmonics(directions)
    directions = checked("directions", directions, (None, 3))
    out = torch.empty(directions.shape[0], 16)
    library.kernels().nerf_cpu_spherical_harmonics(
        directions.data_ptr(), directions.shape[0], out.data_ptr()
    )
    return out


def hash_grid(positions: Tensor, table: Tensor, spec: GridSpec) -> Tensor:
    if not fits_grid(spec) or positions.requires_grad:
        return encoding.hash_grid(positions, table, spec)
    positions = checked("positions", positions, (None, 3))
    table = checked("table", table, (spec.n_params,))
    return HashGridFunction.apply(positions, table, grid_view(spec))  # pyright: ignore


def density(positions: Tensor, params: NetParams, net: NetSpec) -> Tensor:
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in params.tensors())
    if learns or positions.requires_grad or not fits(net):
        return radiance.density(positions, params, net)
    positions = checked("positions", positions, (None, 3))
    n = positions.shape[0]
    sigmas = torch.empty(n)
    library.kernels().nerf_cpu_density(
        net_view(net), params_view(params, net), positions.data_ptr(), n, sigmas.data_ptr()
    )
    return sigmas


def radiance_op(
    positions: Tensor, directions: Tensor, params: NetParams, net: NetSpec
) -> tuple[Tensor, Tensor]:
    if not fits(net) or positions.requires_grad or directions.requires_grad:
        return radiance.radiance(positions, directions, params, net)
    positions = checked("positions", positions, (None, 3))
    directions = checked("directions", directions, (positions.shape[0], 3))
    params_view(params, net)  # checks the shapes
    return RadianceFunction.apply(positions, directions, *params.tensors(), net)  # pyright: ignore


def march(
    origins: Tensor,
    directions: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    box: Box,
    steps: Steps,
) -> Samples:
    rays, keep = rays_view(Rays(origins, directions))
    n = rays.n_rays
    t_min, t_max = checked("t_min", t_min, (n,)), checked("t_max", t_max, (n,))
    jitter, occupied = checked("jitter", jitter, (n,)), occupied.contiguous()
    offsets = torch.empty(n + 1, dtype=torch.int64)
    kernels = library.kernels()
    handle = kernels.nerf_cpu_march(
        rays,
        t_min.data_ptr(),
        t_max.data_ptr(),
        jitter.data_ptr(),
        occupancy_view(occupied, box),
        step_lengths(steps),
        offsets.data_ptr(),
    )
    total = int(offsets[-1])
    t_starts, t_ends = torch.empty(total), torch.empty(total)
    kernels.nerf_cpu_march_take(handle, offsets.data_ptr(), t_starts.data_ptr(), t_ends.data_ptr())
    del keep
    return Samples(t_starts, t_ends, offsets)


def composite(sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor) -> Pixels:
    if background.requires_grad or samples.t_starts.requires_grad or samples.t_ends.requires_grad:
        return volume.composite(sigmas, rgbs, samples, background)
    sigmas = checked("sigmas", sigmas, (samples.capacity,))
    rgbs = checked("rgbs", rgbs, (samples.capacity, 3))
    return Pixels(*CompositeFunction.apply(sigmas, rgbs, samples, background))  # pyright: ignore


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
    if not fits(net):
        return step.photometric_gradients(
            params,
            grads,
            net,
            box,
            rays,
            samples,
            target,
            background,
            loss=loss,
            min_transmittance=min_transmittance,
        )
    n_rays = len(rays)
    target = checked("target", target, (n_rays, 3))
    background = checked("background", background, (n_rays, 3))
    rays_in, keep_rays = rays_view(rays)
    samples_in, keep_samples = samples_view(samples)
    terms = library.Terms()
    library.kernels().nerf_cpu_photometric(
        net_view(net),
        params_view(params, net),
        params_view(grads, net, written=True),
        unit_box(box),
        rays_in,
        samples_in,
        target.data_ptr(),
        background.data_ptr(),
        _LOSSES[loss],
        min_transmittance,
        ctypes.byref(terms),
    )
    del keep_rays, keep_samples
    return StepTerms(torch.tensor(terms.loss), torch.tensor(terms.mse), torch.tensor(terms.n_kept))


def adam_step(
    params: Tensor,
    grads: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    ema: Tensor | None = None,
    ema_decay: float = 0.0,
) -> None:
    n = params.shape[0]
    named = {"params": params, "grads": grads, "m": m, "v": v}
    pointers: list[int | None] = [
        checked(name, t, (n,), written=True).data_ptr() for name, t in named.items()
    ]
    pointers.append(None if ema is None else checked("ema", ema, (n,), written=True).data_ptr())
    options = library.AdamOptions(
        lr, beta1, beta2, eps, weight_decay, ema_decay, 1 - beta1**step, 1 - beta2**step
    )
    library.kernels().nerf_cpu_adam(*pointers, n, ctypes.byref(options))


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
    if not fits(net):
        return step.render_rays(
            params,
            net,
            box,
            rays,
            t_min,
            t_max,
            jitter,
            occupied,
            steps,
            background,
            min_transmittance,
        )
    rays_in, keep = rays_view(rays)
    n = rays_in.n_rays
    t_min, t_max = checked("t_min", t_min, (n,)), checked("t_max", t_max, (n,))
    jitter, occupied = checked("jitter", jitter, (n,)), occupied.contiguous()
    background = checked("background", background, (3,) if background.ndim == 1 else (n, 3))
    pixels = Pixels(torch.empty(n, 3), torch.empty(n), torch.empty(n), torch.empty(n))
    library.kernels().nerf_cpu_render(
        net_view(net),
        params_view(params, net),
        unit_box(box),
        rays_in,
        t_min.data_ptr(),
        t_max.data_ptr(),
        jitter.data_ptr(),
        occupancy_view(occupied, box),
        step_lengths(steps),
        background.data_ptr(),
        0 if background.ndim == 1 else 3,
        min_transmittance,
        pixels_view(pixels),
    )
    del keep
    return pixels

"""The compiled CPU backend: C++ kernels with run-time dispatch, called through ctypes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.backends.cpu import library
from nerfcli.backends.cpu.autograd import (
    CompositeFunction,
    DensityFunction,
    HarmonicsFunction,
    HashGridFunction,
    RadianceFunction,
)
from nerfcli.backends.cpu.step import fused_step
from nerfcli.backends.cpu.views import (
    KINDS,
    checked,
    net_view,
    occupancy_view,
    params_view,
    pixels_view,
    proposals_view,
    rays_view,
    samples_view,
    sampling_view,
    space_view,
    step_lengths,
)
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective, SampleGrid, StepOut
from nerfcli.reference.proposals import ProposalGrid
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import MarchingGrid

# For shapes that no kernel takes. Its wholes are composed of its own parts, and not of the
# compiled ones, so that such a run gives the same bits on both backends.
REFERENCE = Backend()


class CpuBackend(Backend):
    """Everything that a hash-grid field needs, but for the `mlp` op by itself.

    Raises:
        NerfError: NERF_THREADS is not a positive number.
    """

    name: ClassVar[str] = "cpu"
    rays_per_chunk: int = 2**16

    def __init__(self) -> None:
        library.n_threads()

    @classmethod
    def why_unavailable(cls, device: str) -> str | None:
        if device != "cpu":
            return f"it does not run on {device}"
        return library.missing()

    def spherical_harmonics(self, directions: Tensor) -> Tensor:
        directions = checked("directions", directions, (None, 3))
        return HarmonicsFunction.apply(directions)  # pyright: ignore

    def hash_grid(
        self, positions: Tensor, table: Tensor, spec: GridSpec, scales: Tensor | None = None
    ) -> Tensor:
        if not fits_grid(spec) or scales is not None:
            return super().hash_grid(positions, table, spec, scales)
        positions = checked("positions", positions, (None, 3))
        table = checked("table", table, (spec.n_params,))
        return HashGridFunction.apply(positions, table, spec)  # pyright: ignore

    def density(self, network: Network, positions: Tensor, scales: Tensor | None = None) -> Tensor:
        if not fits(network) or scales is not None:
            return super().density(network, positions, scales)
        positions = checked("positions", positions, (None, 3))
        params = network.params
        params_view(params, network.spec)  # checks the shapes
        return DensityFunction.apply(  # pyright: ignore
            positions, params.table, params.density, network.spec, network.space
        )

    def radiance(
        self,
        network: Network,
        positions: Tensor,
        ray_inputs: Tensor,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if not fits(network) or scales is not None:
            return super().radiance(network, positions, ray_inputs, scales)
        spec, params = network.spec, network.params
        positions = checked("positions", positions, (None, 3))
        ray_inputs = checked("ray_inputs", ray_inputs, (positions.shape[0], spec.n_ray_inputs))
        params_view(params, spec)
        return RadianceFunction.apply(  # pyright: ignore
            positions, ray_inputs, *params.tensors(), spec, network.space
        )

    def march(self, rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid) -> Samples:
        rays_in, keep = rays_view(rays)
        n = rays_in.n_rays
        t_min, t_max = _checked_bounds(bounds, n)
        jitter, occupied = checked("jitter", jitter, (n,)), grid.occupied.contiguous()
        offsets = torch.empty(n + 1, dtype=torch.int64)
        kernels = library.kernels()
        handle = kernels.nerf_cpu_march(
            rays_in,
            t_min.data_ptr(),
            t_max.data_ptr(),
            jitter.data_ptr(),
            occupancy_view(occupied, grid.box),
            step_lengths(grid.steps),
            offsets.data_ptr(),
        )
        total = int(offsets[-1])
        t_starts, t_ends = torch.empty(total), torch.empty(total)
        kernels.nerf_cpu_march_take(
            handle, offsets.data_ptr(), t_starts.data_ptr(), t_ends.data_ptr()
        )
        del keep
        return Samples(t_starts, t_ends, offsets)

    def composite(
        self, sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor
    ) -> Pixels:
        if any(t.requires_grad for t in (background, samples.t_starts, samples.t_ends)):
            return super().composite(sigmas, rgbs, samples, background)
        sigmas = checked("sigmas", sigmas, (samples.capacity,))
        rgbs = checked("rgbs", rgbs, (samples.capacity, 3))
        return Pixels(*CompositeFunction.apply(sigmas, rgbs, samples, background))  # pyright: ignore

    def step_gradients(
        self,
        network: Network,
        grads: NetParams,
        batch: Batch,
        samples: Samples,
        objective: Objective,
        *,
        ray_inputs: Tensor | None = None,
        n_live: Tensor | None = None,
        with_weights: bool = False,
        with_ray_grads: bool = False,
    ) -> StepOut:
        if not fits(network) or n_live is not None:
            return REFERENCE.step_gradients(
                network,
                grads,
                batch,
                samples,
                objective,
                ray_inputs=ray_inputs,
                n_live=n_live,
                with_weights=with_weights,
                with_ray_grads=with_ray_grads,
            )
        return fused_step(
            network, grads, batch, samples, objective, ray_inputs, with_weights, with_ray_grads
        )

    def render_rays(
        self,
        network: Network,
        rays: Rays,
        bounds: Bounds,
        jitter: Tensor,
        grid: SampleGrid,
        background: Tensor,
        *,
        min_transmittance: float = 1e-4,
        ray_inputs: Tensor | None = None,
    ) -> Pixels:
        if not fits(network):
            return REFERENCE.render_rays(
                network,
                rays,
                bounds,
                jitter,
                grid,
                background,
                min_transmittance=min_transmittance,
                ray_inputs=ray_inputs,
            )
        rays_in, keep = rays_view(rays, ray_inputs, network.spec)
        n = rays_in.n_rays
        t_min, t_max = _checked_bounds(bounds, n)
        jitter, (sampling, keep_grid) = checked("jitter", jitter, (n,)), sampling_view(grid)
        background = checked("background", background, (3,) if background.ndim == 1 else (n, 3))
        pixels = Pixels(torch.empty(n, 3), torch.empty(n), torch.empty(n), torch.empty(n))
        library.kernels().nerf_cpu_render(
            net_view(network.spec),
            params_view(network.params, network.spec),
            space_view(network.space),
            rays_in,
            t_min.data_ptr(),
            t_max.data_ptr(),
            jitter.data_ptr(),
            *sampling,
            background.data_ptr(),
            0 if background.ndim == 1 else 3,
            min_transmittance,
            pixels_view(pixels),
        )
        del keep, keep_grid
        return pixels

    def propose(
        self, rays: Rays, jitter: Tensor, grid: ProposalGrid, annealing: float = 1.0
    ) -> Samples:
        rays_in, keep = rays_view(rays)
        n = rays_in.n_rays
        jitter = checked("jitter", jitter, (n,))
        t_starts, t_ends = torch.empty(2, n * grid.n_samples)
        library.kernels().nerf_cpu_propose(
            proposals_view(grid, annealing),
            space_view(grid.space),
            rays_in,
            jitter.data_ptr(),
            t_starts.data_ptr(),
            t_ends.data_ptr(),
        )
        del keep
        return Samples(t_starts, t_ends, torch.arange(n + 1) * grid.n_samples)

    def learn_densities(
        self, rays: Rays, samples: Samples, weights: Tensor, grid: ProposalGrid, rate: float
    ) -> None:
        rays_in, keep_rays = rays_view(rays)
        samples_in, keep_samples = samples_view(samples)
        weights = checked("weights", weights, (samples.capacity,))
        library.kernels().nerf_cpu_learn(
            proposals_view(grid),
            space_view(grid.space),
            rays_in,
            samples_in,
            weights.data_ptr(),
            rate,
        )
        del keep_rays, keep_samples

    def adam_step(
        self,
        params: Tensor,
        grads: Tensor,
        m: Tensor,
        v: Tensor,
        config: AdamConfig,
        *,
        step: int = 1,
        lr: float = 0.0,
        rates: Tensor | None = None,
        ema: Tensor | None = None,
    ) -> None:
        n = params.shape[0]
        corrections = config.bias_corrections(step)
        if rates is not None:
            lr, *corrections = rates.tolist()
        named = {"params": params, "grads": grads, "m": m, "v": v}
        pointers: list[int | None] = [
            checked(name, t, (n,), written=True).data_ptr() for name, t in named.items()
        ]
        pointers.append(None if ema is None else checked("ema", ema, (n,), written=True).data_ptr())
        options = library.AdamOptions(
            lr,
            config.beta1,
            config.beta2,
            config.eps,
            config.weight_decay,
            config.ema_decay,
            *corrections,
        )
        library.kernels().nerf_cpu_adam(*pointers, n, ctypes.byref(options))


@cache
def fits_grid(grid: GridSpec) -> bool:
    """Whether the kernels take this grid: they pack a cell's place into 3 x 20 bits."""
    small = max(level.resolution for level in grid.levels) < 2**20
    return small and grid.n_levels <= library.MAX_LEVELS and grid.n_features in (1, 2, 4, 8)


@cache
def fits_net(net: NetSpec) -> bool:
    """Whether the kernels take this shape."""
    return (
        fits_grid(net.grid)
        and net.grid.n_outputs % 16 == 0
        and net.grid.n_outputs <= 128
        and net.width in range(16, 129, 16)
        and net.n_geometry in (16, 32, 48, 64)
        and net.n_embedding % 16 == 0
        and 1 <= net.n_color_hidden <= 3
    )


def fits(network: Network) -> bool:
    """Whether the kernels take this field; every op leaves others to the reference."""
    return fits_net(network.spec) and network.space.kind in KINDS


def _checked_bounds(bounds: Bounds, n: int) -> tuple[Tensor, Tensor]:
    return checked("t_min", bounds.t_min, (n,)), checked("t_max", bounds.t_max, (n,))

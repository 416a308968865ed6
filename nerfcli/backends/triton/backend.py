"""The Triton backend: kernels compiled at first use by what torch's CUDA wheel brings.

Table, network inputs and hidden values are read in half precision with float32 sums; master
weights, gradients and moments stay float32, in the layout of every other backend. The modules with
kernels import `triton`, so each is imported by the method that first needs it.
"""

from __future__ import annotations

import os
from typing import ClassVar

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.backends.triton import toolchain
from nerfcli.backends.triton.copies import TableCopies
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.core.devices import cuda_missing, is_installed
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.contraction import Space
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective, SampleGrid, StepOut
from nerfcli.reference.radiance import NetParams, Network
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import MarchingGrid
from nerfcli.scenes.views import Views

LEAST_CAPABILITY = (8, 0)  # what Triton supports; Turing and older are not


class TritonBackend(Backend):
    """The reference as Triton kernels; what they do not cover goes back to it.

    Attributes:
        dtype: of the table's copy and the network values: float32, float16 or bfloat16.
        copies: of the tables in `dtype`; kept true by `adam_step`.
    """

    name: ClassVar[str] = "triton"
    is_asynchronous: ClassVar[bool] = True
    rays_per_chunk: int = 2**20  # an 800 x 800 image at once

    def __init__(self, dtype: torch.dtype = torch.float16) -> None:
        # Triton 3.9 warns that 3.10 will multiply and add in two instructions unless this says no
        os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
        self.dtype = dtype
        self.copies = TableCopies(dtype)

    @classmethod
    def why_unavailable(cls, device: str) -> str | None:
        """The reason why the kernels cannot run on `device`, or None.

        TRITON_INTERPRET=1 runs them on any device under Triton's interpreter: for tests, very slow.
        """
        if not is_installed("triton"):
            return "triton is not installed (it comes with torch's CUDA builds; pip install triton)"
        if os.environ.get("TRITON_INTERPRET") == "1":
            return toolchain.why_interpreter_unavailable()
        if device != "cuda":
            return f"it does not run on {device}, except in tests (TRITON_INTERPRET=1)"
        return cuda_missing() or _too_old() or toolchain.why_unavailable()

    def spherical_harmonics(self, directions: Tensor) -> Tensor:
        from nerfcli.backends.triton import triton_harmonics

        return triton_harmonics.spherical_harmonics(directions)

    def hash_grid(
        self, positions: Tensor, table: Tensor, spec: GridSpec, scales: Tensor | None = None
    ) -> Tensor:
        from nerfcli.backends.triton import triton_encoding

        if not triton_encoding.fits(spec) or scales is not None:
            return super().hash_grid(positions, table, spec, scales)
        return triton_encoding.hash_grid(positions, table, self.copies.of(table), spec)

    def mlp(self, x: Tensor, weights: Tensor, widths: tuple[int, ...]) -> Tensor:
        from nerfcli.backends.triton import triton_mlp

        if not triton_mlp.fits(widths):
            return super().mlp(x, weights, widths)
        return triton_mlp.mlp(x, weights, widths, self.dtype)

    def density(self, network: Network, positions: Tensor, scales: Tensor | None = None) -> Tensor:
        from nerfcli.backends.triton import triton_radiance

        if scales is not None:
            return super().density(network, positions, scales)
        return triton_radiance.density(network, self.copies.of(network.params.table), positions)

    def radiance(
        self,
        network: Network,
        positions: Tensor,
        ray_inputs: Tensor,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        from nerfcli.backends.triton import triton_radiance

        if scales is not None:
            return super().radiance(network, positions, ray_inputs, scales)
        copy = self.copies.of(network.params.table)
        return triton_radiance.radiance(network, copy, positions, ray_inputs)

    def march(self, rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid) -> Samples:
        from nerfcli.backends.triton import triton_sampling

        return triton_sampling.march(rays, bounds, jitter, grid)

    def march_within(
        self, rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid, capacity: int
    ) -> tuple[Samples, Tensor]:
        from nerfcli.backends.triton import triton_sampling

        return triton_sampling.march_within(rays, bounds, jitter, grid, capacity)

    def composite(
        self, sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor
    ) -> Pixels:
        from nerfcli.backends.triton import triton_volume

        others = (background, samples.t_starts, samples.t_ends)
        if torch.is_grad_enabled() and any(t.requires_grad for t in others):
            return super().composite(sigmas, rgbs, samples, background)
        return triton_volume.composite(sigmas, rgbs, samples, background)

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
        from nerfcli.backends.triton import triton_step

        # its kernel knows no colour maps, cones, curved distances, nor gradients that fade
        plain = batch.color is None and batch.rays.radii is None
        if not plain or objective.curve or objective.full_from:
            step, given = super().step_gradients, network
        else:
            step, given = triton_step.step_gradients, self.copies.narrow(network)
        return step(
            given,
            grads,
            batch,
            samples,
            objective,
            ray_inputs=ray_inputs,
            n_live=n_live,
            with_weights=with_weights,
            with_ray_grads=with_ray_grads,
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
        from nerfcli.backends.triton import triton_render

        if rays.radii is not None or not isinstance(grid, MarchingGrid):
            return super().render_rays(
                network,
                rays,
                bounds,
                jitter,
                grid,
                background,
                min_transmittance=min_transmittance,
                ray_inputs=ray_inputs,
            )
        return triton_render.render_rays(
            self.copies.narrow(network),
            rays,
            bounds,
            jitter,
            grid,
            background,
            min_transmittance,
            ray_inputs,
        )

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
        from nerfcli.backends.triton import triton_adam

        copy = self.copies.known(params)
        triton_adam.adam_step(params, grads, m, v, config, step, lr, rates, ema, copy)
        self.copies.note_change(params)

    def draw(
        self,
        views: Views,
        cameras: Cameras,
        u: Tensor,
        background: Tensor,
        space: Space,
        n_counted: Tensor | None = None,
        with_radii: bool = False,
    ) -> tuple[Batch, Bounds]:
        from nerfcli.backends.triton import triton_batch

        if with_radii or not cameras.rays_by_lookup(u.device):
            return super().draw(views, cameras, u, background, space, n_counted, with_radii)
        return triton_batch.draw(views, cameras, u, background, space, n_counted)

    def adapt(
        self,
        rate: Tensor,
        wanted: Tensor,
        n_rays: Tensor,
        n_kept: Tensor,
        *,
        n_samples: int,
        memory: float,
        limits: tuple[int, int],
    ) -> None:
        from nerfcli.backends.triton import triton_batch

        triton_batch.adapt(rate, wanted, n_rays, n_kept, n_samples, memory, limits)


def _too_old() -> str | None:
    have = torch.cuda.get_device_capability()
    if have >= LEAST_CAPABILITY:
        return None
    need = ".".join(map(str, LEAST_CAPABILITY))
    return f"the GPU has compute capability {have[0]}.{have[1]}, Triton needs {need} or newer"

"""What a backend does. The methods of `Backend` are the reference in plain torch.

A faster backend overrides what it does better; `super()` is the way back for a shape that it does
not support. Positions, origins and distances are in scene space, densities per scene unit.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.core.devices import cuda_missing
from nerfcli.reference import (
    adam,
    encoding,
    fused,
    mlp,
    proposals,
    radiance,
    sampling,
    volume,
)
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.contraction import Space
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective, SampleGrid, StepOut
from nerfcli.reference.proposals import ProposalGrid
from nerfcli.reference.radiance import NetParams, Network
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import MarchingGrid
from nerfcli.scenes.views import Views, over_background


class Backend:
    """Every op in plain torch: the definition that the other backends must agree with.

    Attributes:
        name: as --backend takes it.
        is_asynchronous: whether a step made of `draw`, `march_within`, `step_gradients`, `adapt`
            and `adam_step` never waits for the device.
        rays_per_chunk: how many rays `render_rays` is given at once.
    """

    name: ClassVar[str] = "torch"
    is_asynchronous: ClassVar[bool] = False
    rays_per_chunk: int = 2**13

    @classmethod
    def why_unavailable(cls, device: str) -> str | None:
        """The reason why this backend cannot run on `device` ("cpu" or "cuda"), or None."""
        return cuda_missing() if device == "cuda" else None

    def spherical_harmonics(self, directions: Tensor) -> Tensor:
        """directions [n, 3] -> [n, 16]; see encoding.spherical_harmonics."""
        return encoding.spherical_harmonics(directions)

    def hash_grid(
        self, positions: Tensor, table: Tensor, spec: GridSpec, scales: Tensor | None = None
    ) -> Tensor:
        """positions [n, 3] in [0, 1] -> features [n, n_levels * n_features]."""
        return encoding.hash_grid(positions, table, spec, scales)

    def mlp(self, x: Tensor, weights: Tensor, widths: tuple[int, ...]) -> Tensor:
        """x [n, widths[0]] -> [n, widths[-1]]; see mlp.mlp."""
        return mlp.mlp(x, weights, widths)

    def density(self, network: Network, positions: Tensor, scales: Tensor | None = None) -> Tensor:
        """positions [n, 3] -> sigmas [n]; see radiance.density."""
        return radiance.density(network, positions, scales)

    def radiance(
        self,
        network: Network,
        positions: Tensor,
        ray_inputs: Tensor,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """positions [n, 3], ray_inputs [n, 16 + k] -> sigmas [n], rgbs [n, 3]."""
        return radiance.radiance(network, positions, ray_inputs, scales)

    def march(self, rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid) -> Samples:
        """Samples in occupied cells; see sampling.march."""
        return sampling.march(rays, bounds, jitter, grid)

    def march_within(
        self, rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid, capacity: int
    ) -> tuple[Samples, Tensor]:
        """`march` into a fixed capacity, and how many rays fit; see sampling.march_within."""
        return sampling.march_within(rays, bounds, jitter, grid, capacity)

    def propose(
        self, rays: Rays, jitter: Tensor, grid: ProposalGrid, annealing: float = 1.0
    ) -> Samples:
        """Samples by remembered densities; see proposals.propose."""
        return proposals.propose(rays, jitter, grid, annealing)

    def learn_densities(
        self, rays: Rays, samples: Samples, weights: Tensor, grid: ProposalGrid, rate: float
    ) -> None:
        """Remember the densities that samples met; see proposals.learn_densities."""
        proposals.learn_densities(rays, samples, weights, grid, rate)

    def composite(
        self, sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor
    ) -> Pixels:
        """Pixels of packed samples; see volume.composite."""
        return volume.composite(sigmas, rgbs, samples, background)

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
        """Add the gradients of a training step to `grads`; see fused.step_gradients."""
        return fused.step_gradients(
            self,
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
        """Pixels of rays without gradients; see fused.render_rays."""
        return fused.render_rays(
            self,
            network,
            rays,
            bounds,
            jitter,
            grid,
            background,
            min_transmittance=min_transmittance,
            ray_inputs=ray_inputs,
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
        """One optimiser step in place; see adam.adam_step."""
        adam.adam_step(params, grads, m, v, config, step=step, lr=lr, rates=rates, ema=ema)

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
        """Rays through random pixels, what they should show, and where to sample them.

        Args:
            views: on the device of u. cameras: of the scene.
            u: [n_rays] float64 in [0, 1), which pixel each ray goes through.
            background: [n_rays, 3], behind pixels that are not opaque.
            n_counted: how many rays count, an int64 scalar; the bounds of the others are empty.
            with_radii: fill in the radii of the rays' cones.
        """
        flat = views.draw(u)
        rays = cameras.rays(views.locate(flat), with_radii)
        bounds = space.bounds(rays)
        if n_counted is not None:
            counts = torch.arange(len(rays), device=u.device) < n_counted
            bounds = Bounds(bounds.t_min, torch.where(counts, bounds.t_max, bounds.t_min))
        return Batch(rays, over_background(views.colors(flat), background), background), bounds

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
        """Set how many rays should fill the budget of a step, from what the last one took.

        Args:
            rate: float32 scalar, running mean of kept samples per ray (0: none yet), in place.
            wanted: int64 scalar, how many rays are next, in place.
            n_rays, n_kept: int64 scalars, what the step had.
            n_samples: the budget. memory: of the running mean.
            limits: least and largest number of rays.
        """
        now = (n_kept / n_rays.clamp(min=1)).clamp(min=1e-3)
        before = torch.where(rate == 0.0, now, rate)
        rate.copy_(torch.maximum(memory * before + (1 - memory) * now, 0.5 * now))
        wanted.copy_((n_samples / rate).clamp(*limits).long())

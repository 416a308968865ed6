"""Training of method hashgrid: draw rays, march, take the gradients, step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.core.config import Config, known
from nerfcli.core.errors import NerfError
from nerfcli.methods.base import StepResult
from nerfcli.methods.grid_trainer import GridTrainer
from nerfcli.methods.hashgrid import HashField
from nerfcli.scenes import Scene
from nerfcli.scenes.coverage import seen_cells
from nerfcli.scenes.hull import (
    Silhouettes,
    contradict_each_other,
    is_plausible,
    silhouettes_of,
    visual_hull,
)
from nerfcli.scenes.views import Views

MIN_RAYS, MAX_RAYS = 64, 2**17
MARCHED_COST = 0.25  # of a marched sample, in kept ones, which have gradients too
RATE_MEMORY = 0.8  # of the running mean of kept samples per ray


class HashGridTrainer(GridTrainer[HashField]):
    """Steps of a hash-grid field: the batch is sized by samples, the ray count adapts."""

    def __init__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> None:
        super().__init__(scene, views, config, ops, generator, HashField.create, config.hashgrid)
        own = config.hashgrid
        self.objective = replace(
            self.objective, opacity=own.opacity_loss, distortion=own.distortion_loss
        )
        self.samples_per_ray = 0.0

    def begin(self, views: Views, silhouettes: Silhouettes | None = None) -> str | None:
        """Rule out the cells that no training camera sees, and those that silhouettes do not allow.

        Raises:
            NerfError: no training camera sees any of the box.
        """
        box, n = self.field.box, self.field.occupancy.resolution
        possible = seen_cells(self.scene, box, n, views)
        if not possible.any():
            raise NerfError(
                "no training camera sees any of the box between near and far: let all three follow "
                "from the scene, or state others (--set scene.box=2)."
            )
        remark = None
        if self.scene.has_alpha and box.n_cascades == 1:
            silhouettes = silhouettes or silhouettes_of(self.scene, views)
            left = possible[0] & visual_hull(self.scene, views, box, n, silhouettes)
            if is_plausible(left) and not contradict_each_other(silhouettes, box):
                possible[0] = left
            else:
                remark = (
                    f"silhouettes contradict each other, or leave too little ({int(left.sum())} of "
                    f"{left.numel()} cells), so they are not used; do poses and alpha belong "
                    "together? `nerf check` looks at the poses"
                )
        self.field.sampler.restrict(possible)
        return remark

    def n_rays(self) -> int:
        """Rays whose kept samples should fill the budget, by the last steps' mean."""
        target = known(self.config.hashgrid.n_samples)
        if self.samples_per_ray == 0.0:
            return max(MIN_RAYS, target // 64)
        return max(MIN_RAYS, min(MAX_RAYS, int(target / self.samples_per_ray)))

    def step(self, lr: float) -> StepResult:
        self.step_count += 1
        n_rays = self.n_rays()
        batch, bounds = self._draw(n_rays)
        samples = self.field.sampler.sample(batch.rays, bounds, self._uniform_share(n_rays))
        out = self.ops.step_gradients(
            self.field.network, self.grads, batch, samples, self.objective
        )
        out, (n_kept, n_marched) = self._combine(
            out, n_rays, int(out.n_kept), samples.capacity
        )  # sync
        self._adapt(n_rays, n_marched, n_kept)
        self._optimize(batch, out, lr)
        if self._update_due():
            density = partial(self.world.compute_shared, self.field.density)
            self.field.sampler.update(density, self.generator)
        return self._result(out, n_rays, n_kept)

    def _adapt(self, n_rays: int, n_marched: int, n_kept: int) -> None:
        now = max((n_kept + MARCHED_COST * (n_marched - n_kept)) / n_rays, 1e-3)
        if self.samples_per_ray == 0.0:
            self.samples_per_ray = now
        mean = RATE_MEMORY * self.samples_per_ray + (1 - RATE_MEMORY) * now
        self.samples_per_ray = max(mean, 0.5 * now)  # a sudden rise is believed at once

    def _update_due(self) -> bool:
        return self.step_count % self.config.hashgrid.occupancy_every == 0

    def extra_state(self) -> dict[str, Any]:
        return {
            "step": self.step_count,
            "samples_per_ray": self.samples_per_ray,
            "occupancy_cursor": self.field.sampler.grid.cursor,
        }

    def load(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], extra: dict[str, Any]
    ) -> None:
        self._load(model, optimizer)
        self.field.sampler.grid.cursor = extra["occupancy_cursor"]
        self.step_count = self.first_step = extra["step"]
        self.samples_per_ray = extra["samples_per_ray"]

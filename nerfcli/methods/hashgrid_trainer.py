"""Training of method hashgrid: draw rays, march, take the gradients, step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.rays import Batch, Bounds
from nerfcli.core.config import Config, known
from nerfcli.core.errors import NerfError
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods.base import StepResult, background_of, weight_generator
from nerfcli.methods.hashgrid import HashField
from nerfcli.methods.optimizer import Optimizer
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.fused import Objective, StepOut, loss_terms, render_samples
from nerfcli.reference.radiance import NetParams
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


class HashGridTrainer:
    """Steps of a hash-grid field: the batch is sized by samples, the ray count adapts."""

    def __init__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> None:
        self.scene, self.views, self.config, self.ops = scene, views, config, ops
        self.generator, self.device = generator, generator.device
        self.background = background_of(scene, self.device)
        weights = weight_generator(generator, config.train.seed)
        field = HashField.create(config, scene.box, scene.near, scene.far, ops, weights)
        self.field = field.to(str(self.device))
        own = config.hashgrid
        adam = AdamConfig(weight_decay=own.weight_decay, ema_decay=own.ema_decay)
        self.optimizer = Optimizer(self.field.params.named(), ops, adam, keeps_raw=True)
        self.grads = NetParams.of(self.optimizer.grads)
        self.objective = Objective(
            known(config.train.loss),
            opacity=own.opacity_loss,
            distortion=own.distortion_loss,
            min_transmittance=own.min_transmittance,
        )
        self.samples_per_ray = 0.0
        self.step_count = self.first_step = 0

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

    def set_views(self, views: Views) -> None:
        self.views = views

    def n_rays(self) -> int:
        """Rays whose kept samples should fill the budget, by the last steps' mean."""
        target = known(self.config.hashgrid.n_samples)
        if self.samples_per_ray == 0.0:
            return max(MIN_RAYS, target // 64)
        return max(MIN_RAYS, min(MAX_RAYS, int(target / self.samples_per_ray)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the objective, composed of differentiable ops; the fused step agrees."""
        network, limit = self.field.network, self.objective.min_transmittance
        jitter = torch.full_like(batch.rays.origins[:, 0], 0.5)
        samples = self.field.sampler.sample(batch.rays, self.field.bounds(batch.rays), jitter)
        rendered = render_samples(
            self.ops, network, batch.rays, samples, None, batch.background, limit
        )
        return loss_terms(network, batch, rendered, self.objective)[0]

    def step(self, lr: float) -> StepResult:
        self.step_count += 1
        batch, bounds = self._draw(self.n_rays())
        n_rays = len(batch.rays)
        samples = self.field.sampler.sample(batch.rays, bounds, self._uniform(n_rays))
        out = self.ops.step_gradients(
            self.field.network, self.grads, batch, samples, self.objective
        )
        n_kept = int(out.n_kept)  # sync
        self._adapt(n_rays, samples.capacity, n_kept)
        self.optimizer.step(step=self.step_count, lr=lr)
        if self._update_due():
            self.field.sampler.update(self.field.density, self.generator)
        return self._result(out, n_rays, n_kept)

    def _result(self, out: StepOut, n_rays: int | Tensor, n_samples: int | Tensor) -> StepResult:
        return StepResult(out.loss(self.objective), out.terms, out.mse, n_rays, n_samples)

    def _uniform(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(*size, dtype=dtype, generator=self.generator, device=self.device)

    def _draw(self, n_rays: int) -> tuple[Batch, Bounds]:
        u = self._uniform(n_rays, dtype=torch.float64)
        if self.config.train.random_background:
            background = self._uniform(n_rays, 3)
        else:
            background = self.background.expand(n_rays, 3).contiguous()
        cameras, space = self.scene.cameras, self.field.space
        return self.ops.draw(self.views, cameras, u, background, space)

    def _adapt(self, n_rays: int, n_marched: int, n_kept: int) -> None:
        now = max((n_kept + MARCHED_COST * (n_marched - n_kept)) / n_rays, 1e-3)
        if self.samples_per_ray == 0.0:
            self.samples_per_ray = now
        mean = RATE_MEMORY * self.samples_per_ray + (1 - RATE_MEMORY) * now
        self.samples_per_ray = max(mean, 0.5 * now)  # a sudden rise is believed at once

    def _update_due(self) -> bool:
        return self.step_count % self.config.hashgrid.occupancy_every == 0

    def rendered_field(self) -> HashField:
        return replace(self.field, params=NetParams.of(self.optimizer.model()))

    def model_state(self) -> dict[str, Tensor]:
        return self.field.state() | self.optimizer.model().state()

    def optimizer_state(self) -> dict[str, Tensor]:
        return self.optimizer.state()

    def extra_state(self) -> dict[str, Any]:
        return {
            "step": self.step_count,
            "samples_per_ray": self.samples_per_ray,
            "occupancy_cursor": self.field.sampler.grid.cursor,
        }

    def load(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], extra: dict[str, Any]
    ) -> None:
        ensure_same_shapes(model, self.model_state())
        self.field.load_state(model | self.optimizer.load(model, optimizer))
        self.field.sampler.grid.cursor = extra["occupancy_cursor"]
        self.step_count = self.first_step = extra["step"]
        self.samples_per_ray = extra["samples_per_ray"]

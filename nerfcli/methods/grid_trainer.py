"""What trainers of hash-grid fields share: the optimiser, batches, the loss, states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.rays import Batch, Bounds, ColorMap
from nerfcli.core.config import Config, HashGridConfig, UnboundedConfig, known
from nerfcli.core.distributed import world
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods.base import StepResult, background_of, weight_generator
from nerfcli.methods.exposure import ExposureCodes
from nerfcli.methods.grid_field import GridField
from nerfcli.methods.shared_optimizer import create_optimizer
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.fused import Objective, StepOut, loss_terms, render_samples
from nerfcli.reference.radiance import NetParams
from nerfcli.scenes import Scene
from nerfcli.scenes.views import Views

F = TypeVar("F", bound=GridField)


class GridTrainer(Generic[F]):
    """Steps of a hash-grid field; how many rays, and where they are sampled, is the method's.

    Args:
        create: makes the fresh field. own: the method's table.
    """

    def __init__(
        self,
        scene: Scene,
        views: Views,
        config: Config,
        ops: Backend,
        generator: torch.Generator,
        create: Callable[..., F],
        own: HashGridConfig | UnboundedConfig,
    ) -> None:
        self.scene, self.views, self.config, self.ops = scene, views, config, ops
        self.world = world()
        self.generator, self.device = generator, generator.device
        self.background = background_of(scene, self.device)
        weights = weight_generator(generator, config.train.seed)
        field = create(config, scene, ops, weights)
        self.field = field.to(str(self.device))
        adam = AdamConfig(weight_decay=own.weight_decay, ema_decay=own.ema_decay)
        self.optimizer = create_optimizer(self.field.params.named(), ops, adam, keeps_raw=True)
        self.field.params = NetParams.of(self.optimizer.params)
        self.grads = NetParams.of(self.optimizer.grads)
        self.objective = Objective(
            known(config.train.loss), min_transmittance=own.min_transmittance
        )
        self.codes = None
        if config.train.exposure:
            trained = scene.splits["train"]
            self.codes = ExposureCodes(len(scene.cameras), trained, self.device)
            if scene.log_gains is not None:
                self.codes.start_from(scene.log_gains)
        self.step_count = self.first_step = 0

    def set_views(self, views: Views) -> None:
        self.views = views

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the objective, composed of differentiable ops; the fused step agrees."""
        network, objective, batch = self.field.network, self.objective, self._exposed(batch)
        jitter = torch.full_like(batch.rays.origins[:, 0], 0.5)
        samples = self.field.sampler.sample(batch.rays, self.field.bounds(batch.rays), jitter)
        rendered = render_samples(
            self.ops,
            network,
            batch.rays,
            samples,
            None,
            batch.background,
            objective.min_transmittance,
            objective.full_from,
        )
        return loss_terms(network, batch, rendered, objective)[0]

    def _result(self, out: StepOut, n_rays: int | Tensor, n_samples: int | Tensor) -> StepResult:
        return StepResult(out.loss(self.objective), out.terms, out.mse, n_rays, n_samples)

    def _uniform(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(*size, dtype=dtype, generator=self.generator, device=self.device)

    def _uniform_share(self, n_rays: int, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers of this process's share of n rays; all processes draw all of them."""
        return self._uniform(n_rays, *size, dtype=dtype)[self.world.share(n_rays)]

    def _draw(self, n_rays: int) -> tuple[Batch, Bounds]:
        """This process's share of n rays."""
        u = self._uniform_share(n_rays, dtype=torch.float64)
        if self.config.train.random_background:
            background = self._uniform_share(n_rays, 3)
        else:
            background = self.background.expand(len(u), 3).contiguous()
        cameras, space = self.scene.cameras, self.field.space
        wanted = self.field.needs_radii
        batch, bounds = self.ops.draw(self.views, cameras, u, background, space, with_radii=wanted)
        return self._exposed(batch), bounds

    def _exposed(self, batch: Batch) -> Batch:
        """The batch with the colour maps of its photos, where these are learned."""
        if self.codes is None or batch.rays.cameras is None:
            return batch
        return replace(batch, color=self.codes.color(batch.rays.cameras))

    def _combine(self, out: StepOut, n_rays: int, *counts: int) -> tuple[StepOut, list[int]]:
        """Make gradients and terms those of all processes' n_rays, and sum counts over them."""
        if self.world.is_alone:
            return out, list(counts)
        share = self.world.portion(n_rays)
        means = torch.stack([*out.terms.values(), out.mse]) * share
        beside = torch.cat([means, means.new_tensor(counts)])  # exact below 2**24
        beside = self.optimizer.sum_gradients(self.world, n_rays, beside)
        found = beside[: len(means)].unbind()
        terms = dict(zip(out.terms, found[:-1], strict=True))
        color = out.color_grads
        if color is not None:
            color = ColorMap(color.gain * share, color.offset * share)
        summed = [round(count) for count in beside[len(means) :].tolist()]
        return replace(out, terms=terms, mse=found[-1], color_grads=color), summed

    def _optimize(self, batch: Batch, out: StepOut, lr: float) -> None:
        """Step by the gradients of the field, and of the codes where there are any."""
        self.optimizer.step(step=self.step_count, lr=lr)
        if self.codes is not None and out.color_grads is not None:
            self.codes.step(batch, out.color_grads, self.step_count, lr)

    def rendered_field(self) -> F:
        return replace(self.field, params=NetParams.of(self.optimizer.model()))

    def model_state(self) -> dict[str, Tensor]:
        return self.field.state() | self.optimizer.model().state()

    def optimizer_state(self) -> dict[str, Tensor]:
        codes = {} if self.codes is None else self.codes.state()
        return self.optimizer.state() | codes

    def _load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Take the tensors of a checkpoint."""
        ensure_same_shapes(model, self.model_state())
        if self.codes is not None:
            self.codes.load_state(optimizer)
        self.field.load_state(model | self.optimizer.load(model, optimizer))

"""One training step, for each method: draw rays, render them, take the gradients, step.

A trainer owns the field and the optimiser's state, all on the device of the generator that
everything random comes from; with its state, a checkpoint continues bit for bit on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.rays import Batch, Bounds
from nerfcli.core.config import Config
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods import classic
from nerfcli.methods.classic import ClassicField
from nerfcli.methods.hashgrid import AnyField, HashField, create_field
from nerfcli.methods.occupancy import OccupancyGrid
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.fused import Objective
from nerfcli.reference.radiance import NetParams
from nerfcli.scenes import Scene
from nerfcli.scenes.views import Views, over_background

MIN_RAYS, MAX_RAYS = 64, 2**17
MARCHED_COST = 0.25  # of a marched sample, in kept ones, which have gradients too
RATE_MEMORY = 0.8  # of the running mean of kept samples per ray


@dataclass(frozen=True)
class StepResult:
    """What a step reports; tensors, so that reading them is the caller's choice."""

    loss: Tensor
    mse: Tensor
    n_rays: int | Tensor
    n_samples: int | Tensor
    remark: str | None = None  # to the user


def background_color(name: str) -> tuple[float, float, float]:
    return (1.0, 1.0, 1.0) if name == "white" else (0.0, 0.0, 0.0)


def fixed_background(config: Config, device: torch.device) -> Tensor:
    """The run's background, [3]."""
    return torch.tensor(background_color(config.scene.background), device=device)


def new_field(scene: Scene, config: Config, ops: Backend, generator: torch.Generator) -> AnyField:
    """A fresh field on the generator's device; the same on each, drawn on the CPU."""
    device = generator.device
    if device.type != "cpu":
        generator = torch.Generator("cpu").manual_seed(config.train.seed)
    field = create_field(config, scene.box, scene.near, scene.far, ops, generator)
    return field.to(str(device))


class HashGridTrainer:
    """Steps of a hash-grid field: the batch is sized by samples, the ray count adapts."""

    def __init__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> None:
        self.scene, self.views, self.config, self.ops = scene, views, config, ops
        self.generator, self.device = generator, generator.device
        self.background = fixed_background(config, self.device)
        field = new_field(scene, config, ops, generator)
        assert isinstance(field, HashField)
        self.field = field
        self.grads = NetParams(*(torch.zeros_like(p) for p in field.params.tensors()))
        self.m = NetParams(*(torch.zeros_like(p) for p in field.params.tensors()))
        self.v = NetParams(*(torch.zeros_like(p) for p in field.params.tensors()))
        self.ema = NetParams(*(p.clone() for p in field.params.tensors()))
        train, limit = config.train, config.sampling.min_transmittance
        self.objective = Objective(train.loss, min_transmittance=limit)  # pyright: ignore
        # the networks need no weight decay
        self.adam = [AdamConfig(weight_decay=train.weight_decay, ema_decay=train.ema_decay)]
        self.adam += 2 * [AdamConfig(ema_decay=train.ema_decay)]
        self.samples_per_ray = 0.0
        self.step_count = self.first_step = 0

    def set_possible(self, possible: Tensor) -> None:
        """Start the occupancy grid from the cells that can hold anything."""
        grid = self.field.occupancy
        possible = grid.possible & possible.to(self.device)
        self.field.occupancy = OccupancyGrid.create(grid.box, grid.resolution, possible)

    def set_views(self, views: Views) -> None:
        """Go on with other pixels, on the same device."""
        self.views = views

    def n_rays(self) -> int:
        """Rays whose kept samples should fill the budget, by the last steps' mean."""
        target = self.config.train.n_samples
        if self.samples_per_ray == 0.0:
            return max(MIN_RAYS, target // 64)
        return max(MIN_RAYS, min(MAX_RAYS, int(target / self.samples_per_ray)))

    def step(self, lr: float) -> StepResult:
        self.step_count += 1
        batch, bounds = self._draw(self.n_rays())
        n_rays = len(batch.rays)
        samples = self.ops.march(batch.rays, bounds, self._uniform(n_rays), self.field.grid)
        out = self.ops.step_gradients(
            self.field.network, self.grads, batch, samples, self.objective
        )
        n_kept = int(out.n_kept)  # sync
        self._adapt(n_rays, samples.capacity, n_kept)
        self._optimise(step=self.step_count, lr=lr)
        if self._update_due():
            self._update_occupancy()
        return StepResult(out.loss(self.objective), out.mse, n_rays, n_kept)

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

    def _optimise(self, **rates: Any) -> None:
        sets = (t.tensors() for t in (self.field.params, self.grads, self.m, self.v, self.ema))
        for config, (p, g, m, v, ema) in zip(self.adam, zip(*sets, strict=True), strict=True):
            self.ops.adam_step(p, g, m, v, config, ema=ema if config.ema_decay else None, **rates)

    def _update_due(self) -> bool:
        return self.step_count % self.config.occupancy.every == 0

    def _update_occupancy(self, wait: bool = True) -> None:
        occupancy = self.config.occupancy
        self.field.occupancy.update(
            self.field.density,
            n_cells=occupancy.cells,
            decay=occupancy.decay,
            threshold=occupancy.threshold,
            step_size=self.field.steps.size,
            generator=self.generator,
            wait=wait,
        )

    def model_state(self) -> dict[str, Tensor]:
        """What is rendered: the running mean of the weights, where there is one."""
        state = self.field.state()
        if self.config.train.ema_decay:
            state["grid.table"], state["density.weights"], state["color.weights"] = (
                self.ema.tensors()
            )
        return state

    def optimizer_state(self) -> dict[str, Tensor]:
        names = ("grid.table", "density.weights", "color.weights")
        state = {}
        for kind, tensors in (("raw", self.field.params), ("m", self.m), ("v", self.v)):
            state |= {f"{kind}.{n}": t for n, t in zip(names, tensors.tensors(), strict=True)}
        return state

    def extra_state(self) -> dict:
        return {
            "step": self.step_count,
            "samples_per_ray": self.samples_per_ray,
            "occupancy_cursor": self.field.occupancy.cursor,
        }

    def load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], extra: dict) -> None:
        ensure_same_shapes(model, self.model_state())
        ensure_same_shapes(optimizer, self.optimizer_state())
        names = ("grid.table", "density.weights", "color.weights")
        self.ema = NetParams(*(model[n].clone() for n in names))
        raw = {n: optimizer[f"raw.{n}"] for n in names}
        self.field.load_state(model | raw, self.config.occupancy.threshold)
        self.field.occupancy.cursor = extra["occupancy_cursor"]
        self.m = NetParams(*(optimizer[f"m.{n}"] for n in names))
        self.v = NetParams(*(optimizer[f"v.{n}"] for n in names))
        self.step_count = self.first_step = extra["step"]
        self.samples_per_ray = extra["samples_per_ray"]


ADAM = AdamConfig(beta2=0.999, eps=1e-7)  # NeRF (2020), section 5.3, and Keras' epsilon


class ClassicTrainer:
    """Steps of the 2020 paper: coarse and fine loss, one Adam over both networks."""

    def __init__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> None:
        self.scene, self.views, self.config, self.ops = scene, views, config, ops
        self.generator, self.device = generator, generator.device
        self.background = fixed_background(config, self.device)
        field = new_field(scene, config, ops, generator)
        assert isinstance(field, ClassicField)
        self.field = field
        for p in field.params.values():
            p.requires_grad_()
        self.m = {k: torch.zeros_like(p) for k, p in field.params.items()}
        self.v = {k: torch.zeros_like(p) for k, p in field.params.items()}
        self.sizes = scene.cameras.size.to(self.device)
        self.step_count = 0

    def step(self, lr: float) -> StepResult:
        self.step_count += 1
        config = self.config
        flat = self._pixels(config.train.n_rays)
        rays = self.scene.cameras.rays(self.views.locate(flat))
        target = over_background(self.views.colors(flat), self.background)
        loss, fine_mse, grads = classic.gradients(
            self.field, rays, target, self.background, self.generator
        )
        for (key, p), g in zip(self.field.params.items(), grads, strict=True):
            self.ops.adam_step(
                p.detach().view(-1),
                g.contiguous().view(-1),
                self.m[key].view(-1),
                self.v[key].view(-1),
                ADAM,
                step=self.step_count,
                lr=lr,
            )
        per_ray = 2 * config.sampling.n_coarse + config.sampling.n_fine
        return StepResult(loss, fine_mse, len(rays), len(rays) * per_ray)

    def set_views(self, views: Views) -> None:
        """Go on with other pixels, on the same device."""
        self.views = views

    def _pixels(self, n_rays: int) -> Tensor:
        """Uniform over all pixels; in the first steps, over the centre of every image."""
        train = self.config.train
        u = torch.rand(n_rays, dtype=torch.float64, generator=self.generator, device=self.device)
        flat = self.views.draw(u)
        if self.step_count > train.crop_steps or self.views.usable is not None:
            return flat
        pixels = self.views.locate(flat)
        size = self.sizes[pixels[:, 0]]
        margin = (1 - train.crop_fraction) / 2
        xy = (size * margin + pixels[:, 1:] * train.crop_fraction).long()
        start = flat - pixels[:, 1] - pixels[:, 2] * size[:, 0]
        return start + xy[:, 0] + xy[:, 1] * size[:, 0]

    def model_state(self) -> dict[str, Tensor]:
        return {k: p.detach() for k, p in self.field.params.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        moments = (("m", self.m), ("v", self.v))
        return {f"{kind}.{k}": t for kind, tensors in moments for k, t in tensors.items()}

    def extra_state(self) -> dict:
        return {"step": self.step_count}

    def load(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], extra: dict) -> None:
        ensure_same_shapes(model, self.model_state())
        ensure_same_shapes(optimizer, self.optimizer_state())
        self.field.params = {k: p.clone().requires_grad_() for k, p in model.items()}
        self.m = {k: optimizer[f"m.{k}"] for k in self.m}
        self.v = {k: optimizer[f"v.{k}"] for k in self.v}
        self.step_count = extra["step"]


Trainer = HashGridTrainer | ClassicTrainer

"""Training of method classic, and the method itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.rays import Batch
from nerfcli.core.config import Config, known
from nerfcli.core.distributed import world
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods import classic
from nerfcli.methods.base import Method, StepResult, background_of, weight_generator
from nerfcli.methods.classic import ClassicField, Jitter
from nerfcli.methods.shared_optimizer import create_optimizer
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.losses import mse
from nerfcli.scenes import Scene
from nerfcli.scenes.capture import faces_one_way
from nerfcli.scenes.hull import Silhouettes
from nerfcli.scenes.views import Views, over_background

N_RAYS = {"cpu": 1024, "cuda": 4096}  # of a step; the paper's batch on a GPU
ADAM = AdamConfig(beta2=0.999, eps=1e-7)  # NeRF (2020), section 5.3, and Keras' epsilon


class ClassicTrainer:
    """Steps of the 2020 paper: coarse and fine loss, one Adam over both networks."""

    def __init__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> None:
        self.scene, self.views, self.config, self.ops = scene, views, config, ops
        self.generator, self.device = generator, generator.device
        self.world = world()
        self.background = background_of(scene, self.device)
        weights = weight_generator(generator, config.train.seed)
        field = ClassicField.create(config, scene, ops, weights)
        self.field = field.to(str(self.device))
        for p in self.field.params.values():
            p.requires_grad_()
        self.optimizer = create_optimizer(self.field.params, ops, ADAM)
        self.field.params = self.optimizer.params
        self.sizes = scene.cameras.size.to(self.device)
        self.step_count = 0

    def begin(self, views: Views, silhouettes: Silhouettes | None = None) -> None:
        """Nothing: empty space is found while training."""

    def set_views(self, views: Views) -> None:
        self.views = views

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """||C^_c - C||^2 and ||C^_f - C||^2; NeRF (2020), eq. 6."""
        jitter = Jitter.draw(len(batch.rays), self.config, self.generator)
        pixels = self.field.render_coarse_fine(batch.rays, batch.background, jitter)
        names = ("coarse", "fine")
        return {n: mse(p.rgb, batch.rgb) for n, p in zip(names, pixels, strict=True)}

    def step(self, lr: float) -> StepResult:
        self.step_count += 1
        own = self.config.classic
        n_rays = known(own.n_rays)
        mine = self.world.share(n_rays)
        flat = self._pixels(n_rays)[mine]
        jitter = Jitter.draw(n_rays, self.config, self.generator)[mine]
        rays = self.scene.cameras.rays(self.views.locate(flat))
        target = over_background(self.views.colors(flat), self.background)
        loss, fine_mse, grads = classic.gradients(self.field, rays, target, self.background, jitter)
        for name, grad in zip(self.field.params, grads, strict=True):
            self.optimizer.grads[name].copy_(grad)
        if not self.world.is_alone:
            means = torch.stack([loss, fine_mse]) * self.world.portion(n_rays)
            loss, fine_mse = self.optimizer.sum_gradients(self.world, n_rays, means).unbind()
        self.optimizer.step(step=self.step_count, lr=lr)
        terms = {"coarse": loss - fine_mse, "fine": fine_mse}
        per_ray = 2 * own.n_coarse + own.n_fine
        return StepResult(loss, terms, fine_mse, n_rays, n_rays * per_ray)

    def _pixels(self, n_rays: int) -> Tensor:
        """Uniform over all pixels; in the first steps, over the centre of every image."""
        own = self.config.classic
        u = torch.rand(n_rays, dtype=torch.float64, generator=self.generator, device=self.device)
        flat = self.views.draw(u)
        if self.step_count > own.crop_steps or self.views.usable is not None:
            return flat
        pixels = self.views.locate(flat)
        size = self.sizes[pixels[:, 0]]
        margin = (1 - own.crop_fraction) / 2
        xy = (size * margin + pixels[:, 1:] * own.crop_fraction).long()
        start = flat - pixels[:, 1] - pixels[:, 2] * size[:, 0]
        return start + xy[:, 0] + xy[:, 1] * size[:, 0]

    def rendered_field(self) -> ClassicField:
        return self.field

    def model_state(self) -> dict[str, Tensor]:
        return self.field.params.map(torch.Tensor.detach).state()

    def optimizer_state(self) -> dict[str, Tensor]:
        return self.optimizer.state()

    def extra_state(self) -> dict[str, Any]:
        return {"step": self.step_count}

    def load(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], extra: dict[str, Any]
    ) -> None:
        ensure_same_shapes(model, self.model_state())
        model = {name: p.clone().requires_grad_() for name, p in model.items()}
        self.field.params = self.optimizer.load(model, optimizer)
        self.step_count = extra["step"]


def resolve(config: Config, scene: Scene, device: str) -> Config:
    """Fill in what the method's own settings leave to the device."""
    own, train = config.classic, config.train
    return replace(
        config,
        classic=replace(
            own, n_rays=own.n_rays or N_RAYS[device], spacing=own.spacing or spacing_for(scene)
        ),
        train=replace(
            train,
            lr=5e-4 if train.lr is None else train.lr,
            lr_final=0.1 if train.lr_final is None else train.lr_final,
            loss=train.loss or "mse",
        ),
    )


def spacing_for(scene: Scene) -> Literal["linear", "disparity"]:
    """Even in disparity for forward-facing captures, as NeRF (2020) has them; else in distance."""
    return "disparity" if faces_one_way(scene) else "linear"


def remark(scene: Scene) -> str:
    """Warn of a scene with surroundings: samples and frequencies are spread over all of it."""
    if scene.box.n_cascades == 1:
        return ""
    return (
        f"warning: classic spreads its samples evenly from near {scene.near:.3g} to far "
        f"{scene.far:.3g}, for an object in a box; with surroundings like these it stays blurred. "
        "Use --method hashgrid, or set scene.near, scene.far and scene.cascades=1"
    )


CLASSIC = Method(
    name="classic",
    resolve=resolve,
    create_field=ClassicField.create,
    create_trainer=ClassicTrainer,
    hold=0.0,
    smaller_step="classic.n_rays=512",
    exports_on_gpu=False,
    remark=remark,
)

"""Training of method unbounded, and its settings by scene and device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.rays import Rays
from nerfcli.core.config import Config, known
from nerfcli.methods.base import Method, StepResult
from nerfcli.methods.grid_trainer import GridTrainer
from nerfcli.methods.hashgrid_method import detail_pixels
from nerfcli.methods.proposals import count_views
from nerfcli.methods.unbounded import UnboundedField
from nerfcli.reference.samples import Samples
from nerfcli.scenes import Scene
from nerfcli.scenes.capture import faces_one_way
from nerfcli.scenes.hull import Silhouettes
from nerfcli.scenes.views import Views

LOG2_TABLE_SIZE = {"cpu": 18, "cuda": 19}  # of the grid's largest levels
N_RAYS = {"cpu": 1408, "cuda": 8192}  # of a step
MAX_RESOLUTION = 8192  # of the finest level: the detail cube has half of it
COUNTED = 17  # places along the detail cube where views are counted
MANY_VIEWS = 17.0  # that see a place: then gradients fade no farther than one half size
FARTHEST = 10.0  # half sizes of the detail cube that gradients fade over, where views are few
LR, LR_FINAL = 0.02, 0.05
ANNEALING_STEPS = 200  # until samples wholly follow the remembered densities
BIAS_SLOPE = 10.0  # of the annealing, as in mip-NeRF 360 (2022), eq. 19


class UnboundedTrainer(GridTrainer[UnboundedField]):
    """Steps of an unbounded field: equally many samples of each ray."""

    def __init__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> None:
        own = config.unbounded
        super().__init__(scene, views, config, ops, generator, UnboundedField.create, own)
        half = scene.box.half_size
        self.objective = replace(
            self.objective,
            distortion=own.distortion_loss,
            curve=half,
            full_from=known(own.full_from) * half,
        )

    def begin(self, views: Views, silhouettes: Silhouettes | None = None) -> None:
        """Tell the proposals which cells no two training cameras see."""
        self.field.sampler.mark_lone(self.scene)

    def step(self, lr: float) -> StepResult:
        self.step_count += 1
        n_rays = known(self.config.unbounded.n_rays)
        batch, bounds = self._draw(n_rays)
        sampler = self.field.sampler
        sampler.annealing = self._annealing()
        samples = sampler.sample(batch.rays, bounds, self._uniform_share(n_rays))
        out = self.ops.step_gradients(
            self.field.network, self.grads, batch, samples, self.objective, with_weights=True
        )
        n_kept = out.n_kept
        if not self.world.is_alone:
            out, (n_kept,) = self._combine(out, n_rays, int(out.n_kept))
        self._optimize(batch, out, lr)
        assert out.weights is not None
        sampler.learn(*self._of_all(batch.rays, samples, out.weights))
        sampler.annealing = 1.0
        return self._result(out, n_rays, n_kept)

    def _of_all(
        self, rays: Rays, samples: Samples, weights: Tensor
    ) -> tuple[Rays, Samples, Tensor]:
        """Rays, samples and weights of all processes, so that all remember the same."""
        if self.world.is_alone:
            return rays, samples, weights
        of_rays = [rays.origins, rays.directions, samples.ray_offsets.diff()[:, None].float()]
        origins, directions, counts = self.world.gather(torch.cat(of_rays, 1)).split([3, 3, 1], 1)
        n = int(samples.ray_offsets[-1])
        of_samples = torch.stack([samples.t_starts[:n], samples.t_ends[:n], weights[:n]], 1)
        starts, ends, weights = (c.contiguous() for c in self.world.gather(of_samples).unbind(1))
        offsets = torch.nn.functional.pad(counts[:, 0].long().cumsum(0), (1, 0))
        rays = Rays(origins.contiguous(), directions.contiguous())
        return rays, Samples(starts, ends, offsets), weights

    def _annealing(self) -> float:
        """How far the samples follow the proposals: a fast rise from 0 to 1."""
        share = min(self.step_count / ANNEALING_STEPS, 1.0)
        return BIAS_SLOPE * share / ((BIAS_SLOPE - 1.0) * share + 1.0)

    def extra_state(self) -> dict[str, Any]:
        return {"step": self.step_count}

    def load(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], extra: dict[str, Any]
    ) -> None:
        self._load(model, optimizer)
        self.step_count = self.first_step = extra["step"]


def resolve(config: Config, scene: Scene, device: str) -> Config:
    """Fill in what the method's own settings leave to the scene and the device."""
    own, train = config.unbounded, config.train
    resolution = 256
    while resolution < 4 * detail_pixels(scene) and resolution < MAX_RESOLUTION:
        resolution *= 2
    own = replace(
        own,
        space=own.space or ("perspective" if faces_one_way(scene) else "contraction"),
        n_rays=own.n_rays or N_RAYS[device],
        log2_table_size=own.log2_table_size or LOG2_TABLE_SIZE[device],
        max_resolution=own.max_resolution or resolution,
        full_from=fading_distance(scene) if own.full_from is None else own.full_from,
    )
    train = replace(
        train,
        lr=LR if train.lr is None else train.lr,
        lr_final=LR_FINAL if train.lr_final is None else train.lr_final,
        loss=train.loss or "huber",
    )
    return replace(config, unbounded=own, train=train)


def fading_distance(scene: Scene) -> float:
    """How far gradients fade, in half sizes of the detail cube: farther, the fewer views see it.

    What few views see can hide in front of their cameras; where many do, fading only slows the
    training. By how many training views see the best seen tenth of the detail cube: on a walk that
    looks outward most places are seen by few, and still each of its views has neighbours.
    """
    axis = torch.linspace(-1.0, 1.0, COUNTED) * scene.box.half_size
    places = torch.cartesian_prod(axis, axis, axis) + torch.tensor(scene.box.center)
    counts = count_views(scene.cameras[list(scene.splits["train"])], places)
    counts = counts[counts > 0].float()
    best = float(counts.quantile(0.9)) if len(counts) else 1.0
    return min(max((MANY_VIEWS / best) ** 6, 1.0), FARTHEST)


UNBOUNDED = Method(
    name="unbounded",
    resolve=resolve,
    create_field=UnboundedField.create,
    create_trainer=UnboundedTrainer,
    hold=0.3,
    smaller_step="unbounded.n_rays=512",
    exports_on_gpu=True,
    has_exposure=True,
    length=2.5,
    is_unbounded=True,
)

"""Method voxelgrid: density and colour at the vertices of a dense grid, and nothing else.

The recipe "A method" of docs/contributing.md, carried out. A method of the product has this file
in methods/, and the table in core/config.py.

Values are interpolated before their activation (DVGO 2022, section 4.1), which keeps edges sharp
within a voxel. There is no network: a point has the same colour from everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, softplus

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.core.config import Config, Count
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods.base import Method, StepResult, background_of
from nerfcli.methods.cropped import CroppedGrid
from nerfcli.methods.optimizer import Optimizer
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.losses import mse
from nerfcli.reference.params import ParamSet
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import MarchingGrid, Steps, intersect_box
from nerfcli.scenes import Scene
from nerfcli.scenes.hull import Silhouettes
from nerfcli.scenes.views import Views, over_background

RAW_DENSITY = -5.0  # at first: an optical depth of 0.007 a voxel, nearly clear


@dataclass(frozen=True)
class VoxelGridConfig:
    """Method voxelgrid."""

    resolution: Count = 64  # vertices along a side of the outer cube
    n_steps: Count = 96  # marching steps along its diagonal
    n_rays: Count = 2048  # of a step


@dataclass(frozen=True)
class ToyConfig(Config):
    """The config with the method's table."""

    voxelgrid: VoxelGridConfig = field(default_factory=VoxelGridConfig)


def own_table(config: Config) -> VoxelGridConfig:
    """What is `config.voxelgrid` where the table is one of the package's."""
    assert isinstance(config, ToyConfig)
    return config.voxelgrid


@dataclass
class VoxelField:
    """A dense grid over the outer cube; outside of it there is nothing."""

    box: Box
    near: float
    far: float
    n_steps: int
    params: ParamSet  # "grid": [4, R, R, R], raw density and colour, indexed [channel, z, y, x]
    ops: Backend
    rays_per_chunk: int = 2**13
    occupancy: None = None
    needs_radii: bool = False
    crop: Crop | None = None

    @staticmethod
    def create(
        config: Config, scene: Scene, ops: Backend, generator: torch.Generator
    ) -> VoxelField:
        own = own_table(config)
        grid = torch.zeros(4, *(own.resolution,) * 3, device=generator.device)
        grid[0] = RAW_DENSITY
        return VoxelField(
            scene.box, scene.near, scene.far, own.n_steps, ParamSet({"grid": grid}), ops
        )

    def radiance(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """positions, directions [n, 3] -> sigmas [n] per scene unit, rgbs [n, 3]."""
        grid = self.params["grid"]
        places = (self.box.to_unit(positions) * 2 - 1).view(1, -1, 1, 1, 3)
        raw = grid_sample(grid[None], places, align_corners=True).view(4, -1)
        voxel = self.box.side / (grid.shape[1] - 1)
        return softplus(raw[0]) / voxel, raw[1:].sigmoid().T

    def density(self, positions: Tensor) -> Tensor:
        """positions [n, 3] -> sigmas [n] per scene unit, without gradients."""
        with torch.no_grad():
            sigmas = self.radiance(positions, positions)[0]
        return sigmas if self.crop is None else sigmas * self.crop.contains(positions)

    @property
    def steps(self) -> Steps:
        return Steps(self.box.side * 3**0.5 / self.n_steps)

    def bounds(self, rays: Rays) -> Bounds:
        """Distances within the box; t_max <= t_min where a ray misses it."""
        bounds = intersect_box(rays, self.box, self.near, self.far)
        return bounds if self.crop is None else self.crop.cut(rays, bounds)

    def march(self, rays: Rays, background: Tensor, jitter: Tensor) -> tuple[Pixels, Samples]:
        """Pixels of rays and what they are made of. background [3]; jitter [n_rays] in [0, 1)."""
        everywhere = jitter.new_ones(self.box.n_cascades, 1, 1, 1, dtype=torch.bool)
        grid = MarchingGrid(everywhere, self.box, self.steps)
        if self.crop is not None:
            grid = CroppedGrid(grid, self.crop)
        samples = grid.sample(self.ops, rays, self.bounds(rays), jitter)
        indices = samples.ray_indices()
        positions, directions = samples.positions(rays, indices), rays.directions[indices]
        sigmas, rgbs = self.radiance(positions, directions)
        return self.ops.composite(sigmas, rgbs, samples, background), samples

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        """Pixels of rays, without gradients. background [3]."""
        with torch.no_grad():
            return self.march(rays, background, torch.full_like(rays.origins[:, 0], 0.5))[0]

    def between(self, near: float, far: float) -> VoxelField:
        return replace(self, near=near, far=far)

    def within(self, crop: Crop) -> VoxelField:
        return replace(self, crop=crop)

    def ending_at(self, min_transmittance: float) -> None:
        """Its rays have no early end."""

    def to(self, device: str) -> VoxelField:
        return replace(self, params=self.params.map(lambda p: p.to(device)))

    def for_cpu_callers(self, device: str) -> VoxelField:
        return self.to("cpu")

    def state(self) -> dict[str, Tensor]:
        return self.params.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        ensure_same_shapes(state, self.params)
        self.params = self.params.from_state(state)


class VoxelTrainer:
    """Random pixels, the mean squared error, and Adam."""

    def __init__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> None:
        self.scene, self.views, self.config = scene, views, config
        self.generator, self.device = generator, generator.device
        self.field = VoxelField.create(config, scene, ops, generator)
        self.optimizer = Optimizer(self.field.params, ops, AdamConfig())
        self.background = background_of(scene, self.device)
        self.step_count = 0

    def begin(self, views: Views, silhouettes: Silhouettes | None = None) -> None:
        """Nothing: the grid starts nearly clear."""

    def set_views(self, views: Views) -> None:
        self.views = views

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        jitter = torch.full_like(batch.rays.origins[:, 0], 0.5)
        seen, _ = self.field.march(batch.rays, batch.background, jitter)
        return {"mse": mse(seen.rgb, batch.rgb)}

    def step(self, lr: float) -> StepResult:
        self.step_count += 1
        n, generator, device = own_table(self.config).n_rays, self.generator, self.device
        u = torch.rand(n, dtype=torch.float64, generator=generator, device=device)
        pixels = self.views.draw(u)
        target = over_background(self.views.colors(pixels), self.background)
        rays = self.scene.cameras.rays(self.views.locate(pixels))
        jitter = torch.rand(n, generator=generator, device=device)
        grid = self.field.params["grid"].requires_grad_()
        seen, samples = self.field.march(rays, self.background, jitter)
        loss = mse(seen.rgb, target)
        (self.optimizer.grads["grid"],) = torch.autograd.grad(loss, grid)
        self.optimizer.step(step=self.step_count, lr=lr)
        loss = loss.detach()
        return StepResult(loss, {"mse": loss}, loss, n, samples.capacity)

    def rendered_field(self) -> VoxelField:
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
        self.field.params = self.optimizer.load(model, optimizer)
        self.step_count = extra["step"]


def resolve(config: Config, scene: Scene, device: str) -> Config:
    """Fill in what [train] leaves to the method."""
    train = config.train
    train = replace(
        train,
        lr=0.5 if train.lr is None else train.lr,
        lr_final=0.1 if train.lr_final is None else train.lr_final,
        loss="mse",
    )
    return replace(config, train=train)


VOXELGRID = Method(
    name="voxelgrid",
    resolve=resolve,
    create_field=VoxelField.create,
    create_trainer=VoxelTrainer,
    hold=0.0,
    smaller_step="voxelgrid.n_rays=512",
    exports_on_gpu=False,
)

"""What a method is: a kind of field, and how it is trained. Fields and trainers as protocols.

Everything outside of `methods` works with these; no code there asks which method it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.core.config import Config
from nerfcli.methods.occupancy import OccupancyGrid
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import Steps
from nerfcli.scenes import Scene
from nerfcli.scenes.hull import Silhouettes
from nerfcli.scenes.views import Views


class Sampler(Protocol):
    """Where a field is sampled along rays, and how that is learned while it trains."""

    def sample(self, rays: Rays, bounds: Bounds, jitter: Tensor) -> Samples:
        """Samples between the bounds. jitter [n_rays] in [0, 1)."""
        ...

    def update(
        self, density: Callable[[Tensor], Tensor], generator: torch.Generator, *, wait: bool = True
    ) -> None:
        """Learn from the field as it is now.

        Args:
            density: scene positions [n, 3] -> sigmas [n].
            wait: whether the host may wait for the device.
        """
        ...

    def to(self, device: str) -> Self: ...

    def by(self, ops: Backend) -> Self:
        """The same sampler, computed by another backend."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: dict[str, Tensor]) -> None: ...


class Field(Protocol):
    """A radiance field in scene space; densities are per scene unit.

    Attributes:
        box: the detail cube and its cascades. near, far: bounds of a ray, scene units.
        ops: of the backend that evaluates it.
    """

    @property
    def box(self) -> Box: ...
    @property
    def near(self) -> float: ...
    @property
    def far(self) -> float: ...
    @property
    def ops(self) -> Backend: ...
    @property
    def rays_per_chunk(self) -> int:
        """Rays that `render_rays` is best given at once."""
        ...

    @property
    def steps(self) -> Steps:
        """Length of its samples along a ray."""
        ...

    @property
    def occupancy(self) -> OccupancyGrid | None:
        """The cells where rays sample; None: everywhere."""
        ...

    def density(self, positions: Tensor) -> Tensor:
        """positions [n, 3] -> sigmas [n], without gradients."""
        ...

    def radiance(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """positions, directions [n, 3] -> sigmas [n], rgbs [n, 3]."""
        ...

    @property
    def needs_radii(self) -> bool:
        """Whether it is to be rendered with the radii of the rays' cones."""
        ...

    def bounds(self, rays: Rays) -> Bounds:
        """Distances between which a ray is sampled; t_max <= t_min: nowhere."""
        ...

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        """Pixels of rays, without gradients. background [3]."""
        ...

    def between(self, near: float, far: float) -> Field:
        """The same field with other bounds of a ray."""
        ...

    def within(self, crop: Crop) -> Field:
        """The same field, and nothing outside of the crop, which is in scene space."""
        ...

    def ending_at(self, min_transmittance: float) -> Field | None:
        """The same with rays that end where less light is left; None: its rays have no end."""
        ...

    def to(self, device: str) -> Field: ...

    def for_cpu_callers(self, device: str) -> Field:
        """The same, on `device`, for callers whose tensors are on the CPU; not for training."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Every tensor by its name in a checkpoint."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of a checkpoint.

        Raises:
            NerfError: they are not those of a field of this shape.
        """
        ...


@dataclass(frozen=True)
class StepResult:
    """What a step reports; tensors, so that reading them is the caller's choice.

    Attributes:
        loss: the weighted sum of the terms. terms: by name, before their weights.
        mse: of the rendered against the true colours.
        n_rays, n_samples: that took part.
        remark: to the user.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    mse: Tensor
    n_rays: int | Tensor
    n_samples: int | Tensor
    remark: str | None = None


class Trainer(Protocol):
    """A field in training, and the state of its optimiser.

    Everything is on the device of the generator that all randomness comes from. With what the
    states hold, and the generator's state, a checkpoint goes on bit for bit on a CPU.
    """

    scene: Scene
    config: Config
    generator: torch.Generator
    step_count: int

    @property
    def device(self) -> torch.device: ...

    @property
    def field(self) -> Field: ...

    def begin(self, views: Views, silhouettes: Silhouettes | None = None) -> str | None:
        """Use what the views show of the scene, before the first step of a run.

        Args:
            views: on the CPU. silhouettes: of these views, where they are known.

        Returns:
            A remark to the user, if there is one.
        """
        ...

    def set_views(self, views: Views) -> None:
        """Go on with other pixels, on the same device."""
        ...

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Each term of the loss by name, differentiable in the field's parameters.

        This defines what `step` minimises. `step` may take a faster path that agrees with it.
        """
        ...

    def step(self, lr: float) -> StepResult: ...

    def rendered_field(self) -> Field:
        """The field as it is shown: with the running mean of the weights, where there is one."""
        ...

    def model_state(self) -> dict[str, Tensor]:
        """The tensors of `rendered_field`."""
        ...

    def optimizer_state(self) -> dict[str, Tensor]: ...

    def extra_state(self) -> dict[str, Any]:
        """What else a checkpoint needs, as JSON values."""
        ...

    def load(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], extra: dict[str, Any]
    ) -> None:
        """Take everything from what the three states gave."""
        ...


class FieldMaker(Protocol):
    def __call__(
        self, config: Config, scene: Scene, ops: Backend, generator: torch.Generator
    ) -> Field: ...


class TrainerMaker(Protocol):
    def __call__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> Trainer: ...


@dataclass(frozen=True)
class Method:
    """One way to represent and to learn a scene.

    Attributes:
        name: also of its table in the config.
        resolve: fills in what its table and [train] leave to the scene and the device; the
            third argument is the device.
        create_field: a fresh field of a resolved config, on the CPU.
        create_trainer: with a fresh field, on the generator's device, where the views are too.
        hold: share of a run at the peak learning rate.
        smaller_step: a setting that makes a step need less memory.
        exports_on_gpu: whether shapes can be taken from its field while that is on a GPU.
        remark: what the user should know before it is trained on a scene; empty: nothing.
        length: of a run by default, as a multiple of an object's.
        has_exposure: whether its trainer learns exposure codes.
        is_unbounded: its field goes from near to the horizon, whatever the scene's box is.
    """

    name: str
    resolve: Callable[[Config, Scene, str], Config]
    create_field: FieldMaker
    create_trainer: TrainerMaker
    hold: float
    smaller_step: str
    exports_on_gpu: bool
    remark: Callable[[Scene], str] = lambda scene: ""
    length: float = 1.0
    is_unbounded: bool = False
    has_exposure: bool = False


def background_of(scene: Scene, device: torch.device | str) -> Tensor:
    """What transparent pixels are shown on, [3]."""
    return torch.full((3,), 1.0 if scene.background == "white" else 0.0, device=device)


def weight_generator(generator: torch.Generator, seed: int) -> torch.Generator:
    """The source of a fresh field's weights: on the CPU, so that they are the same everywhere."""
    if generator.device.type == "cpu":
        return generator
    return torch.Generator("cpu").manual_seed(seed)

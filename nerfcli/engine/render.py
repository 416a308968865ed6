"""A field and a camera become an image."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from dataclasses import field as default

import numpy as np
import torch
from torch import Tensor

from nerfcli import backends
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import Rays
from nerfcli.core.devices import is_out_of_memory, memory_errors, pick
from nerfcli.core.progress import Note
from nerfcli.engine.runs import Run
from nerfcli.methods import Field, Trainer, method_of
from nerfcli.methods.base import background_of
from nerfcli.reference.samples import Pixels
from nerfcli.scenes import Scene

LEAST_CHUNK = 1024
MEMORY_ADVICE = "close what else uses it, render at --scale 0.5, or use --device cpu"


@dataclass
class Room:
    """How many rays the memory holds at once; None: it has not been full yet."""

    rays: int | None = None


@dataclass(frozen=True)
class Model:
    """A field with what is needed to show it; holds no images.

    backend: a line that says what evaluates it. crop: nothing of the field is shown outside, scene
    space. note: takes a remark where the memory is full.
    """

    field: Field
    scene: Scene
    backend: str
    device: str = "cpu"
    crop: Crop | None = None
    note: Note | None = None
    room: Room = default(default_factory=Room)

    @staticmethod
    def of(trainer: Trainer) -> Model:
        """The field of a trainer as it is now, to be rendered between two of its steps."""
        field = trainer.rendered_field()
        return Model(field, trainer.scene, f"backend {field.ops.name}", str(trainer.device))

    @property
    def background(self) -> Tensor:
        """[3], on the model's device."""
        return background_of(self.scene, self.device)

    def digest(self) -> str:
        """Return a digest of the field's tensors, whatever checkpoint the disk holds by now."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.field.state().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_model(
    run: Run,
    backend: str = "auto",
    device: str = "cpu",
    note: Note | None = None,
) -> Model:
    """The field of a run's newest checkpoint, whatever device it was trained on.

    Args:
        device: auto, cpu or cuda.
        note: takes a remark where a GPU backend is checked at its first use here.

    Raises:
        NerfError: no readable checkpoint, or the backend or device cannot be had here.
    """
    config, scene, device = run.config, Scene.from_json(run.scene_json), pick(device)
    choice = backends.select(backend, device, note)
    tensors, _ = run.load_model(device)
    if run.remark and note is not None:
        note(run.remark)
    generator = torch.Generator("cpu").manual_seed(0)
    create_field = method_of(config).create_field
    field = create_field(config, scene, choice.backend, generator)
    field.load_state(tensors)
    return Model(field, scene, choice.line, device, note=note)


def render_image(model: Model, cameras: Cameras, index: int) -> Pixels:
    """One camera's view: Pixels of height * width rays, row-major, on the model's device.

    Raises:
        NerfError: as for `render_rays`.
    """
    return render_rays(model, cameras.image_rays(index, model.device, model.field.needs_radii))


def render_rays(
    model: Model, rays: Rays, *, field: Field | None = None, background: Tensor | None = None
) -> Pixels:
    """Render rays on the model's device.

    As many at once as the field likes; half as many, again and again, where the memory does not
    hold what they need. The model remembers how many it holds.

    Args:
        field: another form of the model's field. background: [3]; None: the scene's.

    Raises:
        NerfError: it does not even hold LEAST_CHUNK rays.
    """
    field = model.field if field is None else field
    background = model.background if background is None else background
    chunk = min(field.rays_per_chunk, model.room.rays or field.rays_per_chunk)
    parts, start = [], 0
    while start < len(rays) or not parts:
        enough = chunk <= LEAST_CHUNK
        try:
            with memory_errors("rendering", MEMORY_ADVICE) if enough else nullcontext():
                parts.append(field.render_rays(rays[start : start + chunk], background))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            chunk = model.room.rays = min(chunk, len(rays) - start) // 2
            if model.note is not None:
                model.note(f"the memory is full: going on with {chunk} rays at once")
        else:
            start += chunk
    return Pixels.cat(parts)


def as_image(values: Tensor, cameras: Cameras, index: int) -> np.ndarray:
    """[height * width, ...] -> [height, width, ...] numpy."""
    width, height = (int(v) for v in cameras.size[index])
    return values.reshape(height, width, *values.shape[1:]).cpu().numpy()


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)

"""Images of a scene into memory, as uint8: all at once, or in parts that take turns."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from nerfcli.core.errors import NerfError
from nerfcli.core.memory import available_memory, image_budget
from nerfcli.scenes.images import read_mask, read_with_alpha
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.views import Views

EXCHANGE_STEPS = 1000  # of training between two parts of the images


def views_bytes(scene: Scene, indices: Sequence[int]) -> int:
    """Memory that these cameras' pixels will take, and their masks."""
    sizes = scene.cameras.size[torch.tensor(list(indices), dtype=torch.int64)]
    masked = scene.crop_radius > 0 or any(scene.mask_paths[i] is not None for i in indices)
    per_pixel = (4 if scene.has_alpha else 3) + (4 if masked else 0)
    return int(sizes.prod(-1).sum()) * per_pixel


def parts_needed(scene: Scene, indices: Sequence[int]) -> int:
    """In how many parts, one after the other in memory, images fit; 1: all at once."""
    needed, budget = views_bytes(scene, indices), image_budget()
    if needed <= budget or len(indices) < 2:
        return 1
    # while parts are exchanged there are two of them
    return min(math.ceil(2 * needed / max(budget, 1)), len(indices))


class Residents:
    """The views that are in memory at a step.

    With several parts, which one is in memory depends on the step alone, so that runs by steps
    stay deterministic and can be resumed. Part k of n has every n-th view from the k-th, so that
    each part covers the whole capture.

    Attributes:
        n_parts: what memory asks for now; a run that goes on sets what it began with.
    """

    def __init__(
        self,
        scene: Scene,
        indices: Sequence[int],
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.scene, self.indices, self.say = scene, list(indices), say
        self.n_parts = parts_needed(scene, self.indices)
        self._resident = -1
        self._views: Views | None = None

    def at(self, step: int) -> Views:
        """The views for a step, read from their files where the part changes.

        Raises:
            NerfError: as `load_views`.
        """
        part = self._part(step)
        if part != self._resident or self._views is None:
            chosen = self.indices[part :: self.n_parts]
            if self._resident < 0 and self.n_parts > 1 and self.say is not None:
                self.say(
                    f"{len(self.indices)} images need "
                    f"{views_bytes(self.scene, self.indices) / 1e9:.2g} GB, "
                    f"{image_budget() / 1e9:.2g} GB of memory are free for them: {len(chosen)} are "
                    f"in memory at a time, exchanged every {EXCHANGE_STEPS} steps"
                )
            say = self.say if self._resident < 0 else None
            self._views = load_views(self.scene, chosen, say=say)
            self._resident = part
        return self._views

    def exchanged(self, step: int) -> Views | None:
        """The views for a step where they are others than those last asked for, else None."""
        return None if self._part(step) == self._resident else self.at(step)

    def _part(self, step: int) -> int:
        return step // EXCHANGE_STEPS % self.n_parts


def load_views(
    scene: Scene,
    indices: Sequence[int],
    *,
    say: Callable[[str], None] | None = None,
    n_threads: int = 0,
) -> Views:
    """Read the images of some cameras, several at a time.

    Args:
        indices: cameras, in the order that the views will have.
        say: gets one line before reading that states how much memory will be taken.
        n_threads: 0: as many as there are processors.

    Raises:
        NerfError: no image, a corrupt one, one of another size than at load_scene, or more
            memory needed than is available.
    """
    indices = list(indices)
    needed, available = views_bytes(scene, indices), available_memory()
    if needed > available:
        raise NerfError(
            f"{len(indices)} images need {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB of memory "
            "are available; use --downscale."
        )
    if say is not None:
        say(f"reading {len(indices)} images, {needed / 1e6:.0f} MB")
    sizes = scene.cameras.size[torch.tensor(indices, dtype=torch.int64)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.prod(-1).cumsum(0)])
    pixels = torch.empty((int(offsets[-1]), 4 if scene.has_alpha else 3), dtype=torch.uint8)

    def read(view: int) -> Tensor | None:
        image = _read(scene, indices[view])
        pixels[offsets[view] : offsets[view + 1]] = image.view(-1, image.shape[-1])
        return _usable(scene, indices[view])

    threads = n_threads or min(os.cpu_count() or 1, 16)
    with ThreadPoolExecutor(threads) as pool:
        usable = list(pool.map(read, range(len(indices))))
    cameras = torch.tensor(indices, dtype=torch.int64)
    return Views(pixels, offsets, cameras, sizes[:, 0].contiguous(), _flat(usable, offsets))


def image_path(scene: Scene, camera: int) -> Path:
    """Raise NerfError if there is none."""
    path = scene.image_paths[camera]
    if path is None:
        raise NerfError(
            f"The scene has no image for {scene.names[camera]}; a run folder holds none, so the "
            "data set is needed here."
        )
    return path


def ensure_size(scene: Scene, camera: int, path: Path, found: Sequence[tuple[int, int]]) -> None:
    """Raise NerfError unless an image has the camera's size.

    found: width and height after downscaling; several where EXIF may turn the image.
    """
    width, height = scene.cameras.size[camera].tolist()
    if (width, height) not in found:
        raise NerfError(
            f"{path} has {found[0][0]}x{found[0][1]} pixels after downscaling, expected "
            f"{width}x{height}; it has changed since the scene was read."
        )


def _read(scene: Scene, camera: int) -> Tensor:
    """[height, width, 3 or 4] of one camera, with its separate alpha image if there is one."""
    path = image_path(scene, camera)
    width, height = scene.cameras.size[camera].tolist()
    image = read_with_alpha(path, scene.alpha_paths[camera], scene.downscale, (width, height))
    ensure_size(scene, camera, path, [(image.shape[1], image.shape[0])])
    if scene.has_alpha and image.shape[-1] == 3:
        image = torch.cat([image, torch.full_like(image[..., :1], 255)], dim=-1)
    return image[..., : 4 if scene.has_alpha else 3]


def _usable(scene: Scene, camera: int) -> Tensor | None:
    """[height * width] bool, or None: mask, fisheye circle and the lens's own limit together."""
    width, height = scene.cameras.size[camera].tolist()
    keep: Tensor | None = None
    if not scene.cameras.lenses[camera].is_pinhole:
        keep = scene.cameras.valid_pixels(camera)
    if scene.crop_radius > 0:
        y = torch.arange(height)[:, None] + 0.5 - height / 2
        x = torch.arange(width)[None, :] + 0.5 - width / 2
        inside = (x * x + y * y <= scene.crop_radius**2).reshape(-1)
        keep = inside if keep is None else keep & inside
    mask_path = scene.mask_paths[camera]
    if mask_path is not None:
        mask = read_mask(mask_path, (width, height), scene.masked_where, scene.downscale)
        mask = mask.reshape(-1)
        keep = mask if keep is None else keep & mask
    return None if keep is None or bool(keep.all()) else keep


def _flat(usable: list[Tensor | None], offsets: Tensor) -> Tensor | None:
    if all(keep is None for keep in usable):
        return None
    parts = []
    for view, keep in enumerate(usable):
        start, end = int(offsets[view]), int(offsets[view + 1])
        indices = torch.arange(start, end) if keep is None else keep.nonzero()[:, 0] + start
        parts.append(indices)
    flat = torch.cat(parts)
    if len(flat) == 0:
        raise NerfError("All pixels are masked out; are the masks the other way round?")
    return flat.to(torch.int32) if int(offsets[-1]) < 2**31 else flat

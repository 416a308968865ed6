"""Hold the images of a scene in memory as uint8: all at once, or one shard after the other."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from nerfcli.core.errors import NerfError
from nerfcli.core.memory import available_memory, image_budget
from nerfcli.core.progress import Note
from nerfcli.core.text import quantity
from nerfcli.scenes.alpha import OPAQUE
from nerfcli.scenes.blind import describe_blind_lenses, explain_unusable, find_blind_lenses
from nerfcli.scenes.images import read_mask, read_with_alpha
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.views import Views

EXCHANGE_STEPS = 1000  # training steps that a shard of the images stays in memory


def views_bytes(scene: Scene, indices: Sequence[int]) -> int:
    """Bytes of memory for the pixels and masks of these cameras."""
    sizes = scene.cameras.size[torch.tensor(list(indices), dtype=torch.int64)]
    masked = scene.crop_radius > 0 or scene.alpha_ignored
    masked = masked or any(scene.mask_paths[i] is not None for i in indices)
    per_pixel = (4 if scene.has_alpha else 3) + (4 if masked else 0)
    return int(sizes.prod(-1).sum()) * per_pixel


def count_shards(scene: Scene, indices: Sequence[int]) -> int:
    """Count the shards into which images must be split to fit into memory; 1: all at once."""
    needed, budget = views_bytes(scene, indices), image_budget()
    if needed <= budget or len(indices) < 2:
        return 1
    # two shards are in memory while one replaces the other
    return min(math.ceil(2 * needed / max(budget, 1)), len(indices))


class ImageCache:
    """Provide the views of a training step, in shards if they do not fit into memory together.

    The step alone decides which shard is in memory: runs by steps stay deterministic and can be
    resumed. Shard k of n has every n-th view from the k-th, and so covers the whole capture.

    Attributes:
        n_shards: as memory requires now; a resumed run sets the number it began with.
    """

    def __init__(
        self,
        scene: Scene,
        indices: Sequence[int],
        note: Note | None = None,
    ) -> None:
        self.scene, self.indices, self.note = scene, list(indices), note
        self.n_shards = count_shards(scene, self.indices)
        self._current = -1
        self._views: Views | None = None

    def at(self, step: int) -> Views:
        """Return the views for a step; read them from their files if the shard changes.

        Raises:
            NerfError: as `load_views`, or no pixel can be used.
        """
        shard = self._shard(step)
        if shard != self._current or self._views is None:
            chosen = self.indices[shard :: self.n_shards]
            if self._current < 0 and self.n_shards > 1 and self.note is not None:
                self.note(
                    f"{len(self.indices)} images need "
                    f"{views_bytes(self.scene, self.indices) / 1e9:.2g} GB, "
                    f"{image_budget() / 1e9:.2g} GB of memory are free for them: {len(chosen)} are "
                    f"in memory at a time, exchanged every {EXCHANGE_STEPS} steps"
                )
            note = self.note if self._current < 0 else None
            views = load_views(self.scene, chosen, note=note)
            if views.n_pixels == 0:
                raise NerfError(f"No pixel can be used: {explain_unusable(self.scene, chosen)}.")
            if note is not None and (blind := find_blind_lenses(self.scene, chosen)):
                note(describe_blind_lenses(self.scene, blind))
            self._views = views
            self._current = shard
        return self._views

    def exchange(self, step: int) -> Views | None:
        """Load and return the new shard if the step crosses a boundary, else return None."""
        return None if self._shard(step) == self._current else self.at(step)

    def _shard(self, step: int) -> int:
        return step // EXCHANGE_STEPS % self.n_shards


def load_views(
    scene: Scene,
    indices: Sequence[int],
    *,
    note: Note | None = None,
    n_threads: int = 0,
) -> Views:
    """Read the images of some cameras, several at a time.

    Args:
        indices: cameras, in the order that the views will have.
        note: gets one line before reading that states how much memory is needed.
        n_threads: 0: as many as there are processors.

    Raises:
        NerfError: an image is missing, corrupt, or of another size than at load_scene, or there
            is not enough memory.
    """
    indices = list(indices)
    needed, available = views_bytes(scene, indices), available_memory()
    if needed > available:
        raise NerfError(
            f"{quantity(len(indices), 'image')} need {needed / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB of memory "
            "are available; use --downscale."
        )
    if note is not None:
        note(f"reading {quantity(len(indices), 'image')}, {needed / 1e6:.0f} MB")
    sizes = scene.cameras.size[torch.tensor(indices, dtype=torch.int64)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.prod(-1).cumsum(0)])
    pixels = torch.empty((int(offsets[-1]), 4 if scene.has_alpha else 3), dtype=torch.uint8)

    def read(view: int) -> Tensor | None:
        image, keep = _read(scene, indices[view])
        pixels[offsets[view] : offsets[view + 1]] = image.reshape(-1, image.shape[-1])
        return usable_pixels(scene, indices[view], keep)

    threads = n_threads or min(os.cpu_count() or 1, 16)
    with ThreadPoolExecutor(threads) as pool:
        usable = list(pool.map(read, range(len(indices))))
    cameras = torch.tensor(indices, dtype=torch.int64)
    return Views(pixels, offsets, cameras, sizes[:, 0].contiguous(), _flat(usable, offsets))


def image_path(scene: Scene, camera: int) -> Path:
    """Return the image of a camera; NerfError if it has none."""
    path = scene.image_paths[camera]
    if path is None:
        raise NerfError(
            f"The scene has no image for {scene.names[camera]}; a run folder holds none, so the "
            "data set is needed here."
        )
    return path


def ensure_size(scene: Scene, camera: int, path: Path, found: Sequence[tuple[int, int]]) -> None:
    """Raise NerfError unless an image has the camera's size.

    found: width and height after downscaling; several if EXIF may turn the image.
    """
    width, height = scene.cameras.size[camera].tolist()
    if (width, height) not in found:
        raise NerfError(
            f"{path} has {found[0][0]}x{found[0][1]} pixels after downscaling, expected "
            f"{width}x{height}; it has changed since the scene was read."
        )


def _read(scene: Scene, camera: int) -> tuple[Tensor, Tensor | None]:
    """Read an image with its separate alpha image, if there is one.

    Returns:
        [height, width, 3 or 4], and where alpha is a mask, [height * width] bool: may be used.
    """
    path = image_path(scene, camera)
    width, height = scene.cameras.size[camera].tolist()
    image = read_with_alpha(path, scene.alpha_paths[camera], scene.downscale, (width, height))
    ensure_size(scene, camera, path, [(image.shape[1], image.shape[0])])
    if scene.has_alpha and image.shape[-1] == 3:
        image = torch.cat([image, torch.full_like(image[..., :1], 255)], dim=-1)
    keep = None
    if scene.alpha_ignored and image.shape[-1] == 4:
        keep = (image[..., 3] >= OPAQUE).reshape(-1)
    return image[..., : 4 if scene.has_alpha else 3], keep


def read_usable(scene: Scene, camera: int) -> Tensor | None:
    """Read which pixels of a camera may be used, [height * width] bool; None: all may."""
    return usable_pixels(scene, camera, _read(scene, camera)[1] if scene.alpha_ignored else None)


def usable_pixels(
    scene: Scene, camera: int, keep: Tensor | None = None, *, masked: bool = True
) -> Tensor | None:
    """Combine alpha, mask, fisheye circle and the lens's own limit.

    keep: [height * width] bool, what alpha lets through, where it is a mask. Returned is the like.
    None: all. masked: false: without the mask, whose file may be elsewhere.
    """
    width, height = scene.cameras.size[camera].tolist()
    if not scene.cameras.lenses[camera].is_pinhole:
        valid = scene.cameras.valid_pixels(camera)
        keep = valid if keep is None else keep & valid
    if scene.crop_radius > 0:
        y = torch.arange(height)[:, None] + 0.5 - height / 2
        x = torch.arange(width)[None, :] + 0.5 - width / 2
        inside = (x * x + y * y <= scene.crop_radius**2).reshape(-1)
        keep = inside if keep is None else keep & inside
    mask_path = scene.mask_paths[camera]
    if masked and mask_path is not None:
        mask = read_mask(mask_path, (width, height), scene.masked_where, scene.downscale)
        mask = mask.reshape(-1)
        keep = mask if keep is None else keep & mask
    return None if keep is None or bool(keep.all()) else keep


def _flat(usable: list[Tensor | None], offsets: Tensor) -> Tensor | None:
    """Flat indices of the usable pixels of all views; None: all pixels."""
    if all(keep is None for keep in usable):
        return None
    parts = []
    for view, keep in enumerate(usable):
        start, end = int(offsets[view]), int(offsets[view + 1])
        indices = torch.arange(start, end) if keep is None else keep.nonzero()[:, 0] + start
        parts.append(indices)
    flat = torch.cat(parts)
    return flat.to(torch.int32) if int(offsets[-1]) < 2**31 else flat

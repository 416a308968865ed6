"""Looking at a scene's images: everything that costs time, done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerfcli.core.progress import Progress
from nerfcli.matching.matching import (
    Look,
    Matches,
    choose_pairs,
    likeness,
    look_at_images,
    nearness,
    shared_matches,
)
from nerfcli.scenes.scene import Scene

MAX_VIEWS = 300  # more are thinned evenly: each is judged by its neighbours anyway
LARGEST, FEATURES = 1000, 1000  # pixels of the longer side, features of an image


@dataclass(frozen=True)
class Gathered:
    """What the images of a scene say.

    Attributes:
        looks: by camera. unreadable: by camera, the reason.
        looked: the cameras of `looks`, in order.
        shared: [k, k] how many coarse features each two of them share.
        matches: between pairs of cameras.
    """

    looks: dict[int, Look]
    unreadable: dict[int, str]
    looked: tuple[int, ...]
    shared: Tensor
    matches: Matches

    def working(self, scene: Scene) -> Tensor:
        """Pixels at working size per pixel of each camera. [n_cameras]"""
        ratio = torch.ones(len(scene.cameras), dtype=torch.float64)
        for i, look in self.looks.items():
            ratio[i] = look.working[0] / float(scene.cameras.size[i, 0])
        return ratio


def gather(scene: Scene, progress: Progress, max_views: int = MAX_VIEWS) -> Gathered:
    """Read images, find their features, match those of likely and of neighbouring views."""
    chosen = spread_views(scene, max_views)
    with progress.another(len(chosen), "image", "look") as reporter:
        looks, unreadable = look_at_images(
            scene, chosen, largest=LARGEST, limit=FEATURES, step=_counter(reporter)
        )
    looked = sorted(looks)
    shared = likeness([looks[i].features for i in looked])
    pairs = choose_pairs(shared, nearness(scene, looked))
    with progress.another(len(pairs), "pair", "match") as reporter:
        matches = shared_matches(
            looks, [(looked[a], looked[b]) for a, b in pairs], _counter(reporter)
        )
    return Gathered(looks, unreadable, tuple(looked), shared, matches)


def spread_views(scene: Scene, limit: int) -> list[int]:
    """Cameras that have an image, at most `limit`, evenly chosen."""
    there = [i for i, path in enumerate(scene.image_paths) if path is not None]
    if len(there) <= limit:
        return there
    return [there[i] for i in np.linspace(0, len(there) - 1, limit).round().astype(int)]


def _counter(progress: Progress) -> Callable[[], None]:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        progress.update(count)

    return step

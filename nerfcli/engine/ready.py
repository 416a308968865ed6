"""Make a scene ready to train on: its images in memory, its box, the settings that it decides."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Note
from nerfcli.engine.exposure import choose_exposure
from nerfcli.engine.resolve import resolve
from nerfcli.methods import choose_method, method_of
from nerfcli.scenes import ImageCache, Scene
from nerfcli.scenes.build import move_box
from nerfcli.scenes.hull import Silhouettes, silhouettes_of
from nerfcli.scenes.silhouette_box import silhouette_box


@dataclass(frozen=True)
class Prepared:
    """A scene ready to train on: box fitted, config resolved, training images in memory.

    Attributes:
        seconds: spent on it after the images were read; part of the training time.
        silhouettes: of the views, where their box was looked for.
        method_reason: why the scene has this method; "" where the config says which.
        warnings: lines for people, of a quick look at the scene before it.
    """

    scene: Scene
    config: Config
    residents: ImageCache
    seconds: float
    silhouettes: Silhouettes | None = None
    method_reason: str = ""
    warnings: tuple[str, ...] = ()


def prepare(
    scene: Scene, config: Config, note: Note | None = None, *, resumed: bool = False
) -> Prepared:
    """Read the training images, fit the box to their silhouettes, resolve the config.

    The box is left alone where the user states one or the images have no alpha channel.

    Args:
        note: takes how much memory the images need, before they are read.
        resumed: the scene is that of a run: it has its box, and its images are read in `start`,
            where the checkpoint says which.

    Raises:
        NerfError: no training views, an unreadable image, or a value that does not exist.
    """
    if not scene.splits.get("train"):
        raise NerfError(f"scene {scene.name}: no training views; hold out fewer of its images.")
    method, reason = choose_method(config, scene)
    config = replace(config, method=method)
    if note is not None and reason:
        note(f"method {method}: {reason}")
    resolve(config, scene)  # fail early on a wrong value, before the images are read
    residents = ImageCache(scene, scene.splits["train"], note)
    if resumed:
        return Prepared(scene, resolve(config, scene), residents, seconds=0.0)
    views = residents.at(0)
    start, silhouettes = time.perf_counter(), None
    if scene.has_alpha and config.scene.box is None and config.scene.cascades is None:
        silhouettes = silhouettes_of(scene, views)
        box = silhouette_box(scene, views, silhouettes)
        if box is not None:
            scene = move_box(scene, box, "silhouettes of the training views")
    scene, config = choose_exposure(scene, config, views, note)
    seconds = time.perf_counter() - start
    if note is not None and (remark := method_of(config).remark(scene)):
        note(remark)
    return Prepared(scene, resolve(config, scene), residents, seconds, silhouettes, reason)

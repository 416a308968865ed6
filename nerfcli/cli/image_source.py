"""The images of a run, looked up where scene.json says that they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from nerfcli.cli.hints import ensure_scene
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.engine.runs import Run
from nerfcli.engine.source_record import ImageSource

if TYPE_CHECKING:
    from nerfcli.scenes import Scene


def recorded_path(run: Run) -> Path:
    """The recorded absolute path, or the given path relative to the current directory.

    Raises:
        NerfError: nothing is there any more.
    """
    source = ImageSource.recorded(run.scene_json)
    for place in (source.resolved, source.given):
        if place and Path(place).exists():
            return Path(place)
    raise NerfError(
        f"the images of run {run.path} were at {source.resolved or 'an unknown place'}, where "
        "nothing is now. Say where they are: nerf eval RUN --scene FOLDER, or "
        "nerf train FOLDER --out RUN --resume."
    )


def scene_of_run(run: Run, path: Path, images: str | None = None) -> Scene:
    """The run's own scene (cameras, box, splits) with the images at `path`.

    Args:
        images: their folder; by default the one that the run states, if it is still there.

    Raises:
        NerfError: an image of the run is not among them.
    """
    from nerfcli.scenes import Scene, load_scene

    ensure_scene(path, "eval")
    scene = Scene.from_json(run.scene_json)
    stated = run.config.scene
    if images is None and stated.images is not None and Path(stated.images).is_dir():
        images = stated.images
    wanted = SceneConfig(
        downscale=scene.downscale,
        holdout=stated.holdout,
        alpha="ignore" if scene.alpha_ignored else "transparent",
        images=images,
        skip_bad_frames=stated.skip_bad_frames,
    )
    loaded = load_scene(path, wanted)
    places = {name: i for i, name in enumerate(loaded.names)}
    missing = [name for name in scene.names if name not in places]
    if missing:
        raise NerfError(
            f"{path} is not the scene of run {run.path}: it lacks {len(missing)} of "
            f"{len(scene.names)} images, first {missing[0]!r}. Name the right folder."
        )
    order = [places[name] for name in scene.names]
    return dataclasses.replace(
        scene,
        path=loaded.path,
        image_paths=tuple(loaded.image_paths[i] for i in order),
        mask_paths=tuple(loaded.mask_paths[i] for i in order),
        alpha_paths=tuple(loaded.alpha_paths[i] for i in order),
        masked_where=loaded.masked_where,
    )

"""Where the images of a run's scene are: recorded when it is made, found again when needed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.engine.runs import Run

if TYPE_CHECKING:
    from nerfcli.scenes import Scene

KEY = "data_source"  # in scene.json


@dataclass(frozen=True)
class Source:
    """A scene's path as the user gave it, and the absolute one that it meant then."""

    given: str
    resolved: str

    @staticmethod
    def of(path: Path) -> Source:
        return Source(str(path), str(path.resolve()))

    @staticmethod
    def recorded(scene_json: dict[str, Any]) -> Source:
        record = scene_json.get(KEY, {})
        return Source(record.get("given", ""), record.get("resolved", ""))

    def as_json(self) -> dict[str, dict[str, str]]:
        return {KEY: dataclasses.asdict(self)}


def recorded_path(run: Run) -> Path:
    """Where the run's images are now: the absolute path of then, or the given one from here.

    Raises:
        NerfError: nothing is there any more.
    """
    source = Source.recorded(run.scene_json)
    for place in (source.resolved, source.given):
        if place and Path(place).exists():
            return Path(place)
    raise NerfError(
        f"the images of run {run.path} were at {source.resolved or 'an unknown place'}, where "
        "nothing is now. Say where they are: nerf eval RUN --scene FOLDER, or "
        "nerf train FOLDER --out RUN --resume."
    )


def read_scene(path: Path, config: Config) -> Scene:
    """Load a scene with the settings of `config.scene`."""
    from nerfcli.scenes import load_scene

    wanted = config.scene
    return load_scene(
        path,
        downscale=wanted.downscale,
        holdout=wanted.holdout,
        box=wanted.box,
        cascades=wanted.cascades,
        near=wanted.near,
        far=wanted.far,
    )


def scene_of_run(run: Run, path: Path) -> Scene:
    """The run's own scene (cameras, box, splits) with the images that lie at `path`.

    Raises:
        NerfError: an image of the run is not among them.
    """
    from nerfcli.scenes import Scene, load_scene

    scene = Scene.from_json(run.scene_json)
    found = load_scene(path, downscale=scene.downscale, holdout=run.config.scene.holdout)
    places = {name: i for i, name in enumerate(found.names)}
    missing = [name for name in scene.names if name not in places]
    if missing:
        raise NerfError(
            f"{path} is not the scene of run {run.path}: it lacks {len(missing)} of "
            f"{len(scene.names)} images, first {missing[0]!r}. Name the right folder."
        )
    order = [places[name] for name in scene.names]
    return dataclasses.replace(
        scene,
        path=found.path,
        image_paths=tuple(found.image_paths[i] for i in order),
        mask_paths=tuple(found.mask_paths[i] for i in order),
        alpha_paths=tuple(found.alpha_paths[i] for i in order),
        masked_where=found.masked_where,
    )

"""What `nerf train` was asked to do: make a run, or go on with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nerfcli.cli.sources import Source, read_scene, recorded_path, scene_of_run
from nerfcli.core.config import Config, TrainConfig
from nerfcli.core.devices import cuda_missing
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, read_json
from nerfcli.core.settings import config_from_values, config_values
from nerfcli.engine.runs import Run, ensure_free, newest_run
from nerfcli.engine.schedule import budget_at

if TYPE_CHECKING:
    from nerfcli.engine.train import Prepared
    from nerfcli.scenes import Scene

LENGTH = ("train.steps", "train.minutes")  # --resume may ask for another
AFTERWARDS = ("backend", "device", "train.checkpoint_minutes")  # may change when a run goes on
ROOT = Path("runs")


@dataclass(frozen=True)
class Job:
    """All that training needs.

    Attributes:
        prepared: None where the run has reached its length: there is nothing to train.
        scene: with its images, where held-out views are to be rendered; None with nothing to do.
        resume: go on from the run's checkpoint.
        target_psnr: what the held-out views should reach.
        default_length: the user left the length to us.
    """

    prepared: Prepared | None
    scene: Scene | None
    run: Run
    resume: bool
    target_psnr: float | None
    default_length: bool = False


def find_run(thing: Path | None, out: Path | None) -> Path | None:
    """The run that --resume means, or None: there is none yet, so one begins.

    Args:
        thing: the positional argument, a scene or a run.
        out: the run folder that the user named.

    Raises:
        NerfError: nothing to go on with, and no scene to begin with.
    """
    if thing is not None and (thing / "config.toml").is_file():
        if out is not None and out.resolve() != thing.resolve():
            raise NerfError(f"--resume: {thing} and --out {out} are two runs; name one.")
        return thing
    if out is not None:
        if (out / "state.json").is_file():
            return out
        if thing is None:
            raise NerfError(f"--resume: {out} holds no checkpoint to go on from; name a SCENE.")
        return None
    return newest_run(ROOT) if thing is None else _newest_run_of(thing)


def fresh_job(
    path: Path | None,
    out: Path | None,
    given: Mapping[str, object],
    *,
    overwrite: bool,
    target_psnr: float | None,
    note: Callable[[str], None],
) -> Job:
    """A new run: everything that can be wrong is found before its folder is made."""
    from nerfcli import backends
    from nerfcli.check import check_few_views
    from nerfcli.engine.train import prepare
    from nerfcli.scenes.held_out import odd_shapes

    if path is None:
        raise NerfError("SCENE is missing: nerf train FOLDER, or nerf train --resume [RUN].")
    if out is None:
        ensure_writable(ROOT)
    else:
        ensure_free(out, overwrite=overwrite)
    config = config_from_values(given)
    if config.backend != "auto":
        backends.why_unavailable(
            config.backend, "cpu"
        )  # an unknown name is told before all reading
    scene = read_scene(path, config)
    for line in scene.notes:
        note(line)
    _ensure_held_out(scene, target_psnr)
    if odd := odd_shapes(scene):
        note(f"warning: {odd}")
    for finding in check_few_views(scene):
        note(f"warning: {finding.text}. Look closer: nerf check {path}")
    prepared = prepare(scene, config, note)
    config = prepared.config
    backends.select(config.backend, config.device, note)
    scene_json = prepared.scene.to_json() | Source.of(path).as_json()
    if out is None:
        run = Run.create_next(scene.name, config, scene_json, ROOT)
    else:
        run = Run.create(out, config, scene_json, overwrite=overwrite)
    note(f"run {run.path}")
    default_length = not any(given.get(key) for key in LENGTH)
    return Job(prepared, prepared.scene, run, False, target_psnr, default_length)


def resumable_job(
    thing: Path | None,
    out: Path | None,
    given: Mapping[str, object],
    *,
    overwrite: bool,
    target_psnr: float | None,
    note: Callable[[str], None],
) -> Job:
    """Go on with the run that --resume means, with the images of `thing`, else those of then.

    Where there is none yet, one begins; --overwrite has nothing to do here. A run that has
    reached its length needs no images, unless its held-out views are to be judged.
    """
    path = find_run(thing, out)
    if path is None:
        return fresh_job(thing, out, given, overwrite=True, target_psnr=target_psnr, note=note)
    run = Run.open(path)
    config = same_settings(run, given)
    moved = None if thing is None or (thing / "config.toml").is_file() else thing
    if has_reached(run, config.train):
        run.ensure_whole()
        scene = None
        if target_psnr is not None:
            scene = scene_of_run(run, moved or recorded_path(run))
            _ensure_held_out(scene, target_psnr)
        return Job(None, scene, run, True, target_psnr)
    from nerfcli.engine.train import Prepared
    from nerfcli.scenes import ImageCache

    if "device" not in given and config.device == "cuda" and (missing := cuda_missing()):
        note(f"the run was on cuda, and here {missing}: going on on the CPU")
        config = replace(config, device="cpu")
    scene = scene_of_run(run, moved or recorded_path(run))
    _ensure_held_out(scene, target_psnr)
    note(f"going on with run {run.path} from step {run.step} to {_length(config.train)}")
    residents = ImageCache(scene, scene.splits["train"], note)
    prepared = Prepared(scene, config, residents, seconds=0.0)
    return Job(prepared, scene, run, True, target_psnr)


def has_reached(run: Run, train: TrainConfig) -> bool:
    """Whether the run's checkpoint has come to the end of the length in `train`."""
    state = run.state
    return budget_at(train, run.config.train, state).done(state["step"])


def _length(train: TrainConfig) -> str:
    if train.steps:
        return f"step {train.steps}"
    return f"{train.minutes:g} minutes in all"


def same_settings(run: Run, given: Mapping[str, object]) -> Config:
    """The run's config, with the length that is asked for and what else may change afterwards.

    Raises:
        NerfError: the flags ask for other settings than the run has.
    """
    values, defaults = config_values(run.config), config_values(Config())
    if any(given.get(key) for key in LENGTH):
        values |= {key: given.get(key, defaults[key]) for key in LENGTH}
    for key, value in given.items():
        is_auto = key != "train.seed" and value == defaults[key] and value in ("auto", 0)
        if key in LENGTH:
            continue
        if key in AFTERWARDS:
            values[key] = value
        elif value != values[key] and not is_auto:
            raise NerfError(
                f"--resume: run {run.path} has {key} = {values[key]!r}, the flags ask for "
                f"{value!r}. A run keeps its settings; leave that out, or choose another --out."
            )
    return config_from_values(values)


def _ensure_held_out(scene: Scene, target_psnr: float | None) -> None:
    """Raise NerfError, before hours of training, where the run could not be judged after them."""
    from nerfcli.scenes.held_out import ensure_held_out

    if target_psnr is not None and not math.isfinite(target_psnr):
        raise NerfError(f"--target-psnr must be a finite number of decibels, got {target_psnr}.")
    if target_psnr is not None and not scene.splits.get("test"):
        raise NerfError(f"--target-psnr: scene {scene.name} has no held-out views; see --holdout.")
    ensure_held_out(scene)


def _newest_run_of(scene: Path) -> Path | None:
    """The newest run under runs/ that was made from this scene, if any."""
    wanted = Source.of(scene)
    mine = [
        state
        for state in ROOT.glob("*/state.json")
        if Source.recorded(read_json(state.parent / "scene.json")).resolved == wanted.resolved
    ]
    return max(mine, key=lambda state: state.stat().st_mtime_ns).parent if mine else None

"""A request to `nerf train`, checked and made ready: a new run, or one to resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nerfcli.cli.hints import RUNS, ensure_resumable, ensure_scene, named_run, newest_run_of
from nerfcli.cli.image_source import recorded_path, scene_of_run
from nerfcli.core.config import Config, TrainConfig, known
from nerfcli.core.devices import cuda_missing, pick
from nerfcli.core.distributed import world
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable
from nerfcli.core.progress import Note
from nerfcli.core.settings import (
    config_from_values,
    config_values,
    ensure_own_table,
    with_values,
)
from nerfcli.core.text import command, quantity
from nerfcli.engine.run_folders import has_checkpoint, in_training
from nerfcli.engine.runs import Run, ensure_free, is_run, newest_run
from nerfcli.engine.schedule import budget_at
from nerfcli.engine.source_record import ImageSource

if TYPE_CHECKING:
    from nerfcli.engine.train import Prepared
    from nerfcli.scenes import Scene

LENGTH = ("train.steps", "train.minutes")  # --resume may ask for another
AFTERWARDS = (
    "backend",
    "device",
    "train.checkpoint_minutes",
    "scene.images",
)  # may change when a run goes on


@dataclass(frozen=True)
class Job:
    """All that training needs.

    Attributes:
        prepared: None where the run has reached its length: there is nothing to train.
        scene: with its images, where held-out views are to be rendered; None with nothing to do.
        config: with the backend and the device that are to be used now.
        run: to go on with; or what makes the folder of a new one. That is called only where it is
            trained, so that a command that ends before it leaves nothing behind, and takes what
            holds the lock.
        target_psnr: what the held-out views should reach.
        default_length: the user left the length to us.
    """

    prepared: Prepared | None
    scene: Scene | None
    config: Config
    run: Run | Callable[[ExitStack], Run]
    target_psnr: float | None
    default_length: bool = False


def run_to_resume(target: Path | None, out: Path | None) -> Path | None:
    """The run that --resume means, or None: there is none yet, so one begins.

    Args:
        target: the positional argument, a scene or a run.
        out: the run folder that the user named.

    Raises:
        NerfError: nothing to go on with, and no scene to begin with.
    """
    if target is not None and is_run(target):
        if out is not None and out.resolve() != target.resolve():
            raise NerfError(f"--resume: {target} and --out {out} are two runs; name one.")
        return target
    if out is not None:
        if is_run(out) and has_checkpoint(out):
            return out
        if target is None:
            raise NerfError(f"--resume: {out} holds no checkpoint to go on from; name a SCENE.")
        return None
    return newest_run(RUNS) if target is None else newest_run_of(target)


def fresh_job(
    path: Path | None,
    out: Path | None,
    given: Mapping[str, object],
    *,
    overwrite: bool,
    target_psnr: float | None,
    note: Note,
) -> Job:
    """Make a new run; fail on whatever is wrong before its folder is made."""
    prepared = ready_scene(path, out, given, overwrite, target_psnr, note)
    scene_json = prepared.scene.to_json() | ImageSource.of(known(path)).as_json()
    if prepared.method_reason:
        scene_json["method_reason"] = prepared.method_reason
    scene_json["warnings"] = list(prepared.warnings)

    def create(held: ExitStack) -> Run:
        if not world().is_first:  # the first process alone writes
            path = world().gather_objects(None)[0]
            return Run(known(path), prepared.config, scene_json)
        if out is None:
            run = Run.create_next(prepared.scene.name, prepared.config, scene_json, RUNS, held=held)
        else:
            run = Run.create(out, prepared.config, scene_json, overwrite=overwrite, held=held)
        world().gather_objects(run.path)
        note(f"run {run.path}")
        return run

    default_length = not any(given.get(key) for key in LENGTH)
    return Job(prepared, prepared.scene, prepared.config, create, target_psnr, default_length)


def ready_scene(
    path: Path | None,
    out: Path | None,
    given: Mapping[str, object],
    overwrite: bool,
    target_psnr: float | None,
    note: Note,
) -> Prepared:
    """Read and check the scene that a new run would be made from; write nothing."""
    from nerfcli import backends
    from nerfcli.check import check_few_views
    from nerfcli.engine.train import prepare
    from nerfcli.scenes import load_scene
    from nerfcli.scenes.held_out import odd_shapes

    if path is None:
        raise NerfError("SCENE is missing: nerf train FOLDER, or nerf train --resume [RUN].")
    ensure_scene(path, "train")
    if out is None:
        ensure_writable(RUNS)
    else:
        if world().is_first:  # it takes the lock for a moment
            ensure_free(out, overwrite=overwrite)
    config = config_from_values(given)
    _ensure_runs_here(config)
    if config.scene.images is not None:  # a run remembers it, wherever it is used later
        folder = str(Path(config.scene.images).resolve())
        config = replace(config, scene=replace(config.scene, images=folder))
    scene = load_scene(path, config.scene)
    for line in scene.notes:
        note(line)
    _ensure_held_out(scene, target_psnr)
    odd, findings = odd_shapes(scene), check_few_views(scene)
    if odd:
        note(f"warning: {odd}")
    for finding in findings:
        note(f"warning: {finding.text}. Look closer: {command('nerf check', path)}")
    prepared = prepare(scene, config, note)
    warnings = (*([odd] if odd else []), *(finding.text for finding in findings))
    prepared = replace(prepared, warnings=warnings)
    backends.select(prepared.config.backend, prepared.config.device, note)
    return prepared


def resumable_job(
    target: Path | None,
    out: Path | None,
    given: Mapping[str, object],
    *,
    overwrite: bool,
    target_psnr: float | None,
    note: Note,
) -> Job:
    """Resume the run that --resume means, using images from `target`, or those recorded.

    Where there is no run yet, make one; --overwrite has no effect. A run that has reached its
    length needs no images, unless its held-out views are to be scored.
    """
    target = target and (named_run(target) or target)
    path = run_to_resume(target, out)
    if path is None:
        if target is not None:
            ensure_resumable(target)
        note = _preceded(_begins_again(target, out), note)
        return fresh_job(target, out, given, overwrite=True, target_psnr=target_psnr, note=note)
    run = Run.open(path)
    run.ensure_whole()
    config = same_settings(run, given)
    images = str(given["scene.images"]) if given.get("scene.images") else None
    moved = None if target is None or is_run(target) else target
    if "device" not in given and config.device.startswith("cuda") and (missing := cuda_missing()):
        note(f"the run was on cuda, and here {missing}: going on on the CPU")
        config = replace(config, device="cpu")
    _ensure_runs_here(config)
    if has_reached(run, config.train):
        if run.remark:
            note(run.remark)
        scene = None
        if target_psnr is not None:
            scene = scene_of_run(run, moved or recorded_path(run), images)
            _ensure_held_out(scene, target_psnr)
        return Job(None, scene, config, run, target_psnr)
    ensure_writable(run.path / "state.json", "Train another with --out.")
    from nerfcli.engine.train import prepare

    scene = scene_of_run(run, moved or recorded_path(run), images)
    _ensure_held_out(scene, target_psnr)
    if world().is_first:  # one that another process trains is refused before anything is said
        with in_training(run.path):
            pass
    note(f"going on with run {run.path} from step {run.step} to {_length(config.train)}")
    prepared = prepare(scene, config, note, resumed=True)
    return Job(prepared, scene, prepared.config, run, target_psnr)


def _preceded(line: str, note: Note) -> Note:
    """Give a note that says `line` before its first remark: the scene has been read by then."""
    lines = [line]

    def say(text: str) -> None:
        while lines:
            note(lines.pop())
        note(text)

    return say


def _begins_again(scene: Path | None, out: Path | None) -> str:
    """Say what --resume does where there is no checkpoint."""
    if out is None:
        return f"--resume: no run under {RUNS}/ has a checkpoint of {scene}; a new one begins"
    if is_run(out):
        return f"--resume: run {out} has no checkpoint; it begins again from step 0"
    return f"--resume: there is no run {out} yet; it begins"


def _ensure_runs_here(config: Config) -> None:
    """Raise NerfError where a device or a backend that is named cannot be used, before any work."""
    from nerfcli import backends

    if config.device != "auto":
        pick(config.device)
    if config.backend != "auto":
        backends.ensure_available(config.backend, pick(config.device))


def has_reached(run: Run, train: TrainConfig) -> bool:
    """Whether the run's checkpoint has come to the end of the length in `train`."""
    state = run.state
    return budget_at(train, run.config.train, state).done(state["step"])


def _length(train: TrainConfig) -> str:
    if train.steps is not None:
        return f"step {train.steps}"
    return f"{quantity(known(train.minutes), 'minute')} in all"


def same_settings(run: Run, given: Mapping[str, object]) -> Config:
    """The run's config, with the length that is asked for and what else may change afterwards.

    Raises:
        NerfError: the flags ask for other settings than the run has.
    """
    ensure_own_table(given, given.get("method") or run.config.method)
    changes: dict[str, object] = {}
    if any(given.get(key) for key in LENGTH):
        changes = {key: given.get(key) for key in LENGTH}
    has = config_values(run.config)
    has |= {key: value for key, value in _scene_values(run).items() if has[key] is None}
    for key, value in given.items():
        if key in LENGTH or value is None:
            continue
        if key in AFTERWARDS:
            changes[key] = value
        elif value != has[key]:
            raise NerfError(
                f"--resume: run {run.path} has {key} = {has[key]!r}, the flags ask for "
                f"{value!r}. A run keeps its settings; leave that out, or choose another --out."
            )
    return with_values(run.config, changes)


def _scene_values(run: Run) -> dict[str, object]:
    """What was taken from the scene where the settings left it open, by the keys of these."""
    scene = run.scene_json
    keys = ("downscale", "near", "far", "background")
    values = {f"scene.{key}": scene.get(key) for key in keys}
    alpha = "ignore" if scene.get("alpha_ignored") else "transparent"
    values["scene.alpha"] = alpha if alpha == "ignore" or scene.get("has_alpha") else None
    return values | {"scene.cascades": scene.get("box", {}).get("n_cascades")}


def _ensure_held_out(scene: Scene, target_psnr: float | None) -> None:
    """Raise NerfError, before hours of training, where the run could not be judged after them."""
    from nerfcli.scenes.held_out import ensure_held_out

    if target_psnr is not None and not math.isfinite(target_psnr):
        raise NerfError(f"--target-psnr must be a finite number of decibels, got {target_psnr}.")
    if target_psnr is not None and not scene.splits.get("test"):
        raise NerfError(f"--target-psnr: scene {scene.name} has no held-out views; see --holdout.")
    ensure_held_out(scene)

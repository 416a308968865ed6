"""What `nerf train` was asked to do: make a run, or go on with one; and doing it."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfcli.cli.output import NOT_MET, duration, quantity, show, stop_code
from nerfcli.cli.sources import Source, read_scene, recorded_path, scene_of_run
from nerfcli.config import Config
from nerfcli.devices import cuda_missing
from nerfcli.errors import NerfError
from nerfcli.files import ensure_writable, read_json
from nerfcli.progress import Progress, StopSignal
from nerfcli.runs import Run, ensure_free, newest_run
from nerfcli.settings import config_from_values, config_values

if TYPE_CHECKING:
    from nerfcli.scenes import Scene
    from nerfcli.train import Prepared

AFTERWARDS = ("backend", "device", "train.checkpoint_minutes")  # may change when a run goes on
ROOT = Path("runs")
LONGER_MINUTES = 10  # of the command that is named where the user gave no length
LEGO_DB = ((1, 30.17), (3, 32.49))  # minutes, dB; a test holds docs/benchmarks.md to it


@dataclass(frozen=True)
class Job:
    """All that training needs.

    Attributes:
        resume: go on from the run's checkpoint.
        target_psnr: what the held-out views should reach.
        longer: a command that trains for longer, where the user left the length to us.
    """

    prepared: Prepared
    run: Run
    resume: bool
    target_psnr: float | None
    longer: str = ""


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
    from nerfcli.check import quick_warnings
    from nerfcli.train import prepare

    if path is None:
        raise NerfError("SCENE is missing: nerf train FOLDER, or nerf train --resume [RUN].")
    if out is None:
        ensure_writable(ROOT)
    else:
        ensure_free(out, overwrite=overwrite)
    config = config_from_values(given)
    if config.backend != "auto":
        backends.unavailable(config.backend, "cpu")  # an unknown name is told before all reading
    scene = read_scene(path, config)
    for line in scene.notes:
        note(line)
    _ensure_held_out(scene, target_psnr)
    for finding in quick_warnings(scene):
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
    asked = given.get("train.steps") or given.get("train.minutes")
    longer = "" if asked else f"nerf train {shlex.quote(str(path))} --minutes {LONGER_MINUTES}"
    return Job(prepared, run, resume=False, target_psnr=target_psnr, longer=longer)


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

    Where there is none yet, one begins; --overwrite has nothing to do here.
    """
    path = find_run(thing, out)
    if path is None:
        return fresh_job(thing, out, given, overwrite=True, target_psnr=target_psnr, note=note)
    from nerfcli.scenes import Residents
    from nerfcli.train import Prepared

    run = Run.open(path)
    config = same_settings(run, given)
    if "device" not in given and config.device == "cuda" and (missing := cuda_missing()):
        note(f"the run was on cuda, and here {missing}: going on on the CPU")
        config = replace(config, device="cpu")
    moved = None if thing is None or (thing / "config.toml").is_file() else thing
    scene = scene_of_run(run, moved or recorded_path(run))
    _ensure_held_out(scene, target_psnr)
    note(f"going on with run {run.path}")
    residents = Residents(scene, scene.splits["train"], note)
    prepared = Prepared(scene, config, residents, seconds=0.0)
    return Job(prepared, run, resume=True, target_psnr=target_psnr)


def same_settings(run: Run, given: Mapping[str, object]) -> Config:
    """The run's config, with what may change afterwards.

    Raises:
        NerfError: the flags ask for other settings than the run has.
    """
    values, defaults = config_values(run.config), config_values(Config())
    for key, value in given.items():
        is_auto = key != "train.seed" and value == defaults[key] and value in ("auto", 0)
        if key in AFTERWARDS:
            values[key] = value
        elif value != values[key] and not is_auto:
            raise NerfError(
                f"--resume: run {run.path} has {key} = {values[key]!r}, the flags ask for "
                f"{value!r}. A run keeps its settings; leave that out, or choose another --out."
            )
    return config_from_values(values)


def work(job: Job, progress: Progress, stop: StopSignal, *, as_json: bool) -> int:
    """Train, say what came of it, and return the exit code."""
    from nerfcli.train import train

    summary = train(job.prepared, job.run, progress=progress, stop=stop, resume=job.resume)
    progress.close()
    code = stop_code(summary["stopped"])
    value: dict[str, Any] = {"run": str(job.run.path), "scene": job.prepared.scene.name, **summary}
    value["peak_memory_bytes"] = peak_memory()
    if job.target_psnr is not None and code is None:
        value["test_psnr"] = _held_out_psnr(job, progress)
        value["target_psnr"] = job.target_psnr
        value["target_met"] = value["test_psnr"] >= job.target_psnr
        code = 0 if value["target_met"] else NOT_MET
    text = _summary(value)
    if job.longer and code is None:
        text += f"\n{more_time(job.longer)}"
    show(text, value, as_json)
    return code or 0


def peak_memory() -> int | None:
    """The most memory that this process has held; None where the system does not tell."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * getrusage(RUSAGE_SELF).ru_maxrss


def more_time(command: str) -> str:
    """What a longer run would give: what it gave where it was measured, and how to get it."""
    (short, before), (long, after) = LEGO_DB
    return (
        f"more time gives a sharper field: on the 400x400 lego of docs/benchmarks.md, {long} "
        f"minutes\nreached {after - before:.1f} dB more than {short}. "
        f"A finished run is not gone on with; train anew: {command}"
    )


def _ensure_held_out(scene: Scene, target_psnr: float | None) -> None:
    """Raise NerfError, before hours of training, where a target could never be judged."""
    if target_psnr is not None and not math.isfinite(target_psnr):
        raise NerfError(f"--target-psnr must be a finite number of decibels, got {target_psnr}.")
    if target_psnr is not None and not scene.splits.get("test"):
        raise NerfError(f"--target-psnr: scene {scene.name} has no held-out views; see --holdout.")


def _held_out_psnr(job: Job, progress: Progress) -> float:
    """Mean PSNR of the held-out views; infinite where every view is exact."""
    from nerfcli.evaluate import evaluate

    scene = job.prepared.scene
    with progress.another(len(scene.splits["test"]), "view", "eval") as reporter:
        psnr = evaluate(job.run, scene, save_images=False, progress=reporter)["psnr"]
    return float("inf") if psnr is None else psnr


def _summary(value: dict[str, Any]) -> str:
    run = value["run"]
    done = f"{quantity(value['steps'], 'step')} in {duration(value['seconds'])}"
    lines = [f"{run}: {done}"]
    if value["psnr"]:
        lines[0] += f", PSNR {value['psnr']:.2f} dB on training rays"
    if value.get("test_psnr") is not None:
        lines.append(f"held-out views: {value['test_psnr']:.2f} dB")
    if "target_met" in value:
        reached = "reached" if value["target_met"] else "not reached"
        lines.append(f"target {value['target_psnr']:g} dB {reached}")
    if value["stopped"] is not None:
        lines.append(f"stopped early; everything is saved. Go on: nerf train --resume {run}")
    else:
        lines.append(f"next: nerf render {run}   nerf eval {run}")
    return "\n".join(lines)


def _newest_run_of(scene: Path) -> Path | None:
    """The newest run under runs/ that was made from this scene, if any."""
    wanted = Source.of(scene)
    mine = [
        state
        for state in ROOT.glob("*/state.json")
        if Source.recorded(read_json(state.parent / "scene.json")).resolved == wanted.resolved
    ]
    return max(mine, key=lambda state: state.stat().st_mtime_ns).parent if mine else None

"""Run a training job and report the result."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nerfcli.cli.more_time import more_time
from nerfcli.cli.output import NOT_MET, show, stop_code
from nerfcli.cli.train_request import Job
from nerfcli.cli.train_view import Showing, shown
from nerfcli.core.distributed import world
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import duration, quantity, roughly
from nerfcli.engine.runs import Run

if TYPE_CHECKING:
    from nerfcli.engine.callbacks import Callback
    from nerfcli.engine.target import Target


def run_job(
    job: Job,
    progress: Progress,
    *,
    as_json: bool,
    quiet: bool = False,
    log: str | None = None,
    showing: Showing | None = None,
) -> int:
    """Train, report the result, and return the exit code.

    A signal after the training skips what is left to be measured, and never the report.
    """
    stop = StopSignal()
    with ExitStack() as held:
        run, summary, target = _train(job, progress, stop, held, log, showing)
        progress.close()
        code = stop_code(summary["stopped"])
        if not world().is_first:  # the first one alone measures and reports
            return code or 0
        name = run.scene_json.get("name")
        value: dict[str, Any] = {"run": str(run.path), "scene": name, **summary}
        value["n_held_out"] = len(run.scene_json.get("splits", {}).get("test", ()))
        value["method"] = run.config.method
        value["method_reason"] = run.scene_json.get("method_reason")
        value["peak_memory_bytes"] = peak_memory()
        value["box_half_size"] = _half_size(run.scene_json)
        now = run.using(backend=job.config.backend, device=job.config.device)
        unmeasured = ""
        if job.target_psnr is not None and code is None:
            value |= {"target_psnr": job.target_psnr, "test_psnr": None, "target_met": None}
            try:
                if target is not None and target.result and target.result["step"] == run.step:
                    value |= _verdict(target.result, job.target_psnr)
                else:
                    value |= _score_held_out(job, now, job.target_psnr, progress, stop)
                code = 0 if value["target_met"] else NOT_MET
            except NerfError as error:  # the training is done and saved
                unmeasured, code = str(error), NOT_MET
            if value["target_met"] is None and stop.received is not None:
                unmeasured, code = "stopped before it was measured", stop_code(stop.received)
        value["render_seconds"] = None
        wanted = as_json or not quiet
        if wanted and summary["stopped"] is None and stop.received is None:
            from nerfcli.engine.cost import estimate_path

            value["render_seconds"] = estimate_path(now)
        value["nothing_to_do"] = nothing_done = job.prepared is None
        text = _summary(value, nothing_done=nothing_done, quiet=quiet, unmeasured=unmeasured)
        if code in (None, NOT_MET) and not nothing_done and not quiet:
            hint = more_time(value, run.config, default_length=job.default_length)
            text += f"\n{hint}" if hint else ""
        show(text, value, as_json)
    return code or 0


def _train(
    job: Job,
    progress: Progress,
    stop: StopSignal,
    held: ExitStack,
    log: str | None,
    showing: Showing | None,
) -> tuple[Run, dict[str, Any], Target | None]:
    """Train where there is anything to do; give the run and the summary, and heed `stop` after.

    The third is what looked for the target of a run that has one.
    """
    run = job.run
    if job.prepared is None:
        assert isinstance(run, Run)  # it has reached its length
        held.enter_context(stop)
        return run, _nothing_done(run), None
    from nerfcli.engine.train import train

    made: list[Run] = []

    def create(held: ExitStack) -> Run:
        assert not isinstance(run, Run)
        made.append(run(held))
        return made[0]

    target = None
    if job.scene is not None and job.target_psnr is not None:
        target = _target(job, job.target_psnr, stop)
        views = quantity(len(job.scene.splits["test"]), "held-out view")
        progress.note(
            f"--target-psnr: training ends early where {views} reach it. Estimates on the way take "
            "up to 5 % of the time; all pixels are scored once, after the training"
        )
    callbacks: list[Callback] = []
    if world().is_first:  # the others have nothing to write
        callbacks += [] if target is None else [target]
        if log is not None:
            from nerfcli.engine.tensorboard import TensorBoard

            callbacks.append(board := TensorBoard())
            held.callback(board.close)
    resume = isinstance(run, Run)
    with shown(showing, job.prepared.scene, stop, progress.note) as watching:
        summary = train(
            job.prepared,
            run if isinstance(run, Run) else create,
            progress=progress,
            stop=stop,
            held=held,
            resume=resume,
            callbacks=(*callbacks, *watching),
        )
    return run if isinstance(run, Run) else made[0], summary, target


def _target(job: Job, decibels: float, stop: StopSignal) -> Target:
    """Make what ends the training at the target."""
    from nerfcli.engine.target import Target

    def measure(run: Run) -> dict[str, Any] | None:
        now = run.using(backend=job.config.backend, device=job.config.device)
        return _evaluate(job, now, Progress("quiet", None, "view", "eval"), stop)

    return Target(decibels, measure)


def peak_memory() -> int | None:
    """The most memory that this process has held; None where the system has no count."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * getrusage(RUSAGE_SELF).ru_maxrss


def _score_held_out(
    job: Job, run: Run, target: float, progress: Progress, stop: StopSignal
) -> dict[str, Any]:
    """Measure test_psnr (None: all exact, or masked) and target_met; nothing if it is stopped."""
    assert job.scene is not None  # a target needs it
    with progress.another(len(job.scene.splits["test"]), "view", "eval") as reporter:
        result = _evaluate(job, run, reporter, stop)
    return {} if result is None else _verdict(result, target)


def _evaluate(job: Job, run: Run, progress: Progress, stop: StopSignal) -> dict[str, Any] | None:
    """Score every held-out view of the run's checkpoint; None if it is stopped."""
    from nerfcli.core.devices import memory_errors
    from nerfcli.engine.evaluate import evaluate

    scene, backend = job.scene, run.config.backend
    assert scene is not None
    with memory_errors("scoring the held-out views", "measure them by nerf eval --device cpu"):
        result = evaluate(
            *(run, scene), save_images=False, backend=backend, progress=progress, stop=stop
        )
    return result if result["n_views"] == len(scene.splits["test"]) else None


def _verdict(result: dict[str, Any], target: float) -> dict[str, Any]:
    from nerfcli.engine.evaluate import reaches

    return {"test_psnr": result["psnr"], "target_met": reaches(result, target)}


def _half_size(scene: dict[str, Any]) -> float | None:
    """Half size of the detail cube in source units, by a run's scene.json."""
    box, similarity = scene.get("box"), scene.get("scene_from_source")
    return box["half_size"] / similarity["scale"] if box and similarity else None


def _nothing_done(run: Run) -> dict[str, Any]:
    """The summary of a run that had reached its length before."""
    state = run.state
    return {
        "steps": state["step"],
        "seconds": round(state["seconds"], 3),
        "psnr": state.get("psnr", 0.0),
        "held_out": state.get("held_out"),
        **dict.fromkeys(("steps_per_second", "rays_per_second", "samples_per_second")),
        "stopped": None,
        "ended_by": None,
    }


def _next(run: str, render_seconds: float | None) -> str:
    """Name the next commands, with a preview where a whole render takes long."""
    from nerfcli.engine.cost import preview_scale

    scale = None if render_seconds is None else preview_scale(render_seconds)
    if render_seconds is None or scale is None:
        return f"next: nerf render {run}   nerf eval {run}"
    small, whole = roughly(scale * scale * render_seconds), roughly(render_seconds)
    return (
        f"next: nerf render {run} --scale {scale:g}   nerf eval {run}\n"
        f"that video takes {small}, one of full size {whole}"
    )


def _held_out(found: dict[str, Any]) -> str:
    """Say what the estimate is, and of what: people quote it."""
    if found["psnr"] is None:
        return "held-out views: not measured, the pixels looked at are exact or masked out"
    views = quantity(found["n_views"], "held-out view")
    if found["n_views"] < found["n_held_out"]:
        views = f"{found['n_views']} of {found['n_held_out']} held-out views"
    each = f", up to {quantity(found['n_pixels'], 'pixel')} of each"
    return f"about {found['psnr']:.1f} dB on {views}{each}; nerf eval measures all of them"


def _summary(
    value: dict[str, Any], *, nothing_done: bool, quiet: bool, unmeasured: str = ""
) -> str:
    run = shlex.quote(value["run"])
    done = f"{quantity(value['steps'], 'step')} in {duration(value['seconds'])}"
    lines = [f"{value['run']}: {done}"]
    if value["psnr"]:
        lines[0] += f", PSNR {value['psnr']:.2f} dB on training rays"
    if nothing_done:
        lines.append(
            "nothing to do: that length is reached; a greater --steps or --minutes goes on"
        )
    if value.get("test_psnr") is not None:
        lines.append(f"held-out views: {value['test_psnr']:.2f} dB")
    elif value["held_out"]:
        lines.append(_held_out(value["held_out"]))
    elif value["n_held_out"] == 0:
        lines.append("no view is held out, so nothing is known of new views: see --holdout")
    if unmeasured:
        lines.append(f"target {value['target_psnr']:g} dB not measured: {unmeasured}")
    elif "target_met" in value:
        reached = "reached" if value["target_met"] else "not reached"
        reached += ", so the run ended early" if value["ended_by"] == "target" else ""
        lines.append(f"target {value['target_psnr']:g} dB {reached}")
    if value["stopped"] is not None:
        lines.append(f"stopped early; everything is saved. Go on: nerf train --resume {run}")
    elif value["ended_by"] == "viewer":
        lines.append(f"ended by the viewer; everything is saved. Go on: nerf train --resume {run}")
    elif not quiet:
        lines.append(_next(run, value.get("render_seconds")))
    return "\n".join(lines)

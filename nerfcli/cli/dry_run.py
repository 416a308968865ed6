"""nerf train --dry-run: what would be done, measured by a few steps; nothing is written."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfcli.cli.output import describe_views
from nerfcli.core.progress import Progress
from nerfcli.core.text import number, quantity, rough_duration
from nerfcli.engine.runs import Run, next_run_path

if TYPE_CHECKING:
    from nerfcli.engine.train import Loop, Prepared

PROBE_SECONDS = 3.0  # of steps
PROBE_STEPS = 50  # at most
CHECKPOINTS = 3  # on the disk at once, while one is written


def plan(prepared: Prepared, out: Path | None, runs: Path, progress: Progress) -> dict[str, Any]:
    """Say what training would do: scene, method, views, memory, disk, expected time and quality."""
    from nerfcli.engine.resolve import describe_box

    scene, config = prepared.scene, prepared.config
    sizes = sorted(map(list, set(map(tuple, scene.cameras.size.tolist()))))
    value: dict[str, Any] = {
        "dry_run": True,
        "run": str(out or next_run_path(scene.name, runs)),
        "scene": scene.name,
        "method": config.method,
        "method_reason": prepared.method_reason or None,
        "views": {name: len(views) for name, views in scene.splits.items()},
        "sizes": sizes,
        "downscale": scene.downscale,
        "box_half_size": scene.half_size_in_source,
        "box_source": scene.box_source,
        "box": describe_box(scene, config),
        "device": config.device,
        "steps": config.train.steps,
        "minutes": config.train.minutes,
    }
    value |= _probe(prepared, progress)
    steps, minutes = value["steps"], value["minutes"]
    value["expected_seconds"] = (
        60.0 * (minutes or 0.0) if steps is None else steps / value["steps_per_second"]
    )
    place = Path(value["run"]).absolute()
    there = next(folder for folder in place.parents if folder.is_dir())
    value["disk_free_bytes"] = shutil.disk_usage(there).free
    if value["disk_free_bytes"] < CHECKPOINTS * value["disk_bytes"]:
        progress.note(f"warning: {there} has too little room for {CHECKPOINTS} checkpoints")
    value["expected_psnr"] = None
    value["quality_reason"] = _why_unknown(value)
    return value


def _why_unknown(value: dict[str, Any]) -> str:
    """Say why the quality cannot be told before the run, and what the probe reached."""
    steps = quantity(value["probe_steps"] + 1, "step")
    return (
        f"it depends on the photos, and {steps} reach {value['probe_psnr']:.1f} dB on training "
        "rays whatever comes later; nerf train --target-psnr DB ends at a quality"
    )


def plan_text(value: dict[str, Any]) -> str:
    """Write a plan for people."""
    why = f" ({value['method_reason']})" if value["method_reason"] else ""
    rate = value["steps_per_second"]
    unit = "step" if value["steps"] else "minute"
    length = quantity(value[f"{unit}s"], unit)
    expected = f"about {rough_duration(value['expected_seconds'])} here" if value["steps"] else ""
    pace = f"{number(rate)} steps a second in the first {quantity(value['probe_steps'], 'step')}"
    return "\n".join(
        [
            f"would make {value['run']} of scene {value['scene']}; nothing is written",
            f"method   {value['method']}{why}",
            f"views    {describe_views(value)}",
            f"trains   {value['box']}",
            f"runs on  {value['device']}, backend {value['backend']}",
            f"time     {', '.join(filter(None, [length, expected, pace]))}",
            f"memory   {_megabytes(value['memory_bytes'])}",
            f"disk     {_megabytes(value['disk_bytes'])} a checkpoint; two are kept, and three "
            f"are there while one is written; {_megabytes(value['disk_free_bytes'])} are free",
            f"quality  unknown: {value['quality_reason']}",
        ]
    )


def _probe(prepared: Prepared, progress: Progress) -> dict[str, Any]:
    """Take a few steps of a field that is thrown away; measure pace, memory and checkpoint."""
    import torch

    from nerfcli import backends
    from nerfcli.cli.train_job import peak_memory
    from nerfcli.core.devices import memory_errors
    from nerfcli.engine.train import memory_advice, start

    config, device = prepared.config, prepared.config.device
    choice = backends.select(config.backend, device, progress.note)
    with memory_errors("training", memory_advice(config)):
        loop = start(prepared, _no_run, choice.backend, device, progress)
        _step(loop)  # prepares what the others use
        begin, n = time.perf_counter(), 0
        while n < PROBE_STEPS and (n < 1 or time.perf_counter() - begin < PROBE_SECONDS):
            _step(loop)
            n += 1
        seconds = time.perf_counter() - begin
        assert loop.last is not None
        mse = float(loop.last.mse)
        tensors = (loop.trainer.model_state() | loop.trainer.optimizer_state()).values()
    on_gpu = device == "cuda"
    return {
        "backend": choice.backend.name,
        "probe_steps": n,
        "probe_psnr": round(-10 * math.log10(max(mse, 1e-12)), 3),
        "steps_per_second": n / max(seconds, 1e-9),
        "memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory(),
        "disk_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }


def _step(loop: Loop) -> None:
    loop.take_step(loop.clock.elapsed())
    assert loop.last is not None
    float(loop.last.loss)  # waits for the device


def _no_run() -> Run:
    raise AssertionError("a dry run has no folder")


def _megabytes(n: int | None) -> str:
    return "unknown" if n is None else f"{n / 1e6:.0f} MB"

"""nerf info."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from nerfcli.cli.options import Json, Quiet, complete_runs, open_run
from nerfcli.cli.output import describe_views, remark, show
from nerfcli.cli.preview import show_glance
from nerfcli.cli.runs import held_out_score, size_of
from nerfcli.core.settings import config_tree
from nerfcli.core.text import duration
from nerfcli.engine.runs import Run
from nerfcli.engine.source_record import ImageSource


def info(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="A run folder; else this machine.", autocompletion=complete_runs
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Show what this machine can run, or what a run holds.

    Versions, devices, and each backend with the reason where it cannot run. Of a run also a small
    picture, where stdout is a terminal; --quiet and NO_COLOR leave it out.

    \b
    Examples:
      nerf info
      nerf info runs/chair-1 --json
    """
    if run is None:
        value = machine()
        show(_machine_text(value), value, as_json)
    else:
        opened = open_run(run, quiet=True)
        value = contents(opened)
        show(_run_text(value), value, as_json)
        if not as_json and not quiet:
            show_glance(opened)
    return 0


def machine() -> dict[str, Any]:
    """Versions, devices, and each backend with the reason where it cannot run."""
    import torch

    from nerfcli import __version__, backends

    devices = [{"device": "cpu", "name": _processor(), "cores": os.cpu_count()}]
    devices += [
        {"device": f"cuda:{i}", "name": torch.cuda.get_device_name(i)}
        for i in range(torch.cuda.device_count())
    ]
    rows = []
    for kind, names in backends.ORDER.items():
        for name in names:
            reason = backends.why_unavailable(name, kind)
            rows.append(
                {"name": name, "device": kind, "available": reason is None, "reason": reason}
            )
    return {
        "nerf": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "devices": devices,
        "backends": rows,
    }


def contents(run: Run) -> dict[str, Any]:
    """What a run holds: its scene, settings, progress and size on the disk."""
    tensors, state = run.load_model()
    if run.remark:
        remark(run.remark)
    scene = run.scene_json
    sizes = {tuple(frame.get("size", ())) for frame in scene.get("frames", ())}
    return {
        "run": str(run.path),
        "scene": run.scene_json.get("name"),
        "source": ImageSource.recorded(run.scene_json).resolved or None,
        "method": run.config.method,
        "method_reason": run.scene_json.get("method_reason"),
        "step": state["step"],
        "seconds": state.get("seconds"),
        "finished": state.get("finished"),
        "n_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "views": {name: len(views) for name, views in scene.get("splits", {}).items()},
        "sizes": sorted(map(list, sizes)),
        "downscale": scene.get("downscale"),
        "psnr": state.get("psnr"),
        **held_out_score(run.path),
        "bytes": size_of(run.path),
        "config": config_tree(run.config),
    }


def _machine_text(value: dict[str, Any]) -> str:
    lines = [
        f"nerf {value['nerf']}, Python {value['python']}, torch {value['torch']}",
        value["platform"],
    ]
    for device in value["devices"]:
        cores = f", {device['cores']} cores" if "cores" in device else ""
        lines.append(f"device {device['device']}: {device['name']}{cores}")
    for row in value["backends"]:
        verdict = "available" if row["available"] else f"not available: {row['reason']}"
        lines.append(f"backend {row['name']} on {row['device']}: {verdict}")
    return "\n".join(lines)


def _run_text(value: dict[str, Any]) -> str:
    state = {True: "finished", False: "can go on", None: "state unknown"}[value["finished"]]
    seconds = "" if value["seconds"] is None else f", {duration(value['seconds'])} of training"
    why = f" ({value['method_reason']})" if value["method_reason"] else ""
    return "\n".join(
        [
            f"{value['run']}: scene {value['scene']}, method {value['method']}{why}",
            f"step {value['step']}{seconds}, {state}",
            f"{value['n_parameters']:,} values, {value['bytes'] / 1e6:.1f} MB on the disk",
            f"views: {describe_views(value)}; {_quality(value)}",
            f"photos: {value['source'] or 'unknown'}",
        ]
    )


def _quality(value: dict[str, Any]) -> str:
    trained = "" if not value["psnr"] else f", {value['psnr']:.2f} dB on training rays"
    if value["test_psnr"] is None:
        return f"held-out PSNR not measured (nerf eval){trained}"
    older = value["test_psnr_step"] not in (None, value["step"])
    at = f" at step {value['test_psnr_step']}" if older else ""
    return f"held-out PSNR {value['test_psnr']:.2f} dB{at}{trained}"


def _processor() -> str:
    """The processor's name, which platform.processor() leaves empty on Linux."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

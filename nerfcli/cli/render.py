"""nerf render."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nerfcli.cli.options import (
    Backend,
    Device,
    Json,
    Overwrite,
    ProgressKind,
    Quiet,
    RunPath,
    ensure_device,
    open_run,
    progress_kind,
)
from nerfcli.cli.output import remark, show, stop_code
from nerfcli.cli.output_paths import ensure_absent
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import duration, quantity
from nerfcli.engine.runs import Run

if TYPE_CHECKING:
    from nerfcli.cameras.cameras import Cameras
    from nerfcli.cameras.upright import Upright
    from nerfcli.scenes import Scene

VIDEOS = (".mp4", ".gif")
PATHS = ("auto", "orbit", "spiral", "interpolate", "test")
UPS = ("+x", "-x", "+y", "-y", "+z", "-z", "image")


def render(
    run: RunPath = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="x.mp4, x.gif, or a folder for PNG frames. [default: <run>/renders/<path>.mp4]",
        ),
    ] = None,
    path: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="orbit, spiral, interpolate, test (its views), or auto: what suits the cameras.",
        ),
    ] = "auto",
    up: Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="What is up: an axis of the scene's files (+z, -y, ...), or image: as the photos "
            "stand. [default: as the cameras, EXIF and floors tell]",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="N", help="Length of the path; test has its own.")
    ] = None,
    fps: Annotated[int, typer.Option(metavar="N", help="Frames a second of a video.")] = 30,
    scale: Annotated[
        float, typer.Option(metavar="S", help="Of the views' width and height.")
    ] = 1.0,
    save: Annotated[
        str, typer.Option(metavar="LAYERS", help="Any of rgb,depth,opacity; a file for each.")
    ] = "rgb",
    backend: Backend = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Render a run along a camera path: mp4, GIF or images.

    Needs only the run folder, not the photos.

    \b
    Examples:
      nerf render
      nerf render runs/chair-1 --path spiral --out chair.gif --scale 0.5
      nerf render --path test --save rgb,depth --out views/
    """
    kind = progress_kind(progress, quiet)
    ensure_device(device)
    layers = tuple(layer.strip() for layer in save.split(",") if layer.strip())
    _check(path, up, frames, fps, scale, out)
    opened = open_run(run, quiet=quiet).using(backend=backend, device=device)
    if out is not None:
        ensure_free_output(out, layers, overwrite=overwrite)
    chosen = plan_path(opened, path, up, frames, scale)
    target = opened.renders / f"{chosen.name}.mp4" if out is None else out
    cameras = chosen.cameras
    if chosen.remark and kind != "quiet":
        remark(chosen.remark)
    from nerfcli.engine.render import render_path

    with Progress(kind, len(cameras), "frame", "render") as reporter, StopSignal() as stop:
        result = render_path(
            opened,
            cameras,
            out=target,
            save=layers,
            fps=fps,
            backend=backend,
            progress=reporter,
            stop=stop,
        )
    text = f"{quantity(result['n_frames'], 'frame')} in {duration(result['seconds'])}: "
    if result["stopped"] is None:
        text += _places(result["files"])
    else:
        text += f"stopped before all {len(cameras)} were there; nothing is written"
    show(text, {"run": str(opened.path), "path": chosen.name, **chosen.facts, **result}, as_json)
    return stop_code(result["stopped"]) or 0


@dataclass(frozen=True)
class Plan:
    """A path through a run's scene.

    Attributes:
        name: of the path. cameras: along it.
        remark: a line for people, or "". facts: the same for --json.
    """

    name: str
    cameras: Cameras
    remark: str
    facts: dict[str, Any]


def plan_path(run: Run, path: str, up: str | None, frames: int | None, scale: float) -> Plan:
    """Choose the cameras of a path through the run's scene.

    Raises:
        NerfError: the scene has no views for it.
    """
    import numpy as np

    from nerfcli.cameras.paths import PATHS as MAKERS
    from nerfcli.cameras.paths import choose_path
    from nerfcli.scenes import Scene

    scene = Scene.from_json(run.scene_json)
    if path == "test":
        held_out = list(scene.splits.get("test", ()))
        if not held_out:
            raise NerfError(f"--path test: scene {scene.name} has no held-out views; try orbit.")
        return Plan(path, scene.cameras[held_out].scaled(scale), "", {})
    cameras = scene.cameras[list(scene.splits["train"])]
    upright = _which_is_up(scene, cameras, up)
    name, reason = (path, "as asked") if path != "auto" else choose_path(cameras, upright)
    made = MAKERS[name](cameras, scene.box, frames or 120, upright).scaled(scale)
    words = [f"{name}: {reason}"] if path == "auto" else []
    if not upright.is_certain:
        words.append(f"up is a guess ({upright.reason}): --up +z, -y, ... or image sets it")
    elif up is None and upright.turns.any():
        words.append(f"{upright.reason}, the video stands upright")
    rotation = np.array(scene.scene_from_source.rotation)
    facts = {
        "path_reason": reason,
        "up": (upright.up @ rotation).tolist(),
        "up_reason": upright.reason,
        "up_is_certain": upright.is_certain,
    }
    return Plan(name, made, "; ".join(words), facts)


def _which_is_up(scene: Scene, cameras: Cameras, up: str | None) -> Upright:
    import numpy as np

    from nerfcli.cameras.upright import find_upright, restrict, up_along, up_of_images

    c2w = cameras.c2w.numpy()
    if up == "image":
        return up_of_images(c2w)
    if up is not None:
        axis = np.eye(3)["xyz".index(up[1])] * (-1.0 if up[0] == "-" else 1.0)
        return up_along(c2w, np.array(scene.scene_from_source.rotation) @ axis)
    if scene.upright is None:  # a run of before
        return find_upright(c2w)
    return restrict(scene.upright, list(scene.splits["train"]))


def ensure_free_output(out: Path, layers: tuple[str, ...], *, overwrite: bool) -> None:
    """Raise NerfError where a file that the user named would be replaced without --overwrite."""
    ensure_writable(out)
    video = out.suffix.lower() in VIDEOS
    if video and out.is_dir():
        raise NerfError(f"--out {out} is a folder; a video needs the name of a file.")
    if not video and out.is_file():
        raise NerfError(f"--out {out} is a file; PNG frames need a folder.")
    if video:
        paths = [out, *(out.with_name(f"{out.stem}_{layer}{out.suffix}") for layer in layers[1:])]
    else:
        paths = [path for layer in layers for path in sorted(out.glob(f"{layer}_*.png"))]
    ensure_absent(paths, overwrite=overwrite)


def _check(
    path: str, up: str | None, frames: int | None, fps: int, scale: float, out: Path | None
) -> None:
    if path not in PATHS:
        raise NerfError(f"--path: unknown path {path!r}; known: {', '.join(PATHS)}.")
    if up is not None and up not in UPS:
        raise NerfError(f"--up: unknown direction {up!r}; known: {', '.join(UPS)}.")
    if up is not None and path == "test":
        raise NerfError("--up: --path test shows the held-out views as they are; leave it out.")
    if frames is not None and (frames < 1 or path == "test"):
        raise NerfError(
            "--frames: --path test has one frame for each held-out view; leave it out."
            if path == "test"
            else f"--frames must be at least 1, got {frames}."
        )
    if not 1 <= fps <= 240:
        raise NerfError(f"--fps must be from 1 to 240, got {fps}.")
    if not 0 < scale <= 16:
        raise NerfError(f"--scale must be above 0 and at most 16, got {scale}.")
    if out is not None and out.suffix and out.suffix.lower() not in VIDEOS and not out.is_dir():
        raise NerfError(
            f"--out {out}: unknown suffix {out.suffix!r}; use .mp4, .gif, or a folder for PNGs."
        )
    if out is not None:
        from nerfcli.engine.video import ensure_rate

        ensure_rate(out, fps)


def _places(files: list[str]) -> str:
    """All files of a video, or the folder of many frames."""
    return ", ".join(files) if len(files) <= 3 else f"{files[0]} … {files[-1]}"

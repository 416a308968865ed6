"""nerf render."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from nerfcli.cli.output import show, stop_code
from nerfcli.cli.output_paths import ensure_absent
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import duration, quantity
from nerfcli.engine.runs import Run

if TYPE_CHECKING:
    from nerfcli.cameras.cameras import Cameras

VIDEOS = (".mp4", ".gif")
PATHS = ("orbit", "spiral", "interpolate", "test")


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
        str, typer.Option(metavar="NAME", help="orbit, spiral, interpolate or test (its views).")
    ] = "orbit",
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
    _check(path, frames, fps, scale, out)
    opened = open_run(run, quiet=quiet).using(backend=backend, device=device)
    target = opened.renders / f"{path}.mp4" if out is None else out
    if out is not None:
        ensure_free_output(out, layers, overwrite=overwrite)
    cameras = path_cameras(opened, path, frames, scale)
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
    show(text, {"run": str(opened.path), "path": path, **result}, as_json)
    return stop_code(result["stopped"]) or 0


def path_cameras(run: Run, path: str, frames: int | None, scale: float) -> Cameras:
    """The cameras of a named path through the run's scene.

    Raises:
        NerfError: the scene has no views for it.
    """
    from nerfcli.cameras import paths
    from nerfcli.scenes import Scene

    scene = Scene.from_json(run.scene_json)
    if path == "test":
        held_out = list(scene.splits.get("test", ()))
        if not held_out:
            raise NerfError(f"--path test: scene {scene.name} has no held-out views; try orbit.")
        return scene.cameras[held_out].scaled(scale)
    make = {"orbit": paths.orbit, "spiral": paths.spiral, "interpolate": paths.interpolate}[path]
    return make(scene.cameras[list(scene.splits["train"])], scene.box, frames or 120).scaled(scale)


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


def _check(path: str, frames: int | None, fps: int, scale: float, out: Path | None) -> None:
    if path not in PATHS:
        raise NerfError(f"--path: unknown path {path!r}; known: {', '.join(PATHS)}.")
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


def _places(files: list[str]) -> str:
    """All files of a video, or the folder of many frames."""
    return ", ".join(files) if len(files) <= 3 else f"{files[0]} … {files[-1]}"

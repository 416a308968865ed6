"""nerf render."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from nerfcli.cli.output_paths import NAME_ANOTHER, ensure_absent, ensure_own_folder, first_free
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import duration, quantity
from nerfcli.engine.path_request import PathRequest
from nerfcli.engine.render_files import (
    DEPTH_RECORD,
    LAYERS,
    VIDEOS,
    RenderFiles,
    ensure_known,
    ensure_layers,
)

FPS = 30
OURS = (*(f"{layer}_*" for layer in LAYERS), DEPTH_RECORD, ".*")  # in a folder of frames


def render(
    run: RunPath = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="x.mp4, x.gif, x.png (one frame), or a folder for PNG frames. [default: "
            "<run>/renders/<path>.mp4, or the next free name]",
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
        int | None,
        typer.Option(metavar="N", help="Length of the path; test has its own. [default: 120]"),
    ] = None,
    frame: Annotated[
        int | None,
        typer.Option(metavar="N", help="Render only this frame of the path, from 0, as a PNG."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,Z|NAME",
            help="What an orbit goes round: a point in the scene's units; centre (where the "
            "cameras look), box, or subject (what is near in the middle of the photos). [default: "
            "centre, or subject where that would be cut]",
        ),
    ] = None,
    distance: Annotated[
        float | None,
        typer.Option(
            metavar="D",
            help="Of an orbit from its target, in the scene's units. [default: as the cameras]",
        ),
    ] = None,
    height: Annotated[
        float | None,
        typer.Option(
            metavar="H",
            help="Of an orbit above its target, in the scene's units; negative: below. [default: "
            "as the cameras]",
        ),
    ] = None,
    turns: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Full turns of an orbit; negative: the other way. [default: 1, or there and back "
            "over the arc that was seen]",
        ),
    ] = None,
    start: Annotated[
        float | None,
        typer.Option(
            metavar="DEG",
            help="Where an orbit begins, in degrees round from the middle of the cameras. "
            "[default: 0]",
        ),
    ] = None,
    fps: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"Frames a second of a video. [default: {FPS}]"),
    ] = None,
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

    Needs only the run folder, not the photos. Says how long it will take. Finished frames are kept
    in a hidden folder beside the output until all are there: after Ctrl-C, or a crash, the same
    command goes on with them.

    \b
    Examples:
      nerf render
      nerf render runs/chair-1 --path spiral --out chair.gif --scale 0.5
      nerf render --path test --save rgb,depth --out views/
      nerf render --target subject --distance 2.5 --height 0.5 --turns 2
      nerf render --frame 30 --out picture.png
    """
    kind = progress_kind(progress, quiet)
    ensure_device(device)
    layers = tuple(dict.fromkeys(name for word in save.split(",") if (name := word.strip())))
    if out is not None and out.suffix.lower() == ".png" and frame is None:
        frame = 0
    request = PathRequest(
        path=path,
        up=up,
        frames=frames,
        frame=frame,
        scale=scale,
        target=target,
        distance=distance,
        height=height,
        turns=turns,
        start=start,
    )
    request.ensure_possible()
    ensure_layers(layers)
    _check_out(out, frame, fps)
    opened = open_run(run, quiet=quiet).using(backend=backend, device=device)
    if out is not None:
        ensure_free_output(RenderFiles(out, layers), overwrite=overwrite)
    else:
        ensure_writable(opened.renders, NAME_ANOTHER)
    from nerfcli.engine.plan import plan_path
    from nerfcli.engine.render import load_model
    from nerfcli.engine.render_path import render_path

    # a signal before the first frame counts, too
    with Progress(kind, None, "frame", "render") as reporter, StopSignal() as stop:
        model = load_model(opened, backend, opened.config.device, reporter.note)
        chosen = plan_path(opened, request, model)
        number = "" if frame is None else f"_{frame:04d}"
        default = opened.renders / f"{chosen.name}{number}{'.mp4' if frame is None else '.png'}"
        result = render_path(
            opened,
            chosen.cameras,
            out=free_output(default, layers, overwrite=overwrite) if out is None else out,
            save=layers,
            fps=fps or FPS,
            model=model,
            remark=chosen.remark,
            progress=reporter,
            stop=stop,
        )
    total = len(chosen.cameras)
    text = f"{quantity(result['n_frames'], 'frame')} in {duration(result['seconds'])}"
    if result["n_kept"]:
        text += f" ({result['n_kept']} of them finished before)"
    if result["stopped"] is None:
        text += f": {_places(result['files'])}"
    elif result["n_frames"]:
        text += f": stopped before all {total} were there. They are kept in {result['frames_in']}; "
        text += "the same command goes on with them"
    else:
        text += f": stopped before the first of {total} was there; nothing is written"
    show(text, {"run": str(opened.path), "path": chosen.name, **chosen.facts, **result}, as_json)
    return stop_code(result["stopped"]) or 0


def ensure_free_output(files: RenderFiles, *, overwrite: bool) -> None:
    """Raise NerfError where `files` cannot be written, or would replace others unasked."""
    out = files.out
    ensure_writable(out)
    if not files.is_folder and out.is_dir():
        raise NerfError(f"--out {out} is a folder; {out.suffix} needs the name of a file.")
    if files.is_folder and out.is_file():
        raise NerfError(f"--out {out} is a file; PNG frames need a folder.")
    if files.is_folder:
        ensure_own_folder(out, patterns=OURS)
    from nerfcli.engine.kept_frames import is_half_moved

    ensure_absent(files.there(), overwrite=overwrite or is_half_moved(files))


def free_output(default: Path, layers: tuple[str, ...], *, overwrite: bool) -> Path:
    """The default name, or the next of it that replaces no file: orbit.mp4, orbit-2.mp4, ..."""
    if overwrite:
        return default
    return first_free(default, lambda path: bool(RenderFiles(path, layers).there()))


def _check_out(out: Path | None, frame: int | None, fps: int | None) -> None:
    """Raise NerfError for an output that does not fit what is asked of it."""
    if fps is not None and not 1 <= fps <= 240:
        raise NerfError(f"--fps must be from 1 to 240, got {fps}.")
    if frame is not None and out is not None and out.suffix.lower() != ".png":
        raise NerfError(f"--frame {frame} is one picture; --out must end in .png, not be {out}.")
    if out is not None:
        ensure_known(out)
    is_video = frame is None if out is None else out.suffix.lower() in VIDEOS
    if fps is not None and not is_video:
        raise NerfError("--fps is of a video; PNG frames have none. Leave it out.")
    if out is not None and is_video:
        from nerfcli.engine.video import ensure_rate

        ensure_rate(out, fps or FPS)


def _places(files: list[str]) -> str:
    """All files of a video, or the folder of many frames."""
    return ", ".join(files) if len(files) <= 3 else f"{files[0]} … {files[-1]}"

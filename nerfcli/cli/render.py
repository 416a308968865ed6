"""nerf render."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nerfcli.cli import path_options as opts
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

OURS = (*(f"{layer}_*" for layer in LAYERS), DEPTH_RECORD, ".*")  # in a folder of frames


def render(
    context: typer.Context,
    run: RunPath = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="x.mp4, x.gif, x.png (one frame), or a folder for PNG frames. [default: "
            "<run>/renders/<path>.mp4, or the next free name]",
        ),
    ] = None,
    path: opts.PathName = "auto",
    path_transform: opts.PathTransform = None,
    up: opts.Up = None,
    frames: opts.Frames = None,
    frame: opts.Frame = None,
    seconds: opts.Seconds = None,
    speed: opts.Speed = None,
    target: opts.Target = None,
    distance: opts.Distance = None,
    height: opts.Height = None,
    radius: opts.Radius = None,
    elevation: opts.Elevation = None,
    turns: opts.Turns = None,
    start: opts.Start = None,
    fps: opts.Fps = None,
    camera: opts.Camera = None,
    ipd: opts.Ipd = None,
    fov: opts.Fov = None,
    resolution: opts.Resolution = None,
    save_path: opts.SavePath = None,
    key_frames: opts.KeyFrames = None,
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
      nerf render --path camera_path.json --out film.mp4
      nerf render --path orbit --camera equirectangular --resolution 2048x1024
    """
    kind = progress_kind(progress, quiet)
    ensure_device(device)
    layers = tuple(dict.fromkeys(name for word in save.split(",") if (name := word.strip())))
    if out is not None and out.suffix.lower() == ".png" and frame is None:
        frame = 0
    request = opts.path_request({**context.params, "frame": frame})
    opts.ensure_saveable(save_path, key_frames, overwrite=overwrite)
    ensure_layers(layers)
    _check_out(out, request)
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
        if save_path is not None:
            opts.save_path(save_path, chosen, key_frames)
            if out is None:
                if chosen.remark:
                    reporter.note(chosen.remark)
                return opts.show_saved(save_path, opened, chosen, as_json)
        number = "" if frame is None else f"_{frame:04d}"
        default = opened.renders / f"{chosen.name}{number}{'.mp4' if frame is None else '.png'}"
        result = render_path(
            opened,
            chosen.cameras,
            out=free_output(default, layers, overwrite=overwrite) if out is None else out,
            save=layers,
            fps=chosen.fps,
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


def _check_out(out: Path | None, request: PathRequest) -> None:
    """Raise NerfError for an output that does not fit what is asked of it."""
    frame, fps = request.frame, request.fps
    if frame is not None and out is not None and out.suffix.lower() != ".png":
        raise NerfError(f"--frame {frame} is one picture; --out must end in .png, not be {out}.")
    if out is not None:
        ensure_known(out)
    is_video = frame is None if out is None else out.suffix.lower() in VIDEOS
    if fps is not None and not is_video and request.seconds is None:
        raise NerfError("--fps is of a video; PNG frames have none. Leave it out.")
    if out is not None and is_video:
        from nerfcli.engine.video import ensure_rate

        ensure_rate(out, request.choose_fps())


def _places(files: list[str]) -> str:
    """All files of a video, or the folder of many frames."""
    return ", ".join(files) if len(files) <= 3 else f"{files[0]} … {files[-1]}"

"""nerf render."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nerfcli.cli.options import (
    Backend,
    CropText,
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
from nerfcli.cli.output_paths import NAME_ANOTHER
from nerfcli.cli.render_output import (
    FPS,
    Codec,
    Depth,
    Format,
    Save,
    ShardText,
    Sheet,
    describe_result,
    ensure_free_output,
    ensure_one_picture,
    ensure_whole_path,
    free_output,
    make_output,
)
from nerfcli.core.files import ensure_writable
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine.path_request import PathRequest
from nerfcli.engine.render_files import STILLS, Output


def render(
    run: RunPath = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="A video (.mp4, .mov, .webm, .gif, .webp), one frame (.png, .jpg, .exr, .npy), or "
            "a folder for frames. [default: <run>/renders/<path>.mp4, or the next free name]",
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
        typer.Option(metavar="N", help="Render only this frame of the path, from 0, as a picture."),
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
    save: Save = "rgb",
    format_: Format = None,
    codec: Codec = None,
    depth: Depth = "distance",
    sheet: Sheet = None,
    crop: CropText = None,
    shard: ShardText = None,
    backend: Backend = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Render a run along a camera path: videos, GIF or images.

    Needs only the run folder, not the photos. Says how long it will take. Finished frames are kept,
    those of a video in a hidden folder beside it until all are there: after Ctrl-C, or a crash, the
    same command goes on with them.

    \b
    Examples:
      nerf render
      nerf render runs/chair-1 --path spiral --out chair.gif --scale 0.5
      nerf render --path test --save rgb,depth --out views/
      nerf render --target subject --distance 2.5 --height 0.5 --turns 2
      nerf render --frame 30 --out picture.png
      nerf render --save rgba --out chair.webm --crop=-1,-1,-1,1,1,1
      nerf render --save rgb,depth,normal --out frames/ --format exr --shard 3/16
    """
    kind = progress_kind(progress, quiet)
    ensure_device(device)
    if out is not None and out.suffix.lower() in STILLS and frame is None:
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
    ensure_whole_path(shard, frame, out)
    ensure_one_picture(frame, out)
    from nerfcli.engine.crop import crop_model, read_crop

    box = None if crop is None else read_crop(crop)

    def output_at(place: Path) -> Output:
        return make_output(
            place,
            save,
            folder_format=format_,
            fps=fps,
            codec=codec,
            depth=depth,
            sheet=sheet,
            shard=shard,
            overwrite=overwrite,
        )

    suffix = (".mp4" if "rgba" not in save else ".webm") if frame is None else ".png"
    layers = output_at(Path(f"render{suffix}") if out is None else out).files.layers
    opened = open_run(run, quiet=quiet).using(backend=backend, device=device)
    if out is not None:
        ensure_free_output(output_at(out))
    else:
        ensure_writable(opened.renders, NAME_ANOTHER)
    from nerfcli.engine.plan import plan_path
    from nerfcli.engine.render import load_model
    from nerfcli.engine.render_path import render_path

    # a signal before the first frame counts, too
    with Progress(kind, None, "frame", "render") as reporter, StopSignal() as stop:
        model = load_model(opened, backend, opened.config.device, reporter.note)
        chosen = plan_path(opened, request, model)
        if out is None:
            number = "" if frame is None else f"_{frame:04d}"
            default = opened.renders / f"{chosen.name}{number}{suffix}"
            out = free_output(default, layers, overwrite=overwrite)
        result = render_path(
            opened,
            chosen.cameras,
            output_at(out),
            model=model if box is None else crop_model(model, box),
            remark=chosen.remark,
            progress=reporter,
            stop=stop,
        )
    facts = {"run": str(opened.path), "path": chosen.name, **chosen.facts, **result}
    show(describe_result(result, len(chosen.cameras)), facts, as_json)
    return stop_code(result["stopped"]) or 0

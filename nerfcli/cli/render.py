"""nerf render."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nerfcli.cli import path_options as opts
from nerfcli.cli.launch import launch, wants_several
from nerfcli.cli.options import (
    Backend,
    CropText,
    Device,
    Devices,
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
from nerfcli.cli.preview import ensure_previewable, show_preview
from nerfcli.cli.render_output import (
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
from nerfcli.core.config import known
from nerfcli.core.distributed import world
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine.render_files import STILLS, Output

Blocks = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Show the blocks that `nerf split` made and that are trained as one."
    ),
]


def render(
    context: typer.Context,
    run: RunPath = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="A video (.mp4, .mov, .webm, .gif, .webp), one frame (.png, .jpg, .exr, .npy), or "
            "a folder for frames. [default: <run>/renders/<path>.mp4, or the next free name]",
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
    save: Save = "rgb",
    format_: Format = None,
    codec: Codec = None,
    depth: Depth = "distance",
    sheet: Sheet = None,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Show one frame, small, in the terminal; write nothing."),
    ] = False,
    crop: CropText = None,
    shard: ShardText = None,
    blocks: Blocks = None,
    backend: Backend = "auto",
    device: Device = "auto",
    devices: Devices = None,
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
      nerf render --path spiral --preview
      nerf render --path camera_path.json --out film.mp4
      nerf render --path orbit --camera equirectangular --resolution 2048x1024
      nerf render --save rgba --out chair.webm --crop=-1,-1,-1,1,1,1
      nerf render --save rgb,depth,normal --out frames/ --format exr --shard 3/16
    """
    kind = progress_kind(progress, quiet)
    ensure_device(device)
    protocol = ensure_previewable(context.params) if preview else None
    if out is not None and out.suffix.lower() in STILLS and frame is None:
        frame = 0
    request = opts.path_request({**context.params, "frame": frame})
    if world().is_first:
        opts.ensure_saveable(save_path, key_frames, overwrite=overwrite)
    ensure_whole_path(shard, frame, out)
    ensure_one_picture(frame, out)
    from nerfcli.engine.crop import crop_model, read_crop

    box = None if crop is None else read_crop(crop)

    def output_at(place: Path, fps: float) -> Output:
        return make_output(
            place,
            save,
            folder_format=format_,
            request=request,
            fps=fps,
            codec=codec,
            depth=depth,
            sheet=sheet,
            shard=shard,
            overwrite=overwrite,
        )

    rate = request.choose_fps()
    suffix = (".mp4" if "rgba" not in save else ".webm") if frame is None else ".png"
    layers = output_at(Path(f"render{suffix}") if out is None else out, rate).files.layers
    if wants_several(devices):
        return launch(context.obj, known(devices))
    if blocks is not None and run is not None:
        raise NerfError(f"--blocks {blocks} and {run}: name one of them.")
    from nerfcli.engine.blocks import load_blocks, open_blocks

    found = open_run(run, quiet=quiet) if blocks is None else open_blocks(blocks)[0]
    opened = found.using(backend=backend, device=device)
    if out is not None:
        ensure_free_output(output_at(out, rate))
    elif not preview:
        ensure_writable(opened.renders, NAME_ANOTHER)
    from nerfcli.engine.plan import plan_path
    from nerfcli.engine.render import load_model
    from nerfcli.engine.render_together import render_together

    # a signal before the first frame counts, too
    with Progress(kind, None, "frame", "render") as reporter, StopSignal() as stop:
        where = backend, opened.config.device, reporter.note
        model = load_model(opened, *where) if blocks is None else load_blocks(blocks, *where)
        if protocol is not None:
            show_preview(opened, request, model, box, protocol, reporter.note)
            return 0
        chosen = plan_path(opened, request, model)
        if save_path is not None:
            if world().is_first:
                opts.save_path(save_path, chosen, key_frames)
            if out is None:
                if chosen.remark:
                    reporter.note(chosen.remark)
                return opts.show_saved(save_path, opened, chosen, as_json)
        if out is None:
            number = "" if frame is None else f"_{frame:04d}"
            default = opened.renders / f"{chosen.name}{number}{suffix}"
            out = free_output(default, layers, overwrite=overwrite)
        out = world().gather_objects(out)[0]
        result = render_together(
            opened,
            chosen.cameras,
            output_at(out, chosen.fps),
            model=model if box is None else crop_model(model, box),
            remark=chosen.remark,
            progress=reporter,
            stop=stop,
            world=world(),
        )
    if not world().is_first:
        return stop_code(result["stopped"]) or 0
    facts = {"run": str(opened.path), "path": chosen.name, **chosen.facts, **result}
    show(describe_result(result, len(chosen.cameras)), facts, as_json)
    return stop_code(result["stopped"]) or 0

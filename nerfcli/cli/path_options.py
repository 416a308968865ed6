"""Flags that state a camera path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nerfcli.cli.output import show
from nerfcli.cli.output_paths import ensure_absent
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable
from nerfcli.core.text import command, quantity
from nerfcli.engine.path_request import FPS, N_FRAMES, PathRequest

if TYPE_CHECKING:
    from nerfcli.engine.plan import Plan
    from nerfcli.engine.runs import Run

OF_SCENE = "in the scene's units"
PathName = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="auto: what suits the cameras; orbit, turntable, ellipse, figure8, dolly, zoom, "
        "spiral, interpolate; test or train: those views; or a file: a path that --save-path "
        "wrote, nerfstudio's camera_path.json, instant-ngp's base_cam.json, a transforms.json, the "
        "folder of a COLMAP model.",
    ),
]
PathTransform = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The frame of a path's file: nerfstudio's dataparser_transforms.json, or a "
        "transforms.json. [default: looked for beside the path and in the scene]",
    ),
]
Up = Annotated[
    str | None,
    typer.Option(
        metavar="X",
        help="What is up: an axis of the scene's files (+z, -y, ...), or image: as the photos "
        "stand. [default: as the cameras, EXIF and floors tell]",
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help=f"Length of the path; test and train have their own. [default: {N_FRAMES}, or the "
        "file's]",
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(metavar="S", help="Length of the video, in place of --frames or --fps."),
]
Speed = Annotated[
    float | None, typer.Option(metavar="X", help="So many times as fast: 2 is half the frames.")
]
Frame = Annotated[
    int | None,
    typer.Option(metavar="N", help="Render only this frame of the path, from 0, as a PNG."),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="X,Y,Z|NAME",
        help="What an orbit goes round: a point in the scene's units; centre (where the "
        "cameras look), box, or subject (what is near in the middle of the photos). [default: "
        "centre, or subject where that would be cut]",
    ),
]
Distance = Annotated[
    float | None,
    typer.Option(
        metavar="D", help=f"Of an orbit from its target, {OF_SCENE}. [default: as the cameras]"
    ),
]
Height = Annotated[
    float | None,
    typer.Option(
        metavar="H",
        help=f"Of an orbit above its target, {OF_SCENE}; negative: below. [default: as the "
        "cameras]",
    ),
]
Radius = Annotated[
    float | None,
    typer.Option(metavar="R", help=f"Of an orbit's circle, {OF_SCENE}, in place of --distance."),
]
Elevation = Annotated[
    float | None,
    typer.Option(metavar="DEG", help="Of an orbit above its target, in place of --height."),
]
Turns = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="Full turns of an orbit; negative: the other way. [default: 1, or there and back "
        "over the arc that was seen]",
    ),
]
Start = Annotated[
    float | None,
    typer.Option(
        metavar="DEG",
        help="Where an orbit begins, in degrees round from the middle of the cameras. [default: 0]",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        metavar="N", help=f"Frames a second of a video. [default: {FPS:g}, or the file's]"
    ),
]
Camera = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="perspective; or all around: equirectangular, ods (for two eyes, the left one "
        "above), vr180 (the half in front for two eyes, side by side). [default: perspective, or "
        "the file's]",
    ),
]
Ipd = Annotated[
    float | None,
    typer.Option(metavar="D", help=f"Between two eyes, {OF_SCENE}. [default: 0.064, metres]"),
]
Fov = Annotated[
    float | None,
    typer.Option(
        metavar="DEG", help="Field of view from top to bottom. [default: as the photos or the file]"
    ),
]
Resolution = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="Size of a frame, or of what one eye sees. [default: as the photos or the file]",
    ),
]
SavePath = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the path to a JSON file, to edit and to give to --path. Renders only if "
        "--out is there, too.",
    ),
]
KeyFrames = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Of the path, --save-path writes N key frames. [default: all frames]"
    ),
]


def path_request(params: Mapping[str, Any]) -> PathRequest:
    """Collect what a command's flags ask of a path."""
    request = PathRequest(**{one.name: params[one.name] for one in fields(PathRequest)})
    request.ensure_possible()
    return request


def ensure_saveable(path: Path | None, key_frames: int | None, *, overwrite: bool) -> None:
    """Raise NerfError where --save-path and --key-frames cannot be met."""
    if key_frames is not None and path is None:
        raise NerfError("--key-frames is of --save-path FILE; leave it out, or name a file.")
    if key_frames is not None and key_frames < 1:
        raise NerfError(f"--key-frames must be at least 1, got {key_frames}.")
    if path is None:
        return
    if path.suffix.lower() != ".json":
        raise NerfError(f"--save-path {path}: the path is JSON; name a .json file.")
    ensure_writable(path)
    ensure_absent([path], overwrite=overwrite)


def save_path(path: Path, plan: Plan, key_frames: int | None) -> None:
    """Write a planned path, all of its cameras or so many key frames."""
    from nerfcli.scenes.own_path import write_own_path
    from nerfcli.scenes.path_frames import move_cameras

    cameras = move_cameras(plan.cameras, plan.source_from_scene)
    write_own_path(path, cameras, fps=plan.fps, is_loop=plan.is_loop, key_frames=key_frames)


def show_saved(path: Path, run: Run, plan: Plan, as_json: bool) -> int:
    """Say what `save_path` wrote, where nothing is rendered."""
    facts = {"run": str(run.path), "path": plan.name, **plan.facts, "saved_path": str(path)}
    again = command("nerf", "render", run.path, "--path", path)
    text = f"{path}: a path of {quantity(len(plan.cameras), 'frame')}; to render it: {again}"
    show(text, {**facts, "n_frames": len(plan.cameras)}, as_json)
    return 0

"""What `nerf render` writes: options about files, checked before any work begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from nerfcli.cli.output_paths import ensure_absent, ensure_own_folder, first_free
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable
from nerfcli.core.text import duration, quantity
from nerfcli.engine.path_request import PathRequest
from nerfcli.engine.render_files import (
    DEPTH_KINDS,
    ESTIMATORS,
    FORMATS,
    LAYERS,
    RECORD,
    STILLS,
    Output,
    RenderFiles,
    Shard,
    ensure_fitting,
    ensure_layers,
)

SHEETS = (".png", ".jpg", ".jpeg")
# in a folder of frames
OURS = (
    *(f"{layer}_*" for layer in LAYERS),
    *(f"{layer}.json" for layer in ESTIMATORS),
    RECORD,
    ".*",
)

Save = Annotated[
    str,
    typer.Option(metavar="LAYERS", help=f"Any of {','.join(LAYERS)}; files for each."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help=f"Of the frames in a folder: {', '.join(FORMATS)}. [default: png]",
    ),
]
Codec = Annotated[str | None, typer.Option(metavar="NAME", help="Of an mp4: h264 or h265.")]
Depth = Annotated[
    str,
    typer.Option(
        metavar="KIND", help="Depth as distance along the ray, or z along the camera's axis."
    ),
]
Sheet = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write up to 16 of the frames into one .png or .jpg."),
]
ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="K/N",
        help="Render every N-th frame from the K-th on, beside other shards that have the same "
        "--out. The last one finishes the whole.",
    ),
]


def make_output(
    out: Path,
    save: str,
    *,
    folder_format: str | None,
    request: PathRequest,
    fps: float,
    codec: str | None,
    depth: str,
    sheet: Path | None,
    shard: str | None,
    overwrite: bool,
) -> Output:
    """Gather the options about files for one --out.

    fps: of the path.

    Raises:
        NerfError: one that is unknown, or does not fit another.
    """
    from nerfcli.engine.video import ensure_codec, ensure_rate

    layers = tuple(dict.fromkeys(name for word in save.split(",") if (name := word.strip())))
    ensure_layers(layers)
    files = RenderFiles(out, layers, folder_format or "png")
    ensure_fitting(files)
    if folder_format is not None and not files.is_folder:
        raise NerfError(f"--format is of a folder of frames; --out {out} says it by its suffix.")
    if depth not in DEPTH_KINDS:
        raise NerfError(f"--depth: unknown kind {depth!r}; known: {', '.join(DEPTH_KINDS)}.")
    if depth != "distance" and not set(layers) & set(ESTIMATORS):
        raise NerfError(f"--depth {depth} is of the layers {' and '.join(ESTIMATORS)}: --save one.")
    ensure_codec(out if files.is_video else Path(f"{out}.png"), codec)
    if request.fps is not None and not files.is_video and request.seconds is None:
        raise NerfError("--fps is of a video; single frames have none. Leave it out.")
    if files.is_video:
        ensure_rate(out, fps)
    if sheet is not None and sheet.suffix.lower() not in SHEETS:
        raise NerfError(f"--sheet {sheet}: must end in .png or .jpg.")
    part = None if shard is None else parse_shard(shard)
    return Output(files, fps, codec or "h264", depth, sheet, part, overwrite)


def parse_shard(text: str) -> Shard:
    """Read 3/16: the third of 16 parts."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise NerfError(f"--shard {text!r}: must be K/N with K from 1 to N, such as 3/16.")
    return Shard(number, count)


def ensure_whole_path(shard: str | None, frame: int | None, out: Path | None) -> None:
    """Raise NerfError for a shard without a place that all shards know, or of one frame."""
    if shard is None:
        return
    if frame is not None:
        raise NerfError("--shard is a part of a path, and --frame one picture of it: give one.")
    if out is None:
        raise NerfError("--shard needs --out, the same for all shards.")


def ensure_one_picture(frame: int | None, out: Path | None) -> None:
    """Raise NerfError for a --frame that --out cannot hold as a picture."""
    if frame is not None and out is not None and out.suffix.lower() not in STILLS:
        raise NerfError(
            f"--frame {frame} is one picture; --out must end in {', '.join(STILLS)}, not be {out}."
        )


def ensure_free_output(output: Output) -> None:
    """Raise NerfError where files cannot be written, or would replace others unasked.

    Frames in a folder that a record describes are looked at later: they may be of the same render.
    """
    files, out = output.files, output.files.out
    ensure_writable(out)
    if not files.is_folder and out.is_dir():
        raise NerfError(f"--out {out} is a folder; {out.suffix} needs the name of a file.")
    if files.is_folder and out.is_file():
        raise NerfError(f"--out {out} is a file; frames need a folder.")
    if files.is_folder:
        ensure_own_folder(out, patterns=OURS)
    if not (files.is_folder and (out / RECORD).is_file()):
        from nerfcli.engine.kept_frames import is_half_moved

        ensure_absent(files.there(), overwrite=output.overwrite or is_half_moved(files))
    if output.sheet is not None:
        ensure_writable(output.sheet)
        ensure_absent([output.sheet], overwrite=output.overwrite)


def free_output(default: Path, layers: tuple[str, ...], *, overwrite: bool) -> Path:
    """The default name, or the next of it that replaces no file: orbit.mp4, orbit-2.mp4, ..."""
    if overwrite:
        return default
    return first_free(default, lambda path: bool(RenderFiles(path, layers).there()))


def describe_result(result: dict, total: int) -> str:
    """Say in a line for people what a render of `total` frames has done."""
    text = f"{quantity(result['n_frames'], 'frame')} in {duration(result['seconds'])}"
    if result["n_kept"]:
        text += f" ({result['n_kept']} of them finished before)"
    if shard := result.get("shard"):
        text = f"shard {shard}: {text}"
    if result["files"]:
        return f"{text}: {list_places(result['files'])}"
    if result["stopped"] is None:
        return f"{text}; {result['n_there']} of all {total} are there"
    if result["n_frames"]:
        text += f": stopped before all {total} were there. They are kept in {result['frames_in']}; "
        return text + "the same command goes on with them"
    return f"{text}: stopped before the first of {total} was there; nothing is written"


def list_places(files: list[str]) -> str:
    """All files of a video, or the first and the last of many frames."""
    return ", ".join(files) if len(files) <= 3 else f"{files[0]} … {files[-1]}"

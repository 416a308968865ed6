"""nerf convert."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nerfcli.cli.hints import ensure_scene
from nerfcli.cli.options import (
    Images,
    Json,
    ProgressKind,
    Quiet,
    SkipBadFrames,
    progress_kind,
    scene_config,
)
from nerfcli.cli.output import show
from nerfcli.cli.output_paths import ensure_new_folder
from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing_folder, write_json
from nerfcli.core.progress import Progress
from nerfcli.core.text import choose_from, quantity

if TYPE_CHECKING:
    from nerfcli.scenes.writers.convert import Plan, WriteOptions

MANY_CAMERAS = 100  # whose lenses take seconds
PNG_BYTES = 2  # a pixel, roughly
RECORD = "conversion.json"  # in the new folder: source, losses and new names
MADE = re.compile(  # the files that conversions write
    r"conversion\.json|images|masks|depths|sparse|train|val|test|(train|val|validation|test)_list\.txt|"
    r"(dataparser_)?transforms(_train|_val|_test)?\.json|sparse_pc\.ply|poses_bounds\.npy"
)


def convert(
    scene: Annotated[
        Path, typer.Argument(metavar="SCENE", help="A folder of posed photos in any format.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="blender, llff, colmap, transforms (or nerfstudio: the same), or instant-ngp.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Write nothing, and exit 2, where anything would be lost."),
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Symbolic links to the images instead of copies.")
    ] = False,
    undistort: Annotated[
        bool,
        typer.Option("--undistort", help="Resample images with a lens into pinhole cameras."),
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="A COLMAP model as text files.")] = False,
    dataparser: Annotated[
        bool,
        typer.Option(
            "--dataparser",
            help="Also write dataparser_transforms.json: how training moves the scene.",
        ),
    ] = False,
    images: Images = None,
    skip_bad_frames: SkipBadFrames = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier conversion made.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Write a scene in another format: a new folder, images included.

    What the format cannot hold is listed, and kept in conversion.json with the images' new names.

    \b
    Examples:
      nerf convert scene/ --to colmap --out scene-colmap/
      nerf convert capture/ --to nerfstudio --out capture-ns/ --link --json
      nerf convert capture/ --to llff --undistort --out capture-llff/
    """
    from nerfcli.scenes import read_source
    from nerfcli.scenes.writers.convert import WriteOptions, plan_scene, write_scene
    from nerfcli.scenes.writers.unsupported import SAME_TARGET, TARGETS

    target = SAME_TARGET.get(to, to)
    if target not in TARGETS:
        known = choose_from(to, (*TARGETS, *SAME_TARGET))
        raise NerfError(f"--to: unknown format {to!r}; {known}.")
    if text and to != "colmap":
        raise NerfError("--text is for --to colmap only.")
    ensure_scene(scene, "convert")
    ensure_free_folder(out, scene, overwrite=overwrite)
    source = read_source(scene, scene_config(images, skip_bad_frames))
    options = WriteOptions(target, link, text, dataparser, undistort)
    kind = progress_kind(progress, quiet)
    with Progress(kind, None, "camera", "plan") as told:
        plan = plan_scene(source, options, lambda n, of: _tell_many(told, n, of))
    lost = plan.lost
    if strict and lost:
        listed = ", ".join(f"{item.what} ({item.detail})" for item in lost)
        raise NerfError(f"--strict: nothing is written, since {to} cannot hold all: {listed}.")
    value: dict[str, Any] = {
        **{"scene": str(scene), "from": source.kind, "to": to, "out": str(out)},
        "n_images": len(source.frames),
        "lost": [asdict(item) for item in lost],
    }
    _ensure_room(plan, out, options)
    with Progress(kind, len(source.frames), "image", "convert") as told:
        for note in source.notes:
            told.note(note)
        with replacing_folder(out) as aside:
            written = write_scene(source, aside, options, told.update, plan)
            value |= {"written": True, "notes": list(written.notes), "names": written.names}
            write_json(aside / RECORD, value)
    show(_summary(value), value, as_json)
    return 0


def ensure_free_folder(out: Path, scene: Path, *, overwrite: bool) -> None:
    """Raise NerfError unless a conversion can be put at `out`, in place of another at most."""
    ensure_new_folder(out, scene, [RECORD], overwrite=overwrite)
    if out.is_dir():
        others = sorted(path.name for path in out.iterdir() if not MADE.fullmatch(path.name))
        if others:
            raise NerfError(
                f"{out} also holds {others[0]}, which no conversion made; move it away, or choose "
                "another --out."
            )


def _tell_many(told: Progress, done: int, total: int) -> None:
    """Show how far the plan is where it takes a while."""
    if total >= MANY_CAMERAS:
        told.update(done, total=total)


def _ensure_room(plan: Plan, out: Path, options: WriteOptions) -> None:
    from nerfcli.scenes.writers.pictures import file_kind

    place = out.absolute()
    while not place.exists():
        place = place.parent
    needed = 0
    for old, new in zip(plan.old.frames, plan.new.frames, strict=True):
        if new is not old or not file_kind(old, options.target)[1]:
            needed += PNG_BYTES * new.size[0] * new.size[1]
        elif old.image is not None and not options.link:
            needed += old.image.stat().st_size
    free = shutil.disk_usage(place).free
    if needed > free:
        raise NerfError(
            f"the images take {needed / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB free; "
            f"use {'another --out' if options.link else '--link, or another --out'}."
        )


def _summary(value: dict[str, Any]) -> str:
    images = quantity(value["n_images"], "image")
    head = f"{value['out']}: {images}, {value['from']} to {value['to']}"
    lines = [head, *value["notes"]]
    lines += [f"lost: {loss['what']}: {loss['detail']}" for loss in value["lost"]]
    if any(loss["what"] == "lens" for loss in value["lost"]):
        lines.append("--undistort resamples the images into cameras without a lens instead")
    return "\n".join(lines if value["lost"] else [*lines, "nothing is lost"])

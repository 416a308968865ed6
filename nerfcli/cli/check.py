"""nerf check."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain, count
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
from nerfcli.cli.output import NOT_MET, show
from nerfcli.cli.output_paths import ensure_new_folder
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, replacing_folder
from nerfcli.core.progress import Progress
from nerfcli.core.settings import load_config
from nerfcli.core.text import command

if TYPE_CHECKING:
    from nerfcli.check import SceneCheck
    from nerfcli.scenes import Source

MAX_VIEWS = 300


def check(
    scene: Annotated[
        Path, typer.Argument(metavar="SCENE", help="A folder of posed photos in any format.")
    ],
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw cameras, box and points into this PNG."),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write a corrected scene to --out, if there is a cure.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder that --fix makes.")
    ] = None,
    views: Annotated[
        int, typer.Option(metavar="N", help="Check at most this many views, evenly chosen.")
    ] = MAX_VIEWS,
    alpha: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What alpha means: auto, transparent (nothing is there), ignore (a mask).",
        ),
    ] = "auto",
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="What will be trained: auto, or a method of nerf train."),
    ] = "auto",
    images: Images = None,
    skip_bad_frames: SkipBadFrames = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Find out whether a scene is fit to train on, before training.

    Matches features between the images and tests the poses against them: axis convention,
    world-to-camera for camera-to-world, focal length, exchanged or shuffled images, single wrong
    poses. Then tests images, masks, depth images, and whether what `nerf train` will train holds
    what the photos show. Exit code 3 if there are faults.

    \b
    Examples:
      nerf check scene/
      nerf check scene/ --picture check.png --json
      nerf check scene/ --fix --out scene-fixed/
    """
    from nerfcli.check import NothingToCorrect, check_source, draw_check, list_changes
    from nerfcli.scenes import read_source

    if fix and out is None:
        raise NerfError("--fix writes a corrected copy: say where with --out DIR.")
    if out is not None and not fix:
        raise NerfError("--out is the folder that --fix makes; give both or none.")
    if views < 2:
        raise NerfError(f"--views must be at least 2, got {views}.")
    ensure_scene(scene, "check")
    if out is not None:
        ensure_new_folder(out, scene)
    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise NerfError(f"--picture {picture}: the picture is a PNG; name it so.")
        ensure_writable(picture)
    config = load_config(flags={"scene.alpha": alpha, "method": method})
    source = read_source(scene, scene_config(images, skip_bad_frames))
    if picture is not None:
        _ensure_no_image_of(source, picture)
    with Progress(progress_kind(progress, quiet), None, "image", "check") as reporter:
        result = check_source(
            source, reporter, max_views=views, alpha=config.scene.alpha, method=config.method
        )
    value: dict[str, Any] = result.report.to_json()
    text = result.report.to_text()
    if picture is not None:
        draw_check(result, picture)
        value["picture"] = str(picture)
        text += f"\npicture: {picture}"
    met = not result.report.faults
    if out is not None:
        try:
            value["fixed"] = {"out": str(out), "changes": _write_fixed(result, out)}
            text += f"\ncorrected: {out} ({'; '.join(value['fixed']['changes'])})"
        except NothingToCorrect as error:  # still show the report
            value["fixed"], met = None, False
            text += f"\n{error}"
    elif changes := list_changes(result):
        value["cure"] = list(changes)
        given: dict[str, object] = {"--alpha": alpha, "--method": method, "--views": views}
        given |= {"--images": images, "--skip-bad-frames": skip_bad_frames}
        cure = fix_command(scene, given)
        text += "" if quiet else f"\nto be corrected ({'; '.join(changes)}): {cure}"
    show(text, value, as_json)
    return 0 if met else NOT_MET


def fix_command(scene: Path, given: Mapping[str, object]) -> str:
    """Name the command that writes a corrected copy, to a free folder here or beside the scene.

    given: values by flag; those that are left at their defaults are not named.
    """
    root = (scene if scene.is_dir() else scene.parent).resolve()
    place = root.parent if Path.cwd().is_relative_to(root) else Path()
    ends = chain([""], (f"-{n}" for n in count(2)))
    outs = (place / f"{root.name or 'scene'}-fixed{end}" for end in ends)
    words: list[object] = [next(out for out in outs if not os.path.lexists(out))]
    for flag, value in given.items():
        if value is True:
            words.append(flag)
        elif value not in (None, False, "auto", MAX_VIEWS):
            words += [flag, Path(str(value))]
    return command("nerf check", scene, "--fix --out", *words)


def _ensure_no_image_of(source: Source, picture: Path) -> None:
    """Raise NerfError if the picture would replace an image of the scene."""
    target = picture.resolve()
    for frame in source.frames:
        depth = frame.depth.path if frame.depth is not None else None
        for path in (frame.image, frame.mask, frame.alpha, depth):
            if path is not None and path.resolve() == target:
                raise NerfError(f"--picture {picture} is an image of the scene; choose another.")


def _write_fixed(check: SceneCheck, out: Path) -> list[str]:
    """Write the corrected scene, whole or not at all; return the changes."""
    from nerfcli.check import write_corrected

    with replacing_folder(out) as folder:
        return list(write_corrected(check, folder))

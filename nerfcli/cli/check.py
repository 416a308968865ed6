"""nerf check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nerfcli.cli.convert import ensure_free_folder
from nerfcli.cli.hints import command, ensure_scene
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
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, replacing_folder
from nerfcli.core.progress import Progress
from nerfcli.core.settings import load_config

if TYPE_CHECKING:
    from nerfcli.check import SceneCheck
    from nerfcli.scenes import Source


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
    ] = 300,
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
        ensure_free_folder(out, scene, overwrite=False)
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
        text += "" if quiet else f"\nto be corrected ({'; '.join(changes)}): {_fix_command(scene)}"
    show(text, value, as_json)
    return 0 if met else NOT_MET


def _fix_command(scene: Path) -> str:
    """Name the command that writes a corrected copy, beside the scene."""
    root = scene if scene.is_dir() else scene.parent
    fixed = root.resolve().name + "-fixed"
    return command("nerf check", scene, "--fix --out", Path(fixed))


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

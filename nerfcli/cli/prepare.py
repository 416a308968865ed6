"""nerf prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nerfcli.cli.hints import ensure_capture
from nerfcli.cli.options import Json, ProgressKind, Quiet, progress_kind
from nerfcli.cli.output import NOT_MET, show, stop_code
from nerfcli.cli.output_paths import ensure_apart, ensure_own_folder
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed
from nerfcli.core.files import ensure_writable, read_json
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import command, duration, quantity

DEFAULT_FRAMES = 150  # of a video


def prepare(
    capture: Annotated[
        Path, typer.Argument(metavar="PHOTOS|VIDEO", help="A folder of photos, or a video file.")
    ],
    out: Annotated[Path, typer.Option(metavar="SCENE", help="The folder to make.")],
    frames: Annotated[
        int,
        typer.Option(
            metavar="N", help="Cut a video into N windows; take the sharpest frame of each."
        ),
    ] = DEFAULT_FRAMES,
    lens: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="simple (one radial term), radial (two), opencv, fisheye or equirectangular.",
        ),
    ] = "simple",
    undistort: Annotated[
        bool, typer.Option("--undistort", help="Write pinhole images instead of keeping the lens.")
    ] = False,
    pyramid: Annotated[
        int, typer.Option(metavar="N", help="Also write the images halved N times: images_2, ...")
    ] = 0,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Masks named as the photos (a.jpg.png or a.png): what is black is ignored.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start again; replace an earlier scene in --out."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Make a scene of photos or a video: find where each was taken.

    Uses structure from motion by pycolmap: pip install 'nerfcli[prepare]'; nerfcli[heic] and
    nerfcli[raw] read such photos. Copies the originals and never changes them. A stopped run goes
    on with the same command. Exit code 3 if fewer than half of the images are registered.

    \b
    Examples:
      nerf prepare photos/ --out scene/ && nerf check scene/ && nerf train scene/
      nerf prepare walk.mp4 --out scene/ --frames 200
    """
    from nerfcli.prepare import (
        LENSES,
        RECORD,
        PrepareOptions,
        Stopped,
        ensure_same_request,
        prepare_scene,
    )

    if lens not in LENSES:
        raise NerfError(f"--lens: unknown lens {lens!r}; known: {', '.join(LENSES)}.")
    if frames < 3:
        raise NerfError(f"--frames must be at least 3, got {frames}.")
    if not 0 <= pyramid <= 5:
        raise NerfError(f"--pyramid must be 0 to 5, got {pyramid}.")
    if masks is not None and not masks.is_dir():
        raise NerfError(f"--masks {masks}: no such folder.")
    if masks is not None and capture.is_file():
        raise NerfError("--masks goes with photos; the frames of a video have no names.")
    if masks is not None and undistort:
        raise NerfError("--undistort takes no masks; leave it out, the lens is kept.")
    if masks is not None and lens == "equirectangular":
        raise NerfError("--lens equirectangular takes no masks; give perspective photos, or none.")
    ensure_capture(capture)
    if frames != DEFAULT_FRAMES and capture.is_dir():
        raise NerfError("--frames is for a video; a folder of photos is taken whole.")
    ensure_installed("pycolmap", "nerf prepare")
    ensure_free_scene(capture, out, overwrite=overwrite)
    given = None if masks is None else str(masks.resolve())
    options = PrepareOptions(frames, lens, undistort, pyramid, given)
    if (out / RECORD).is_file() and (out / "transforms.json").is_file():
        record = read_json(out / RECORD)
        if "asked" in record:
            ensure_same_request(out, record["asked"], capture, options)
        note = f"{out} is finished; --overwrite starts again\n"
        show(note + summarise(record, quiet=quiet), record, as_json)
        return 0 if record.get("enough") else NOT_MET
    with (
        StopSignal() as stop,
        Progress(progress_kind(progress, quiet), None, "image", "prepare") as reporter,
    ):
        try:
            record = prepare_scene(
                capture, out, options, reporter, lambda: stop.received is not None
            )
        except Stopped:
            text = f"stopped; the same command goes on with {out}"
            reporter.note(text)
            if as_json:
                show("", {"error": text}, as_json)
            return stop_code(stop.received) or 130
    show(summarise(record, quiet=quiet), record, as_json)
    return 0 if record["enough"] else NOT_MET


def ensure_free_scene(capture: Path, out: Path, *, overwrite: bool) -> None:
    """Raise NerfError unless `capture` exists and `out` is free, or ours; clear it if asked."""
    from nerfcli.prepare import RECORD, WORK, clear_scene

    if not capture.exists():
        raise NerfError(f"{capture} does not exist; give a folder of photos or a video file.")
    ensure_apart(out, capture)
    ensure_own_folder(out, (RECORD, WORK))
    if overwrite and out.is_dir() and any(out.iterdir()):
        clear_scene(capture, out)
    ensure_writable(out)


def summarise(record: dict[str, Any], *, quiet: bool = False) -> str:
    """Summarise the record for people."""
    done, total = record["registered"], record["images"]
    lines = [
        f"{record['scene']}: {done} of {quantity(total, 'image')} registered, "
        f"{record['points']} points, reprojection error {record['reprojection_px']:.2f} px, "
        f"{duration(record['seconds'])}"
    ]
    if len(record["models"]) > 1:
        sizes = ", ".join(str(n) for n in record["models"])
        lines.append(f"the capture falls into parts of {sizes} images; the largest is kept")
    failed = record["failed"]
    lines += [f"  {name}: {reason}" for name, reason in list(failed.items())[:10]]
    if len(failed) > 10:
        lines.append(f"  and {len(failed) - 10} more, see prepare.json")
    if not record["enough"]:
        lines.append("too few: the scene is not what was photographed; take more, with overlap")
    if not quiet:
        scene = Path(record["scene"])
        lines.append(f"next: {command('nerf check', scene)}   {command('nerf train', scene)}")
    # names that are not UTF-8 cannot be printed
    return "\n".join(lines).encode(errors="backslashreplace").decode()

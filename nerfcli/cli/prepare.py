"""nerf prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nerfcli.cli.options import Json, ProgressKind, Quiet, progress_kind
from nerfcli.cli.output import NOT_MET, show, stop_code
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, read_json
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import duration, quantity


def prepare(
    thing: Annotated[
        Path, typer.Argument(metavar="PHOTOS|VIDEO", help="A folder of photos, or a video file.")
    ],
    out: Annotated[Path, typer.Option(metavar="SCENE", help="The folder to make.")],
    frames: Annotated[
        int,
        typer.Option(metavar="N", help="Frames to take from a video, the sharpest of each N-th."),
    ] = 150,
    lens: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="simple (one radial term), radial (two), opencv or fisheye."
        ),
    ] = "simple",
    undistort: Annotated[
        bool, typer.Option("--undistort", help="Write pinhole images instead of keeping the lens.")
    ] = False,
    pyramid: Annotated[
        int, typer.Option(metavar="N", help="Also write the images halved N times: images_2, ...")
    ] = 0,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start again, whatever --out holds of an earlier one."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Make a scene of photos or a video: find where each was taken.

    Structure from motion by pycolmap (pip install pycolmap). The originals are copied,
    never touched. A stopped run goes on with the same command. Exit code 3 if fewer than half of
    the images find their place.

    \b
    Examples:
      nerf prepare photos/ --out scene/ && nerf check scene/ && nerf train scene/
      nerf prepare walk.mp4 --out scene/ --frames 200
    """
    from nerfcli.prepare import LENSES, RECORD, Stopped, Wish, ensure_same, prepare_scene

    if lens not in LENSES:
        raise NerfError(f"--lens: unknown lens {lens!r}; known: {', '.join(LENSES)}.")
    if frames < 3:
        raise NerfError(f"--frames must be at least 3, got {frames}.")
    if not 0 <= pyramid <= 5:
        raise NerfError(f"--pyramid must be 0 to 5, got {pyramid}.")
    ensure_place(thing, out, overwrite=overwrite)
    wish = Wish(frames, lens, undistort, pyramid)
    if (out / RECORD).is_file() and (out / "transforms.json").is_file():
        verdict = read_json(out / RECORD)
        if "asked" in verdict:
            ensure_same(out, verdict["asked"], thing, wish)
        note = f"{out} is finished; --overwrite starts again\n"
        show(note + summary(verdict), verdict, as_json)
        return 0 if verdict.get("enough") else NOT_MET
    with (
        StopSignal() as stop,
        Progress(progress_kind(progress, quiet), None, "image", "prepare") as told,
    ):
        try:
            verdict = prepare_scene(thing, out, wish, told, lambda: stop.received is not None)
        except Stopped:
            told.note(f"stopped; the same command goes on with {out}")
            return stop_code(stop.received) or 130
    show(summary(verdict), verdict, as_json)
    return 0 if verdict["enough"] else NOT_MET


def ensure_place(thing: Path, out: Path, *, overwrite: bool) -> None:
    """Raise NerfError unless there is something to read, and a place that is ours to write."""
    from nerfcli.prepare import RECORD, WORK, clear

    if not thing.exists():
        raise NerfError(f"{thing} does not exist; give a folder of photos or a video file.")
    mine, theirs = out.resolve(), thing.resolve()
    if mine == theirs or theirs in mine.parents or mine in theirs.parents:
        raise NerfError(f"--out {out} and {thing} lie in each other; choose another folder.")
    if out.exists() and not out.is_dir():
        raise NerfError(f"--out {out} is a file; a folder is needed.")
    if out.is_dir() and any(out.iterdir()):
        if not any((out / name).exists() for name in (RECORD, WORK)):
            raise NerfError(f"--out {out} is not empty; choose another folder.")
        if overwrite:
            clear(thing, out)
    ensure_writable(out)


def summary(verdict: dict[str, Any]) -> str:
    """The verdict for people."""
    done, total = verdict["registered"], verdict["images"]
    lines = [
        f"{verdict['scene']}: {done} of {quantity(total, 'image')} registered, "
        f"{verdict['points']} points, reprojection error {verdict['reprojection_px']:.2f} px, "
        f"{duration(verdict['seconds'])}"
    ]
    if len(verdict["models"]) > 1:
        sizes = ", ".join(str(n) for n in verdict["models"])
        lines.append(f"the capture falls into parts of {sizes} images; the largest is kept")
    failed = verdict["failed"]
    lines += [f"  {name}: {reason}" for name, reason in list(failed.items())[:10]]
    if len(failed) > 10:
        lines.append(f"  and {len(failed) - 10} more, see prepare.json")
    if not verdict["enough"]:
        lines.append("too few: the scene is not what was photographed; take more, with overlap")
    lines.append(f"next: nerf check {verdict['scene']}   nerf train {verdict['scene']}")
    return "\n".join(lines)

"""Flags that several commands share, and what they mean together."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from nerfcli.cli.hints import RUNS, find_run
from nerfcli.cli.output import remark
from nerfcli.core.config import SceneConfig
from nerfcli.core.devices import KNOWN, NAMES, pick
from nerfcli.core.distributed import world
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import KINDS
from nerfcli.engine.runs import Run, is_run, newest_run


def complete_runs(incomplete: str) -> list[str]:
    """List the runs that a word on the command line may become; none: the shell offers files."""
    with suppress(OSError):
        runs = sorted(path for path in RUNS.iterdir() if is_run(path))
        return [
            str(p) for p in runs if f"{p}".startswith(incomplete) or p.name.startswith(incomplete)
        ]
    return []


RunPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="A run folder; the newest under runs/ if left out.",
        autocompletion=complete_runs,
    ),
]
Backend = Annotated[
    str,
    typer.Option(metavar="NAME", help="auto: the fastest that runs here; `nerf info` lists them."),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="auto: the GPU if there is one; cpu, cuda, or cuda:1 of several."
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Work with N processes of this machine together, one for each GPU."
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="Where the images are, if not by the scene."),
]
SkipBadFrames = Annotated[
    bool, typer.Option("--skip-bad-frames", help="Leave out single frames that cannot be used.")
]
CropText = Annotated[
    str | None,
    typer.Option(
        "--crop",
        metavar="BOX",
        help="Only what is in a box, in the source's units: x0,y0,z0,x1,y1,z1, or a JSON file with "
        "center, size and rotation.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
ProgressKind = Annotated[
    str,
    typer.Option(
        "--progress",
        metavar="auto|lines|json",
        help="On stderr: a bar on a terminal and lines elsewhere, lines, or JSON lines.",
    ),
]


def progress_kind(progress: str, quiet: bool) -> str:
    """The kind of Progress that --progress and --quiet ask for."""
    known = [kind for kind in KINDS if kind != "quiet"]
    if progress not in known:
        raise NerfError(f"--progress: unknown kind {progress!r}; known: {', '.join(known)}.")
    return "quiet" if quiet or not world().is_first else progress


def scene_config(images: Path | None, skip_bad_frames: bool) -> SceneConfig:
    """Make the settings of a scene that --images and --skip-bad-frames state."""
    folder = None if images is None else str(images.resolve())
    return SceneConfig(images=folder, skip_bad_frames=skip_bad_frames)


def open_run(path: Path | None, *, quiet: bool) -> Run:
    """The run that the user named, or the newest; named on stderr where it is not as given."""
    found = newest_run() if path is None else find_run(path)
    if found != path and not quiet:
        remark(f"run {found}")
    return Run.open(found)


def ensure_device(device: str) -> None:
    """Raise NerfError for a device that is unknown or not there."""
    if not KNOWN.fullmatch(device):
        raise NerfError(f"--device: {device!r} is not known; use {NAMES}.")
    if device.startswith("cuda"):
        pick(device)

"""nerf train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nerfcli.cli.dry_run import plan, plan_text
from nerfcli.cli.hints import RUNS
from nerfcli.cli.launch import launch, wants_several
from nerfcli.cli.options import (
    Devices,
    Images,
    Json,
    ProgressKind,
    Quiet,
    SkipBadFrames,
    progress_kind,
)
from nerfcli.cli.output import show
from nerfcli.cli.train_job import run_job
from nerfcli.cli.train_request import fresh_job, ready_scene, resumable_job
from nerfcli.cli.train_view import asked_showing
from nerfcli.cli.view_options import ViewHost, ViewPort, ViewToken
from nerfcli.core.config import known
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed
from nerfcli.core.progress import Progress
from nerfcli.core.settings import given_values


def train(
    context: typer.Context,
    scene: Annotated[
        Path | None,
        typer.Argument(metavar="SCENE", help="A folder of posed photos; with --resume also a run."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run folder to make. [default: runs/<scene>-<n>]"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Length of the run in steps.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="M", help="Wall-clock length of the run. [default: 2, of a place 5]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of all randomness. [default: 0]")
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto, or hashgrid, unbounded, classic.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="quick, classic or classic-small.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TOML file, such as a run's config.toml.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting: train.lr=0.005; repeatable."),
    ] = None,
    downscale: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Read images at 1/N of their size. [default: 1, if memory allows]"
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What alpha means: auto, transparent (nothing is there), ignore (a mask).",
        ),
    ] = None,
    holdout: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Without a split, keep every N-th view for eval; 0: none. [default: 8]",
        ),
    ] = None,
    images: Images = None,
    skip_bad_frames: SkipBadFrames = False,
    backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="auto, or one of `nerf info`. [default: auto]"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="auto, cpu, cuda, or cuda:1 of several. [default: auto]"),
    ] = None,
    devices: Devices = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the checkpoint; start if there is no run yet."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that --out names.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be done, by a few steps, and write nothing."
        ),
    ] = False,
    target_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB", help="End where the held-out views reach it; exit code 3 if not."
        ),
    ] = None,
    view: Annotated[
        bool, typer.Option("--view", help="Show the run in a browser while it trains.")
    ] = False,
    view_host: ViewHost = None,
    view_port: ViewPort = None,
    view_token: ViewToken = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="tensorboard: write scalars and pictures into RUN/tensorboard."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Learn a radiance field from posed photos.

    Reads Blender, instant-ngp, nerfstudio, COLMAP, LLFF, NeuS and many other folders. Ctrl-C and
    SIGTERM save first, once training has begun; the same command with --resume goes on. A killed
    run goes on from its last checkpoint: the first comes after 10 seconds, then one a minute. A
    finished run goes on where --steps or --minutes, counted from its beginning, is greater than
    what it has.

    \b
    Examples:
      nerf train scene/
      nerf train scene/ --out runs/chair --minutes 5
      nerf train --resume runs/chair --minutes 10
      nerf train scene/ --preset classic-small --set train.lr=1e-3
    """
    if steps is not None and minutes is not None:
        raise NerfError("--steps and --minutes exclude each other: give one of them.")
    for flag, length in (("--steps", steps), ("--minutes", minutes)):
        if length is not None and not length > 0:
            raise NerfError(f"{flag} must be above 0, got {length}.")
    if resume and overwrite:
        raise NerfError("--resume goes on with a run, --overwrite replaces it: give one of them.")
    if log not in (None, "tensorboard"):
        raise NerfError(f"--log {log}: unknown; known: tensorboard.")
    if log is not None:
        ensure_installed("tensorboard", "--log tensorboard")
    several = wants_several(devices)
    showing = asked_showing(
        view, view_host, view_port, view_token, several=several, dry_run=dry_run
    )
    if several:
        return launch(context.obj, known(devices))
    if resume and dry_run:
        raise NerfError("--dry-run is of a new run; a run to --resume is shown by nerf info RUN.")
    kind = progress_kind(progress, quiet)
    flags = {
        "train.steps": steps,
        "train.minutes": minutes,
        "train.seed": seed,
        "method": method,
        "scene.downscale": downscale,
        "scene.alpha": alpha,
        "scene.holdout": holdout,
        "scene.images": None if images is None else str(images.resolve()),
        "scene.skip_bad_frames": skip_bad_frames or None,
        "backend": backend,
        "device": device,
    }
    given = given_values(preset, config, set_ or [], flags)
    with Progress(kind, None, "step", "train") as reporter:
        if dry_run:
            prepared = ready_scene(scene, out, given, overwrite, target_psnr, reporter.note)
            value = plan(prepared, out, RUNS, reporter)
            show(plan_text(value), value, as_json)
            return 0
        request = resumable_job if resume else fresh_job
        job = request(
            scene, out, given, overwrite=overwrite, target_psnr=target_psnr, note=reporter.note
        )
        return run_job(job, reporter, as_json=as_json, quiet=quiet, log=log, showing=showing)

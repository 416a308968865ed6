"""nerf view."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nerfcli.cli.image_source import recorded_path, scene_of_run
from nerfcli.cli.options import (
    Backend,
    Device,
    Json,
    Quiet,
    RunPath,
    complete_runs,
    ensure_device,
    open_run,
)
from nerfcli.cli.output import remark, show, stop_code
from nerfcli.cli.view_options import LOCAL, Host, Port, Token, describe_address
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed
from nerfcli.core.signals import StopSignal
from nerfcli.engine.source_record import ImageSource

if TYPE_CHECKING:
    from nerfcli.engine.runs import Run
    from nerfcli.scenes import Scene


def view(
    run: RunPath = None,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A second run of the same scene, beside the first.",
            show_default=False,
            autocompletion=complete_runs,
        ),
    ] = None,
    host: Host = LOCAL,
    port: Port = None,
    token: Token = None,
    backend: Backend = "auto",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Look at a run in a browser.

    Only this machine's own browser reaches the page. For a machine that you use by ssh, the command
    that forwards it is printed. Ctrl-C ends it.

    \b
    Examples:
      nerf view
      nerf view runs/chair-1 runs/chair-2
      nerf view --host 0.0.0.0
    """
    ensure_installed("viser", "nerf view")
    ensure_device(device)
    runs = [open_run(run, quiet=quiet)]
    if other is not None:
        runs.append(open_run(other, quiet=quiet))
    runs = [one.using(backend=backend, device=device) for one in runs]
    scenes = [_scene(one, quiet=quiet) for one in runs]
    _ensure_same_source(runs, scenes)
    from nerfcli.engine.render import load_model
    from nerfcli.view.sources import RunSource, load_codes
    from nerfcli.view.turns import Turns
    from nerfcli.view.viewer import open_viewer

    note = (lambda _: None) if quiet else remark
    turns, sources = Turns(), []
    for one, scene in zip(runs, scenes, strict=True):
        model = load_model(one, backend, device, note)
        codes = load_codes(one)
        sources.append(RunSource(one.path.name, model, scene, turns, path=one.path, learned=codes))
    with StopSignal() as stop:
        viewer = open_viewer(sources, host=host, port=port, token=token)
        value = {"url": viewer.url, "runs": [str(one.path) for one in runs]}
        show(f"{describe_address(viewer.url, host)}\nCtrl-C ends it", value, as_json)
        wait = threading.Event()
        while stop.received is None:
            wait.wait(0.2)
        viewer.close()
    return stop_code(stop.received) or 0


def _scene(run: Run, *, quiet: bool) -> Scene:
    """The run's scene with its photos; without them where they are gone."""
    from nerfcli.scenes import Scene

    try:
        return scene_of_run(run, recorded_path(run))
    except NerfError:
        if not quiet:
            place = ImageSource.recorded(run.scene_json).resolved or "an unknown place"
            remark(
                f"the photos of {run.path}, of {place}, are not there any more: it is shown "
                "without them"
            )
        return Scene.from_json(run.scene_json)


def _ensure_same_source(runs: list[Run], scenes: list[Scene]) -> None:
    """Raise NerfError where two runs show different scenes."""
    if len(scenes) == 2 and not set(scenes[0].names) & set(scenes[1].names):
        raise NerfError(
            f"{runs[0].path} and {runs[1].path} have no photo in common; two runs of the same "
            "scene can be looked at side by side."
        )

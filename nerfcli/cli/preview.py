"""`nerf render --preview`: one frame of a path in the terminal; `nerf info RUN`: a look at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nerfcli.cli.terminal_picture import LONGEST, find_protocol, show_picture
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Note

if TYPE_CHECKING:
    from nerfcli.cameras.crop import Crop
    from nerfcli.engine.path_request import PathRequest
    from nerfcli.engine.render import Model
    from nerfcli.engine.runs import Run

GLANCE_SECONDS = 1.0  # of rendering, at most, for `nerf info RUN`
GLANCE_LONGEST = 128  # pixels of the longer side of that rendering
OF_FILES = {  # flags of what is written or shared, by their parameters
    "out": "--out",
    "save_path": "--save-path",
    "shard": "--shard",
    "sheet": "--sheet",
    "format_": "--format",
    "codec": "--codec",
    "devices": "--devices",
    "as_json": "--json",
}


def ensure_previewable(params: Mapping[str, Any]) -> str:
    """Find the protocol to show a picture by, for --preview.

    Raises:
        NerfError: stdout shows none, or another flag of the command asks for files.
    """
    for name, flag in OF_FILES.items():
        if params[name]:
            raise NerfError(f"--preview shows a frame and writes nothing: leave {flag} out.")
    if params["save"] != "rgb":
        raise NerfError(f"--preview shows colours: leave --save {params['save']} out.")
    protocol = find_protocol()
    if protocol is None:
        raise NerfError(
            "--preview needs stdout to be a terminal with colours (NO_COLOR and TERM=dumb want "
            "none); a file holds a picture, too: --frame 0 --out picture.png."
        )
    return protocol


def show_preview(
    run: Run, request: PathRequest, model: Model, crop: Crop | None, protocol: str, note: Note
) -> None:
    """Render one frame of a path small, and print it: its first one, where none is named."""
    from dataclasses import replace

    from nerfcli.engine.crop import crop_model
    from nerfcli.engine.plan import plan_path
    from nerfcli.engine.preview import render_small

    frame = 0 if request.frame is None else request.frame
    plan = plan_path(run, replace(request, frame=frame), model)
    if plan.remark:
        note(plan.remark)
    model = model if crop is None else crop_model(model, crop)
    image = render_small(model, plan.cameras, LONGEST)
    assert image is not None  # no time was set
    show_picture(image, protocol)


def show_glance(run: Run) -> None:
    """Print a picture of a run where stdout shows one, and it can be had soon."""
    protocol = find_protocol()
    if protocol is None:
        return
    from nerfcli.engine.preview import glance

    image = glance(run, GLANCE_LONGEST, GLANCE_SECONDS)
    if image is not None:
        show_picture(image, protocol)

"""`nerf train --view`: a page that shows the run as it trains."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nerfcli.cli.view_options import LOCAL, describe_address
from nerfcli.core.distributed import is_one_of_several
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed
from nerfcli.core.progress import Note
from nerfcli.core.signals import StopSignal

if TYPE_CHECKING:
    from nerfcli.engine.callbacks import Callback
    from nerfcli.engine.loop import Loop
    from nerfcli.scenes import Scene
    from nerfcli.view.training import TrainingSource


@dataclass(frozen=True)
class Showing:
    """Where a training is to be seen.

    Attributes:
        port: None: the first free one. token: None: one is made where others reach the page.
    """

    host: str
    port: int | None
    token: str | None


def asked_showing(
    view: bool,
    host: str | None,
    port: int | None,
    token: str | None,
    *,
    several: bool,
    dry_run: bool,
) -> Showing | None:
    """What the flags ask for; None: no page.

    Args:
        several: whether several processes are to be started.

    Raises:
        NerfError: there can be no such page; before any work.
    """
    beside = {"--view-host": host, "--view-port": port, "--view-token": token}
    if not view:
        for flag, value in beside.items():
            if value is not None:
                raise NerfError(f"{flag} belongs to --view, which is not given.")
        return None
    if several or is_one_of_several():
        raise NerfError("--view shows a training of one process; leave out --devices or torchrun.")
    if dry_run:
        raise NerfError("--view shows a training, and --dry-run has none: give one of them.")
    ensure_installed("viser", "--view")
    from nerfcli.view.gate import ensure_token, free_port

    showing = Showing(LOCAL if host is None else host, port, token)
    free_port(showing.host, showing.port)
    if token is not None:
        ensure_token(token)
    return showing


@contextmanager
def shown(
    showing: Showing | None, scene: Scene, stop: StopSignal, note: Note
) -> Iterator[tuple[Callback, ...]]:
    """Serve the page within the block; give what the training is to call after its steps.

    Raises:
        NerfError: the port is taken by now.
    """
    if showing is None:
        yield ()
        return
    from nerfcli.view.training import TrainingSource
    from nerfcli.view.training_panel import TrainingPanel
    from nerfcli.view.turns import Turns
    from nerfcli.view.viewer import open_viewer

    turns = Turns()
    source = TrainingSource(scene, turns, lambda: stop.received is not None)
    panel = TrainingPanel(source)
    host, port, token = showing.host, showing.port, showing.token

    # a page that connects at once waits for its turn; at the end the turn is left before it closes
    with ExitStack() as after, turns.training():
        viewer = open_viewer([source], host=host, port=port, token=token, panels=(panel.add_to,))
        after.callback(viewer.close)
        panel.start()
        after.callback(lambda: panel.stop(_epilogue(source)))
        for line in describe_address(viewer.url, host).splitlines():
            note(line)
        yield (source.after_step,)
    if source.loop is not None:
        note(f"the page is closed; {_next(source.loop)} shows the run from now on")


def _epilogue(source: TrainingSource) -> str:
    if source.loop is None:
        return "The training is over."
    return f"The training is over. It is shown by `{_next(source.loop)}`"


def _next(loop: Loop) -> str:
    return f"nerf view {shlex.quote(str(loop.run.path))}"

"""The viewer: a server, and a page for each client."""

from __future__ import annotations

import secrets
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nerfcli.view.crop_panel import add_crop_box
from nerfcli.view.gate import LOOPBACK, Gate, ensure_token, open_server, silent
from nerfcli.view.page import Page
from nerfcli.view.path_panel import add_path_editor
from nerfcli.view.photo_panels import add_error_controls, add_exposure
from nerfcli.view.scenery import Scenery, place_first_camera, up_of
from nerfcli.view.sources import Source

if TYPE_CHECKING:
    import viser

Panel = Callable[[Page], None]
PANELS: tuple[Panel, ...] = (add_error_controls, add_exposure, add_path_editor, add_crop_box)
FAREWELL = 0.2  # seconds that the last messages get on their way to the pages


@dataclass
class Viewer:
    """A running server.

    Attributes:
        url: with the token, if there is one. pages: by viser's number of the client.
    """

    server: viser.ViserServer
    url: str
    pages: dict[int, Page] = field(default_factory=dict)

    def close(self) -> None:
        """End all painters and the server."""
        pages = list(self.pages.values())
        for page in pages:
            page.close()
        for page in pages:
            page.painter.join()
            page.client.flush()
        if pages:
            time.sleep(FAREWELL)  # the last words are sent by another thread
        with silent():
            self.server.stop()


def open_viewer(
    sources: Sequence[Source],
    *,
    host: str = LOOPBACK[0],
    port: int | None = None,
    token: str | None = None,
    panels: Sequence[Panel] = (),
) -> Viewer:
    """Serve pages that show one source, or compare two.

    Args:
        token: that the address must hold; None: a new one where others can reach the server,
            otherwise none.
        panels: beside the usual ones.

    Raises:
        NerfError: the port is taken, the host is not this machine's, or the token is no token.
    """
    if token is None and host not in LOOPBACK:
        token = secrets.token_urlsafe(16)
    if token is not None:
        ensure_token(token)
    server = open_server(Gate(token), host, port)
    scene = sources[0].scene
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    server.gui.main_panel.dock_right()
    server.scene.world_axes.visible = False
    server.scene.set_up_direction(up_of(scene))
    place_first_camera(server, scene)
    scenery = Scenery(scene)
    # a page may leave while a picture is on its way to it
    warnings.filterwarnings("ignore", "Queued a .* on a closed connection")
    shown = host if host not in ("0.0.0.0", "::") else _own_name()
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{server.get_port()}/"
    viewer = Viewer(server, url if token is None else f"{url}?token={token}")

    @server.on_client_connect
    def _(client: viser.ClientHandle) -> None:
        page = viewer.pages[client.client_id] = Page(client, sources)
        page.open((scenery.add_to, *PANELS, *panels))

    @server.on_client_disconnect
    def _(client: viser.ClientHandle) -> None:
        page = viewer.pages.pop(client.client_id, None)
        if page is not None:
            page.close()

    return viewer


def _own_name() -> str:
    """This machine's address as others see it: that of its way out. Nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(("192.0.2.1", 9))  # of a network for examples
        return str(out.getsockname()[0])
    return socket.gethostname()

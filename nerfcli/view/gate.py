"""Who may talk to the viewer: a server that only its own page reaches.

A page of another origin could open a websocket to a server on this machine, and a name that an
attacker resolves to 127.0.0.1 would make it the same origin. So hosts other than this machine's
need a token, and websockets need the page's own origin.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import http
import io
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

from nerfcli.core.errors import NerfError

if TYPE_CHECKING:
    import viser
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FIRST_PORT, N_PORTS = 7007, 100  # tried one after another where the user named none
WELL_BEHAVED = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Gate:
    """Which requests are answered.

    Attributes:
        token: that a request must bring, in its address or as a cookie; None: none, and the host
            in the address must be this machine.
    """

    token: str | None = None

    def refusal(self, path: str, headers: Any) -> str | None:
        """Why a request is refused; None: it is not.

        Args:
            headers: of the request, with a `get`.
        """
        try:
            return self._refusal(path, headers)
        except (ValueError, LookupError):  # two hosts, half of an IPv6 address
            return "malformed headers"

    def _refusal(self, path: str, headers: Any) -> str | None:
        host = headers.get("Host", "")
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "another origin"
        if self.token is None:
            name = urlsplit(f"//{host}").hostname or ""
            return None if name in LOOPBACK else "not this machine's name"
        given = parse_qs(urlsplit(path).query).get("token", [""])[0] or self._given_before(headers)
        return None if hmac.compare_digest(given.encode(), self.token.encode()) else "no token"

    def greeting(self) -> dict[str, str]:
        """Headers of an answer: with a token, it is a cookie from here on."""
        if self.token is None:
            return WELL_BEHAVED
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        return WELL_BEHAVED | {"Set-Cookie": cookie}

    @property
    def cookie(self) -> str:
        """Its name, another one for each token: a browser gives all ports of a host its cookies."""
        return f"nerf-view-{hashlib.sha256((self.token or '').encode()).hexdigest()[:8]}"

    def _given_before(self, headers: Any) -> str:
        try:
            morsel = SimpleCookie(headers.get("Cookie", "")).get(self.cookie)
        except CookieError:
            return ""
        return "" if morsel is None else morsel.value


def ensure_token(token: str) -> None:
    """Raise NerfError for a token that guards nothing, or that address or cookie cannot hold."""
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise NerfError(
            f"token {token!r}: letters, digits and any of . _ ~ - make a token; leave it out "
            "for a random one where others can reach the page."
        )


def open_server(gate: Gate, host: str, port: int | None) -> viser.ViserServer:
    """Start viser's server behind a gate.

    Args:
        port: None: the first free one from FIRST_PORT on.

    Raises:
        NerfError: the port is taken, or none, or the host is not this machine's.
    """
    import viser
    import websockets.asyncio.server as sockets

    free = free_port(host, port)
    serve = sockets.serve

    def guarded(handler: Any, *args: Any, **options: Any) -> Any:
        inner = options.pop("process_request", None)
        options["logger"] = _quiet()
        return serve(handler, *args, process_request=_guard(gate, inner), **options)

    with mock.patch.object(sockets, "serve", guarded), silent():  # viser has no hook for it
        server = viser.ViserServer(host=host, port=free, verbose=False)
    if server.get_port() != free:  # somebody took it in between; viser went on to another one
        server.stop()
        raise _taken(host, [free])
    return server


def silent() -> contextlib.redirect_stdout[io.StringIO]:
    """Keep viser's own words from stdout, which is for results."""
    return contextlib.redirect_stdout(io.StringIO())


def _quiet() -> logging.Logger:
    """A logger for what strangers send, as a port scan does: each would be a traceback."""
    logger = logging.getLogger("nerfcli.view.websockets")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def _guard(gate: Gate, inner: Callable[..., Response | None] | None) -> Callable[..., Any]:
    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        reason = gate.refusal(request.path, request.headers)
        if reason is not None:
            return connection.respond(http.HTTPStatus.FORBIDDEN, f"refused: {reason}\n")
        response = None if inner is None else inner(connection, request)
        if response is not None:
            for name, value in gate.greeting().items():
                response.headers[name] = value
        return response

    return process_request


def free_port(host: str, port: int | None) -> int:
    """The port itself, or the first free one from FIRST_PORT on; errors as of `open_server`."""
    if not host:
        raise NerfError(
            "the viewer's host is empty; 127.0.0.1 is this machine, 0.0.0.0 lets all in."
        )
    if port is not None and not 0 <= port < 1 << 16:
        raise NerfError(f"--port {port}: ports are numbers from 1 to 65535.")
    ports = range(FIRST_PORT, FIRST_PORT + N_PORTS) if port is None else (port,)
    for port in ports:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, UnicodeError) as error:
                if port == ports[0] and not _is_local(host):
                    raise NerfError(
                        f"host {host}: this machine has no such address; 0.0.0.0 stands for all."
                    ) from error
                if isinstance(error, OSError) and error.errno == errno.EACCES:
                    raise NerfError(
                        f"--port {port} is not for this user; name one above 1023, or leave it out."
                    ) from error
                continue
            return probe.getsockname()[1]
    raise _taken(host, list(ports))


def _is_local(host: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except (OSError, UnicodeError):
        return False
    return True


def _taken(host: str, ports: list[int]) -> NerfError:
    if len(ports) == 1:
        return NerfError(f"port {ports[0]} is taken on {host}; name another one, or none.")
    return NerfError(f"ports {ports[0]} to {ports[-1]} are taken on {host}; name another one.")

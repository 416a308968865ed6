"""Which requests the viewer answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest

from nerfcli.core.errors import NerfError
from nerfcli.view.gate import COOKIE, Gate, open_server, silent

HOME = {"Host": "127.0.0.1:7007"}
STRANGE = (
    "/../../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..\\..\\pyproject.toml",
    "//etc/passwd",
    "/etc/passwd",
)
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (HOME, None),
        ({"Host": "localhost:80"}, None),
        ({"Host": "[::1]:7007"}, None),
        (HOME | {"Origin": "http://127.0.0.1:7007"}, None),
        ({"Host": "evil.example:7007"}, "this machine's name"),  # a name that leads here
        ({"Host": "127.0.0.1.evil.example"}, "this machine's name"),
        ({}, "this machine's name"),
        (HOME | {"Origin": "http://evil.example"}, "another origin"),
        (HOME | {"Origin": "http://127.0.0.1:8000"}, "another origin"),
        (HOME | {"Origin": "null"}, "another origin"),
    ],
)
def test_only_this_machines_own_page_is_answered(headers: dict, reason: str | None) -> None:
    told = Gate().refusal("/", headers)
    assert told is None if reason is None else told is not None and reason in told


@pytest.mark.parametrize(
    ("path", "headers", "is_answered"),
    [
        ("/?token=secret", {"Host": "gpu-box:7007"}, True),
        ("/", {"Host": "gpu-box:7007", "Cookie": f"a=b; {COOKIE}=secret"}, True),
        ("/", {"Host": "gpu-box:7007"}, False),
        ("/", {"Host": "127.0.0.1:7007"}, False),
        ("/?token=wrong", {"Host": "gpu-box:7007"}, False),
        ("/?token=sécret", {"Host": "gpu-box:7007"}, False),
        ("/?token=", {"Host": "gpu-box:7007"}, False),
        ("/", {"Host": "gpu-box:7007", "Cookie": f"{COOKIE}=wrong"}, False),
        ("/?token=secret", {"Host": "gpu-box:7007", "Origin": "http://evil.example"}, False),
    ],
)
def test_a_token_is_asked_of_everybody(path: str, headers: dict, is_answered: bool) -> None:
    assert (Gate("secret").refusal(path, headers) is None) == is_answered


@contextmanager
def served(gate: Gate) -> Iterator[HTTPConnection]:
    pytest.importorskip("viser")
    server = open_server(gate, "127.0.0.1", None)
    try:
        yield HTTPConnection("127.0.0.1", server.get_port(), timeout=30)
    finally:
        with silent():
            server.stop()


def answer(connection: HTTPConnection, path: str, **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers and body of a request whose path goes out as it stands."""
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def test_the_server_answers_its_page_alone() -> None:
    """Its page; nothing else of the disk; no websocket of another origin."""
    with served(Gate()) as connection:
        status, headers, body = answer(connection, "/")
        assert status == 200 and b"<html" in body
        assert headers["X-Frame-Options"] == "DENY"
        for path in STRANGE:
            assert answer(connection, path)[0] == 404, path
        assert answer(connection, "/", Host="evil.example")[0] == 403
        upgrade = {name.replace("-", "_"): value for name, value in UPGRADE.items()}
        assert answer(connection, "/", Origin="http://evil.example", **upgrade)[0] == 403


def test_the_token_becomes_a_cookie() -> None:
    with served(Gate("secret")) as connection:
        assert answer(connection, "/")[0] == 403
        upgrade = {name.replace("-", "_"): value for name, value in UPGRADE.items()}
        assert answer(connection, "/", **upgrade)[0] == 403
        status, headers, _ = answer(connection, "/?token=secret")
        assert status == 200 and headers["Set-Cookie"].startswith(f"{COOKIE}=secret; HttpOnly")
        assert answer(connection, "/", Cookie=f"{COOKIE}=secret")[0] == 200


def test_a_port_that_is_taken_is_an_error() -> None:
    pytest.importorskip("viser")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(NerfError, match=f"port {port} is taken"):
            open_server(Gate(), "127.0.0.1", port)
    with pytest.raises(NerfError, match="no such address"):
        open_server(Gate(), "192.0.2.1", None)

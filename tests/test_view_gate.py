"""Which requests the viewer answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest

from nerfcli.core.errors import NerfError
from nerfcli.view.gate import Gate, ensure_token, open_server, silent

COOKIE = Gate("secret").cookie
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
        (HOME | {"Origin": "http://["}, "malformed"),
        ({"Host": "["}, "malformed"),
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


def test_two_viewers_of_a_host_keep_their_cookies_apart() -> None:
    """A browser sends the cookies of a host to all its ports."""
    assert Gate("one").cookie != Gate("two").cookie


@pytest.mark.parametrize("token", ["", " ", "a&b", "a;b", "a\r\nb", "é"])
def test_a_token_that_guards_nothing_is_refused(token: str) -> None:
    with pytest.raises(NerfError, match="^token"):
        ensure_token(token)


def test_what_strangers_send_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with served(Gate()) as connection:
        for lines in (b"Host: 127.0.0.1\r\nHost: evil.example", b"no header at all"):
            with socket.create_connection((connection.host, connection.port), 30) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n" + lines + b"\r\n\r\n")
                assert b" 200 " not in stranger.recv(64)
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_none_is_an_error() -> None:
    pytest.importorskip("viser")
    for port in (-1, 65536):
        with pytest.raises(NerfError, match=f"--port {port}: ports are"):
            open_server(Gate(), "127.0.0.1", port)
    with pytest.raises(NerfError, match="no such address"):
        open_server(Gate(), f"{'a' * 70}.example", None)


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
    with pytest.raises(NerfError, match="host is empty"):  # as of a shell variable that is not set
        open_server(Gate("secret"), "", None)

"""Flags of a viewer's server, and what is said of its address."""

from __future__ import annotations

import shlex
import socket
from typing import Annotated, Any

import typer

LOCAL = "127.0.0.1"
_HOST: dict[str, Any] = {
    "metavar": "ADDRESS",
    "help": "0.0.0.0 lets other machines in; then the address holds a token.",
}
_PORT: dict[str, Any] = {
    "metavar": "N",
    "min": 1,
    "max": 65535,
    "help": "[default: the first free one from 7007 on]",
}
_TOKEN: dict[str, Any] = {
    "metavar": "TEXT",
    "help": "That the address must hold, also on this machine.",
}
Host = Annotated[str, typer.Option(**_HOST)]
Port = Annotated[int | None, typer.Option(**_PORT)]
Token = Annotated[str | None, typer.Option(**_TOKEN)]
ViewHost = Annotated[str | None, typer.Option("--view-host", **_HOST)]
ViewPort = Annotated[int | None, typer.Option("--view-port", **_PORT)]
ViewToken = Annotated[str | None, typer.Option("--view-token", **_TOKEN)]


def describe_address(url: str, host: str) -> str:
    """The page's address, and how to reach it from another machine."""
    lines = [f"open {url}"]
    if host == LOCAL:
        port = url.split(":")[2].split("/")[0]
        here = shlex.quote(socket.gethostname())
        lines.append(f"from another machine, first: ssh -L {port}:{LOCAL}:{port} {here}")
    return "\n".join(lines)

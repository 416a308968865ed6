"""Results to stdout, everything else to stderr."""

from __future__ import annotations

import signal
import sys

from nerfcli.files import json_text

STOP_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
NOT_MET = 3


def show(text: str, value: dict, as_json: bool) -> None:
    """The result: a summary for people, or exactly one JSON object."""
    print(json_text(value) if as_json else text, flush=True)


def fail(message: str, as_json: bool) -> int:
    """One message on stderr; with --json also an object on stdout. Exit code 2."""
    print(f"nerf: {message}", file=sys.stderr)
    if as_json:
        print(json_text({"error": message}), flush=True)
    return 2


def stop_code(received: int | None) -> int | None:
    """The exit code of a command that a signal ended, None if none did."""
    return None if received is None else STOP_CODES.get(signal.Signals(received), 75)


def quantity(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as people write them: 45 s, 3:07, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""Results to stdout, everything else to stderr."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

from nerfcli.core.distributed import reports, world
from nerfcli.core.errors import NerfError
from nerfcli.core.files import json_text

STOP_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
NOT_MET = 3


def show(text: str, value: dict, as_json: bool) -> None:
    """The result: a summary for people, or exactly one JSON object.

    Raises:
        NerfError: it cannot be written. A reader that has gone is no error: the work is done.
    """
    try:
        with suppress(BrokenPipeError):
            if world().is_first:
                print(json_text(value) if as_json else text, flush=True)
    except OSError as error:
        raise NerfError(
            f"the result cannot be written to stdout: {error.strerror}. Everything else is done."
        ) from error


def describe_views(value: dict[str, Any]) -> str:
    """Say how many views a run has, and of what size.

    Args:
        value: `views`, their number by split; `sizes` [[width, height], ...]; `downscale`.
    """
    sizes = [" x ".join(map(str, size)) for size in value["sizes"] if size]
    size = f", {' to '.join([sizes[0], *sizes[1:][-1:]])}" if sizes else ""
    if (value["downscale"] or 1) > 1:
        size += f" (1/{value['downscale']} of the photos)"
    train, held_out = (value["views"].get(split, 0) for split in ("train", "test"))
    return f"{train} to train on, {held_out} held out{size}"


def fail(message: str, as_json: bool) -> int:
    """One message on stderr; with --json also an object on stdout. Exit code 2.

    Of several processes that fail, one tells why.
    """
    if not reports():
        return 2
    _print_error(f"nerf: {message}")
    if as_json:
        with suppress(OSError):
            print(json_text({"error": message}), flush=True)
    return 2


def remark(text: str) -> None:
    """A line on stderr, if anybody is there to read it."""
    if world().is_first:
        _print_error(text)


def _print_error(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def ensure_streams() -> None:
    """Give a process that was started without stdout or stderr one that goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for the whole process


def stop_code(received: int | None) -> int | None:
    """The exit code of a command that a signal ended, None if none did."""
    return None if received is None else STOP_CODES.get(signal.Signals(received), 75)

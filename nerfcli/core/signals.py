"""Signals: the first Ctrl-C or SIGTERM lets a loop save before it ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any

HANGUP: int | None = getattr(signal, "SIGHUP", None)  # the terminal is gone; Windows has none
STOPS = tuple(n for n in (signal.SIGINT, signal.SIGTERM, HANGUP) if n is not None)


IMPORTS = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


class Interrupted(BaseException):
    """A signal ends the command; what it was writing aside is removed on the way out."""

    def __init__(self, number: int) -> None:
        self.number = number


def raise_outside_imports(number: int, frame: FrameType | None) -> None:
    """Raise Interrupted in `frame`, or, while that imports a module, as soon as the import is over.

    Modules that import others lazily swallow what is raised within, and are broken afterwards.
    """
    outermost = _outermost_import(frame)
    if outermost is None:
        raise Interrupted(number)

    def at_end(at: FrameType, event: str, value: object) -> None:
        if at is outermost and event == "return":
            sys.setprofile(None)
            raise Interrupted(number)

    sys.setprofile(at_end)


def _outermost_import(frame: Any) -> Any:
    """The outermost frame of the import that `frame` is within; None where it is within none."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename in IMPORTS:
            found = frame
        frame = frame.f_back
    return found


@dataclass
class Interruption:
    """The signal that a block got, if any."""

    received: int | None = None


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within the block, SIGINT, SIGTERM and SIGHUP raise Interrupted, so that every `finally` runs.

    While a module is imported that waits for its end. A signal that is ignored stays so, as nohup
    and background jobs want it. The handlers of before come back at the end.
    """
    interruption = Interruption()

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:  # a second signal must not end the tidying up
            signal.signal(each, signal.SIG_IGN)
        interruption.received = number
        raise_outside_imports(number, frame)

    asked = STOPS if current_thread() is main_thread() else ()
    before = {n: signal.getsignal(n) for n in asked if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield interruption
    finally:
        if interruption.received is not None:
            sys.setprofile(None)
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignal:
    """Within the block, the first SIGINT, SIGTERM or SIGHUP only sets `received`: the loop saves.

    A second SIGINT raises Interrupted. SIGHUP stays ignored where it is (nohup). The handlers of
    before come back at the end.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in STOPS:
            if number == HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise_outside_imports(number, frame)
        if self.received is None:
            self.received = number

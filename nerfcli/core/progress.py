"""Progress of long commands on stderr: a bar, plain lines, JSON lines, or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.core.files import json_text
from nerfcli.core.text import clock

Note = Callable[[str], None]  # takes a remark for the user; Progress.note is one
Update = Callable[[int], None]  # takes the number of units done so far; Progress.update is one

KINDS = ("auto", "lines", "json", "quiet")
LINE_SECONDS = 10.0  # between plain lines: a log of an hour stays readable
WIDTH = 80  # columns of a terminal that does not say
LEAST_BAR = 11  # columns that the details leave to the bar and its rim
JSON_SECONDS = 1.0  # between JSON lines: a program reads them


def ignore_update(done: int) -> None:
    """Report nothing: the default of an `Update`."""


class Progress:
    """Show the progress of one loop on stderr.

    Args:
        kind: "auto" (a bar on a terminal, lines elsewhere), "lines", "json" or "quiet".
        total: number of units of the whole loop, or None if unknown.
        unit: what is counted, in the singular ("step", "frame").
        description: the loop's name ("train").
    """

    def __init__(self, kind: str, total: int | None, unit: str, description: str) -> None:
        if kind not in KINDS:
            raise NerfError(f"unknown --progress {kind!r}; known: {', '.join(KINDS)}.")
        self._asked = kind
        self.kind = ("bar" if _columns() else "lines") if kind == "auto" else kind
        self.total = total
        self.unit = unit
        self.description = description
        self._start = time.monotonic()
        self._first: tuple[int, float] | None = None  # first update: the rate counts from there
        self._last: tuple[int, dict[str, float]] | None = None
        self._spent: tuple[float, float] | None = None  # seconds, of so many
        self._shown = float("-inf")  # when the last line went out
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def another(self, total: int | None, unit: str, description: str) -> Progress:
        """Make the progress of the next loop, shown in the same way."""
        return Progress(self._asked, total, unit, description)

    def update(
        self,
        done: int,
        *,
        total: int | None = None,
        spent: tuple[float, float] | None = None,
        **values: float,
    ) -> None:
        """Show that `done` units are finished, with `values` (psnr, loss, ...) beside them.

        total: a new total.
        spent: of a loop by the clock, the seconds that have passed and those of the whole.
        """
        self.total = total or self.total
        self._spent = spent
        if self._first is None:
            self._first = (done, time.monotonic())
        self._last = (done, values)
        if self.kind == "bar":
            with self._quiet_after_errors():
                self._draw(done, values)
            return
        wait = {"lines": LINE_SECONDS, "json": JSON_SECONDS}.get(self.kind, float("inf"))
        if self.kind != "quiet" and (self._since_shown() >= wait or done == self.total):
            self._emit()

    def note(self, text: str) -> None:
        """Show a remark, in any kind but quiet."""
        if self.kind == "json":
            self._write(json_text({"event": "note", "text": text}))
        elif self.kind == "bar" and self._bar is not None:
            with self._quiet_after_errors():
                self._bar.write(text, file=sys.stderr)
        elif self.kind != "quiet":
            self._write(text)

    def close(self) -> None:
        """Show the last state if it is not shown yet. May be called twice."""
        if self._bar is not None:
            with self._quiet_after_errors():
                self._bar.close()
            self._bar = None
        elif self.kind in ("lines", "json") and self._last is not None:
            self._emit()
        self._last = None

    def _since_shown(self) -> float:
        return time.monotonic() - self._shown

    def _draw(self, done: int, values: dict[str, float]) -> None:
        n, total = self._spent or (done, self.total)
        share = f" {min(n / total, 1.0):4.0%}" if total else ""
        bar = "|{bar}| " if total else ": "
        room = (_columns() or WIDTH) - len(self.description + share) - LEAST_BAR
        line = f"{self.description}{share}{bar}{self._details(done, values, room)}"
        if self._bar is None:
            from tqdm import tqdm  # only where a bar is drawn

            self._bar = tqdm(
                total=total, initial=n, bar_format=line, file=sys.stderr, dynamic_ncols=True
            )
        self._bar.total, self._bar.bar_format = total, line
        self._bar.update(min(n, total or n) - self._bar.n)

    def _details(self, done: int, values: dict[str, float], room: int) -> str:
        """What stands beside the bar: as much as `room` columns hold, the most useful first."""
        count = f"{done}" if self.total is None else f"{done}/{self.total}"
        eta = self._eta(done)
        texts = [f"{count} {self.unit}"]
        if self._spent is not None:
            texts = ["/".join(map(clock, self._spent)), f"{self.unit} {done}"]
        elif eta is not None:
            texts.append(f"{clock(eta)} left")
        texts += [f"{key}={_number(value)}" for key, value in values.items()]
        line = texts[0]
        for text in texts[1:]:
            if len(line) + len(text) + 2 <= room:
                line += f", {text}"
        return line.replace("{", "{{").replace("}", "}}")

    def _emit(self) -> None:
        if self._last is None:
            return
        done, values = self._last
        seconds = time.monotonic() - self._start
        eta = self._eta(done)
        self._shown = time.monotonic()
        self._last = None
        if self.kind == "json":
            row = {
                "event": "progress",
                "description": self.description,
                "unit": self.unit,
                "done": done,
                "total": self.total,
                "seconds": round(seconds, 3),
                "eta_seconds": None if eta is None else round(eta, 1),
            }
            if self._spent is not None:
                row |= {"spent_seconds": round(self._spent[0], 3), "of_seconds": self._spent[1]}
            self._write(json_text(row | values))
            return
        whole = "" if self.total is None else f"/{self.total}"
        texts = [f"{self.description}: {self.unit} {done}{whole}", f"{clock(seconds)} elapsed"]
        if self._spent is not None:
            of_time = " of ".join(map(clock, self._spent))
            texts = [f"{self.description}: {of_time}", f"{self.unit} {done}"]
        elif eta is not None:
            texts.append(f"{clock(eta)} left")
        texts += [f"{key} {_number(value)}" for key, value in values.items()]
        self._write(", ".join(texts))

    def _eta(self, done: int) -> float | None:
        """Estimate the seconds left from the rate since the first update.

        A resumed loop starts late, so the rate does not count from 0.
        """
        if self._spent is not None:
            return max(self._spent[1] - self._spent[0], 0.0)
        first, start = self._first or (done, 0.0)
        if self.total is None or (done == first and done < self.total):
            return None
        return (self.total - done) * (time.monotonic() - start) / max(done - first, 1)

    def _write(self, line: str) -> None:
        with self._quiet_after_errors():
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def _quiet_after_errors(self) -> Iterator[None]:
        """Become quiet when stderr can no longer be written: the work goes on."""
        try:
            yield
        except OSError:
            self.kind = self._asked = "quiet"
            self._bar = None


def _columns() -> int:
    """The width of the terminal that stderr is; 0 for one without a size, and for anything else."""
    if not sys.stderr.isatty():
        return 0
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):  # a terminal by name only
        return WIDTH


def _number(value: float) -> str:
    for size, suffix in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    return str(value) if isinstance(value, int) else f"{value:.4g}"

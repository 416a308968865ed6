from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from nerfcli.core import progress as module
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import Interrupted, StopSignal


class Clock:
    """time.monotonic under the test's control."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_lines_every_ten_seconds_and_at_both_ends(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("auto", 100, "step", "train") as progress:  # captured stderr is no terminal
        for done in range(1, 51):
            clock.now += 1.0
            progress.update(done, psnr=20.0 + done, rays_per_s=123456.0)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split(",")[0] for line in lines] == [
        f"train: step {n}/100" for n in (1, 11, 21, 31, 41, 50)
    ]
    assert lines[-1] == ("train: step 50/100, 0:50 elapsed, 0:50 left, psnr 70, rays_per_s 123k")


def test_no_line_twice(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("lines", 2, "view", "eval")
    progress.update(1)
    progress.update(2)
    progress.close()
    progress.close()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_json_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("json", None, "step", "train") as progress:
        progress.note("backend torch")
        clock.now += 2.0
        progress.update(4, psnr=float("nan"))
        clock.now += 2.0
        progress.update(8, total=16, psnr=30.5)
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    common = {"event": "progress", "description": "train", "unit": "step"}
    assert rows == [
        {"event": "note", "text": "backend torch"},
        common | {"done": 4, "total": None, "seconds": 2.0, "eta_seconds": None, "psnr": None},
        common | {"done": 8, "total": 16, "seconds": 4.0, "eta_seconds": 4.0, "psnr": 30.5},
    ]


def test_rate_of_a_resumed_loop_counts_from_where_it_begins(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("json", 1000, "step", "train")
    progress.update(900)
    clock.now += 10.0
    progress.update(950)
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert last["eta_seconds"] == 10.0


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("quiet", 2, "step", "train") as progress:
        progress.note("x")
        progress.update(1)
        progress.update(2)
    assert capsys.readouterr() == ("", "")


def test_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("auto", None, "step", "train") as progress:
        progress.update(1, psnr=20.123)
        progress.note("a remark")
        progress.update(7, total=8, psnr=31.987)
    out, err = capsys.readouterr()
    assert out == ""
    assert "a remark\n" in err
    assert "7/8" in err.splitlines()[-1]
    assert "psnr=31.99" in err.splitlines()[-1]


def test_unknown_kind() -> None:
    with pytest.raises(NerfError, match="unknown --progress 'loud'; known: auto, lines"):
        Progress("loud", None, "step", "train")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Fails a test that leaves a signal handler behind."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two bytecodes


def test_first_signal_is_only_noted(handlers: None) -> None:
    with StopSignal() as stop:
        assert stop.received is None
        send(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        send(signal.SIGTERM)  # impatient process managers send it twice
        assert stop.received == signal.SIGTERM


def test_second_ctrl_c_interrupts(handlers: None) -> None:
    with pytest.raises(Interrupted), StopSignal() as stop:
        send(signal.SIGINT)
        assert stop.received == signal.SIGINT
        send(signal.SIGINT)


def shown(columns: int, monkeypatch: pytest.MonkeyPatch, **state: Any) -> list[str]:
    """What a terminal of so many columns gets to see: each line that stood there."""
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 24 if columns else 0, columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        with Progress("auto", None, "step", "train") as progress:
            progress.update(431, rays_per_s=123456.0, psnr=31.987, **state)
            progress.note("a remark")
        terminal.flush()
        os.set_blocking(ours, False)
        text = ""
        with suppress(BlockingIOError):
            while part := os.read(ours, 65536):
                text += part.decode()
    os.close(ours)
    lines = text.replace("\n", "\r").split("\r")
    return [line.rstrip() for line in lines if line.strip()]


BY_TIME: dict[str, Any] = {"spent": (12.0, 120.0)}
BY_STEPS: dict[str, Any] = {"total": 4000}


@pytest.mark.parametrize(
    ("columns", "state", "pieces"),
    [
        (80, BY_TIME, ["train  10%|", "| 0:12/2:00, step 431, rays_per_s=123k, psnr=31.99"]),
        (40, BY_TIME, ["train  10%|", "| 0:12/2:00, step 431"]),
        (80, BY_STEPS, ["train  11%|", "| 431/4000 step, rays_per_s=123k, psnr=31.99"]),
        (40, BY_STEPS, ["train  11%|", "| 431/4000 step"]),
        (20, BY_STEPS, ["train  11%|"]),
        (30, {}, ["train: 431 step"]),
    ],
)
def test_the_bar_fits_the_terminal(
    columns: int, state: dict[str, Any], pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(columns, monkeypatch, **state)
    assert "a remark" in lines
    for line in (line for line in lines if line != "a remark"):
        assert len(line) <= columns
        assert all(piece in line for piece in pieces), line
        if columns >= 40:
            assert line.index("| ") - line.index("|") >= 8  # there is a bar to see


def test_a_terminal_without_a_size_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    want = "train: 0:12 of 2:00, step 431, rays_per_s 123k, psnr 31.99"
    assert want in shown(0, monkeypatch, **BY_TIME)


def test_a_loop_by_the_clock_shows_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("json", None, "step", "train") as progress:
        progress.update(431, spent=(12.0, 120.0), psnr=20.0)
    row = json.loads(capsys.readouterr().err)
    assert (row["done"], row["total"], row["eta_seconds"]) == (431, None, 108.0)
    assert (row["spent_seconds"], row["of_seconds"]) == (12.0, 120.0)

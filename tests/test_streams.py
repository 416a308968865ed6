"""stdout and stderr that are closed, full, or that nobody reads: the work is done all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import HANGS, SMALL, nerf_environment
from nerfcli.core import progress
from nerfcli.core.progress import Progress

NERF = [sys.executable, "-m", "nerfcli"]
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def run(shell: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A shell line in which "$@" is the command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}", "bash", *NERF, *map(str, words)],
        cwd=cwd,
        env=nerf_environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


@pytest.mark.parametrize("words", [["info"], ["info", "--json"]])
def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, words: list[str]) -> None:
    done = run('"$@" | true', *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_keeps_its_code_without_a_reader(tmp_path: Path) -> None:
    done = run('"$@" | true', "info", "none", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("nerf: no such run: none") and done.stderr.count("\n") == 1


def test_a_result_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    done = run('"$@" > /dev/full', "info", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("nerf: the result cannot be written to stdout: No space left")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "-h"]])
def test_help_that_cannot_be_written_is_an_error(tmp_path: Path, words: list[str]) -> None:
    done = run('"$@" > /dev/full', *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "nerf: stdout cannot be written to: No space left on device.\n"
    assert run('"$@" | true', *words, cwd=tmp_path).stderr == ""


@pytest.mark.parametrize(
    "shell", ['"$@" 2> /dev/full', '"$@" 2>&-', '"$@" 2>&1 >out | true; cat out']
)
def test_training_does_not_need_its_stderr(tmp_path: Path, ball: Path, shell: str) -> None:
    done = run(shell, "train", ball, "--out", "r", "--steps", 60, *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("r: 60 steps")
    assert "nerf" not in done.stderr and "backend" not in done.stdout
    assert (tmp_path / "r" / "state.json").is_file()


class Gone:
    """A terminal behind a connection that broke."""

    def __init__(self, tty: bool) -> None:
        self.tty = tty
        self.written = 0

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.written += 1
        if self.written > 2:
            raise OSError(5, os.strerror(5))
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("tty", [True, False])
def test_progress_falls_silent_where_the_terminal_is_gone(
    tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Gone(tty)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Progress("auto", 1000, "step", "train") as reporter:
        for step in range(1, 1001):
            reporter.update(step)
            reporter.note("a remark")
        assert reporter.kind == reporter.another(1, "view", "eval").kind == "quiet"
    assert stream.written < 20  # a bar writes more than once, also when it is closed

"""`nerf train --view` in a real browser: the numbers go on, and a button ends the run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser, wait_for

from conftest import HANGS, SMALL, nerf_environment
from nerfcli.engine.runs import Run

pytestmark = pytest.mark.slow
pytest.importorskip("viser")
BUTTON = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() == {name!r})"


class Training:
    """A run that has no end of its own, and its page."""

    def __init__(self, ball: Path, folder: Path, browser: Browser) -> None:
        words = ("train", ball, "--out", folder, "--steps", 10**8, "--view", "--json", *SMALL)
        flags = ("--backend", "torch", "--device", "cpu", "--progress", "json")
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", "nerfcli", *map(str, (*words, *flags))],
            env=nerf_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.browser = browser
        for line in self.process.stderr:
            if found := re.search(r"open (http://127\.0\.0\.1:\d+/)", line):
                browser.open(found[1])
                break

    def step(self) -> int:
        text = self.browser.run("document.body.innerText") or ""
        found = re.search(r"Step (\d+)", text)
        return int(found[1]) if found else 0

    def press(self, name: str) -> None:
        wait_for(lambda: self.browser.run(f"!!{BUTTON.format(name=name)}"))
        self.browser.run(f"{BUTTON.format(name=name)}.click()")

    def end(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=HANGS)
        return json.loads(out)


@pytest.fixture
def training(ball: Path, tmp_path: Path) -> Any:
    if find_browser() is None:
        pytest.skip("there is no Chromium here")
    with Browser() as browser:
        found = Training(ball, tmp_path / "run", browser)
        try:
            yield found
        finally:
            found.process.kill()
            found.process.wait()


def test_a_page_shows_a_training_and_ends_it(training: Training, tmp_path: Path) -> None:
    first = wait_for(training.step)
    wait_for(lambda: training.step() > first)
    training.press("Stop and save")
    value = training.end()
    assert (training.process.returncode, value["ended_by"]) == (0, "viewer")
    assert not training.browser.errors
    state = Run.open(tmp_path / "run").state
    assert state["step"] == value["steps"] > first and not state["finished"]


def test_a_signal_ends_a_training_that_a_page_paused(training: Training) -> None:
    wait_for(training.step)
    training.press("Pause")
    wait_for(lambda: "paused" in training.browser.run("document.body.innerText"))
    training.process.send_signal(signal.SIGTERM)
    value = training.end()
    assert (training.process.returncode, value["ended_by"]) == (75, "signal")

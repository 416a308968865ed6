"""Trainings and renders that are killed at any file operation go on by themselves, to the same end.

Each life of a command is a forked child with one fault: a kill, a torn write or a full disk. The
next life is the same command. Seeds make the faults repeatable.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import FIRED, KINDS, Fault, count_operations, live

from conftest import HANGS, ROOT, SMALL, nerf_environment
from nerfcli.cli import main
from nerfcli.engine import callbacks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
STEPS = 5
LIVES = 40  # of one command, at most


@pytest.fixture(autouse=True)
def saving_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A checkpoint after each step, and rows of metrics at every second one."""
    monkeypatch.setattr(callbacks, "FIRST_CHECKPOINT", 0.0)
    monkeypatch.setattr(callbacks, "MOST_SAVING", float("inf"))
    monkeypatch.setattr("nerfcli.engine.loop.METRICS_EVERY", 2)
    monkeypatch.chdir(tmp_path)
    yield


def training(ball: Path, out: str) -> Callable[[], None]:
    words = ["train", str(ball), "--resume", "--out", out, "--steps", str(STEPS), "--quiet"]
    often = ["--set", "train.checkpoint_minutes=1e-9", "--backend", "torch", "--device", "cpu"]
    return lambda: main([*words, *often, *SMALL])


def rendering(run: Path, out: str) -> Callable[[], None]:
    words = ["render", str(run), "--frames", "4", "--scale", "0.5", "--quiet", "--out", out]
    extra = [] if out.endswith("4") else ["--save", "rgb,depth"]
    return lambda: main([*words, *extra, "--backend", "torch", "--device", "cpu"])


def result_of_training(out: str) -> dict[str, str]:
    """Digests of the tensors, and the rows without their seconds."""
    names = json.loads((Path(out) / "state.json").read_text())["files"].values()
    found = {name: hashlib.sha256((Path(out) / name).read_bytes()).hexdigest() for name in names}
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    table = [json.loads(line) | {"seconds": 0} for line in lines]
    return found | {"rows": json.dumps(table), "config": (Path(out) / "config.toml").read_text()}


def result_of_render(out: str) -> dict[str, str]:
    paths = [Path(out)] if Path(out).is_file() else sorted(Path(out).glob("[!.]*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def is_left_over(out: str) -> list[Path]:
    return [path for path in Path(out).parent.rglob(".*") if ".frames-" not in str(path)]


def torture(
    make: Callable[[str], Callable[[], None]],
    result: Callable[[str], dict[str, str]],
    suffix: str,
    faults: int,
    seed: int,
) -> int:
    """Let `faults` faults happen to commands that `make` gives for an output; how many ended."""
    work, log = make(f"whole/x{suffix}"), Path("log.txt")
    Path("whole").mkdir()
    with pytest.raises(SystemExit, match="0"):
        work()  # here, so that no child has to import what it needs
    whole = result(f"whole/x{suffix}")
    n = count_operations(make(f"counted{suffix}"), log)
    chance, ended, happened = random.Random(seed), 0, 0
    assert whole and n > 10
    while happened < faults:
        folder = Path(f"broken-{ended}")
        folder.mkdir()
        out = f"{folder}/x{suffix}"
        for life in range(LIVES):
            place = chance.randrange(1, n + 1)
            fault = Fault(place, chance.choice(KINDS), chance.randrange(2**30))
            code = live(make(out), fault if life < LIVES - 1 else None, log)
            said = log.read_text()
            where = f"{fault.kind} at {place} of {n}, life {life}, code {code}: {said}"
            assert code in (0, 2, FIRED, -signal.SIGKILL), where
            happened += code != 0
            if code == 2 and "--overwrite" in said:  # killed when all was done
                break
            if code == 2:
                assert "No space left" in said and said.count("\n") <= 2, where
            if code in (0, FIRED) and result(out) == whole:
                break
            assert code != 0, where  # ended well, and not equal
        else:
            raise AssertionError(f"{LIVES} lives were not enough")
        assert result(out) == whole
        shutil.rmtree(folder)
        ended += 1
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 100])
def test_a_training_outlives_every_kill(ball: Path, n: int) -> None:
    assert torture(lambda out: training(ball, out), result_of_training, "", n, n) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("n", "suffix"), [(3, ""), (70, ""), (30, ".mp4")])
def test_a_render_outlives_every_kill(ball: Path, n: int, suffix: str) -> None:
    assert live(training(ball, "run"), None, Path("log.txt")) == 0
    assert torture(lambda out: rendering(Path("run"), out), result_of_render, suffix, n, n) > 0


def test_a_few_kills_of_both() -> None:
    """In a process of their own: children of one in which other tests ran threads may crash."""
    cases = ("test_a_training_outlives_every_kill[3]", "test_a_render_outlives_every_kill[3-]")
    names = [f"{__file__}::{case}" for case in cases]
    alone = ("-q", "-n", "0", "-m", "slow", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *alone, *names],
        cwd=ROOT,
        env=nerf_environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-3000:]

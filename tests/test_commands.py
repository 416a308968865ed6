"""What a stranger types: other programs' flags, help, lists, plans; and a container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_hints import write_run

from conftest import ROOT, SMALL, Call
from nerfcli.cli import dry_run
from nerfcli.cli.prepare import summarise
from nerfcli.core.text import number, rough_duration
from nerfcli.engine import forecast
from nerfcli.engine.forecast import Forecast
from nerfcli.engine.run_folders import score_file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "s", "--iters", 5], "No such option: --iters. Did you mean --steps?"),
        (["train", "s", "--gpu", 0], "No such option: --gpu. Did you mean --device?"),
        (["train", "s", "--output=x"], "Did you mean --out?"),
        (["train", "s", "--lr", 1], "Did you mean --set train.lr=RATE?"),
        (["train", "s", "--over"], "Did you mean --overwrite?"),
        (["render", "--iters", 5], "No such option: --iters. See nerf render --help."),
        (["render", "--zzz"], "No such option: --zzz. See nerf render --help."),
        (["train", "s", "--steps", "three"], "--steps must be a whole number, got 'three'."),
        (["train", "s", "--minutes=1m"], "--minutes must be a number, got '1m'."),
        (["compare", "a", "b", "--radius", "x"], "--radius must be a number, got 'x'."),
        (["train", "s", "--steps"], "requires an argument. See nerf train --help."),
        (["convert", "s", "--target", "colmap"], "--target. Did you mean --to?"),
        (["train", "s", "--target", 30], "--target. Did you mean --target-psnr?"),
        (["train", "s", "--downscale", 0], "--downscale must be a whole number, at least 1"),
        (["train", "s", "--dry-run", "--resume"], "--dry-run is of a new run"),
        (["bench", "--out", "x"], "--out and --slot belong to --suite gpu"),
        (["render", "--fps", 60, "--out", "x"], "--fps is of a video"),
        (["render", "--fps", 30, "--frame", 2], "--fps is of a video"),
        (["render", "--height", 3, "--distance", 2], "--height: the camera is no higher"),
        (["render", "--save", "rgb,dpth"], "unknown layer 'dpth'; did you mean depth?"),
        (["render", "--path", "orbitt"], "unknown path 'orbitt'; did you mean orbit?"),
        (["render", "--target", "subjct"], "or one of centre, box, subject; did you mean subject?"),
        (["export", "--to", "pionts"], "--to: unknown 'pionts'; did you mean points?"),
        (["convert", "s", "--to", "colmpa", "--out", "o"], "'colmpa'; did you mean colmap?"),
        (["convert", "s", "--to", "colmap"], "nerf: --out is missing: the folder to make. See"),
        (["prepare", "nope.mp4", "--out", "o"], "nope.mp4 does not exist"),
        (["train", "s", "--method", "hashgrd"], "did you mean hashgrid?"),
        (["train", "s", "--minutes", "inf"], "above 0 and at most 1000000; got inf."),
        (["train", "s", "--minutes", "auto"], "--minutes must be a number, got 'auto'."),
        (["train", "s", "--minutes", 1e7], "above 0 and at most 1000000; got"),
        (["train", "s", "--steps", 10**10], "at least 1 and at most 1000000000; got"),
        (["help", "trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["runs", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_bad_usage(call: Call, words: list[object], message: str) -> None:
    done = call(*words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_help_and_version(call: Call) -> None:
    assert call("-V").out == call("--version").out
    assert call("help", "eval").out == call("eval", "--help").out
    assert "prepare" in call("help").out


def test_a_folder_that_cannot_be_written_is_named(call: Call, tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    done = call("train", "s")
    tmp_path.chmod(0o700)
    assert f"Permission denied in {tmp_path}" in done.err


def test_quiet_names_no_next_command() -> None:
    record = dict.fromkeys(("registered", "images", "points", "seconds", "reprojection_px"), 5)
    record |= {"scene": "s", "models": [5], "failed": {}, "enough": True}
    assert "next: nerf check s" in summarise(record)
    spaced = summarise(record | {"scene": "my scene"})
    assert "next: nerf check 'my scene'   nerf train 'my scene'" in spaced
    assert "next" not in summarise(record, quiet=True)


def test_runs_are_listed_newest_first_and_broken_ones_named(call: Call, tmp_path: Path) -> None:
    assert call("runs").out == "no runs in runs/; make one: nerf train SCENE\n"
    for n in (1, 2, 3):
        run = write_run(tmp_path / "runs" / f"chair-{n}", tmp_path / "chair")
        for part in ("model", "optimizer"):
            save_file({"x": torch.ones(3)}, run / f"{part}-5.safetensors", metadata={"step": "5"})
        os.utime(run / "state.json", (n, n))
    score = {"psnr": 27.345, "step": 4, "protocol": {"split": "test"}}
    assert (score_file(), score_file("val")) == ("eval.json", "eval-val.json")
    (tmp_path / "runs" / "chair-3" / "eval.json").write_text(json.dumps(score))
    (tmp_path / "runs" / "chair-2" / "scene.json").write_text("{")
    (tmp_path / "runs" / "not-a-run").mkdir()
    lines = call("runs").out.splitlines()
    assert lines[0].split() == ["run", "scene", "method", "steps", "time", "PSNR", "MB"]
    assert lines[1].split()[:7] == ["runs/chair-3", "chair", "hashgrid", "5", "1", "s", "27.34*"]
    assert lines[2].split()[:7] == ["runs/chair-1", "chair", "hashgrid", "5", "1", "s", "-"]
    assert "* measured at an earlier step" in lines[3]
    assert lines[4].startswith("runs/chair-2 cannot be opened: ")
    rows = json.loads(call("runs", "--json").out)["runs"]
    assert [Path(row["run"]).name for row in rows] == ["chair-3", "chair-2", "chair-1"]
    assert rows[0]["test_psnr"] == 27.345 and rows[1]["broken"] and rows[0]["bytes"] > 100


def test_a_dry_run_writes_nothing(
    call: Call, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "PROBE_SECONDS", 0.0)
    words = ("train", ball, "--dry-run", "--steps", 10**7, "--backend", "torch", *SMALL)
    done = call(*words)
    assert done.code == 0, done.err
    for piece in ("would make runs/ball-1 of scene ball", "8 to train on, 2 held out, 16 x 16"):
        assert piece in done.out
    assert "10000000 steps, about " in done.out
    assert "--holdout" not in done.err
    other = call(*words, "--json", "--out", "r", "--holdout", 3)
    assert "--holdout 3 is not used: the files state a split" in other.err
    value = json.loads(other.out)
    assert (value["run"], value["method"], value["probe_steps"]) == ("r", "hashgrid", 1)
    assert value["expected_seconds"] == pytest.approx(1e7 / value["steps_per_second"])
    assert value["disk_bytes"] > 1000
    assert os.listdir(tmp_path) == []


class FakeLoop:
    """A loop of slow steps."""

    def __init__(self, total: int, seconds: float) -> None:
        self.step, self.elapsed, self.seconds = 0, 0.0, seconds
        self.notes: list[str] = []
        self.budget = self.progress = self
        self.total_steps, self.note = total, self.notes.append

    def go(self, callback: Forecast) -> list[str]:
        for _ in range(20):
            self.step += 1
            self.elapsed += self.seconds if self.step > 1 else 100.0  # the first one compiles
            callback(self)  # pyright: ignore[reportArgumentType]
        return self.notes


def test_a_run_by_steps_says_how_long_it_takes() -> None:
    notes = FakeLoop(200_000, 1.0).go(Forecast())
    assert len(notes) == 1
    assert notes[0].startswith("200000 steps: about 2.3 days to go here, at 1 steps a second")
    assert FakeLoop(50, 1.0).go(Forecast()) == []  # soon done
    assert forecast.FORECAST_FROM >= 30
    texts = [rough_duration(seconds) for seconds in (40, 100, 3600, 10_000, 120 * 86400)]
    assert texts == ["40 seconds", "2 minutes", "60 minutes", "2.8 hours", "120 days"]
    assert [number(rate) for rate in (0.25, 1.0, 999.6, 1234.0)] == ["0.25", "1", "1,000", "1,230"]


DOCKERFILE = ROOT / "docs" / "docker" / "Dockerfile"


def test_the_dockerfile_copies_what_is_there() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    assert copied and all((ROOT / name).exists() for names in copied for name in names)
    kept = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for names in copied for name in names} <= set(kept)


@pytest.mark.slow
def test_the_image_is_built_and_runs() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("docker does not run here")
    build = [docker, "build", "--quiet", "-f", str(DOCKERFILE), str(ROOT)]
    image = subprocess.run(build, check=True, capture_output=True, text=True).stdout.strip()
    shown = subprocess.run(
        [docker, "run", "--rm", image, "info"], check=True, capture_output=True, text=True
    )
    assert "backend cpu on cpu: available" in shown.stdout

"""`nerf train --log tensorboard`, read back by TensorBoard's own reader."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import SIZE, SMALL, Call
from nerfcli.engine import loop, tensorboard
from nerfcli.engine.recovery import Diverged

pytest.importorskip("tensorboard", reason="tensorboard is not installed")
WORDS = ["--backend", "torch", "--device", "cpu", "--quiet", "--log", "tensorboard", *SMALL]


def read(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row every 5 steps, a picture after the first step and then never."""
    monkeypatch.setattr(loop, "METRICS_EVERY", 5)
    monkeypatch.setattr(tensorboard, "FIRST_PICTURE", 0.0)
    monkeypatch.setattr(tensorboard, "MOST_PICTURING", 1e-9)


def test_scalars_are_those_of_the_metrics_and_a_resumed_run_doubles_none(
    ball: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part goes two rows beyond its last checkpoint, as one that is killed does."""
    run = tmp_path / "r"
    save, saved = loop.Loop.save, []

    def save_at_12(self: loop.Loop) -> None:
        if self.step == 22 and not saved:
            raise KeyboardInterrupt  # killed
        save(self)

    def checkpoint(self: loop.Loop) -> None:
        if self.step == 12:
            save(self)

    monkeypatch.setattr(loop.Loop, "save", save_at_12)
    monkeypatch.setattr(loop, "Forecast", lambda: checkpoint)
    call("train", ball, "--out", "r", "--steps", "22", *WORDS)
    first = read(run)
    assert [e.step for e in first.Scalars("train/psnr")] == [5, 10, 15, 20]
    saved.append(True)
    assert call("train", "--resume", "r", "--steps", "27", *WORDS).code == 0
    found = read(run)
    assert len(list((run / "tensorboard").iterdir())) == 2
    for name, key in (("loss/total", "loss"), ("train/psnr", "psnr"), ("train/lr", "lr")):
        written = [(event.step, event.value) for event in found.Scalars(name)]
        want = [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows(run)]
        assert written == want and [step for step, _ in written] == [5, 10, 15, 20, 25]
    assert {f"loss/{name}" for name in rows(run)[0]["terms"]} < set(found.Tags()["scalars"])
    (name,) = found.Tags()["images"]
    assert name.startswith("held_out/") and [e.step for e in found.Images(name)] == [1, 13]
    picture = Image.open(io.BytesIO(found.Images(name)[0].encoded_image_string))
    assert picture.size == (SIZE, SIZE)


def test_a_run_that_goes_back_doubles_no_step(
    ball: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, told = loop.Loop.record, []

    def diverge_once(self: loop.Loop) -> None:
        if self.step == 12 and not told:
            told.append(True)
            raise Diverged("the loss is nan")
        record(self)

    monkeypatch.setattr(loop.Loop, "record", diverge_once)
    assert call("train", ball, "--out", "r", "--steps", "16", *WORDS).code == 0
    steps = [event.step for event in read(tmp_path / "r").Scalars("loss/total")]
    assert steps == [row["step"] for row in rows(tmp_path / "r")] == [5, 10, 15]


def test_a_disk_that_refuses_ends_the_log_and_not_the_run(
    ball: Path, call: Call, tmp_path: Path
) -> None:
    monkey = [word for word in WORDS if word != "--quiet"]
    assert call("train", ball, "--out", "r", "--steps", "2", *SMALL, "--quiet").code == 0
    (tmp_path / "r" / "tensorboard").write_text("in the way")
    done = call("train", "--resume", "r", "--steps", "4", *monkey)
    assert done.code == 0 and done.err.count("--log tensorboard ends here") == 1


def test_what_cannot_be_logged_is_refused_before_any_work(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("train", "no-scene", "--log", "wandb")
    assert done.code == 2 and "--log wandb: unknown; known: tensorboard" in done.err
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = call("train", "no-scene", "--log", "tensorboard")
    assert done.code == 2 and "pip install 'nerfcli[tensorboard]'" in done.err

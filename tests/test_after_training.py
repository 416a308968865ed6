"""What comes beside the training: the folder, the scores after it, the plan before it."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import SMALL, Call
from nerfcli.cli import main, train_request
from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.engine import cost, evaluate, runs, train
from nerfcli.engine.runs import Run
from nerfcli.shapes.mesh_files import save_shape
from nerfcli.shapes.types import Mesh

SCENE = {"name": "ball", "frames": []}
TRAIN = ("--steps", 2, "--backend", "torch", "--device", "cpu", *SMALL)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_second_of_two_programs_leaves_the_run_of_the_first(
    early: bool, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if early:  # the second one looked before the first one began
        monkeypatch.setattr(runs, "ensure_free", lambda path, overwrite: None)
    path = tmp_path / "r"
    with ExitStack() as first:
        Run.create(path, Config(), SCENE, overwrite=overwrite, held=first)
        before = files(tmp_path)
        with pytest.raises(NerfError, match="another process|exists"), ExitStack() as second:
            Run.create(path, Config(), SCENE, overwrite=overwrite, held=second)
        assert files(tmp_path) == before
    Run.create(path, Config(), SCENE, overwrite=True)


def test_a_run_that_cannot_be_created_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(value: object, path: Path) -> None:
        raise NerfError(f"cannot write {path}: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_config", full)
        with pytest.raises(NerfError, match="No space left"):
            Run.create(tmp_path / "a" / "r", Config(), SCENE)
        with pytest.raises(NerfError, match="No space left"):
            Run.create_next("ball", Config(), SCENE, tmp_path / "runs")
    assert os.listdir(tmp_path) == []
    Run.create(tmp_path / "a" / "r", Config(), SCENE)


def test_a_training_that_fails_early_takes_away_the_folders_it_made(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for make in (
        lambda held: Run.create_next("ball", Config(), SCENE, tmp_path / "runs", held=held),
        lambda held: Run.create(tmp_path / "mine" / "b" / "r", Config(), SCENE, held=held),
        lambda held: Run.create(tmp_path / "mine", Config(), SCENE, held=held),
    ):
        with pytest.raises(KeyboardInterrupt), ExitStack() as held:
            assert make(held).path.is_dir()
            raise KeyboardInterrupt
        assert files(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA"), MemoryError(), OSError(errno.EIO, "Input/output error")],
    ids=["gpu", "memory", "disk"],
)
def test_an_estimate_that_fails_does_not_fail_the_run(
    error: Exception, call: Call, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("nerfcli.engine.loop.estimate_held_out", fail)
    done = call("train", ball, "--out", "r", "--json", *TRAIN)
    assert done.code == 0, done.err
    assert (done.value["steps"], done.value["held_out"]) == (2, None)
    assert "held-out views are not scored" in done.err and "training:" not in done.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=["term", "ctrl-c"]
)
def test_a_signal_after_the_training_keeps_the_summary(
    number: int, code: int, call: Call, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            os.kill(os.getpid(), number)
            return function(*args)

        return called

    words = ("train", ball, "--json", *TRAIN)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "score_view", signalled(evaluate.score_view))
        done = call(*words, "--out", "a", "--target-psnr", 1)
    assert (done.code, done.value["steps"], done.value["target_met"]) == (code, 2, None)
    with monkeypatch.context() as patch:
        patch.setattr(cost, "estimate_path", signalled(cost.estimate_path))
        done = call(*words, "--out", "b")
    assert (done.code, done.value["steps"]) == (0, 2)  # all is done
    for path in ("a", "b"):
        assert Run.open(Path(path)).step == 2


def test_a_target_that_cannot_be_measured_keeps_the_summary(
    call: Call, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NerfError("photo.png is gone.")

    monkeypatch.setattr(evaluate, "score_view", fail)
    done = call("train", ball, "--out", "r", "--target-psnr", 1, *TRAIN)
    assert done.code == 3 and "r: 2 steps" in done.out
    assert "target 1 dB not measured: photo.png is gone." in done.out


@pytest.mark.parametrize("steps", [2, 3])
def test_a_run_of_a_gpu_is_scored_where_it_goes_on(
    steps: int, call: Call, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("train", ball, "--out", "r", "--quiet", *TRAIN)
    config = Path("r/config.toml")
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda"'))
    used = []
    load = evaluate.load_model

    def noting(run: Run, backend: str, device: str, note: object = None) -> Any:
        used.append((backend, device))
        return load(run, backend, device)

    for module in (evaluate, cost):
        monkeypatch.setattr(module, "load_model", noting)
    words = ("--backend", "torch", "--device", "cpu", "--steps", steps, "--target-psnr", 1)
    done = call("train", "--resume", "r", "--json", *words)
    assert done.code == 0, done.err
    assert done.value["target_met"] and done.value["render_seconds"] > 0
    assert used == [("torch", "cpu"), ("torch", "cpu")]
    assert 'device = "cuda"' in config.read_text()


def test_quiet_changes_no_key_of_the_result(call: Call, ball: Path) -> None:
    loud = call("train", ball, "--out", "a", "--json", *TRAIN).value
    quiet = call("train", ball, "--out", "b", "--json", "--quiet", *TRAIN).value
    assert loud.keys() == quiet.keys() and quiet["render_seconds"] > 0


def test_a_dry_run_refuses_what_training_refuses(
    call: Call, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NerfError("the pixels need 90 GB")

    monkeypatch.setattr(train, "ensure_room", full)
    for words in ((), ("--dry-run",)):
        done = call("train", ball, "--out", "r", *words, *TRAIN)
        assert done.code == 2 and "the pixels need 90 GB" in done.err


def test_scores_replace_nothing_unasked(call: Call, ball: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert call("train", ball, "--out", name, "--quiet", *TRAIN).code == 0
    score = ("eval", "a", "--backend", "torch", "--device", "cpu")
    before = files(tmp_path), files(ball)
    assert "b is another run" in call(*score, "--out", "b").err
    assert "is a data set" in call(*score, "--out", ball).err
    assert (files(tmp_path), files(ball)) == before
    assert call(*score, "--out", "s").code == 0
    assert json.loads(Path("s/eval.json").read_text())["run"] == "a"
    Path("s/eval.json").unlink()
    assert "s/report.html exists" in call(*score, "--out", "s").err
    Path("s/report.html").unlink()
    pair = next(Path("s/renders/test").iterdir())
    pair.write_bytes(b"mine")
    refused = call(*score, "--out", "s")
    assert refused.code == 2 and f"{pair} exists" in refused.err
    assert pair.read_bytes() == b"mine"
    assert call(*score, "--out", "s", "--no-images").code == 0
    truth = tmp_path / "t" / "mesh.ply"
    truth.parent.mkdir()
    save_shape(Mesh(np.eye(4, 3), np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])), truth)
    kept = truth.read_bytes()
    refused = call(*score, "--geometry", truth, "--out", "t", "--overwrite")
    assert refused.code == 2 and "lies where the run's mesh is written" in refused.err
    other = truth.rename(tmp_path / "truth.ply")
    truth.write_bytes(b"mine")
    refused = call(*score, "--geometry", other, "--out", "t")
    assert refused.code == 2 and "mesh.ply exists" in refused.err
    assert other.read_bytes() == kept and truth.read_bytes() == b"mine"
    assert "--overwrite has no effect without --out" in call(*score, "--overwrite").err


def test_an_error_beside_the_word_help_is_not_one_of_stdout(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "scene.json")

    monkeypatch.setattr(train_request, "ensure_scene", fail)
    with pytest.raises(OSError, match="Input/output error"):
        main(["train", "help"])

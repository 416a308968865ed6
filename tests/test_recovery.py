"""Runs whose numbers go wrong, whose disk is full, or whose newest checkpoint is damaged."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import NeverStop, config_of, tensors_of

from conftest import SMALL, Call
from nerfcli.backends.base import Backend
from nerfcli.cli.train_request import run_to_resume
from nerfcli.core.config import TrainConfig
from nerfcli.core.errors import CannotWrite, NerfError
from nerfcli.core.progress import Progress
from nerfcli.engine import callbacks, checkpoints, recovery, runs, train
from nerfcli.engine.recovery import MOST_SETBACKS, Collapsed, Diverged, shows_nothing
from nerfcli.engine.run_folders import kept_if_saved
from nerfcli.engine.runs import Run
from nerfcli.engine.train import Loop
from nerfcli.scenes import load_scene

NEVER: Any = NeverStop()
SAVE = callbacks.Checkpoints.__call__


def loop_of(
    ball: Path, folder: Path, steps: int = 12, *hooks: Any, resume: bool = False
) -> tuple[Loop, list[str]]:
    """A loop with rows and checkpoints at every second step, and what is said in it."""
    config = replace(config_of("hashgrid"), train=TrainConfig(steps=steps, checkpoint_minutes=0.0))
    ready = train.prepare(load_scene(ball), config)
    run = Run.open(folder) if resume else Run.create(folder, ready.config, ready.scene.to_json())
    progress, said = Progress("quiet", None, "step", "train"), []
    progress.note = said.append  # type: ignore[method-assign]
    loop = train.start(ready, run, Backend(), "cpu", progress, resume)
    loop.callbacks = hooks
    return loop, said


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of metrics at every second step; checkpoints by `saving` alone."""
    monkeypatch.setattr("nerfcli.engine.loop.METRICS_EVERY", 2)
    monkeypatch.setattr(callbacks.Checkpoints, "__call__", lambda self, loop: None)


def saving(loop: Loop) -> None:
    """A checkpoint each fifth step."""
    if loop.step % 5 == 0:
        SAVE(callbacks.Checkpoints(0.0, due=-1.0), loop)


def spoil(*at: int) -> Any:
    """A callback that puts NaN into the weights, the first time that it comes to each step."""
    left = list(at)

    def hook(loop: Loop) -> None:
        if loop.step in left:
            left.remove(loop.step)
            loop.trainer.field.params.named()["color.weights"].fill_(float("nan"))  # type: ignore[attr-defined]

    return hook


def rows(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_run_goes_back_to_its_checkpoint(ball: Path, tmp_path: Path) -> None:
    loop, said = loop_of(ball, tmp_path / "r", 12, saving, spoil(7))
    assert loop.go(NEVER)["steps"] == 12
    assert said == [
        "warning: by step 8 the loss is nan. Going on from the checkpoint of step 5 with other "
        "random numbers and 0.5 of the learning rate"
    ]
    assert rows(tmp_path / "r") == [2, 4, 6, 8, 10, 12]
    assert all(t.isfinite().all() for t in loop.trainer.optimizer_state().values())
    again, _ = loop_of(ball, tmp_path / "r", resume=True)
    assert (again.setbacks, again.caution) == (1, 0.5)
    first, second = (loop_of(ball, tmp_path / name, 12)[0] for name in "ab")
    second.caution = 0.5
    for each in (first, second):
        each.take_step(0.0)
    assert second.lr == 0.5 * first.lr


def test_a_run_without_a_checkpoint_begins_again(ball: Path, tmp_path: Path) -> None:
    """Its weights are looked at where it saves, also at the end."""
    loop, said = loop_of(ball, tmp_path / "r", 3, spoil(3))
    first = loop.trainer.generator.initial_seed()
    assert loop.go(NEVER)["steps"] == 3
    assert loop.trainer.generator.initial_seed() != first
    assert len(said) == 1 and "not finite. Going on from step 0" in said[0]
    assert rows(tmp_path / "r") == [2]


def test_a_run_that_diverges_again_and_again_stops(ball: Path, tmp_path: Path) -> None:
    def always(loop: Loop) -> None:
        if loop.step > 5:
            spoil(loop.step)(loop)

    loop, said = loop_of(ball, tmp_path / "r", 12, saving, always)
    with pytest.raises(NerfError, match="diverged again by step .* is kept in .*try a lower"):
        loop.go(NEVER)
    assert len(said) == MOST_SETBACKS
    assert Run.open(tmp_path / "r").step == 5


def test_moments_that_are_not_finite_are_no_checkpoint(ball: Path, tmp_path: Path) -> None:
    loop, _ = loop_of(ball, tmp_path / "r")
    loop.take_step(0.0)
    loop.trainer.optimizer_state()["v.color.weights"][0] = float("inf")
    with pytest.raises(Diverged, match="optimiser"):
        loop.save()


def test_an_empty_field_is_seen_and_begins_again_once(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _ = loop_of(ball, tmp_path / "a", 30)
    loop.go(NEVER)
    assert not shows_nothing(loop)
    sampler = loop.trainer.field.sampler  # type: ignore[attr-defined]
    sampler.restrict(torch.zeros_like(sampler.grid.possible))
    assert shows_nothing(loop)
    monkeypatch.setattr(recovery, "EMPTINESS_AT", (4, 6, 8))
    monkeypatch.setattr(recovery, "shows_nothing", lambda loop: True)
    loop, said = loop_of(ball, tmp_path / "b", 9, lambda loop: loop.step == 2 and loop.save())
    assert loop.go(NEVER)["steps"] == 9
    assert len(said) == 2 and "step 0 with other random numbers" in said[0]
    assert "rate" not in said[0] and "by step 4 the field still shows nothing" in said[1]
    assert loop.caution == 1.0 and issubclass(Collapsed, Diverged)
    assert rows(tmp_path / "b") == [2, 4, 6, 8]
    assert Run.open(tmp_path / "b")._before()["step"] == 2  # type: ignore[index]


def test_a_full_disk_stops_no_training(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint stays, the user knows it once, and room that is made is used."""
    write, refused = os.fsync, [True]

    def full(descriptor: int) -> None:
        if refused[0] and loop.step > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    def room(loop: Loop) -> None:
        refused[0] = loop.step < 18

    loop, said = loop_of(ball, tmp_path / "r", 20, room, saving)
    monkeypatch.setattr(os, "fsync", full)
    assert loop.go(NEVER)["steps"] == 20
    assert len(said) == 1 and "No space left on device. Training goes on" in said[0]
    assert Run.open(tmp_path / "r").step == 20
    assert not list((tmp_path / "r").glob(".*"))
    loop, said = loop_of(ball, tmp_path / "s", 17, room, saving)
    with pytest.raises(NerfError, match="The checkpoint of step 5 is intact; make room and go on"):
        loop.go(NEVER)
    assert len(said) == 1 and Run.open(tmp_path / "s").load_checkpoint()[2]["step"] == 5
    monkeypatch.undo()
    loop, said = loop_of(ball, tmp_path / "t", 3)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EROFS, "ro")))
    with pytest.raises(NerfError, match="Nothing is saved of this run"):
        loop.go(NEVER)


def test_metrics_that_find_no_room_leave_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, config_of("hashgrid"), {})
    run.append_metrics({"step": 1})
    monkeypatch.setattr(runs, "json_text", lambda row: "x" * 10_000)
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(CannotWrite, match=r"metrics\.jsonl"):
            run.append_metrics({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert rows(tmp_path) == [1]


@pytest.mark.parametrize(("name", "kept"), [("model", 60), ("optimizer", None), ("state", 0)])
def test_the_checkpoint_before_a_damaged_one_is_taken(
    ball: Path, tmp_path: Path, name: str, kept: int | None
) -> None:
    loop, _ = loop_of(ball, tmp_path / "r", 12, saving)
    loop.go(NEVER)
    path = next((tmp_path / "r").glob("state.json" if name == "state" else f"{name}-12.*"))
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:kept])
    again, said = loop_of(ball, tmp_path / "r", 12, saving, resume=True)
    assert again.step == 10 and len(said) == 1
    assert path.name in said[0] and "checkpoint before it, of step 10, is taken" in said[0]
    assert again.go(NEVER)["steps"] == 12
    whole, _ = loop_of(ball, tmp_path / "s", 12, saving)
    whole.go(NEVER)
    ours, theirs = tensors_of(tmp_path / "r"), tensors_of(tmp_path / "s")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert rows(tmp_path / "r") == [2, 4, 6, 8, 10, 12]
    assert (Run.open(tmp_path / "r").step, Run.open(tmp_path / "r").remark) == (12, "")


def test_commands_say_that_they_take_an_earlier_checkpoint(
    call: Call, ball: Path, tmp_path: Path
) -> None:
    words = ("--out", "r", "--backend", "torch", "--quiet", *SMALL)
    for steps in (2, 3):
        assert call("train", ball, "--resume", "--steps", steps, *words).code == 0
    (tmp_path / "r" / "model-3.safetensors").write_bytes(b"")
    done = call("info", "r")
    assert "step 2" in done.out and "model-3.safetensors is truncated" in done.err
    done = call("train", "--resume", "r", "--steps", 3, "--json")
    assert (done.code, done.value["steps"]) == (0, 3)
    assert "of step 2, is taken" in done.err
    assert len(list((tmp_path / "r").glob("model-*"))) == 2


def test_a_record_of_a_newer_version_is_not_damaged(ball: Path, tmp_path: Path) -> None:
    loop, _ = loop_of(ball, tmp_path / "r", 12, saving)
    loop.go(NEVER)
    path = tmp_path / "r" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(NerfError, match="checkpoint format 99"):
        Run.open(tmp_path / "r")
    assert checkpoints.GENERATOR  # the module that reads them


def test_a_run_of_which_only_the_earlier_checkpoint_is_left_goes_on(
    ball: Path, tmp_path: Path
) -> None:
    """It is not taken for one that never began, which --resume would begin again."""
    loop_of(ball, tmp_path / "run", 12, saving)[0].go(NEVER)
    (tmp_path / "run" / "state.json").unlink()
    assert run_to_resume(None, tmp_path / "run") == tmp_path / "run"
    with pytest.raises(KeyError), kept_if_saved(tmp_path / "run", []):
        raise KeyError
    assert Run.open(tmp_path / "run").step == 10

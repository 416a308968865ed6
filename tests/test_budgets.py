"""How long a run is: by steps, by the clock, to a target; and what is said of it before."""

from __future__ import annotations

import shutil
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import SMALL, Call
from nerfcli.core.errors import CannotWrite, NerfError
from nerfcli.engine import evaluate, target
from nerfcli.engine.target import Target

TRAIN = ("--backend", "torch", "--device", "cpu", "--json", *SMALL)


def test_a_run_ends_where_it_reaches_its_target(
    call: Call, ball: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "FIRST_LOOK", 0.0)
    monkeypatch.setattr(target, "MOST_LOOKING", float("inf"))
    scored, score = [], evaluate.score_view
    monkeypatch.setattr(evaluate, "score_view", lambda *a: scored.append(a[2]) or score(*a))
    done = call("train", ball, "--out", "r", "--steps", 500, "--target-psnr", 9, *TRAIN)
    value = done.value
    assert (done.code, value["ended_by"], value["target_met"]) == (0, "target", True), done.err
    assert value["steps"] < 500 and value["test_psnr"] >= 9
    assert len(scored) == 2  # each held-out view once
    again = call("train", "--resume", "r", "--steps", 500, "--target-psnr", 9, "--json")
    assert (again.code, again.value["ended_by"]) == (0, "target")
    assert again.value["steps"] == value["steps"] + 1


@pytest.mark.parametrize("length", [("--steps", 3), ("--minutes", 0.002)])
def test_a_target_that_is_out_of_reach_costs_the_whole_length(
    call: Call, ball: Any, length: tuple[str, float]
) -> None:
    done = call("train", ball, "--out", "r", *length, "--target-psnr", 80, *TRAIN)
    assert (done.code, done.value["target_met"]) == (3, False)
    assert done.value["ended_by"] == length[0].strip("-")


def looking(monkeypatch: pytest.MonkeyPatch, found: Any, measured: Any) -> tuple[Any, Target]:
    """A loop that looks for 20 dB at once, and what it finds."""

    def give(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(target, "estimate_held_out", lambda *_: give(found))
    monkeypatch.setattr(target, "Model", SimpleNamespace(of=lambda _: None))
    said: list[str] = []
    loop: Any = SimpleNamespace(
        elapsed=9.0, first_seconds=0.0, run="run", is_good_enough=False, said=said, trainer=None
    )
    loop.trainer, loop.all_rays = SimpleNamespace(scene=None), lambda: 0
    loop.clock = SimpleNamespace(elapsed=lambda: 10.0)
    loop.progress = SimpleNamespace(note=said.append)
    loop.save, loop.go_on_unsaved = lambda: None, lambda error: said.append(str(error))
    callback = Target(20.0, lambda run: give(measured))
    callback(loop)
    return loop, callback


def test_an_estimate_that_promised_too_much_must_be_higher_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = {"psnr": 18.0, "exact_views": 0}
    loop, callback = looking(monkeypatch, {"psnr": 21.0}, exact)
    assert not loop.is_good_enough and callback.margin == 3.0
    assert callback.due == 10.0 + 1.0 / target.MOST_LOOKING
    monkeypatch.setattr(target, "estimate_held_out", lambda *_: {"psnr": 22.5})
    loop.elapsed, callback.result = 50.0, None
    callback(loop)
    assert callback.result is None  # 23 dB are needed
    loop, _ = looking(monkeypatch, {"psnr": 20.5}, {"psnr": 20.0, "exact_views": 0})
    assert loop.is_good_enough


@pytest.mark.parametrize("found", [None, {"psnr": None}, {"psnr": 19.9}])
def test_nothing_is_measured_below_the_target(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    loop, callback = looking(monkeypatch, found, AssertionError("measured"))
    assert not loop.is_good_enough and callback.result is None and not loop.said


def test_a_look_that_fails_fails_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, callback = looking(monkeypatch, {"psnr": 21.0}, NerfError("the GPU's memory is full."))
    assert loop.said == ["--target-psnr is measured at the end only: the GPU's memory is full."]
    callback(loop)
    assert len(loop.said) == 1 and callback.due == float("inf")
    loop, callback = looking(monkeypatch, {"psnr": 21.0}, CannotWrite("no room"))
    assert loop.said == ["no room"] and callback.due == 30.0
    assert looking(monkeypatch, {"psnr": 21.0}, None)[0].is_good_enough is False


def test_a_dry_run_states_disk_and_quality(
    call: Call, ball: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(1000))
    done = call("train", ball, "--dry-run", "--steps", 2, *TRAIN)
    value = done.value
    assert value["disk_free_bytes"] == 1000 and "too little room for 3 checkpoints" in done.err
    assert value["expected_psnr"] is None and value["probe_psnr"] > 0
    assert f"{value['probe_psnr']:.1f} dB on training rays" in value["quality_reason"]

"""What may be hooked into a training loop, and what it leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nerfcli import backends
from nerfcli.core.config import (
    ClassicConfig,
    Config,
    HashGridConfig,
    SceneConfig,
    TrainConfig,
)
from nerfcli.core.progress import Progress
from nerfcli.engine import train
from nerfcli.engine.render import Model, render_image
from nerfcli.engine.runs import Run
from nerfcli.engine.train import Callback, Every, Loop
from nerfcli.methods import METHODS
from nerfcli.scenes import load_scene

STEPS = 4


class NeverStop:
    received = None


def config_of(method: str) -> Config:
    return Config(
        method,
        device="cpu",
        backend="torch",
        train=TrainConfig(steps=STEPS),
        hashgrid=HashGridConfig(
            n_levels=2,
            log2_table_size=8,
            max_resolution=32,
            width=16,
            n_samples=256,
            steps_per_box=16,
            occupancy_resolution=8,
            occupancy_every=2,
        ),
        classic=ClassicConfig(width=16, depth=2, n_coarse=4, n_fine=4, n_rays=8),
    )


def trained(ball: Path, folder: Path, method: str, callbacks: tuple[Callback, ...] = ()) -> Loop:
    ready = train.prepare(load_scene(ball), config_of(method))
    run = Run.create(folder, ready.config, ready.scene.to_json())
    ops = backends.select("torch", "cpu").backend
    loop = train.start(ready, run, ops, "cpu", Progress("quiet", None, "step", "train"))
    loop.callbacks = callbacks
    stop: Any = NeverStop()
    loop.go(stop)
    return loop


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_rendering_while_training_changes_no_bit(ball: Path, tmp_path: Path, method: str) -> None:
    pictures = []

    def look(loop: Loop) -> None:
        model = Model.of(loop.trainer)
        cameras = model.scene.cameras.scaled(0.5)
        pictures.append((loop.step, render_image(model, cameras, 0).rgb))

    trained(ball, tmp_path / "alone", method)
    trained(ball, tmp_path / "watched", method, (look,))
    assert [step for step, _ in pictures] == [1, 2, 3, 4]
    assert all(len(rgb) == 64 and rgb.isfinite().all() for _, rgb in pictures)
    assert not torch.equal(pictures[0][1], pictures[-1][1])  # of the field as it is by then
    alone, watched = tensors_of(tmp_path / "alone"), tensors_of(tmp_path / "watched")
    assert alone.keys() == watched.keys()
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


@pytest.mark.parametrize("method", METHODS)
def test_the_field_that_is_shown_is_the_one_that_is_saved(
    ball: Path, tmp_path: Path, method: str
) -> None:
    trainer = trained(ball, tmp_path / "run", method).trainer
    shown, saved = trainer.rendered_field().state(), trainer.model_state()
    assert shown.keys() == saved.keys()
    assert all(torch.equal(shown[name], saved[name]) for name in saved)


def test_callbacks_see_the_step(ball: Path, tmp_path: Path) -> None:
    seen = []

    def note(loop: Loop) -> None:
        assert loop.last is not None
        seen.append((loop.step, float(loop.last.loss), loop.elapsed, loop.lr))

    trained(ball, tmp_path / "run", "hashgrid", (note,))
    steps, losses, seconds, rates = zip(*seen, strict=True)
    assert steps == (1, 2, 3, 4)
    assert all(loss > 0 for loss in losses) and rates[-1] < rates[0]
    assert sorted(seconds) == list(seconds)


def test_every_acts_after_its_seconds(ball: Path, tmp_path: Path) -> None:
    loop, acted = trained(ball, tmp_path / "run", "hashgrid"), []
    loop.first_seconds = 10.0
    every = Every(2.0, lambda loop: acted.append(loop.elapsed))
    for loop.elapsed in (10.5, 12.0, 12.5, 13.0, 14.5, 14.6):
        every(loop)
    assert acted == [12.5, 14.6]


@pytest.mark.parametrize(("method", "names"), [("hashgrid", 1), ("classic", 2)])
def test_metrics_name_the_terms_of_the_loss(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, names: int
) -> None:
    monkeypatch.setattr(train, "METRICS_EVERY", 2)
    trained(ball, tmp_path / "run", method)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert len(row["terms"]) == names
        assert sum(row["terms"].values()) == pytest.approx(row["loss"], rel=1e-5)


def test_the_generator_is_saved_as_a_tensor(ball: Path, tmp_path: Path) -> None:
    loop = trained(ball, tmp_path / "run", "hashgrid")
    model, optimizer, state = Run.open(tmp_path / "run").load_checkpoint()
    assert "generator" not in state and "generator" not in model
    want = loop.trainer.generator.get_state()
    assert torch.equal(train.generator_state(optimizer, state), want)
    assert "generator" not in optimizer  # what is left is the optimiser's
    assert torch.equal(train.generator_state({}, {"generator": want.tolist()}), want)  # format 1


def test_what_the_scene_gave_is_not_repeated_in_the_config(ball: Path, tmp_path: Path) -> None:
    loop = trained(ball, tmp_path / "run", "hashgrid")
    text = (tmp_path / "run" / "config.toml").read_text()
    assert not any(f"\n{key} =" in text for key in ("near", "far", "cascades", "downscale"))
    stated = json.loads((tmp_path / "run" / "scene.json").read_text())
    assert stated["near"] == loop.trainer.scene.near and stated["background"] == "white"


def test_a_resolved_config_stays_as_it_is(ball: Path) -> None:
    scene = load_scene(ball)
    for method in METHODS:
        config = train.resolve(replace(config_of(method), train=TrainConfig()), scene)
        assert config.train.minutes == 2.0 and config.train.lr is not None
        assert train.resolve(config, scene) == config


def test_classic_warns_of_surroundings_and_stated_cascades_keep_the_box(ball: Path) -> None:
    said: list[str] = []
    wanted = SceneConfig(cascades=3)
    scene = load_scene(ball, wanted)
    for method in ("classic", "hashgrid"):
        config = replace(config_of(method), scene=wanted)
        assert train.prepare(scene, config, said.append).scene.box == scene.box
        train.prepare(load_scene(ball), config_of(method), said.append)  # an object in a box
    (warning,) = [line for line in said if line.startswith("warning")]
    assert "classic spreads its samples evenly" in warning

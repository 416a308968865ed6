"""What may be hooked into a training loop, and what it leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nerfcli import backends
from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.core.config import (
    ClassicConfig,
    Config,
    HashGridConfig,
    SceneConfig,
    TrainConfig,
)
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.engine import checkpoints, train
from nerfcli.engine.callbacks import Callback, Checkpoints, Every
from nerfcli.engine.render import Model, render_image
from nerfcli.engine.resolve import resolve
from nerfcli.engine.runs import Run
from nerfcli.engine.train import Loop
from nerfcli.methods import METHODS, hashgrid_trainer
from nerfcli.methods.hashgrid_graph_trainer import GraphTrainer
from nerfcli.methods.occupancy import OccupancyGrid
from nerfcli.scenes import load_scene
from nerfcli.scenes.coverage import seen_cells

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


@pytest.mark.parametrize(
    ("interval", "takes", "saved"),
    [
        (60, 0.1, [11, 72, 133]),
        (5, 0.0, [6, 12, 18]),
        (60, 2.0, [11, 112, 213]),  # 2 % of the time goes into them, not more
    ],
)
def test_the_first_checkpoint_comes_soon_and_the_others_by_time(
    interval: float, takes: float, saved: list[int]
) -> None:
    seconds, found = count(101), []
    loop = SimpleNamespace(first_seconds=100.0, save=lambda: found.append(loop.elapsed - 100))
    loop.clock = SimpleNamespace(elapsed=lambda: loop.elapsed + takes)
    checkpoints = Checkpoints(interval)
    while len(found) < len(saved):
        loop.elapsed = next(seconds)
        checkpoints(loop)  # pyright: ignore[reportArgumentType]
    assert found == saved


@pytest.mark.parametrize(("method", "names"), [("hashgrid", 1), ("classic", 2)])
def test_metrics_name_the_terms_of_the_loss(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, names: int
) -> None:
    monkeypatch.setattr("nerfcli.engine.loop.METRICS_EVERY", 2)
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
    assert torch.equal(checkpoints.generator_state(optimizer, state), want)
    assert "generator" not in optimizer  # what is left is the optimiser's
    assert torch.equal(
        checkpoints.generator_state({}, {"generator": want.tolist()}), want
    )  # format 1


def test_what_the_scene_gave_is_not_repeated_in_the_config(ball: Path, tmp_path: Path) -> None:
    loop = trained(ball, tmp_path / "run", "hashgrid")
    text = (tmp_path / "run" / "config.toml").read_text()
    assert not any(f"\n{key} =" in text for key in ("near", "far", "cascades", "downscale"))
    stated = json.loads((tmp_path / "run" / "scene.json").read_text())
    assert stated["near"] == loop.trainer.scene.near and stated["background"] == "white"


def test_a_resolved_config_stays_as_it_is(ball: Path) -> None:
    scene = load_scene(ball)
    for method in METHODS:
        config = resolve(replace(config_of(method), train=TrainConfig()), scene)
        assert config.train.minutes == (5.0 if method == "unbounded" else 2.0)
        assert config.train.lr is not None
        assert resolve(config, scene) == config


class Asynchronous(Backend):
    """The reference, as if nothing waited for it."""

    is_asynchronous = True


@pytest.mark.parametrize("ops", [Backend(), Asynchronous()], ids=["eager", "graph"])
@pytest.mark.parametrize("steps", [2, 9])
def test_a_run_in_which_no_ray_meets_anything_stops(
    ball: Path, tmp_path: Path, ops: Backend, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nerfcli.engine.loop.METRICS_EVERY", 3)
    monkeypatch.setattr(hashgrid_trainer, "MAX_RAYS", 64)
    config = replace(config_of("hashgrid"), train=TrainConfig(steps=steps))
    ready = train.prepare(load_scene(ball), config)
    run = Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
    loop = train.start(ready, run, ops, "cpu", Progress("quiet", None, "step", "train"))
    assert isinstance(loop.trainer, GraphTrainer) == ops.is_asynchronous
    sampler = loop.trainer.field.sampler  # type: ignore[attr-defined]
    sampler.restrict(torch.zeros_like(sampler.grid.possible))
    stop: Any = NeverStop()
    with pytest.raises(NerfError, match="nothing to learn from: no ray meets an occupied cell"):
        loop.go(stop)
    assert loop.step == min(steps, 3)
    assert not run.has_checkpoint


def begun(ball: Path, folder: Path, **changes: Any) -> tuple[Loop, list[str]]:
    """A loop before its first step, and what was said on the way there."""
    ready = train.prepare(load_scene(ball), config_of("hashgrid"))
    ready = replace(ready, scene=replace(ready.scene, **changes), silhouettes=None)
    run = Run.create(folder, ready.config, ready.scene.to_json())
    progress, said = Progress("quiet", None, "step", "train"), []
    progress.note = said.append  # type: ignore[method-assign]
    return train.start(ready, run, Backend(), "cpu", progress), said


def grid_of(loop: Loop) -> OccupancyGrid:
    grid = loop.trainer.field.occupancy
    assert grid is not None
    return grid


def test_cells_that_no_training_camera_sees_are_never_occupied(ball: Path, tmp_path: Path) -> None:
    """A cube three times as large as what the frames show, without and with cascades."""
    for n_cascades in (1, 3):
        box = Box((0.0, 0.0, 0.0), 4.5, n_cascades)
        loop, _ = begun(ball, tmp_path / f"{n_cascades}", box=box, has_alpha=False)
        assert not grid_of(loop).possible.all()
        grid = grid_of(loop)
        seen = seen_cells(loop.trainer.scene, box, grid.resolution)
        assert not (grid.possible & ~seen).any() and grid.possible.any()
        for _ in range(4):
            loop.trainer.step(0.01)
        grid = grid_of(loop)
        assert not (grid.occupied & ~seen).any() and grid.occupied.any()
    # and a checkpoint keeps them
    loop.save()
    again = train.prepare(loop.trainer.scene, loop.config, resumed=True)
    went_on = train.start(again, loop.run, Backend(), "cpu", loop.progress, resume=True)
    assert torch.equal(grid_of(went_on).possible, grid_of(loop).possible)


def test_a_box_that_no_camera_sees_is_an_error(ball: Path, tmp_path: Path) -> None:
    with pytest.raises(NerfError, match="no training camera sees any of the box"):
        begun(ball, tmp_path / "run", box=Box((90.0, 0.0, 0.0), 1.0), has_alpha=False)


def test_silhouettes_that_leave_nothing_are_not_used_and_reported(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = torch.zeros(8, 8, 8, dtype=torch.bool)
    monkeypatch.setattr(hashgrid_trainer, "visual_hull", lambda *_: nothing)
    loop, said = begun(ball, tmp_path / "run")
    assert [line for line in said if "leave too little (0 of 512 cells)" in line]
    assert grid_of(loop).possible.any()


def test_room_is_made_for_two_shards(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(train, "ensure_room", lambda n_bytes, *_: asked.append(n_bytes))
    for n_shards in (1, 2):
        ready = train.prepare(load_scene(ball), config_of("hashgrid"))
        ready.residents.n_shards = n_shards
        ready.residents._views = None
        run = Run.create(tmp_path / f"{n_shards}", ready.config, ready.scene.to_json())
        train.start(ready, run, Backend(), "cpu", Progress("quiet", None, "step", "train"))
    assert asked[0] == asked[1]  # two halves


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

"""Several processes train as one: the same random numbers, shared rays, summed gradients."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Nerf
from nerfcli import backends
from nerfcli.backends.base import Backend
from nerfcli.core import distributed
from nerfcli.core.config import Config
from nerfcli.core.distributed import World
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine import train
from nerfcli.engine.runs import Run
from nerfcli.engine.train import Prepared
from nerfcli.methods import StepResult, method_of
from nerfcli.methods.optimizer import Optimizer
from nerfcli.methods.shared_optimizer import SharedOptimizer, create_optimizer
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.params import ParamSet
from nerfcli.scenes import load_scene

TINY = {
    "hashgrid": {"log2_table_size": 8, "n_levels": 2, "max_resolution": 32, "n_samples": 512}
    | {"occupancy_resolution": 8, "occupancy_every": 2},
    "unbounded": {"log2_table_size": 8, "n_levels": 2, "max_resolution": 32, "n_rays": 50}
    | {"proposal_resolution": 16},
    "classic": {"depth": 2, "width": 16, "n_rays": 50, "n_coarse": 8, "n_fine": 8}
    | {"density_noise": 0.5},
}


class Meeting:
    """Where threads meet that stand for processes."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class Threads(World):
    """A world of threads of this process; sums are taken in the order of the ranks."""

    meeting: Meeting | None = None

    def _reduce(self, values: Tensor, how: str) -> None:
        assert self.meeting is not None
        parts = torch.stack(self.meeting.exchange(self.rank, values.clone()))
        values.copy_(parts.sum(0) if how == "SUM" else parts.amax(0))

    def gather_objects(self, value: Any) -> list[Any]:
        assert self.meeting is not None
        return self.meeting.exchange(self.rank, value)


def together(size: int, work: Callable[[World], Any]) -> list[Any]:
    """work(world) of each of `size` threads."""
    meeting, found = Meeting(size), [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, size, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def prepared(scene: Path, method: str, **of_train: Any) -> Prepared:
    config = Config(device="cpu", backend="torch", method=method)
    own = replace(getattr(config, method), **TINY[method])
    own_train = replace(config.train, steps=4, random_background=True, **of_train)
    return train.prepare(load_scene(scene), replace(config, train=own_train, **{method: own}))


def steps_of(ready: Prepared, world: World, n: int = 4) -> tuple[list[StepResult], Any]:
    """The results of n steps, and the trainer after them."""
    generator = torch.Generator().manual_seed(0)
    made: Any = method_of(ready.config).create_trainer(
        ready.scene, ready.residents.at(0), ready.config, Backend(), generator
    )
    made.world = world
    if codes := getattr(made, "codes", None):
        codes.world = world
    made.begin(ready.residents.at(0))
    return [made.step(1e-3) for _ in range(n)], made


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("method", ["hashgrid", "unbounded", "classic"])
def test_processes_take_the_steps_of_one(ball: Path, method: str, size: int) -> None:
    """Losses, counts, weights and what the sampler knows, but for the order of float32 sums."""
    exposure = {} if method == "classic" else {"exposure": True}
    ready = prepared(ball, method, **exposure)
    ready.residents.at(0)
    alone, want = steps_of(ready, distributed.ALONE)
    each = together(size, lambda world: steps_of(ready, world))
    for results, got in each:
        assert [int(r.n_rays) for r in results] == [int(r.n_rays) for r in alone]
        assert [int(r.n_samples) for r in results] == [int(r.n_samples) for r in alone]
        for result, right in zip(results, alone, strict=True):
            torch.testing.assert_close(result.loss, right.loss, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(result.mse, right.mse, rtol=1e-4, atol=1e-7)
        state, right = got.model_state(), want.model_state()
        for name, tensor in right.items():
            # Adam's first steps have the size of the rate, whatever the gradient's is
            torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        first = each[0][1].model_state()
        assert all(torch.equal(first[name], state[name]) for name in first), "they drift apart"


def test_a_share_covers_all_once() -> None:
    for size, n in ((1, 5), (2, 5), (3, 2), (4, 1000)):
        covered = [i for rank in range(size) for i in range(n)[World(rank, size).share(n)]]
        assert covered == list(range(n))


def test_rows_of_several_lengths_are_gathered_in_order() -> None:
    def work(world: World) -> Tensor:
        return world.gather(torch.full((world.rank, 2), float(world.rank)))

    for whole in together(3, work):
        assert whole[:, 0].tolist() == [1.0, 2.0, 2.0]


@pytest.mark.parametrize(("rank", "event"), [(1, "signal"), (0, "target")])
def test_what_one_process_learns_ends_all_at_the_same_step(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, event: str
) -> None:
    """The first alone writes; another number of processes goes on."""
    ready = prepared(ball, "hashgrid")
    ready.residents.at(0)
    made = Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
    local = threading.local()
    monkeypatch.setattr("nerfcli.engine.loop.world", lambda: local.world)
    monkeypatch.setattr("nerfcli.methods.grid_trainer.world", lambda: local.world)

    def work(world: World) -> dict:
        local.world = world
        stop = StopSignal()

        def after(loop: train.Loop) -> None:
            if world.rank == rank and loop.step == 1 and event == "signal":
                stop.received = 15
            elif world.rank == rank and loop.step == 1:
                loop.is_good_enough = True

        with Progress("quiet", None, "step", "train") as progress:
            ops = backends.backend_class("torch")()
            run = made if world.is_first else Run(tmp_path / "other", ready.config, {})
            loop = train.start(ready, run, ops, "cpu", progress)
            loop.world, loop.callbacks = world, [after]
            return loop.go(stop)

    for summary in together(2, work):
        assert (summary["steps"], summary["ended_by"]) == (2, event)
        assert summary["stopped"] == (15 if event == "signal" else None)
    assert not (tmp_path / "other").exists()
    assert made.state["step"] == 2 and made.state["processes"] == 2
    local.world = distributed.ALONE
    with Progress("quiet", None, "step", "train") as progress:
        opened = Run.open(made.path)
        done = train.train(ready, opened, progress=progress, stop=StopSignal(), resume=True)
    assert done["steps"] == 4


def test_too_little_shared_memory_sends_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's /dev/shm has 64 MB."""
    params, config = ParamSet({"w": torch.zeros(1000)}), AdamConfig()
    monkeypatch.setattr(World, "is_on_one_machine", property(lambda self: True))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    assert type(create_optimizer(params, Backend(), config)) is Optimizer
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    assert type(create_optimizer(params, Backend(), config)) is SharedOptimizer


def test_shared_memory_leaves_no_name_behind() -> None:
    before = set(Path(distributed._shared_folder() or "/tmp").glob("nerf-*"))
    shared = distributed.map_shared(torch.arange(6.0).view(2, 3))
    assert shared.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert set(Path(distributed._shared_folder() or "/tmp").glob("nerf-*")) == before


def test_processes_are_started_and_joined(nerf: Nerf, ball: Path, tmp_path: Path) -> None:
    """`--devices 2` by gloo: one message, one run, one JSON object."""
    words = ("--steps", 3, "--backend", "torch", "--json", "--out", tmp_path / "two")
    done = nerf("train", ball, *words, "--devices", 2)
    assert json.loads(done.stdout)["steps"] == 3
    assert "2 processes share the rays of each step" in done.stderr
    assert Run.open(tmp_path / "two").state["processes"] == 2
    scored = nerf("eval", tmp_path / "two", "--json", "--devices=2")
    names = [Path(view["name"]).stem for view in json.loads(scored.stdout)["views"]]
    assert names == ["r_8", "r_9"]
    page = (tmp_path / "two" / "report.html").read_text(encoding="utf-8")
    assert page.count('data-role="depth"') == 2  # the views of both processes


@pytest.mark.parametrize("devices", ["0", "-1", "65"])
def test_an_impossible_number_of_processes(call: Callable[..., Any], devices: str) -> None:
    outcome = call("train", "nowhere", "--devices", devices)
    assert outcome.code == 2 and "--devices must be from 1 to 64" in outcome.err


def test_an_incomplete_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NerfError, match="MASTER_ADDR is not set"), distributed.joined():
        pass

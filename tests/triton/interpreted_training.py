"""Training and rendering through the Triton backend, from a scene to a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton.language as tl
from cases import DTYPES, F16, F32, GRADIENTS, OUTPUTS, PAIRS, assert_near
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

from conftest import write_blender_scene
from nerfcli import backends
from nerfcli.backends import selfcheck
from nerfcli.backends.base import Backend
from nerfcli.backends.triton import triton_encoding
from nerfcli.backends.triton.backend import TritonBackend
from nerfcli.core.config import Config, HashGridConfig
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine import train
from nerfcli.engine.render import load_model
from nerfcli.engine.runs import Run
from nerfcli.methods import hashgrid_graph_trainer as graph_trainer
from nerfcli.methods.base import StepResult
from nerfcli.methods.hashgrid_graph_trainer import GraphTrainer
from nerfcli.methods.hashgrid_method import create_trainer
from nerfcli.methods.hashgrid_trainer import HashGridTrainer
from nerfcli.scenes import load_scene

N_CURVE = 40  # steps
READING = ("item", "tolist", "__int__", "__float__", "__bool__", "__index__", "nonzero")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> train.Prepared:
    folder = write_blender_scene(tmp_path_factory.mktemp("scene") / "ball", n_train=4, n_test=1)
    config = Config()
    return train.prepare(
        load_scene(folder),
        replace(
            config,
            device="cpu",
            train=replace(config.train, steps=2),
            hashgrid=HashGridConfig(
                n_levels=2,
                n_features=4,
                log2_table_size=8,
                max_resolution=32,
                width=16,
                n_samples=64,
                steps_per_box=12,
                occupancy_resolution=8,
                occupancy_every=2,
                occupancy_cells=64,
            ),
        ),
    )


def trainer_with(ops: Backend, prepared: train.Prepared) -> HashGridTrainer:
    generator = torch.Generator().manual_seed(0)
    made = create_trainer(prepared.scene, prepared.residents.at(0), prepared.config, ops, generator)
    return made


def pair(
    prepared: train.Prepared, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> tuple[GraphTrainer, HashGridTrainer]:
    """Two trainers that see the same rays, as many in every step, jitter and cells."""
    mine, right = (trainer_with(ops, prepared) for ops in (TritonBackend(dtype), Backend()))
    assert isinstance(mine, GraphTrainer) and type(right) is HashGridTrainer
    monkeypatch.setattr(mine, "_adapt_there", lambda *_counts: None)
    monkeypatch.setattr(right, "n_rays", lambda: mine.max_rays)
    for trainer in (mine, right):
        monkeypatch.setattr(trainer, "_update_due", lambda: False)
    mine.wanted.fill_(mine.max_rays)
    mine.capacity *= 8  # nobody is left out
    return mine, right


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_tracks_the_reference(
    prepared: train.Prepared, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rays, jitter and cells; the first steps must lead to the same field."""
    mine, right = pair(prepared, dtype, monkeypatch)
    for _ in range(2):
        a, b = mine.step(1e-2), right.step(1e-2)
        assert_near(a.loss, b.loss, 1e-4 if dtype == F32 else 5e-3)
        assert int(a.n_rays) == b.n_rays and abs(int(a.n_samples) - int(b.n_samples)) <= 2
    # Adam's first steps have the size lr whatever the gradient, so tiny ones that differ in
    # sign differ in full: networks are compared, whose gradients are sums over all samples
    limit = 1e-3 if dtype == F32 else 2 * GRADIENTS[dtype]
    assert_near(mine.field.params.color, right.field.params.color, limit)
    assert_near(mine.field.params.density, right.field.params.density, limit)


@pytest.mark.slow
def test_half_precision_learns_as_well_as_single(
    prepared: train.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps of a few rays: what a whole scene makes of it only a GPU can show."""
    curves = []
    for dtype in (F16, F32):
        mine, _ = pair(prepared, dtype, monkeypatch)
        curves.append([float(mine.step(1e-2).mse) for _ in range(N_CURVE)])
    half, single = (sum(curve[-4:]) / 4 for curve in curves)
    assert single < 0.9 * curves[1][0]  # it does learn
    # roundings of 2^-11 in table, inputs and hidden values, over steps that build on each other
    assert half == pytest.approx(single, rel=0.01)


def test_a_step_reads_nothing_back_and_names_every_device(
    prepared: train.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a graph cannot hold, and what would land on the CPU beside a GPU."""
    trainer = trainer_with(TritonBackend(), prepared)
    for _ in range(2):  # fills the caches, as the steps before a capture do
        trainer.step(1e-2)

    def refuse(tensor: torch.Tensor, *_args: Any) -> None:
        raise AssertionError("a tensor was read by the host")

    with torch.device("meta"):  # what names no device cannot be mixed with anything
        for name in READING:
            monkeypatch.setattr(torch.Tensor, name, refuse)
        result = trainer.step(1e-2)
        trainer.field.sampler.update(trainer.field.density, trainer.generator, wait=False)
    monkeypatch.undo()
    assert float(result.loss) > 0 and int(result.n_samples) > 0


class Launches(TorchDispatchMode):
    """Counts what would be launched on a device: torch's operations outside of our kernels."""

    SILENT = ("empty", "view", "select", "slice", "unbind", "detach", "unsqueeze", "fill_")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.inside_a_kernel = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        # filling is the poison of tests/triton/cases.py
        if not self.inside_a_kernel and not any(silent in name for silent in self.SILENT):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_is_few_launches(prepared: train.Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch costs the device time, however little it does."""
    trainer = trainer_with(TritonBackend(), prepared)
    assert isinstance(trainer, GraphTrainer)
    for _ in range(2):
        trainer.step(1e-2)
    launches, run = Launches(), GridExecutor.__call__

    def counted(executor: Any, *args: Any, **options: Any) -> None:
        launches.names.append(executor.fn.__name__)
        launches.inside_a_kernel = True
        run(executor, *args, **options)
        launches.inside_a_kernel = False

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    with launches:
        trainer._advance()
    ours = [name for name in launches.names if name.startswith("_")]
    assert len(ours) == 24
    assert len(launches.names) - len(ours) <= 10, launches.names


def test_the_ray_count_adapts_as_on_a_cpu(prepared: train.Prepared) -> None:
    mine, right = (trainer_with(ops, prepared) for ops in (TritonBackend(), Backend()))
    assert isinstance(mine, GraphTrainer)
    for n_rays, n_kept in ((64, 300), (70, 200), (9, 1999), (99, 0)):
        mine._adapt_there(torch.tensor(n_rays), torch.tensor(n_kept))
        right._adapt(n_rays, n_kept, n_kept)
        assert float(mine.rate) == pytest.approx(right.samples_per_ray, rel=1e-6)  # in float32
        assert abs(int(mine.wanted) - min(right.n_rays(), mine.max_rays)) <= 1
    assert mine.extra_state()["samples_per_ray"] == float(mine.rate)


def test_other_pixels_and_another_state_need_another_graph(prepared: train.Prepared) -> None:
    trainer = trainer_with(TritonBackend(), prepared)
    assert isinstance(trainer, GraphTrainer)
    trainer.step_count = 70
    trainer._captured = StepResult(torch.zeros(()), {}, torch.zeros(()), 1, 1)
    views = replace(prepared.residents.at(0))
    trainer.set_views(views)
    assert trainer.views is views and trainer._captured is None
    assert trainer.first_step == 70  # eager again, for the caches of the new views
    trainer._captured = StepResult(torch.zeros(()), {}, torch.zeros(()), 1, 1)
    trainer.load(trainer.model_state(), trainer.optimizer_state(), trainer.extra_state())
    assert trainer._captured is None


def test_steps_that_cannot_be_recorded_are_launched_one_by_one(
    prepared: train.Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the random numbers that the recording would have had."""
    mine, right = (trainer_with(TritonBackend(), prepared) for _ in "ab")
    assert isinstance(mine, GraphTrainer)
    streams: list[str] = []

    def refuse(graph: Any) -> None:  # before the step: what is recorded is not done
        mine.generator.manual_seed(99)  # what a recording leaves behind
        raise RuntimeError("operation not permitted when stream is capturing.\nSome advice")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "main")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch, "__version__", "2.14.0")
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    monkeypatch.setattr(graph_trainer, "EAGER_STEPS", 1)
    mine.captures = True
    remarks = []
    for _ in range(2):
        got, want = mine.step(1e-2), right.step(1e-2)
        remarks.append(got.remark)
        assert torch.equal(got.mse, want.mse)
    told = (
        "a step cannot be recorded as a CUDA graph (operation not permitted when stream is "
        "capturing); going on without, slower"
    )
    assert remarks == [None, told]
    assert streams == ["main"] and not mine.captures
    assert torch.equal(mine.generator.get_state(), right.generator.get_state())


def test_a_step_with_too_little_room_takes_fewer_rays(prepared: train.Prepared) -> None:
    trainer = trainer_with(TritonBackend(), prepared)
    assert isinstance(trainer, GraphTrainer)
    whole = trainer.step(1e-2)
    trainer.capacity = 40
    wanted = int(trainer.wanted)
    part = trainer.step(1e-2)
    assert 0 < int(part.n_rays) < min(wanted, int(whole.n_rays))
    assert 0 < int(part.n_samples) <= 40 and float(part.loss) < 2 * float(whole.loss)
    assert all(p.isfinite().all() for p in trainer.field.params.tensors())


def test_the_training_loop_runs(
    prepared: train.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scene to run folder to pixels, with nothing but the backend's name changed."""
    monkeypatch.setattr(backends, "ORDER", {"cpu": ("triton", "torch"), "cuda": ()})
    config = replace(prepared.config, backend="triton")
    run = Run.create(tmp_path / "run", config, prepared.scene.to_json())
    progress = Progress("quiet", None, "step", "train")
    summary = train.train(
        replace(prepared, config=config), run, progress=progress, stop=StopSignal()
    )
    assert summary["steps"] == 2
    model = load_model(Run.open(run.path), "triton")
    assert model.backend == "backend triton on cpu, as asked"
    rays = model.scene.cameras.image_rays(0)[100:120]
    mine = model.field.render_rays(rays, model.background)
    right = load_model(Run.open(run.path), "torch").field.render_rays(rays, model.background)
    assert mine.rgb.shape == (20, 3) and mine.opacity.max() > 0
    assert_near(mine.rgb, right.rgb, OUTPUTS[F16])


def test_the_self_check_finds_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a smaller case than a GPU is given."""
    monkeypatch.setattr(selfcheck, "N_RAYS", 12)
    monkeypatch.setattr(selfcheck, "N_POINTS", 63)
    monkeypatch.setattr(selfcheck, "NET", PAIRS)
    monkeypatch.setattr(selfcheck, "FOG_STEP", 0.03)
    assert selfcheck.find_fault(TritonBackend(), "cpu") is None


def test_the_self_check_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prime of the hash is another: a grid that trains, but not what others would render."""
    monkeypatch.setattr(selfcheck, "N_RAYS", 4)
    monkeypatch.setattr(selfcheck, "N_POINTS", 20)
    monkeypatch.setattr(selfcheck, "NET", PAIRS)
    monkeypatch.setattr(triton_encoding, "PRIME_Z", tl.constexpr(805459863))
    fault = selfcheck.find_fault(TritonBackend(), "cpu")
    assert fault is not None and fault.startswith("hash_grid differs from the reference")

"""The Triton backend and the device cuda on a real GPU: pytest -n 0 -m gpu this file.

What no interpreter can show: bfloat16, races, graphs, synchronisations, whole runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nerfcli import backends
from nerfcli.backends import selfcheck
from nerfcli.backends.base import Backend
from nerfcli.backends.triton.backend import TritonBackend
from nerfcli.core.config import ClassicConfig, Config, HashGridConfig
from nerfcli.core.devices import random_generator
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine import train
from nerfcli.engine.evaluate import evaluate
from nerfcli.engine.render import load_model, render_image
from nerfcli.engine.runs import Run
from nerfcli.methods.hashgrid_graph_trainer import EAGER_STEPS, GraphTrainer
from nerfcli.methods.hashgrid_method import create_trainer
from nerfcli.methods.hashgrid_trainer import HashGridTrainer
from nerfcli.reference.fused import Objective
from nerfcli.reference.radiance import NetParams
from nerfcli.reference.samples import Samples
from nerfcli.scenes import load_scene

pytestmark = pytest.mark.gpu

# float32 products on a GPU are exact ones (no TF32), so only the order of sums differs; but where
# that makes a neuron begin to fire, gradients jump: weights moved by 3e-6 of themselves change
# those of the 128 rays here by 3e-3. bfloat16 holds a log density of 4 within 0.016
LIMITS = {torch.float32: 1e-2, torch.float16: 0.05, torch.bfloat16: 0.2}


@pytest.fixture(autouse=True)
def on_a_gpu() -> None:
    if reason := backends.why_unavailable("triton", "cuda"):
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", list(LIMITS))
def test_every_op_agrees_with_the_reference(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "LIMIT", LIMITS[dtype])
    assert selfcheck.find_fault(TritonBackend(dtype), "cuda") is None


EVERYTHING = Objective("huber", 0.1, 0.1, 0.1)


def gradients(
    ops: Backend, case: selfcheck.Case, samples: Samples, grads: NetParams, objective: Objective
) -> None:
    """A plain step, or one that gives all that it can."""
    more = not objective.is_plain
    batch = replace(case.batch, depth=case.jitter) if more else case.batch
    ops.step_gradients(
        case.network, grads, batch, samples, objective, with_weights=more, with_ray_grads=more
    )


@pytest.mark.parametrize("objective", [Objective(), EVERYTHING])
def test_a_step_is_captured_in_a_graph(objective: Objective) -> None:
    """Nothing in it waits for the device or takes memory that a graph cannot give."""
    ops, case = TritonBackend(), selfcheck.Case("cuda")
    samples = case.march(ops)
    warm, grads = case.zeros(), case.zeros()
    gradients(ops, case, samples, warm, objective)  # compiles; fills the caches
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradients(ops, case, samples, grads, objective)
    for g in grads.tensors():
        g.zero_()
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for twice, once in zip(grads.tensors(), warm.tensors(), strict=True):
        # atomic sums come in any order
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("objective", [Objective(), EVERYTHING])
def test_nothing_in_a_step_synchronises(objective: Objective) -> None:
    ops, case = TritonBackend(), selfcheck.Case("cuda")
    samples = case.march(ops)
    grads = case.zeros()
    gradients(ops, case, samples, grads, objective)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(ops, case, samples, grads, objective)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(g.isfinite().all() for g in grads.tensors())


def prepared(ball: Path, method: str = "hashgrid", steps: int = 40) -> train.Prepared:
    config = Config(device="cuda", backend="triton" if method == "hashgrid" else "torch")
    config = replace(
        config,
        method=method,
        train=replace(config.train, steps=steps),
        hashgrid=HashGridConfig(log2_table_size=12, n_samples=2**14, occupancy_resolution=32),
        classic=ClassicConfig(n_rays=64),
    )
    return train.prepare(load_scene(ball), config)


def trainer_with(ready: train.Prepared, ops: Backend) -> HashGridTrainer:
    generator = random_generator("cuda", 0)
    made = create_trainer(
        ready.scene, ready.residents.at(0).to("cuda"), ready.config, ops, generator
    )
    made.begin(ready.residents.at(0))
    return made


def graph_trainer(ready: train.Prepared) -> GraphTrainer:
    made = trainer_with(ready, TritonBackend())
    assert isinstance(made, GraphTrainer)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_first_steps_lead_where_the_reference_goes(
    ball: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rays, jitter and cells, drawn and marched by the kernels and by torch."""
    ready = prepared(ball)
    mine, right = (trainer_with(ready, ops) for ops in (TritonBackend(dtype), Backend()))
    assert isinstance(mine, GraphTrainer) and type(right) is HashGridTrainer
    monkeypatch.setattr(mine, "_adapt_there", lambda *_counts: None)
    monkeypatch.setattr(right, "n_rays", lambda: mine.max_rays)
    mine.wanted.fill_(mine.max_rays)
    mine.capacity *= 64  # nobody is left out
    for i in range(EAGER_STEPS + 2):  # the last are a graph
        a, b = mine.step(1e-3), right.step(1e-3)
        # Adam's first steps have the size lr whatever the gradient: where tiny ones differ in
        # sign, the fields part
        limit = {torch.float32: 2e-4, torch.float16: 0.01}[dtype] if i < 2 else 0.1
        assert float(a.loss) == pytest.approx(float(b.loss), rel=limit), i
        assert int(a.n_rays) == int(b.n_rays)
        assert int(a.n_samples) == pytest.approx(int(b.n_samples), rel=1e-3)
    assert mine._graph is not None


def test_a_graph_takes_the_steps_that_eager_ones_are(ball: Path) -> None:
    """The same random numbers and ray counts, across occupancy updates."""
    graph, eager = (graph_trainer(prepared(ball)) for _ in "ab")
    eager.captures = False
    assert graph.captures
    for i in range(35):
        a, b = graph.step(1e-3), eager.step(1e-3)
        # sums in any order, half precision, and steps that build on each other
        assert float(a.loss) == pytest.approx(float(b.loss), rel=0.05), i
        assert int(a.n_rays) == pytest.approx(int(b.n_rays), rel=0.05)
    assert graph._graph is not None and eager._graph is None
    error = (graph.field.params.color - eager.field.params.color).norm()
    assert error < 0.02 * eager.field.params.color.norm()


def test_no_step_synchronises_behind_the_capture(ball: Path) -> None:
    trainer = graph_trainer(prepared(ball))
    for _ in range(EAGER_STEPS + 15):
        trainer.step(1e-3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):  # with an occupancy update among them
            result = trainer.step(1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(result.loss) > 0


@pytest.mark.parametrize("method", ["hashgrid", "classic"])
def test_a_run_trains_goes_on_and_renders_on_both_devices(
    ball: Path, tmp_path: Path, method: str
) -> None:
    ready = prepared(ball, method, steps=200 if method == "hashgrid" else 20)
    run = Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
    quiet = Progress("quiet", None, "step", "train")
    summary = train.train(ready, run, progress=quiet, stop=StopSignal())
    assert summary["psnr"] > (30 if method == "hashgrid" else 5)
    backend = "triton" if method == "hashgrid" else "torch"
    models = [
        load_model(Run.open(run.path), *where) for where in (("torch", "cpu"), (backend, "cuda"))
    ]
    a, b = (render_image(model, ready.scene.cameras, 0).rgb.cpu() for model in models)
    assert (a - b).abs().mean() < 0.01  # half precision
    scores = evaluate(run, ready.scene, save_images=False, backend=backend, progress=quiet)
    assert scores["psnr"] > 5  # so few views leave the rest open
    on_cpu = replace(ready, config=replace(ready.config, device="cpu", backend="torch"))
    summary = train.train(
        on_cpu, Run.open(run.path), progress=quiet, stop=StopSignal(), resume=True
    )
    assert summary["steps"] == ready.config.train.steps


def test_memory_that_runs_out_says_what_to_do(ball: Path, tmp_path: Path) -> None:
    ready = prepared(ball)
    huge = replace(ready.config, hashgrid=replace(ready.config.hashgrid, n_samples=2**34))
    run = Run.create(tmp_path / "run", huge, ready.scene.to_json())
    quiet = Progress("quiet", None, "step", "train")
    with pytest.raises(NerfError, match=r"memory is full.*n_samples"):
        train.train(replace(ready, config=huge), run, progress=quiet, stop=StopSignal())


def test_auto_checks_the_backend_and_takes_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    notes: list[str] = []
    assert backends.select("auto", "cuda", notes.append).backend.name == "triton"
    assert len(notes) == 1 and "first use" in notes[0]

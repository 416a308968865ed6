"""Device cuda with the torch backend, on a GPU that is pretended: nothing lands on the wrong side.

Kernels and graphs are not to be seen this way: tests/triton and tests/test_triton_gpu.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from pretend_cuda import CUDA, MixedDevices, PretendCuda, pretending

from nerfcli import backends
from nerfcli.bench import gpu, gpu_measures
from nerfcli.cameras import cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cli.options import ensure_device
from nerfcli.core.config import ClassicConfig, Config, HashGridConfig, UnboundedConfig
from nerfcli.core.devices import random_generator
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.settings import load_config
from nerfcli.core.signals import StopSignal
from nerfcli.engine import train
from nerfcli.engine.evaluate import evaluate
from nerfcli.engine.render import load_model, render_image
from nerfcli.engine.render_files import Output, RenderFiles
from nerfcli.engine.render_path import render_path
from nerfcli.engine.runs import Run
from nerfcli.extraction import source_field
from nerfcli.extraction.export import export_run, field_for_shapes
from nerfcli.extraction.source_field import SourceField
from nerfcli.methods.hashgrid import HashField
from nerfcli.scenes import Scene, load_scene
from nerfcli.scenes import image_cache as scene_views
from nerfcli.shapes.convert_shape import ExportOptions


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    monkeypatch.setattr(backends, "ORDER", {"cuda": ("torch",), "cpu": ("torch",)})
    with pretending(monkeypatch) as mode:
        yield mode


def test_a_pretended_gpu_is_as_strict_as_one(cuda: PretendCuda) -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert there.device == (2 * there).device == there[:2].device == CUDA
    assert here.device.type == there.cpu().device.type == "cpu"
    assert torch.zeros_like(there).device == here.to("cuda").device == here.to(there.device).device
    assert (there * torch.tensor(2.0)).device == CUDA  # a number may be anywhere
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([there, here]),
        lambda: here[there.long()],
        lambda: torch.rand(3, generator=random_generator("cpu", 0), device="cuda"),
        lambda: torch.rand(3, generator=random_generator("cuda", 0)),
    ):
        with pytest.raises(MixedDevices):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


def test_one_of_several_gpus(
    cuda: PretendCuda, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "cuda:1" is a device wherever one is named; the run, which may move, states "cuda"."""
    opened: list[str] = []
    monkeypatch.setattr(safetensors, "safe_open", spy(safetensors.safe_open, opened))
    ready = prepared(load_scene(ball), "hashgrid", "cuda:1")
    assert (torch.cuda.current_device(), ready.config.device) == (1, "cuda")
    run = Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
    train.train(ready, run, progress=quiet(), stop=StopSignal())
    torch.cuda.set_device(0)
    ensure_device("cuda:1")
    output = Output(RenderFiles(tmp_path / "o", ("rgb",)))
    render_path(run.using(device="cuda:1"), ready.scene.cameras[:1], output, progress=quiet())
    assert torch.cuda.current_device() == 1 and "cuda:1" in opened
    assert not {"cuda", "cuda:0"} & set(opened)
    with pytest.raises(NerfError, match="cuda:2: there is no such GPU here, only cuda:0, cuda:1"):
        ensure_device("cuda:2")
    with pytest.raises(NerfError, match="device must be auto, cpu, cuda or cuda:N; got 'cuda:x'"):
        load_config(sets=["device=cuda:x"])
    assert load_config(sets=["device=cuda:1"]).device == "cuda:1"


def spy(safe_open: Any, opened: list[str]) -> Any:
    """Note the devices that tensors are read to."""

    def noting(path: Any, framework: str, device: str = "cpu") -> Any:
        opened.append(device)
        return safe_open(path, framework, device)

    return noting


class Stop(StopSignal):
    """Ctrl-C after so many questions."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def received(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.left -= 1
        return 2 if self.left < 0 else None


def quiet() -> Progress:
    return Progress("quiet", None, "step", "test")


def prepared(scene: Scene, method: str, device: str = "cuda") -> train.Prepared:
    config = Config(backend="torch")
    config = replace(
        config,
        device=device,
        method=method,
        train=replace(config.train, steps=8, random_background=True),
        hashgrid=HashGridConfig(
            log2_table_size=10, n_samples=512, occupancy_resolution=16, occupancy_every=4
        ),
        unbounded=UnboundedConfig(
            log2_table_size=10, n_rays=16, n_samples=8, n_bins=16, proposal_resolution=16
        ),
        classic=ClassicConfig(n_coarse=8, n_fine=8, n_rays=16),
    )
    return train.prepare(scene, config)


@pytest.mark.parametrize("method", ["hashgrid", "unbounded", "classic"])
def test_a_run_is_trained_scored_and_rendered(
    method: str, cuda: PretendCuda, ball: Path, tmp_path: Path
) -> None:
    ready = prepared(load_scene(ball), method)
    assert ready.config.device == "cuda"
    run = Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
    summary = train.train(ready, run, progress=quiet(), stop=StopSignal())
    assert summary["steps"] == 8
    assert math.isfinite(evaluate(run, ready.scene, progress=quiet())["psnr"])
    out, view = tmp_path / "frames", ready.scene.cameras[:1]
    render_path(run, view, Output(RenderFiles(out, ("rgb", "depth", "opacity"))), progress=quiet())
    assert len(list(out.rglob("*.png"))) == 3


@pytest.mark.parametrize("room", [2**20, 0])
def test_lenses_masks_and_exchanged_pixels(
    room: int, cuda: PretendCuda, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rays from a table of directions, or each inverting its lens; pixels in two halves."""
    monkeypatch.setattr(cameras, "TABLE_BYTES_ON_CUDA", room)
    monkeypatch.setattr(scene_views, "EXCHANGE_STEPS", 2)
    scene = load_scene(ball)
    brown = Lens("brown", (0.06, -0.08, 0.0, 0.0, -0.001, 0.0002))
    lenses = (brown, Lens(), *(brown,) * (len(scene.cameras) - 2))
    scene = replace(scene, cameras=replace(scene.cameras, lenses=lenses), crop_radius=7.0)
    ready = prepared(scene, "hashgrid")
    assert ready.residents.at(0).usable is not None
    ready.residents.n_shards = 2
    run = Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
    assert train.train(ready, run, progress=quiet(), stop=Stop(4))["steps"] == 4
    model = load_model(run, "torch", "cuda")
    assert render_image(model, ready.scene.cameras, 0).rgb.device == CUDA


def test_a_run_moves_between_devices(cuda: PretendCuda, ball: Path, tmp_path: Path) -> None:
    run, steps = None, []
    for device, resume in (("cpu", False), ("cuda", True), ("cpu", True)):
        ready = prepared(load_scene(ball), "hashgrid", device)
        run = run or Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
        run = run.using(device=device)
        done = train.train(ready, run, progress=quiet(), stop=Stop(2), resume=resume)
        steps.append(done["steps"])
    assert steps == [2, 4, 6]


def test_shapes_are_made_on_the_cpu_of_a_field_on_the_gpu(
    cuda: PretendCuda, ball: Path, tmp_path: Path
) -> None:
    ready = prepared(load_scene(ball), "hashgrid")
    run = Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
    train.train(ready, run, progress=quiet(), stop=StopSignal())
    mine, right = (
        field_for_shapes(run.using(device=device), "torch", quiet()) for device in ("cuda", "cpu")
    )
    assert isinstance(mine.field, HashField) and mine.field.params.table.device == CUDA
    points = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 3))
    got, want = (SourceField.of(model).density(points) for model in (mine, right))
    assert (got == want).all() and want.max() > 0
    rays = ready.scene.cameras.image_rays(0)[:40]
    for ask in (
        lambda field: field.render_rays(rays, torch.zeros(3)).rgb,
        lambda field: field.radiance(rays.origins / 9, rays.directions)[1],
        lambda field: (
            field.sampler.sample(rays, field.bounds(rays), torch.full((40,), 0.5)).t_starts
        ),
    ):
        assert ask(mine.field).device.type == "cpu"
        assert torch.equal(ask(mine.field), ask(right.field)) and ask(right.field).max() > 0
    options = ExportOptions("views", views=1)
    export_run(run, tmp_path / "views", options, "torch", quiet())
    assert len(list((tmp_path / "views").rglob("*.png"))) == 1


def test_a_classic_field_is_exported_on_the_cpu_and_says_so(
    cuda: PretendCuda,
    ball: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_field, "LATTICE", 24)
    ready = prepared(load_scene(ball), "classic")
    run = Run.create(tmp_path / "run", ready.config, ready.scene.to_json())
    train.train(ready, run, progress=quiet(), stop=Stop(1))
    model = field_for_shapes(run, "torch", Progress("lines", None, "step", "export"))
    assert model.device == "cpu" and "on the cpu, not on cuda" in capsys.readouterr().err
    assert SourceField.of(model).density(np.zeros((1, 3))).shape == (1,)


@pytest.mark.slow
def test_the_benchmark_runs(
    cuda: PretendCuda, ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its sections, so that a slot on a GPU is not lost for a tensor in the wrong place."""
    monkeypatch.setattr(gpu, "pick", lambda name: "cuda")
    monkeypatch.setattr(gpu_measures.Bench, "_half_peak", lambda self: 1.0)
    notes: list[str] = []
    state = gpu.gpu_bench(ball, tmp_path / "bench", quick=True, note=notes.append)
    assert not gpu.left(state)
    assert {name: v["error"] for name, v in state["sections"].items() if "error" in v} == {}

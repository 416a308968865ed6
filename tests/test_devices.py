"""Devices: which is taken, what is said without it, and that nothing forgets where it belongs.

There is no GPU in CI. `strict` makes every tensor that is created without naming its device one
of torch's `meta` kind, which cannot be mixed with any other: the same mistake that would mix a
CPU tensor with one of a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Nerf
from nerfcli import backends
from nerfcli.core import devices
from nerfcli.core.config import ClassicConfig, Config, HashGridConfig, known
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.settings import config_from_values
from nerfcli.core.signals import StopSignal
from nerfcli.engine import evaluate, render, train
from nerfcli.engine.checkpoints import read_tensors, write_tensors
from nerfcli.engine.resolve import resolve
from nerfcli.engine.runs import Run
from nerfcli.methods import Trainer, method_of
from nerfcli.methods.occupancy import OccupancyGrid
from nerfcli.reference.sampling import Box
from nerfcli.scenes import load_scene


@contextmanager
def strict() -> Iterator[None]:
    with torch.device("meta"):
        yield


def small(method: str) -> Config:
    config = Config(device="cpu", backend="torch")
    return replace(
        config,
        method=method,
        train=replace(config.train, steps=2),
        hashgrid=HashGridConfig(
            n_levels=2,
            log2_table_size=8,
            width=16,
            n_samples=256,
            steps_per_box=16,
            occupancy_resolution=8,
            occupancy_every=1,
            occupancy_cells=64,
        ),
        classic=ClassicConfig(
            width=16, depth=2, n_coarse=4, n_fine=4, n_rays=8, density_noise=0.1, crop_steps=1
        ),
    )


def trainer_of(ball: Path, method: str) -> Trainer:
    ready = train.prepare(load_scene(ball), small(method))
    ops = backends.select("torch", "cpu").backend
    generator = devices.random_generator("cpu", 0)
    views = ready.residents.at(0).to("cpu")
    create = method_of(ready.config).create_trainer
    return create(ready.scene, views, ready.config, ops, generator)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    return monkeypatch


def test_strict_finds_what_forgets_its_device() -> None:
    with strict(), pytest.raises((RuntimeError, NotImplementedError)):
        float((torch.zeros(3, device="cpu") + torch.arange(3)).sum())


@pytest.mark.parametrize("method", ["hashgrid", "classic"])
def test_a_training_step_names_the_device_of_everything(ball: Path, method: str) -> None:
    trainer = trainer_of(ball, method)
    with strict():
        losses = [float(trainer.step(1e-3).loss) for _ in range(2)]  # the second: all pixels
    assert all(loss == loss and loss > 0 for loss in losses)
    assert {t.device.type for t in trainer.optimizer_state().values()} == {"cpu"}


def test_an_occupancy_update_that_waits_for_nothing_agrees_with_one_that_does() -> None:
    """All cells are evaluated, so both see the same densities."""

    def density(positions: torch.Tensor) -> torch.Tensor:
        return (positions.norm(dim=1) < 0.5).float() * 40  # cells on the edge depend on the jitter

    grids = [OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0, 2), 8) for _ in "ab"]
    kept = grids[1].occupied
    with strict():
        for grid, wait in zip(grids, (True, False), strict=True):
            grid.update(
                density, n_cells=4 * 8**3, decay=0.95, threshold=0.01, step_size=0.1,
                generator=devices.random_generator("cpu", 0), wait=wait,
            )  # fmt: skip
    assert grids[1].occupied is kept  # a graph reads it where it was
    assert 0 < kept.sum() < kept.numel() / 2
    assert (kept == grids[0].occupied).float().mean() > 0.98
    assert not (kept & ~grids[1].possible).any()


def test_cells_are_drawn_from_the_occupied_alone() -> None:
    grid = OccupancyGrid.create(Box((0.0, 0.0, 0.0), 1.0), 4)
    occupied = [3, 17, 63]
    grid.occupied = torch.zeros(4**3, dtype=torch.bool)
    grid.occupied[occupied] = True
    grid.occupied = grid.occupied.view(1, 4, 4, 4)
    cells = grid._draw_occupied(300, devices.random_generator("cpu", 1))
    counts = torch.bincount(cells, minlength=64)
    assert set(counts.nonzero()[:, 0].tolist()) == set(occupied)
    assert counts[occupied].min() > 60  # of 100 expected: five standard deviations
    grid.occupied[:] = False
    assert set(grid._draw_occupied(5, devices.random_generator("cpu", 1)).tolist()) == {63}


@pytest.fixture(scope="module")
def run(ball: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    ready = train.prepare(load_scene(ball), small("hashgrid"))
    made = Run.create(tmp_path_factory.mktemp("runs") / "r", ready.config, ready.scene.to_json())
    train.train(ready, made, progress=quiet(), stop=StopSignal())
    return made


def quiet() -> Progress:
    return Progress("quiet", None, "step", "train")


def test_rendering_and_scoring_name_the_device_of_everything(run: Run, ball: Path) -> None:
    scene = load_scene(ball)
    model = render.load_model(run, "torch", "cpu")
    index = scene.splits["test"][0]
    want = render.render_image(model, scene.cameras, index)
    with strict():
        got = render.render_image(model, scene.cameras, index)
        background = model.background
    assert torch.equal(got.rgb, want.rgb) and background.device.type == "cpu"
    assert evaluate.score_view(model, scene, index, None)["psnr"] > 0


def test_too_large_a_chunk_is_halved_until_it_fits(
    run: Run, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, model = load_scene(ball), render.load_model(run, "torch", "cpu")
    want, room, asked = render.render_image(model, scene.cameras, 0), 100, []
    right = type(model.field).render_rays

    def fits(field: Any, rays: Any, background: torch.Tensor) -> Any:
        asked.append(len(rays))
        if len(rays) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(field, rays, background)

    monkeypatch.setattr(type(model.field), "render_rays", fits)
    monkeypatch.setattr(render, "LEAST_CHUNK", 64)
    got = render.render_image(model, scene.cameras, 0)
    torch.testing.assert_close(got.rgb, want.rgb, rtol=0, atol=1e-6)  # sums over other rays
    assert asked[0] == 256 and asked[-1] == 64 and asked.count(64) == 4
    room = 10
    with pytest.raises(NerfError, match="rendering: the GPU's memory is full.*--device cpu"):
        render.render_image(model, scene.cameras, 0)


def test_auto_is_the_gpu_if_there_is_one(no_cuda: pytest.MonkeyPatch, ball: Path) -> None:
    scene = load_scene(ball)
    assert devices.pick("auto") == "cpu" == resolve(Config(), scene).device
    small_batch = resolve(Config(), scene)
    no_cuda.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.pick("auto") == "cuda" and devices.pick("cpu") == "cpu"
    on_gpu = resolve(Config(), scene)
    assert on_gpu.device == "cuda"
    assert known(on_gpu.hashgrid.n_samples) > known(small_batch.hashgrid.n_samples)
    sizes = [known(config.hashgrid.log2_table_size) for config in (on_gpu, small_batch)]
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize(
    ("values", "lr"),
    [
        ({}, 0.01),
        ({"hashgrid.n_samples": 2**17}, 0.02),
        ({"hashgrid.n_samples": 2**22}, 0.04),
        ({"hashgrid.n_samples": 2**17, "train.lr": 0.005}, 0.005),
        ({"method": "classic"}, 5e-4),
    ],
)
def test_the_learning_rate_goes_with_the_root_of_the_batch(
    values: dict[str, object], lr: float, ball: Path
) -> None:
    config = config_from_values({"device": "cpu", **values})
    assert resolve(config, load_scene(ball)).train.lr == pytest.approx(lr)


def test_a_device_that_is_not_there_is_an_error_with_a_way_out(no_cuda: object) -> None:
    with pytest.raises(NerfError, match="built without CUDA.*--device cpu"):
        devices.pick("cuda")
    with pytest.raises(NerfError, match="unknown device 'tpu'; use auto, cpu, cuda"):
        devices.pick("tpu")


def test_cuda_without_a_gpu_is_bad_usage(nerf: Nerf, ball: Path) -> None:
    if devices.cuda_missing() is None:
        pytest.skip("there is a GPU here")
    done = nerf("train", ball, "--device", "cuda", "--steps", 1, code=2)
    assert "cuda" in done.stderr and "--device cpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_of_a_gpu_goes_on_without_one(nerf: Nerf, ball: Path, tmp_path: Path) -> None:
    """The same folder, as a machine with a GPU would have left it."""
    if devices.cuda_missing() is None:
        pytest.skip("there is a GPU here")
    sets = ("--set", "hashgrid.n_samples=256", "--set", "hashgrid.occupancy_resolution=8")
    nerf("train", ball, "--out", "r", "--steps", 2, *sets)
    config, optimizer = tmp_path / "r" / "config.toml", tmp_path / "r" / "optimizer-2.safetensors"
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda"'))
    kept = read_tensors(optimizer, 2)
    kept["generator"] = torch.arange(16, dtype=torch.uint8)  # as long as that of a GPU
    write_tensors(optimizer, kept, 2)
    done = nerf("train", "--resume", "r", "--steps", 4, "--json")
    assert json.loads(done.stdout)["steps"] == 4
    assert "going on on the CPU" in done.stderr and "new random numbers" in done.stderr
    nerf("render", "r", "--frames", 1, "--out", "frames", "--scale", 0.5)
    asked = nerf("render", "r", "--frames", 1, "--out", "other", "--device", "cuda", code=2)
    assert "--device cpu" in asked.stderr


def test_random_numbers_go_on_or_begin_anew() -> None:
    first = devices.random_generator("cpu", 3)
    torch.rand(5, generator=first)
    state = first.get_state()
    want = torch.rand(5, generator=first)
    again = devices.random_generator("cpu", 9)
    assert devices.restore_generator(again, state, 3, 7)
    assert torch.equal(torch.rand(5, generator=again), want)
    draws = []
    for step in (7, 7, 8):
        assert not devices.restore_generator(again, torch.arange(16, dtype=torch.uint8), 3, step)
        draws.append(torch.rand(5, generator=again))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_full_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(NerfError, match="training: the GPU's memory is full; use less"),
        devices.memory_errors("training", "use less"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 8 * 10**9))
    devices.ensure_room(10**9, "cuda", "the pixels", "read smaller images")
    devices.ensure_room(10**12, "cpu", "the pixels", "read smaller images")
    with pytest.raises(NerfError, match=r"pixels need 2\.0 GB, the GPU has 1\.0 GB free; read"):
        devices.ensure_room(2 * 10**9, "cuda", "the pixels", "read smaller images")


def test_a_thread_works_on_the_gpu_that_was_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(devices, "_picked", [0, 3])
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices.use_picked()  # none is there any more
    assert chosen == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices.use_picked()
    assert chosen == [3]

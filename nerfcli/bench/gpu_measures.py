"""The measurements of `bench --suite gpu`: a method a section, which returns rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from nerfcli import backends
from nerfcli.backends import selfcheck_cache
from nerfcli.bench.clock import Effort, measure, measure_peak, wait
from nerfcli.bench.kernels import kernel_rows, network_flop
from nerfcli.bench.parity import parity
from nerfcli.bench.training import LR, time_blocks
from nerfcli.core.config import Config
from nerfcli.core.devices import random_generator
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.settings import config_from_values
from nerfcli.core.signals import StopSignal
from nerfcli.engine.evaluate import evaluate
from nerfcli.engine.render import load_model, render_image
from nerfcli.engine.resolve import resolve
from nerfcli.engine.runs import Run
from nerfcli.engine.schedule import Clock
from nerfcli.engine.train import Prepared, prepare, start
from nerfcli.methods.hashgrid import net_spec
from nerfcli.methods.hashgrid_graph_trainer import GraphTrainer
from nerfcli.methods.hashgrid_method import create_trainer
from nerfcli.methods.hashgrid_trainer import HashGridTrainer
from nerfcli.reference.radiance import NetSpec
from nerfcli.scenes import Scene, load_scene

Row = dict[str, Any]
COPY_BYTES = 2**30  # of the copy that measures the memory
WARM_STEPS = 32  # two occupancy updates; the first compile, and record a graph


@dataclass(frozen=True)
class Sizes:
    """The sizes of all measurements.

    Attributes:
        settle_steps: training steps before steps are timed.
        quality: seconds of the runs whose held-out views are scored.
        peer_seconds: the same for the backends beside the fastest.
        views: evenly spaced views of the test split to score and render, or up to twice as many.
        classic_rays: of a step of method classic; None: as many as a run takes.
        values: settings that are not automatic.
    """

    effort: Effort
    settle_steps: int = 1024
    quality: tuple[float, ...] = (5, 15, 60, 300)
    peer_seconds: float = 15
    views: int = 25  # every 8th of the 200 that Blender scenes have
    copy_bytes: int = COPY_BYTES
    classic_rays: int | None = None
    values: Mapping[str, object] = field(default_factory=dict)


FULL = Sizes(Effort(sizes=(2**18,), repeats=7, seconds=1.0, blocks=9, block_seconds=5.0))
QUICK = Sizes(
    Effort(sizes=(2**8,), repeats=2, seconds=0.1, blocks=2, block_seconds=0.5),
    settle_steps=16,
    quality=(0.5, 1.0),
    peer_seconds=0.5,
    views=1,
    copy_bytes=2**20,
    classic_rays=16,
    values={
        "hashgrid.n_samples": 256,
        "hashgrid.log2_table_size": 10,
        "hashgrid.occupancy_resolution": 16,
    },
)


@dataclass(frozen=True)
class Bench:
    """A scene, the folder of its runs, and what is slow to make, kept."""

    path: Path
    runs: Path
    device: str
    sizes: Sizes

    @cached_property
    def scene(self) -> Scene:
        """The scene with a part of its test views, for scores; no run trains on any of them."""
        scene = load_scene(self.path)
        test = scene.splits.get("test", ())
        some = {"test": test[:: max(1, len(test) // self.sizes.views)]}
        return replace(scene, splits={**scene.splits, **some})

    def config(self, backend: str, seconds: float) -> Config:
        values = {"backend": backend, "device": self.device, "train.minutes": seconds / 60}
        values |= {"method": "hashgrid"}
        return config_from_values({**self.sizes.values, **values})

    @cached_property
    def prepared(self) -> tuple[Prepared, float]:
        """The training views in memory, and the seconds that loading took."""
        begin = time.perf_counter()
        ready = prepare(self.scene, self.config("auto", 60))
        return ready, time.perf_counter() - begin

    @cached_property
    def rates(self) -> tuple[float, float]:
        """GB/s of a copy (read and written), GFLOP/s of a product in the kernels' precision."""
        a = torch.empty(self.sizes.copy_bytes, dtype=torch.uint8, device=self.device)
        seconds = min(measure(partial(torch.empty_like(a).copy_, a), self.device, 7, 1.0))
        return 2 * a.numel() / seconds / 1e9, self._half_peak()

    def _half_peak(self) -> float:
        if self.device == "cpu":
            return measure_peak(self.device)
        n = 8192
        a, b = (torch.rand(n, n, device=self.device).half() for _ in "ab")
        return 2 * n**3 / min(measure(partial(torch.mm, a, b), self.device, 7, 2.0)) / 1e9

    def limits(self) -> list[Row]:
        copy, product = self.rates
        return [{"copy GB/s": round(copy), "matrix product TFLOP/s": round(product / 1e3, 2)}]

    def parity(self, name: str) -> list[Row]:
        # in a process of its own first: a kernel that faults would take the context of this one
        checked = self.device == "cuda" and name != "torch"
        if reason := selfcheck_cache.verdict(name, self.device) if checked else None:
            raise NerfError(f"backend {name}: {reason}.")
        row = parity(name, backends.select(name, self.device).backend, self.device)
        return [
            {
                "backend": name,
                "agrees": row.agrees,
                "compared": row.compared,
                "worst": row.operation,
                "relative error": float(f"{row.error:.2g}"),
                "allowed": row.limit,
            }
        ]

    def kernels(self, name: str) -> list[Row]:
        backend = backends.select(name, self.device).backend
        rows = kernel_rows(name, backend, self.device, self.sizes.effort, self.rates[1])
        return [kernel_row(r.backend, r.operation, r.samples, r.seconds) for r in rows]

    def step(self, name: str) -> list[Row]:
        """Time training steps on the scene, once its empty space is known; measure their memory."""
        ready, _ = self.prepared
        backend = backends.select(name, self.device).backend
        _reset_peak(self.device)
        generator = random_generator(self.device, 0)
        views = ready.residents.at(0).to(self.device)
        trainer = create_trainer(ready.scene, views, ready.config, backend, generator)
        trainer.begin(ready.residents.at(0))
        self._settle(trainer)
        every = ready.config.hashgrid.occupancy_every
        times, n_rays, n_samples = time_blocks(trainer, self.device, every, self.sizes.effort)
        alone = None
        if isinstance(trainer, GraphTrainer) and trainer.captures:
            trainer.captures = False
            trainer.forget_graph()
            alone = statistics.median(
                time_blocks(trainer, self.device, every, self.sizes.effort)[0]
            )
        n_steps, seconds = every * len(times), statistics.median(times)
        samples = n_samples / n_steps
        limit = self._limit(net_spec(ready.config.hashgrid), samples)
        return [
            {
                "backend": name,
                "ms a step": _digits(1e3 * seconds),
                "without a graph": None if alone is None else _digits(1e3 * alone),
                "spread": f"{(max(times) - min(times)) / seconds:.0%}",
                "samples": round(samples),
                "rays": round(n_rays / n_steps),
                "limit ms": _digits(1e3 * limit),
                "times the limit": _digits(seconds / limit),
                "memory GB": _peak_memory(self.device),
            }
        ]

    def _settle(self, trainer: HashGridTrainer) -> None:
        """Train for some ten seconds at most; with a slow backend the scene is less settled."""
        begin = time.perf_counter()
        for i in range(max(self.sizes.settle_steps, WARM_STEPS)):
            trainer.step(LR)
            if i >= WARM_STEPS and time.perf_counter() - begin > 10:
                break
        wait(self.device)

    def _limit(self, net: NetSpec, n_samples: float) -> float:
        """Compute the seconds for a step's arithmetic and bytes at the rates of `limits`.

        Three passes of both networks; a half-precision read of eight corners a level, and a
        float32 add to the gradient of each; one look at every gradient by Adam. A table that fits
        the cache moves faster than a copy does: the limit is a scale, not a bound.
        """
        copy, product = self.rates
        corners = 8 * net.grid.n_outputs * n_samples
        moved = corners * (2 + 4) + 4 * net.grid.n_params
        return moved / (copy * 1e9) + 3 * network_flop(net)[1] * n_samples / (product * 1e9)

    def quality(self, name: str, seconds: float) -> list[Row]:
        """Train a run of so many seconds and score its held-out views."""
        ready, setup = self.prepared
        self._warm_up(name)
        config = resolve(self.config(name, seconds), ready.scene)
        begin = time.perf_counter()
        ready = replace(ready, config=config)
        run = self._run(name, seconds, ready)
        loop = start(ready, run, backends.select(name, self.device).backend, self.device, _quiet())
        wait(self.device)
        setup += time.perf_counter() - begin
        loop.clock = Clock(0.0, time.perf_counter())
        summary = loop.go(StopSignal())
        scores = evaluate(
            run, self.scene, save_images=False, backend=name, progress=_quiet(), stop=None
        )
        return [
            {
                "backend": name,
                "seconds": _digits(summary["steps"] / summary["steps_per_second"]),
                "set-up s": _digits(setup),
                "steps": summary["steps"],
                "PSNR": scores["psnr"],
                "SSIM": scores["ssim"],
                "views": scores["n_views"],
            }
        ]

    def _warm_up(self, name: str) -> None:
        """Compile all kernels of a run before its time starts."""
        ready, _ = self.prepared
        backend = backends.select(name, self.device).backend
        views, generator = ready.residents.at(0).to(self.device), random_generator(self.device, 1)
        trainer = create_trainer(ready.scene, views, ready.config, backend, generator)
        for _ in range(WARM_STEPS):
            trainer.step(LR)
        wait(self.device)

    def _run(self, name: str, seconds: float, ready: Prepared) -> Run:
        path = self._run_path(name, seconds)
        return Run.create(path, ready.config, ready.scene.to_json(), overwrite=True)

    def _run_path(self, name: str, seconds: float) -> Path:
        return self.runs / f"{name}-{seconds:g}s"

    def frames(self, name: str, seconds: float) -> list[Row]:
        """Time whole test views of a trained run, one after another, with new rays for each."""
        model = load_model(Run.open(self._run_path(name, seconds)), name, self.device)
        _reset_peak(self.device)
        cameras = self.scene.cameras[list(self.scene.splits["test"])]
        render_image(model, cameras, 0)  # compiles
        times = []
        for i in range(len(cameras)):
            wait(self.device)
            start = time.perf_counter()
            render_image(model, cameras, i)
            wait(self.device)
            times.append(time.perf_counter() - start)
        return [
            {
                "backend": name,
                "size": " x ".join(map(str, cameras.size[0].tolist())),
                "frames": len(times),
                "FPS": _digits(len(times) / sum(times)),
                "slowest ms": _digits(1e3 * max(times)),
                "memory GB": _peak_memory(self.device),
            }
        ]


def kernel_row(backend: str, operation: str, samples: int, seconds: float) -> Row:
    row: Row = {"backend": backend, "operation": operation, "samples": samples}
    rate = _digits(samples / seconds / 1e6)
    return row | {"ms": _digits(1e3 * seconds), "M samples/s": rate}


def _quiet() -> Progress:
    return Progress("quiet", None, "step", "bench")


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(device: str) -> float | None:
    return _digits(torch.cuda.max_memory_allocated() / 1e9) if device == "cuda" else None

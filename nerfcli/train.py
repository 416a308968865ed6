"""`train`: from a scene and a resolved config to a run folder with a trained field."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from nerfcli import backends
from nerfcli.config import Config
from nerfcli.errors import NerfError
from nerfcli.images import Views
from nerfcli.progress import Progress, StopSignal
from nerfcli.resolve import resolve
from nerfcli.runs import Run
from nerfcli.scenes import Residents, Scene
from nerfcli.scenes.hull import silhouette_box, visual_hull
from nerfcli.schedule import Budget, learning_rate
from nerfcli.trainers import HashGridTrainer, StepResult, Trainer, create_trainer

HOLD = {"hashgrid": 0.3, "classic": 0.0}  # share of the run at the peak learning rate
LOG_EVERY_SECONDS = 1.0
METRICS_EVERY = 50  # steps between the rows of metrics.jsonl


@dataclass(frozen=True)
class Prepared:
    """A scene ready to train on: box fitted, autos filled in, training images in memory."""

    scene: Scene
    config: Config
    residents: Residents
    seconds: float  # spent on it after the images were read; part of the training time


def prepare(scene: Scene, config: Config, say: Callable[[str], None] | None = None) -> Prepared:
    """Read the training images, fit the box to their silhouettes, fill in the autos.

    The box is left alone where the user states one or the images have no alpha channel.

    Args:
        say: told how much memory the images take, before they are read.

    Raises:
        NerfError: no training views, an unreadable image, or a value that does not exist.
    """
    if not scene.splits.get("train"):
        raise NerfError(f"scene {scene.name}: no training views; hold out fewer of its images.")
    resolve(config, scene)  # a wrong value is told before the images are read
    residents = Residents(scene, scene.splits["train"], say)
    views = residents.at(0)
    start = time.perf_counter()
    if scene.has_alpha and not config.scene.box:
        box = silhouette_box(scene, views)
        if box is not None:
            scene = replace(scene, box=box, box_source="silhouettes of the training views")
    return Prepared(scene, resolve(config, scene), residents, time.perf_counter() - start)


@dataclass
class Clock:
    """Training wall-clock time over all parts of a resumed run."""

    before: float
    start: float

    def elapsed(self) -> float:
        return self.before + time.perf_counter() - self.start


def train(
    prepared: Prepared,
    run: Run,
    *,
    progress: Progress,
    stop: StopSignal,
    resume: bool = False,
) -> dict:
    """Train until the budget is spent or a signal asks to stop; the state is saved either way.

    Args:
        resume: go on from the run's checkpoint.

    Returns:
        A summary: steps, seconds, psnr (running mean over training rays), rates, stopped.

    Raises:
        NerfError: the training diverged, or the run cannot be read or written.
    """
    clock = Clock(prepared.seconds, time.perf_counter())
    scene, config, residents = prepared.scene, prepared.config, prepared.residents
    choice = backends.select(config.backend, config.device)
    progress.note(choice.line)
    progress.note(describe(scene, config))
    generator = torch.Generator().manual_seed(config.train.seed)
    budget = Budget(config.train.steps, 0.0 if config.train.steps else 60 * config.train.minutes)
    if resume:
        model, optimizer, state = run.load_checkpoint()
        residents.n_parts = state.get("parts", 1)
        views = residents.at(state["step"])
        trainer = create_trainer(scene, views, config, choice.ops, generator)
        trainer.load(model, optimizer, state["trainer"])
        generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))
        budget = replace(budget, **state["budget"])
        clock.before = state["seconds"]
    else:
        views = residents.at(0)
        trainer = create_trainer(scene, views, config, choice.ops, generator)
        if isinstance(trainer, HashGridTrainer):
            prepare_occupancy(trainer, scene, views)
    return Loop(trainer, residents, config, run, budget, clock, progress, generator).go(stop)


def describe(scene: Scene, config: Config) -> str:
    """What will be trained, in a line: method, views, box and where it comes from."""
    box, units = scene.box, scene.scene_from_source.scale
    cube = f"cube of half size {box.half_size / units:.4g}"
    if box.n_cascades > 1:
        cube += f" with {box.n_cascades - 1} doublings around it"
    n_train, n_test = (len(scene.splits.get(name, ())) for name in ("train", "test"))
    return (
        f"{config.model.method}: {n_train} views to train on, {n_test} held out; "
        f"{cube} in source units ({scene.box_source})"
    )


def prepare_occupancy(trainer: HashGridTrainer, scene: Scene, views: Views) -> None:
    """Rule out the cells that no silhouette allows."""
    if scene.has_alpha and scene.box.n_cascades == 1:
        grid = trainer.field.occupancy
        hull = visual_hull(scene, views, scene.box, grid.resolution)
        trainer.set_possible(hull[None])


@dataclass
class Loop:
    """The steps of one run, with logging, checkpoints and the end."""

    trainer: Trainer
    residents: Residents
    config: Config
    run: Run
    budget: Budget
    clock: Clock
    progress: Progress
    generator: torch.Generator
    psnr: float = 0.0
    n_rays: int = 0
    n_samples: int = 0

    def go(self, stop: StopSignal) -> dict:
        trainer, budget, clock = self.trainer, self.budget, self.clock
        hold = HOLD[self.config.model.method]
        first_step, first_time = trainer.step_count, clock.elapsed()
        last_log = last_save = first_time
        budget.start(first_step, first_time)
        while not stop.received and not budget.done(trainer.step_count):
            elapsed = clock.elapsed()
            share = budget.progress(trainer.step_count, elapsed)
            lr = learning_rate(trainer.step_count, share, self.config.train, hold)
            if self.residents.n_parts > 1:
                trainer.views = self.residents.at(trainer.step_count)
            result = trainer.step(lr)
            self.n_rays += result.n_rays
            self.n_samples += result.n_samples
            elapsed = clock.elapsed()
            budget.tick(trainer.step_count, elapsed)
            if trainer.step_count % METRICS_EVERY == 0:
                self._record(result, lr, elapsed)
            if elapsed - last_log > LOG_EVERY_SECONDS:
                last_log = elapsed
                self._show(elapsed - first_time)
            if elapsed - last_save > 60 * self.config.train.checkpoint_minutes:
                last_save = elapsed
                self._save(elapsed)
        elapsed = clock.elapsed()
        self._save(elapsed)
        seconds = max(elapsed - first_time, 1e-9)
        return {
            "steps": trainer.step_count,
            "seconds": round(elapsed, 3),
            "psnr": round(self.psnr, 3),
            "steps_per_second": (trainer.step_count - first_step) / seconds,
            "rays_per_second": self.n_rays / seconds,
            "samples_per_second": self.n_samples / seconds,
            "stopped": stop.received,
        }

    def _record(self, result: StepResult, lr: float, elapsed: float) -> None:
        loss, mse = float(result.loss), float(result.mse)  # sync, every METRICS_EVERY steps
        step = self.trainer.step_count
        if not (loss < float("inf")):
            raise NerfError(
                f"training diverged at step {step}: the loss is {loss}. The last checkpoint is "
                f"kept in {self.run.path}; try a lower rate, e.g. --set train.lr="
                f"{self.config.train.lr / 3:.2g}."
            )
        now = -10 * torch.log10(torch.tensor(max(mse, 1e-12))).item()
        self.psnr = now if self.psnr == 0.0 else 0.8 * self.psnr + 0.2 * now
        self.run.append_metrics(
            {
                "step": step,
                "seconds": round(elapsed, 3),
                "loss": loss,
                "psnr": round(now, 4),
                "lr": lr,
                "n_rays": result.n_rays,
                "n_samples": result.n_samples,
            }
        )

    def _show(self, seconds: float) -> None:
        values = {"rays_per_s": self.n_rays / max(seconds, 1e-9)}
        if self.psnr:  # known from the first row of metrics.jsonl on
            values["psnr"] = self.psnr
        step, elapsed = self.trainer.step_count, self.clock.elapsed()
        if self.budget.total_steps:
            self.progress.update(step, total=self.budget.total_steps, **values)
        else:
            share = max(self.budget.progress(step, elapsed), 1e-3)
            self.progress.update(step, total=int(step / share), **values)

    def _save(self, elapsed: float) -> None:
        state = {
            "step": self.trainer.step_count,
            "seconds": elapsed,
            "trainer": self.trainer.extra_state(),
            "generator": self.generator.get_state().tolist(),
            "budget": self.budget.state(),
            "parts": self.residents.n_parts,
            "finished": self.budget.done(self.trainer.step_count),
        }
        self.run.save_checkpoint(self.trainer.model_state(), self.trainer.optimizer_state(), state)

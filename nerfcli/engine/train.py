"""`train`: from a scene and a resolved config to a run folder with a trained field."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from nerfcli import backends
from nerfcli.backends.base import Backend
from nerfcli.core.config import Config
from nerfcli.core.devices import (
    ensure_room,
    memory_errors,
    pick,
    random_generator,
    restore_generator,
)
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine.resolve import resolve
from nerfcli.engine.runs import Run
from nerfcli.engine.schedule import Budget, budget_at, learning_rate
from nerfcli.methods.hashgrid_graph_trainer import create_trainer
from nerfcli.methods.trainers import HashGridTrainer, StepResult, Trainer
from nerfcli.scenes import ImageCache, Scene
from nerfcli.scenes.hull import Silhouettes, silhouette_box, silhouettes_of, visual_hull
from nerfcli.scenes.views import Views

HOLD = {"hashgrid": 0.3, "classic": 0.0}  # share of the run at the peak learning rate
LOG_EVERY_SECONDS = 1.0
METRICS_EVERY = 50  # steps between the rows of metrics.jsonl
MEMORY_ADVICE = (
    "read smaller images (--downscale 2), take fewer samples a step (--set train.n_samples=65536), "
    "or use --device cpu"
)


@dataclass(frozen=True)
class Prepared:
    """A scene ready to train on: box fitted, autos filled in, training images in memory."""

    scene: Scene
    config: Config
    residents: ImageCache
    seconds: float  # spent on it after the images were read; part of the training time
    silhouettes: Silhouettes | None = None  # of the views, where their box was looked for


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
    residents = ImageCache(scene, scene.splits["train"], say)
    views = residents.at(0)
    start, silhouettes = time.perf_counter(), None
    if scene.has_alpha and not config.scene.box:
        silhouettes = silhouettes_of(scene, views)
        box = silhouette_box(scene, views, silhouettes)
        if box is not None:
            scene = replace(scene, box=box, box_source="silhouettes of the training views")
    seconds = time.perf_counter() - start
    return Prepared(scene, resolve(config, scene), residents, seconds, silhouettes)


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
        resume: go on from the run's checkpoint; the run takes the length that `prepared` states.

    Returns:
        A summary: steps, seconds, psnr (running mean over training rays), rates, stopped.

    Raises:
        NerfError: the training diverged, memory ran out, or the run cannot be read or written.
    """
    device = pick(prepared.config.device)
    choice = backends.select(prepared.config.backend, device, progress.note)
    progress.note(choice.line)
    progress.note(describe(prepared.scene, prepared.config))
    with memory_errors("training", MEMORY_ADVICE):
        return start(prepared, run, choice.backend, device, progress, resume).go(stop)


def start(
    prepared: Prepared,
    run: Run,
    ops: Backend,
    device: str,
    progress: Progress,
    resume: bool = False,
) -> Loop:
    """Everything at its place: pixels and field on the device, the last checkpoint or a start."""
    clock = Clock(prepared.seconds, time.perf_counter())
    scene, config, residents = prepared.scene, prepared.config, prepared.residents
    checkpoint = run.load_checkpoint(device) if resume else None
    if checkpoint is not None:
        residents.n_shards = checkpoint[2].get("parts", 1)
    views = residents.at(checkpoint[2]["step"] if checkpoint is not None else 0)
    pixels = views.pixels.numel()
    ensure_room(pixels, device, f"the pixels of {len(views)} images", MEMORY_ADVICE)
    generator = random_generator(device, config.train.seed)
    trainer = create_trainer(scene, views.to(device), config, ops, generator)
    budget = Budget.of(config.train)
    loop = Loop(trainer, residents, config, run, budget, clock, progress)
    if checkpoint is not None:
        loop.resume(*checkpoint)
        run.set_length(config.train)
    elif isinstance(trainer, HashGridTrainer):
        prepare_occupancy(trainer, scene, views, prepared.silhouettes)
    return loop


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


def prepare_occupancy(
    trainer: HashGridTrainer, scene: Scene, views: Views, silhouettes: Silhouettes | None = None
) -> None:
    """Rule out the cells that no silhouette allows."""
    if scene.has_alpha and scene.box.n_cascades == 1:
        n = trainer.field.occupancy.resolution
        trainer.set_possible(visual_hull(scene, views, scene.box, n, silhouettes)[None])


@dataclass
class Loop:
    """The steps of one run, with logging, checkpoints and the end."""

    trainer: Trainer
    residents: ImageCache
    config: Config
    run: Run
    budget: Budget
    clock: Clock
    progress: Progress
    psnr: float = 0.0  # running mean over the rows of metrics.jsonl; 0 before the first one
    last: StepResult | None = None
    n_rays: int | Tensor = 0  # so far; on the device where nothing waits for it
    n_samples: int | Tensor = 0

    def resume(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict) -> None:
        """Take everything from a checkpoint of the run."""
        device, seed = self.trainer.device, self.config.train.seed
        self.trainer.load(model, optimizer, state["trainer"])
        step = self.trainer.step_count
        if not restore_generator(self.trainer.generator, state["generator"], seed, step):
            self.progress.note(
                f"the run was on another kind of device: new random numbers on {device}"
            )
        self.budget = budget_at(self.config.train, self.run.config.train, state)
        self.clock.before = state["seconds"]
        self.psnr = state.get("psnr", 0.0)

    def go(self, stop: StopSignal) -> dict:
        """Step until the budget is spent or `stop` has received a signal, save, and sum up."""
        trainer, budget, clock = self.trainer, self.budget, self.clock
        first_step, first_time = trainer.step_count, clock.elapsed()
        last_log = last_save = first_time
        budget.start(first_step, first_time)
        while not stop.received and not budget.done(trainer.step_count):
            self._step(clock.elapsed())
            elapsed = clock.elapsed()
            budget.tick(trainer.step_count, elapsed)
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
            "seconds": round(clock.elapsed(), 3),
            "psnr": round(self._psnr(), 3),
            "steps_per_second": (trainer.step_count - first_step) / seconds,
            "rays_per_second": int(self.n_rays) / seconds,
            "samples_per_second": int(self.n_samples) / seconds,
            "stopped": stop.received,
        }

    def _step(self, elapsed: float) -> None:
        step = self.trainer.step_count
        if self.residents.n_shards > 1 and (views := self.residents.exchange(step)) is not None:
            self.trainer.set_views(views.to(self.trainer.device.type))
        share = self.budget.progress(step, elapsed)
        lr = learning_rate(step, share, self.config.train, HOLD[self.config.model.method])
        result = self.last = self.trainer.step(lr)
        if result.remark:
            self.progress.note(result.remark)
        self.n_rays += result.n_rays
        self.n_samples += result.n_samples
        if self.trainer.step_count % METRICS_EVERY == 0:
            self._record(result, lr, self.clock.elapsed())

    def _record(self, result: StepResult, lr: float, elapsed: float) -> None:
        loss, mse = float(result.loss), float(result.mse)  # sync, every METRICS_EVERY steps
        step = self.trainer.step_count
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        now = _decibels(mse)
        self.psnr = now if self.psnr == 0.0 else 0.8 * self.psnr + 0.2 * now
        self.run.append_metrics(
            {
                "step": step,
                "seconds": round(elapsed, 3),
                "loss": loss,
                "psnr": round(now, 4),
                "lr": lr,
                "n_rays": int(result.n_rays),
                "n_samples": int(result.n_samples),
            }
        )

    def _psnr(self) -> float:
        """The running mean; before the first row, that of the last step alone."""
        if self.psnr or self.last is None:
            return self.psnr
        return _decibels(float(self.last.mse))

    def _show(self, seconds: float) -> None:
        seen = int(self.n_rays) / max(seconds, 1e-9)  # sync, once a second
        values = {"rays_per_s": seen, "psnr": self._psnr()}
        step, elapsed = self.trainer.step_count, self.clock.elapsed()
        if self.budget.total_steps:
            self.progress.update(step, total=self.budget.total_steps, **values)
        else:
            share = max(self.budget.progress(step, elapsed), 1e-3)
            self.progress.update(step, total=int(step / share), **values)

    def _diverged(self, how: str) -> NerfError:
        kept = (
            "The last checkpoint is kept in" if self.run.has_checkpoint else "Nothing is saved in"
        )
        return NerfError(
            f"training diverged by step {self.trainer.step_count}: {how}. {kept} {self.run.path}; "
            f"try a lower rate, e.g. --set train.lr={self.config.train.lr / 3:.2g}."
        )

    def _save(self, elapsed: float) -> None:
        model = self.trainer.model_state()
        # densities of the occupancy grid are infinite until they are known
        learned = (t for name, t in model.items() if not name.startswith("occupancy."))
        if not all(bool(t.isfinite().all()) for t in learned):
            raise self._diverged("the weights are not finite")
        state = {
            "step": self.trainer.step_count,
            "seconds": elapsed,
            "trainer": self.trainer.extra_state(),
            "generator": self.trainer.generator.get_state().tolist(),
            "budget": self.budget.state(),
            "parts": self.residents.n_shards,
            "psnr": round(self._psnr(), 3),
            "finished": self.budget.done(self.trainer.step_count),
        }
        self.run.save_checkpoint(model, self.trainer.optimizer_state(), state)


def _decibels(mse: float) -> float:
    return -10 * math.log10(max(mse, 1e-12))

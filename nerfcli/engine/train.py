"""`train`: from a scene and a resolved config to a run folder with a trained field."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
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
from nerfcli.core.progress import Note, Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import quantity
from nerfcli.engine.callbacks import Callback, Checkpoints, Every
from nerfcli.engine.checkpoints import GENERATOR, generator_state
from nerfcli.engine.estimate import estimate_held_out
from nerfcli.engine.exposure import choose_exposure
from nerfcli.engine.failures import diverged, nothing_met
from nerfcli.engine.forecast import Forecast
from nerfcli.engine.render import Model
from nerfcli.engine.resolve import describe, resolve
from nerfcli.engine.runs import Run, in_training
from nerfcli.engine.schedule import Budget, Clock, budget_at, learning_rate
from nerfcli.methods import StepResult, Trainer, choose_method, method_of
from nerfcli.scenes import ImageCache, Scene
from nerfcli.scenes.build import move_box
from nerfcli.scenes.hull import Silhouettes, silhouettes_of
from nerfcli.scenes.silhouette_box import silhouette_box

LOG_EVERY_SECONDS = 1.0
METRICS_EVERY = 50  # steps between the rows of metrics.jsonl
RECENT = 20  # last steps, over which the PSNR on training rays is taken


@dataclass(frozen=True)
class Prepared:
    """A scene ready to train on: box fitted, config resolved, training images in memory.

    Attributes:
        seconds: spent on it after the images were read; part of the training time.
        silhouettes: of the views, where their box was looked for.
        method_reason: why the scene has this method; "" where the config says which.
    """

    scene: Scene
    config: Config
    residents: ImageCache
    seconds: float
    silhouettes: Silhouettes | None = None
    method_reason: str = ""


def prepare(
    scene: Scene, config: Config, note: Note | None = None, *, resumed: bool = False
) -> Prepared:
    """Read the training images, fit the box to their silhouettes, resolve the config.

    The box is left alone where the user states one or the images have no alpha channel.

    Args:
        note: takes how much memory the images need, before they are read.
        resumed: the scene is that of a run: it has its box, and its images are read in `start`,
            where the checkpoint says which.

    Raises:
        NerfError: no training views, an unreadable image, or a value that does not exist.
    """
    if not scene.splits.get("train"):
        raise NerfError(f"scene {scene.name}: no training views; hold out fewer of its images.")
    method, reason = choose_method(config, scene)
    config = replace(config, method=method)
    if note is not None and reason:
        note(f"method {method}: {reason}")
    resolve(config, scene)  # fail early on a wrong value, before the images are read
    residents = ImageCache(scene, scene.splits["train"], note)
    if resumed:
        return Prepared(scene, resolve(config, scene), residents, seconds=0.0)
    views = residents.at(0)
    start, silhouettes = time.perf_counter(), None
    if scene.has_alpha and config.scene.box is None and config.scene.cascades is None:
        silhouettes = silhouettes_of(scene, views)
        box = silhouette_box(scene, views, silhouettes)
        if box is not None:
            scene = move_box(scene, box, "silhouettes of the training views")
    scene, config = choose_exposure(scene, config, views, note)
    seconds = time.perf_counter() - start
    if note is not None and (remark := method_of(config).remark(scene)):
        note(remark)
    return Prepared(scene, resolve(config, scene), residents, seconds, silhouettes, reason)


def train(
    prepared: Prepared,
    run: Run | Callable[[ExitStack], Run],
    *,
    progress: Progress,
    stop: StopSignal | None = None,
    held: ExitStack | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> dict:
    """Train until the budget is spent or a signal asks to stop; the state is saved either way.

    A signal before the first step ends it at once: there is nothing to save.

    Args:
        run: or what makes its folder, which is called just before the first step with what is to
            hold its lock.
        stop: takes the signals of this process from the first step on.
        held: keeps the lock on the run and the signals beyond the training.
        resume: go on from the run's checkpoint; the run takes the length that `prepared` states.
        callbacks: called after each step.

    Returns:
        A summary: steps, seconds, psnr (of the training rays of the last steps), held_out (see
        `estimate_held_out`; None where it was stopped), rates, stopped.

    Raises:
        NerfError: the training diverged, memory ran out, or the run cannot be read or written.
        Interrupted: a signal came before the first step.
    """
    device = pick(prepared.config.device)
    choice = backends.select(prepared.config.backend, device, progress.note)
    with ExitStack() as own:
        held = own if held is None else held
        with memory_errors("training", memory_advice(prepared.config)):
            if isinstance(run, Run):
                held.enter_context(in_training(run.path))
                opened = run
            else:
                opened = partial(run, held)
            loop = start(prepared, opened, choice.backend, device, progress, resume)
            progress.note(choice.line)  # the images of a resumed run have been read by now, too
            progress.note(describe(prepared.scene, prepared.config))
            loop.callbacks = callbacks
            stop = held.enter_context(StopSignal() if stop is None else stop)
            _ = loop.run  # its folder is there before the first step
            summary = loop.go(stop)
        return summary | {"held_out": None if summary["stopped"] else loop.score_held_out()}


def memory_advice(config: Config) -> str:
    return (
        "read smaller images (--downscale 2), make a step smaller "
        f"(--set {method_of(config).smaller_step}), or use --device cpu"
    )


def start(
    prepared: Prepared,
    run: Run | Callable[[], Run],
    ops: Backend,
    device: str,
    progress: Progress,
    resume: bool = False,
) -> Loop:
    """Put pixels and field on the device, and take the run's checkpoint where it is resumed.

    run: or what makes its folder, where the loop first asks for it.
    """
    clock = Clock(prepared.seconds, time.perf_counter())
    scene, config, residents = prepared.scene, prepared.config, prepared.residents
    checkpoint = run.load_checkpoint(device) if resume and isinstance(run, Run) else None
    if checkpoint is not None:
        residents.n_shards = checkpoint[2].get("parts", 1)
    views = residents.at(checkpoint[2]["step"] if checkpoint is not None else 0)
    # while one shard replaces another, both are there
    pixels = views.pixels.numel() * (2 if residents.n_shards > 1 else 1)
    ensure_room(
        pixels, device, f"the pixels of {quantity(len(views), 'image')}", memory_advice(config)
    )
    generator = random_generator(device, config.train.seed)
    method = method_of(config)
    trainer = method.create_trainer(scene, views.to(device), config, ops, generator)
    budget = Budget.of(config.train)
    open_run = (lambda: run) if isinstance(run, Run) else run
    loop = Loop(trainer, residents, config, open_run, budget, clock, progress)
    if checkpoint is not None:
        loop.resume(*checkpoint)
        loop.run.go_on_with(config)
    else:
        remark = trainer.begin(views, prepared.silhouettes)
        if remark:
            progress.note(remark)
    return loop


@dataclass
class Loop:
    """The steps of one run, with logging, checkpoints and the end.

    Attributes:
        open_run: gives the run, and makes its folder where it is new.
        callbacks: called in order after each step.
        last: what the last step reported. lr: its learning rate.
        elapsed: seconds of training, after the last step; first_seconds: where `go` began.
        recent: mean squared errors of the last steps. They are kept in checkpoints, so that a run
            that was resumed shows the same PSNR.
        n_rays, n_samples: since `go` began; on the device where nothing waits for it.
        n_rays_before: of the earlier parts of a resumed run.
        saved: the step of the last checkpoint that this loop wrote.
    """

    trainer: Trainer
    residents: ImageCache
    config: Config
    open_run: Callable[[], Run]
    budget: Budget
    clock: Clock
    progress: Progress
    callbacks: Sequence[Callback] = ()
    last: StepResult | None = None
    lr: float = 0.0
    elapsed: float = 0.0
    first_seconds: float = 0.0
    recent: deque[Tensor] = field(default_factory=lambda: deque(maxlen=RECENT))
    n_rays: int | Tensor = 0
    n_rays_before: int = 0
    n_samples: int | Tensor = 0
    n_counted: int = 0  # samples by the last row of metrics.jsonl
    saved: int | None = None

    @cached_property
    def run(self) -> Run:
        return self.open_run()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trainer.step_count

    def resume(self, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict) -> None:
        """Take everything from a checkpoint of the run."""
        device, seed = self.trainer.device, self.config.train.seed
        random = generator_state(optimizer, state)
        self.trainer.load(model, optimizer, state["trainer"])
        if not restore_generator(self.trainer.generator, random, seed, self.step):
            self.progress.note(
                f"the run was on another kind of device: new random numbers on {device}"
            )
        self.budget = budget_at(self.config.train, self.run.config.train, state)
        self.clock.before = state["seconds"]
        errors = state.get("recent_mse") or [10 ** (-0.1 * state.get("psnr", 0.0))]  # old ones
        self.recent.extend(torch.tensor(errors, device=device))
        self.n_rays_before = state.get("n_rays", 0)

    def go(self, stop: StopSignal) -> dict:
        """Step until the budget is spent or `stop` has received a signal, save, and sum up."""
        budget, clock = self.budget, self.clock
        first_step, self.first_seconds = self.step, clock.elapsed()
        budget.start(first_step, self.first_seconds)
        callbacks = (
            Loop.record,
            Every(LOG_EVERY_SECONDS, Loop.show),
            *([] if budget.seconds else [Forecast()]),
            Checkpoints(60 * self.config.train.checkpoint_minutes),
            *self.callbacks,
        )
        while not budget.done(self.step) and not (stop.received and self.step):
            self.take_step(clock.elapsed())
            self.elapsed = clock.elapsed()
            budget.tick(self.step, self.elapsed)
            for callback in callbacks:
                callback(self)
        self.elapsed = clock.elapsed()
        if self.step > first_step and not int(self.n_samples):
            raise nothing_met(self.step)
        if self.saved != self.step:
            self.save()
        seconds = max(self.elapsed - self.first_seconds, 1e-9)
        return {
            "steps": self.step,
            "seconds": round(clock.elapsed(), 3),
            "psnr": round(self._psnr(), 3),
            "steps_per_second": (self.step - first_step) / seconds,
            "rays_per_second": int(self.n_rays) / seconds,
            "samples_per_second": int(self.n_samples) / seconds,
            "stopped": stop.received,
        }

    def take_step(self, elapsed: float) -> None:
        """Take one step at the learning rate of `elapsed` seconds; the shards change in it."""
        step = self.step
        if self.residents.n_shards > 1 and (views := self.residents.exchange(step)) is not None:
            self.trainer.set_views(views.to(self.trainer.device.type))
        share = self.budget.progress(step, elapsed)
        self.lr = learning_rate(step, share, self.config.train, method_of(self.config).hold)
        result = self.last = self.trainer.step(self.lr)
        if result.remark:
            self.progress.note(result.remark)
        self.recent.append(result.mse.detach().clone())  # a graph writes over its own
        self.n_rays += result.n_rays
        self.n_samples += result.n_samples

    def record(self) -> None:
        """Add a row to metrics.jsonl, each METRICS_EVERY steps.

        Raises:
            NerfError: the loss is not finite, or no sample was kept since the last row.
        """
        result = self.last
        if result is None or self.step % METRICS_EVERY:
            return
        loss, mse = float(result.loss), float(result.mse)  # sync
        if not math.isfinite(loss):
            raise diverged(self.run, self.step, f"the loss is {loss}")
        if int(self.n_samples) == self.n_counted:
            raise nothing_met(self.step)
        self.n_counted = int(self.n_samples)
        self.run.append_metrics(
            {
                "step": self.step,
                "seconds": round(self.elapsed, 3),
                "loss": loss,
                "terms": {name: float(term) for name, term in result.terms.items()},
                "psnr": round(_decibels(mse), 4),
                "lr": self.lr,
                "n_rays": int(result.n_rays),
                "n_samples": int(result.n_samples),
            }
        )

    def _psnr(self) -> float:
        """The PSNR of the last steps' rays together."""
        errors = self._recent_errors()
        return _decibels(sum(errors) / len(errors)) if errors else 0.0

    def _recent_errors(self) -> list[float]:
        return torch.stack(list(self.recent)).tolist() if self.recent else []  # sync

    def show(self) -> None:
        """Show progress, the rate and the PSNR on training rays."""
        step, elapsed = self.step, self.elapsed
        rate = int(self.n_rays) / max(elapsed - self.first_seconds, 1e-9)  # sync
        values = {"rays_per_s": rate, "psnr": self._psnr()}
        spent = (elapsed, self.budget.seconds) if self.budget.seconds else None
        total = None if spent else self.budget.total_steps
        self.progress.update(step, total=total, spent=spent, **values)

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            NerfError: a weight is not finite, or the disk refuses.
        """
        model = self.trainer.model_state()
        # densities of the occupancy grid are infinite until they are known
        learned = (t for name, t in model.items() if not name.startswith("occupancy."))
        if not all(bool(t.isfinite().all()) for t in learned):
            raise diverged(self.run, self.step, "the weights are not finite")
        random = {GENERATOR: self.trainer.generator.get_state()}
        state = {
            "step": self.step,
            "seconds": self.elapsed,
            "trainer": self.trainer.extra_state(),
            "budget": self.budget.state(),
            "parts": self.residents.n_shards,
            "psnr": round(self._psnr(), 3),
            "recent_mse": self._recent_errors(),
            "n_rays": self._all_rays(),
            "finished": self.budget.done(self.step),
        }
        self.run.save_checkpoint(model, self.trainer.optimizer_state() | random, state)
        self.saved = self.step

    def _all_rays(self) -> int:
        """Rays of the whole run, also of its earlier parts."""
        return self.n_rays_before + int(self.n_rays)

    def score_held_out(self) -> dict | None:
        """Estimate the PSNR of held-out views, and keep it in the checkpoint's state."""
        try:
            model = Model.of(self.trainer)
            with memory_errors("scoring", "nerf eval --device cpu measures them"):
                found = estimate_held_out(model, self.trainer.scene, self._all_rays())
            self.run.add_to_state({"held_out": found})
        except (NerfError, MemoryError, OSError) as error:  # the training is done and saved
            self.progress.note(f"held-out views are not scored: {error or 'memory is full'}")
            return None
        return found


def _decibels(mse: float) -> float:
    return -10 * math.log10(max(mse, 1e-12))

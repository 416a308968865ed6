"""The loop of a training run: steps, logging, checkpoints, and the end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nerfcli.core.config import Config
from nerfcli.core.devices import memory_errors, restore_generator
from nerfcli.core.distributed import World, world
from nerfcli.core.errors import CannotWrite, NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine.callbacks import Callback, Checkpoints, Every
from nerfcli.engine.checkpoints import GENERATOR, generator_state
from nerfcli.engine.estimate import estimate_held_out
from nerfcli.engine.failures import diverged, not_saved, nothing_met
from nerfcli.engine.forecast import Forecast
from nerfcli.engine.recovery import NO_SAMPLE, Diverged, Emptiness, ensure_finite, recover
from nerfcli.engine.render import Model
from nerfcli.engine.runs import Run
from nerfcli.engine.schedule import Budget, Clock, budget_at, learning_rate
from nerfcli.methods import StepResult, Trainer, method_of
from nerfcli.scenes import ImageCache

LOG_EVERY_SECONDS = 1.0
METRICS_EVERY = 50  # steps between the rows of metrics.jsonl
RECENT = 20  # last steps, over which the PSNR on training rays is taken


@dataclass
class Loop:
    """The steps of one run, with logging, checkpoints and the end.

    Attributes:
        open_run: gives the run, and makes its folder where it is new.
        begin: makes a trainer before its first step, from a seed.
        callbacks: called in order after each step.
        last: what the last step reported. lr: its learning rate.
        row: the last one of metrics.jsonl.
        elapsed: seconds of training, after the last step; first_seconds: where `go` began.
        recent: mean squared errors of the last steps. They are kept in checkpoints, so that a run
            that was resumed shows the same PSNR.
        n_rays, n_samples: since `go` began; on the device where nothing waits for it.
        n_rays_before: of the earlier parts of a resumed run.
        saved: the step of the last checkpoint that this loop wrote.
        setbacks: how often the run went back because its numbers went wrong.
        caution: what the learning rate is multiplied by since then.
        disk_refuses: the last attempt to write failed, and the user knows it.
        shown: the rate and the PSNR that were shown last.
        is_good_enough: a callback found that the run need not go on.
        asked_to_end: who asked a callback that the run end early, for `ended_by`; None: nobody.
        world: the processes that take the steps together; the first one alone writes.
        received: a signal that one of these processes got. all_found_it_good: they all know that
            one found the run good enough.
    """

    trainer: Trainer
    residents: ImageCache
    config: Config
    open_run: Callable[[], Run]
    budget: Budget
    clock: Clock
    progress: Progress
    begin: Callable[[int], Trainer]
    callbacks: Sequence[Callback] = ()
    last: StepResult | None = None
    lr: float = 0.0
    row: dict[str, Any] | None = None
    elapsed: float = 0.0
    first_seconds: float = 0.0
    recent: deque[Tensor] = field(default_factory=lambda: deque(maxlen=RECENT))
    n_rays: int | Tensor = 0
    n_rays_before: int = 0
    n_samples: int | Tensor = 0
    n_counted: int = 0  # samples by the last row of metrics.jsonl
    saved: int | None = None
    setbacks: int = 0
    caution: float = 1.0
    disk_refuses: bool = False
    shown: dict[str, float] = field(default_factory=dict)
    is_good_enough: bool = False
    asked_to_end: str | None = None
    world: World = field(default_factory=world)
    received: int | None = None
    all_found_it_good: bool = False

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
        self.setbacks, self.caution = state.get("setbacks", 0), state.get("caution", 1.0)

    def go(self, stop: StopSignal) -> dict:
        """Step until the budget is spent or `stop` has received a signal, save, and sum up."""
        budget, clock = self.budget, self.clock
        first_step, self.first_seconds = self.step, self.world.agree(clock.elapsed())[0]
        self.elapsed = self.first_seconds
        budget.start(first_step, self.first_seconds)
        callbacks = (
            Loop.record,
            Every(LOG_EVERY_SECONDS, Loop.show),
            *([] if budget.seconds else [Forecast()]),
            *([] if first_step else [Emptiness()]),
            Checkpoints(60 * self.config.train.checkpoint_minutes),
            *self.callbacks,
        )
        while True:
            try:
                while not self._is_over(stop):
                    self.take_step(self.elapsed)
                    self.elapsed = clock.elapsed()
                    if not self.world.is_alone:
                        self._agree(stop)
                    budget.tick(self.step, self.elapsed)
                    for callback in callbacks:
                        callback(self)
                if self.step > first_step and not int(self.n_samples):
                    raise nothing_met(self.step)
                if self.saved != self.step:
                    self.elapsed = clock.elapsed()
                    self.save()
                break
            except Diverged as fault:
                if not self.world.is_alone:
                    raise diverged(self.run, self.step, str(fault)) from fault
                recover(self, fault)
            except CannotWrite as error:  # at the end; those before it may fail
                raise not_saved(self.run, error) from error
        seconds = max(self.elapsed - self.first_seconds, 1e-9)
        return {
            "steps": self.step,
            "seconds": round(self.elapsed, 3),  # as the checkpoint says
            "psnr": round(self._psnr(), 3),
            "steps_per_second": (self.step - first_step) / seconds,
            "rays_per_second": int(self.n_rays) / seconds,
            "samples_per_second": int(self.n_samples) / seconds,
            "stopped": self._signal(stop),
            "ended_by": self._ended_by(stop),
        }

    def _agree(self, stop: StopSignal) -> None:
        """Take the time of the first process, and what any of them was told to do."""
        told = (stop.received or 0, int(self.is_good_enough))
        self.elapsed, (received, good) = self.world.agree(self.elapsed, told)
        self.received, self.all_found_it_good = received or None, bool(good)

    def _signal(self, stop: StopSignal) -> int | None:
        """The signal by which to end: of several processes, what all know of."""
        return stop.received if self.world.is_alone else self.received

    def _ended_by(self, stop: StopSignal) -> str:
        if self._signal(stop) is not None:
            return "signal"
        if self.asked_to_end is not None:
            return self.asked_to_end
        if self._met():
            return "target"
        return "minutes" if self.budget.seconds else "steps"

    def _met(self) -> bool:
        """Whether the run need not go on: of several processes, when all know it."""
        return self.is_good_enough if self.world.is_alone else self.all_found_it_good

    def _is_over(self, stop: StopSignal) -> bool:
        done = self.budget.done(self.step) or self._met() or self.asked_to_end is not None
        return done or (self._signal(stop) is not None and self.step > 0)

    def take_step(self, elapsed: float) -> None:
        """Take one step at the learning rate of `elapsed` seconds; the shards change in it."""
        step = self.step
        if self.residents.n_shards > 1 and (views := self.residents.exchange(step)) is not None:
            self.trainer.set_views(views.to(self.trainer.device.type))
        share = self.budget.progress(step, elapsed)
        self.lr = learning_rate(step, share, self.config.train, method_of(self.config).hold)
        self.lr *= self.caution
        result = self.last = self.trainer.step(self.lr)
        if result.remark:
            self.progress.note(result.remark)
        self.recent.append(result.mse.detach().clone())  # a graph writes over its own
        self.n_rays += result.n_rays
        self.n_samples += result.n_samples

    def record(self) -> None:
        """Add a row to metrics.jsonl, each METRICS_EVERY steps.

        Raises:
            Diverged: the loss is not finite, or no sample is kept any more.
            NerfError: no sample was ever kept.
        """
        result = self.last
        if result is None or self.step % METRICS_EVERY:
            return
        loss, mse = float(result.loss), float(result.mse)  # sync
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss}")
        if int(self.n_samples) == self.n_counted:
            raise Diverged(NO_SAMPLE) if self.n_counted else nothing_met(self.step)
        self.n_counted = int(self.n_samples)
        self.row = row = {
            "step": self.step,
            "seconds": round(self.elapsed, 3),
            "loss": loss,
            "terms": {name: float(term) for name, term in result.terms.items()},
            "psnr": round(_decibels(mse), 4),
            "lr": self.lr,
            "n_rays": int(result.n_rays),
            "n_samples": int(result.n_samples),
        }
        try:
            if self.world.is_first:
                self.run.append_metrics(row)
        except CannotWrite as error:
            self.go_on_unsaved(error)

    def go_on_unsaved(self, error: CannotWrite) -> None:
        """Say that nothing can be written; once, until the disk takes a checkpoint again."""
        if not self.disk_refuses:
            self.progress.note(f"{error} Training goes on, and tries again at the next checkpoint")
        self.disk_refuses = True

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
        values = self.shown = {"rays_per_s": rate, "psnr": self._psnr()}
        spent = (elapsed, self.budget.seconds) if self.budget.seconds else None
        total = None if spent else self.budget.total_steps
        self.progress.update(step, total=total, spent=spent, **values)

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            Diverged: something in it is not finite. CannotWrite: the disk refuses.
        """
        model, optimizer = self.trainer.model_state(), self.trainer.optimizer_state()
        ensure_finite(model, optimizer)
        random = {GENERATOR: self.trainer.generator.get_state()}
        state = {
            "step": self.step,
            "seconds": self.elapsed,
            "trainer": self.trainer.extra_state(),
            "budget": self.budget.state(),
            "parts": self.residents.n_shards,
            **({} if self.world.is_alone else {"processes": self.world.size}),
            "psnr": round(self._psnr(), 3),
            "recent_mse": self._recent_errors(),
            "n_rays": self.all_rays(),
            "finished": self.budget.done(self.step),
        }
        if self.setbacks:
            state |= {"setbacks": self.setbacks, "caution": self.caution}
        if self.world.is_first:
            self.run.save_checkpoint(model, optimizer | random, state)
        self.saved, self.disk_refuses = self.step, False

    def all_rays(self) -> int:
        """Rays of the whole run, also of its earlier parts."""
        return self.n_rays_before + int(self.n_rays)

    def score_held_out(self) -> dict | None:
        """Estimate the PSNR of held-out views, and keep it in the checkpoint's state."""
        try:
            model = Model.of(self.trainer)
            with memory_errors("scoring", "nerf eval --device cpu measures them"):
                found = estimate_held_out(model, self.trainer.scene, self.all_rays())
            self.run.add_to_state({"held_out": found})
        except (NerfError, MemoryError, OSError) as error:  # the training is done and saved
            self.progress.note(f"held-out views are not scored: {error or 'memory is full'}")
            return None
        return found


def _decibels(mse: float) -> float:
    return -10 * math.log10(max(mse, 1e-12))

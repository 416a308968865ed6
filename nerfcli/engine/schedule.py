"""How long a run is and how its learning rate goes: by steps, or by wall-clock time.

progress: share of the run that is done, 0 to 1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nerfcli.core.config import TrainConfig, known

PLAN_AT = (0.1, 0.25, 0.5)  # shares of the time; later, whenever half of the rest has gone
LAST_STRETCH = 1.0  # seconds that are left to the plan before them


@dataclass
class Clock:
    """Training wall-clock time over all parts of a resumed run."""

    before: float
    start: float

    def elapsed(self) -> float:
        return self.before + time.perf_counter() - self.start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the training time what passes within the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.start += time.perf_counter() - begin


def learning_rate(step: int, progress: float, train: TrainConfig, hold: float) -> float:
    """Linear warm-up, then the peak until progress = hold, then an exponential fall.

    At the end the rate is train.lr * train.lr_final. hold = 0 gives the exponential decay of
    NeRF (2020) over the whole run.
    """
    warmup = min(1.0, (step + 1) / train.lr_warmup) if train.lr_warmup else 1.0
    fall = max(0.0, min(1.0, (progress - hold) / (1.0 - hold)))
    return known(train.lr) * warmup * known(train.lr_final) ** fall


@dataclass
class Budget:
    """The length of a run.

    With `seconds`, the step rate is measured while training. The number of steps is set at a
    tenth, a quarter and half of the time, and anew whenever half of the rest has gone, by the
    rate of the last stretch, so that the run ends within about a second of its time. A run that
    was stopped in its second half goes on with the number of steps that it was saved with, so
    that resuming it is exact. One that is given another length keeps its steps and its time: the
    share that is done is then what they are of the new length, and the learning rate follows it.

    Attributes:
        total_steps: 0 until it is known.
        seconds: wall-clock length, 0 for a run by steps.
        n_plans: how often the number of steps has been set.
    """

    total_steps: int = 0
    seconds: float = 0.0
    n_plans: int = 0
    fixed: bool = False
    _mark_step: int = 0
    _mark_time: float = 0.0

    @staticmethod
    def of(train: TrainConfig) -> Budget:
        """The length that the settings state; steps count before minutes."""
        if train.steps is not None:
            return Budget(train.steps)
        return Budget(seconds=60 * (train.minutes or 0.0))

    def resumed(self, state: dict, step: int, elapsed: float) -> Budget:
        """This budget where `state` was saved, after `step` steps and `elapsed` seconds.

        state: what `state()` gave, of a run of this length or of another.
        """
        if not self.seconds:
            return Budget(self.total_steps)
        if state["seconds"] == self.seconds:
            fixed = state["n_plans"] >= len(PLAN_AT)
            return Budget(state["total_steps"], self.seconds, state["n_plans"], fixed)
        left = self.seconds - elapsed
        if left <= min(LAST_STRETCH, 0.1 * self.seconds):  # runs by time end within a second of it
            return Budget(step, self.seconds)
        # at the rate so far, until it is measured again when the next plan is due
        budget = Budget(step + round(step * left / max(elapsed, 1e-6)), self.seconds)
        while elapsed >= budget._next_plan():
            budget.n_plans += 1
        return budget

    def start(self, step: int, elapsed: float) -> None:
        """The loop begins here; what came before does not count for the rate."""
        self._mark_step, self._mark_time = step, elapsed

    def tick(self, step: int, elapsed: float) -> None:
        """Measure, and set the number of steps when it is time to. step: steps done."""
        if not self.seconds or self.fixed or step <= self._mark_step:
            return
        left = self.seconds - elapsed
        too_soon = self.done(step) and left > LAST_STRETCH  # the rate was taken for slower
        if elapsed >= self._next_plan() or too_soon:
            rate = (step - self._mark_step) / max(elapsed - self._mark_time, 1e-6)
            self.total_steps = step + round(rate * max(left, 0.0))
            while elapsed >= self._next_plan():
                self.n_plans += 1
            self._mark_step, self._mark_time = step, elapsed
        elif not self.n_plans and elapsed < 0.5 * self._next_plan():  # warm-up
            self._mark_step, self._mark_time = step, elapsed

    def _next_plan(self) -> float:
        """When the number of steps is set next, in seconds; infinite in the last stretch."""
        if self.n_plans < len(PLAN_AT):
            return PLAN_AT[self.n_plans] * self.seconds
        rest = (1 - PLAN_AT[-1]) * 0.5 ** (self.n_plans + 1 - len(PLAN_AT)) * self.seconds
        return self.seconds - rest if rest > LAST_STRETCH else float("inf")

    def progress(self, step: int, elapsed: float) -> float:
        if self.total_steps:
            return min(1.0, step / self.total_steps)
        return min(1.0, elapsed / self.seconds)

    def done(self, step: int) -> bool:
        return bool(self.total_steps) and step >= self.total_steps

    def state(self) -> dict:
        return {
            "total_steps": self.total_steps,
            "n_plans": self.n_plans,
            "seconds": self.seconds,
        }


def budget_at(train: TrainConfig, before: TrainConfig, checkpoint: dict) -> Budget:
    """The budget of `train` at a run's checkpoint, which was written under `before`."""
    kept = {"seconds": Budget.of(before).seconds, **checkpoint["budget"]}  # old ones lack it
    return Budget.of(train).resumed(kept, checkpoint["step"], checkpoint["seconds"])

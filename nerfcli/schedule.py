"""How long a run is and how its learning rate goes: by steps, or by wall-clock time.

progress: share of the run that is done, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from nerfcli.config import TrainConfig

PLAN_AT = (0.1, 0.25, 0.5)  # shares of the time at which the number of steps is set (anew)


def learning_rate(step: int, progress: float, train: TrainConfig, hold: float) -> float:
    """Linear warm-up, then the peak until progress = hold, then an exponential fall.

    At the end the rate is train.lr * train.lr_final. hold = 0 gives the exponential decay of
    NeRF (2020) over the whole run.
    """
    warmup = min(1.0, (step + 1) / train.lr_warmup) if train.lr_warmup else 1.0
    fall = max(0.0, min(1.0, (progress - hold) / (1.0 - hold)))
    return train.lr * warmup * train.lr_final**fall


@dataclass
class Budget:
    """The length of a run.

    With `seconds`, the step rate is measured while training and the number of steps set at a
    tenth, a quarter and half of the time; from then on it is fixed, so that a resumed run goes
    on exactly.

    Attributes:
        total_steps: 0 until it is known.
        seconds: wall-clock length, 0 for a run by steps.
        n_plans: how many of PLAN_AT have been done.
    """

    total_steps: int = 0
    seconds: float = 0.0
    n_plans: int = 0
    _mark_step: int = 0
    _mark_time: float = 0.0

    def start(self, step: int, elapsed: float) -> None:
        """The loop begins here; what came before does not count for the rate."""
        self._mark_step, self._mark_time = step, elapsed

    def tick(self, step: int, elapsed: float) -> None:
        """Measure, and set the number of steps when it is time to. step: steps done."""
        if not self.seconds or self.n_plans == len(PLAN_AT) or step <= self._mark_step:
            return
        share = elapsed / self.seconds
        too_soon = self.done(step) and share < 1.0  # the rate was taken for slower than it is
        if share >= PLAN_AT[self.n_plans] or too_soon:
            rate = (step - self._mark_step) / max(elapsed - self._mark_time, 1e-6)
            left = round(rate * max(self.seconds - elapsed, 0.0))
            self.total_steps = step + left
            while self.n_plans < len(PLAN_AT) and share >= PLAN_AT[self.n_plans]:
                self.n_plans += 1
            self._mark_step, self._mark_time = step, elapsed
        elif not self.n_plans and share < 0.5 * PLAN_AT[0]:  # warm-up
            self._mark_step, self._mark_time = step, elapsed

    def progress(self, step: int, elapsed: float) -> float:
        if self.total_steps:
            return min(1.0, step / self.total_steps)
        return min(1.0, elapsed / self.seconds)

    def done(self, step: int) -> bool:
        return bool(self.total_steps) and step >= self.total_steps

    def state(self) -> dict:
        return {"total_steps": self.total_steps, "n_plans": self.n_plans}

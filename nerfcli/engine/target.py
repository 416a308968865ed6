"""End a training once its held-out views reach a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nerfcli.core.devices import memory_errors
from nerfcli.core.errors import CannotWrite, NerfError
from nerfcli.engine.estimate import estimate_held_out
from nerfcli.engine.evaluate import reaches
from nerfcli.engine.render import Model
from nerfcli.engine.runs import Run

if TYPE_CHECKING:
    from nerfcli.engine.loop import Loop

FIRST_LOOK = 5.0  # seconds of training before the first estimate, and between two of them
MOST_LOOKING = 0.05  # of the time, at most, goes into looking


@dataclass
class Target:
    """A callback that estimates the held-out PSNR now and then, and ends the loop at the target.

    Few pixels are looked at. Where they reach the target, the run is saved and all are measured;
    where those do not reach it, the estimate must be higher by the difference from then on.

    Attributes:
        decibels: the target.
        measure: scores every held-out view of a run's checkpoint, as `evaluate` does; None where
            that was stopped.
        margin: dB by which the estimate must be above the target.
        result: what `measure` gave last.
        due: seconds of training from which the next look is due.
    """

    decibels: float
    measure: Callable[[Run], dict[str, Any] | None]
    margin: float = 0.0
    result: dict[str, Any] | None = None
    due: float | None = None

    def __call__(self, loop: Loop) -> None:
        if self.due is None:
            self.due = loop.first_seconds + FIRST_LOOK
        if loop.elapsed < self.due:
            return
        try:
            with memory_errors("scoring", "leave --target-psnr out, or use --device cpu"):
                self._look(loop)
        except CannotWrite as error:
            loop.go_on_unsaved(error)
        except (NerfError, MemoryError, OSError) as error:  # the training itself is sound
            loop.progress.note(f"--target-psnr is measured at the end only: {error or 'no memory'}")
            self.due = float("inf")
            return
        now = loop.clock.elapsed()
        self.due = now + max(FIRST_LOOK, (now - loop.elapsed) / MOST_LOOKING)

    def _look(self, loop: Loop) -> None:
        found = estimate_held_out(Model.of(loop.trainer), loop.trainer.scene, loop.all_rays())
        if found is None or found["psnr"] is None or found["psnr"] < self.decibels + self.margin:
            return
        loop.save()
        self.result = self.measure(loop.run)
        if self.result is None:
            return
        if reaches(self.result, self.decibels):
            loop.is_good_enough = True
        elif self.result["psnr"] is not None:
            self.margin = found["psnr"] - self.result["psnr"]

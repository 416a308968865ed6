"""What a training loop calls after its steps: at intervals, and to save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nerfcli.core.errors import CannotWrite

if TYPE_CHECKING:
    from nerfcli.engine.loop import Loop

Callback = Callable[["Loop"], None]

FIRST_CHECKPOINT = 10.0  # seconds: little is lost with a process that is killed soon
MOST_SAVING = 0.02  # of the time, at most, goes into checkpoints after the first


@dataclass
class Every:
    """A callback that acts each time that so many seconds of training have passed."""

    seconds: float
    action: Callback
    last: float | None = None  # elapsed seconds when it acted

    def __call__(self, loop: Loop) -> None:
        last = loop.first_seconds if self.last is None else self.last
        if loop.elapsed - last > self.seconds:
            self.last = loop.elapsed
            self.action(loop)


@dataclass
class Checkpoints:
    """A callback that saves: soon, then by time, and less often where the disk is slow.

    Attributes:
        seconds: between two checkpoints. due: elapsed seconds from which one is due.
    """

    seconds: float
    due: float | None = None

    def __call__(self, loop: Loop) -> None:
        if self.due is None:
            self.due = loop.first_seconds + min(FIRST_CHECKPOINT, self.seconds)
        if loop.elapsed > self.due:
            try:
                loop.save()
            except CannotWrite as error:
                loop.go_on_unsaved(error)
            took = loop.clock.elapsed() - loop.elapsed
            self.due = loop.elapsed + max(self.seconds, took / MOST_SAVING)

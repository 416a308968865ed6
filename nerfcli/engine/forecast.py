"""How long a run by steps takes on this machine, from its first steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nerfcli.core.text import number, rough_duration

if TYPE_CHECKING:
    from nerfcli.engine.loop import Loop

FORECAST_AFTER = 3.0  # seconds of steps, by which a run is timed
FORECAST_FROM = 60.0  # seconds to go that are worth a remark


@dataclass
class Forecast:
    """A callback that says once how long a run by steps takes here, by its first steps."""

    start: tuple[int, float] | None = None  # step and seconds, after the first step
    said: bool = False

    def __call__(self, loop: Loop) -> None:
        if self.said:
            return
        if self.start is None:  # the first step prepares what the others use
            self.start = loop.step, loop.elapsed
            return
        steps, seconds = loop.step - self.start[0], loop.elapsed - self.start[1]
        if seconds < FORECAST_AFTER or steps <= 0:  # the run may have gone back
            return
        self.said = True
        left = (loop.budget.total_steps - loop.step) * seconds / steps
        if left > FORECAST_FROM:
            loop.progress.note(
                f"{loop.budget.total_steps} steps: about {rough_duration(left)} to go here, at "
                f"{number(steps / seconds)} steps a second; --minutes M ends by the clock"
            )

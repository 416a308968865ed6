"""What the user asks of a camera path, and what no scene could meet; needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nerfcli.core.errors import NerfError

NAMES = ("auto", "orbit", "spiral", "interpolate", "test")
UPS = ("+x", "-x", "+y", "-y", "+z", "-z", "image")
TARGETS = ("centre", "box", "subject")


@dataclass(frozen=True)
class PathRequest:
    """What the user asks of a path; None: as the cameras have it.

    Attributes:
        path: a name, or auto. up: an axis of the source (+z), or image.
        frames: their number. frame: the only one wanted, counted from 0. scale: of their size.
        target: x,y,z in source units, or one of TARGETS. distance, height: source units.
        turns: full turns of an orbit. start: azimuth of its first frame, degrees.
    """

    path: str = "auto"
    up: str | None = None
    frames: int | None = None
    frame: int | None = None
    scale: float = 1.0
    target: str | None = None
    distance: float | None = None
    height: float | None = None
    turns: float | None = None
    start: float | None = None

    @property
    def orbit_flags(self) -> list[str]:
        """The flags among them that only an orbit has."""
        names = ("target", "distance", "height", "turns", "start")
        return [f"--{name}" for name in names if getattr(self, name) is not None]

    def ensure_possible(self) -> None:
        """Raise NerfError for what no scene could meet."""
        path, up, frames = self.path, self.up, self.frames
        if path not in NAMES:
            raise NerfError(f"--path: unknown path {path!r}; known: {', '.join(NAMES)}.")
        if up is not None and up not in UPS:
            raise NerfError(f"--up: unknown direction {up!r}; known: {', '.join(UPS)}.")
        if up is not None and path == "test":
            raise NerfError("--up: --path test shows the held-out views as they are; leave it out.")
        if frames is not None and (frames < 1 or path == "test"):
            raise NerfError(
                "--frames: --path test has one frame for each held-out view; leave it out."
                if path == "test"
                else f"--frames must be at least 1, got {frames}."
            )
        if self.frame is not None and self.frame < 0:
            raise NerfError(f"--frame must be at least 0, got {self.frame}.")
        if not 0 < self.scale <= 16:
            raise NerfError(f"--scale must be above 0 and at most 16, got {self.scale}.")
        self._ensure_possible_orbit()

    def _ensure_possible_orbit(self) -> None:
        if self.orbit_flags and self.path not in ("auto", "orbit"):
            raise NerfError(
                f"{self.orbit_flags[0]} is of an orbit; leave it out, or give --path orbit."
            )
        for name in ("distance", "height", "turns", "start"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise NerfError(f"--{name} must be a finite number, got {number}.")
        if self.distance is not None and self.distance <= 0:
            raise NerfError(f"--distance must be above 0, got {self.distance}.")
        if self.distance is not None and self.height is not None:
            from nerfcli.cameras.orbit import ensure_height  # needs torch

            ensure_height(self.height, self.distance)
        if self.target is not None and self.target not in TARGETS:
            parse_point(self.target)


def parse_point(text: str) -> list[float]:
    """Read --target: three finite numbers with commas.

    Raises:
        NerfError: something else, which is no name of a target either.
    """
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise NerfError(
            f"--target: {text!r} is no point; give x,y,z in the scene's units, or one of "
            f"{', '.join(TARGETS)}."
        )
    return numbers

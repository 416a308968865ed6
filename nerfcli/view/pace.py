"""How many pixels a picture may have, from how fast the last ones came."""

from __future__ import annotations

FIRST_PIXELS = 64 * 48  # of the first picture of all: it also compiles and fills caches
LEAST_PIXELS = 48 * 36
MOST_GROWTH = 3.0  # of the rate from one measurement to the next: one of them may be wrong
SMOOTHING = 0.5  # of a new measurement


class Pace:
    """Rays a second as measured, without the first picture.

    Attributes:
        rate: rays a second; None: not measured yet.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self._is_warm = False

    def note(self, n_rays: int, seconds: float) -> None:
        """Take in what a band took."""
        if not self._is_warm:
            self._is_warm = True
            return
        found = n_rays / max(seconds, 1e-6)
        if self.rate is None:
            self.rate = found
            return
        found = min(max(found, self.rate / MOST_GROWTH), self.rate * MOST_GROWTH)
        self.rate += SMOOTHING * (found - self.rate)

    def pixels_in(self, seconds: float) -> float:
        """How many pixels so many seconds are enough for."""
        if self.rate is None:
            return FIRST_PIXELS
        return max(self.rate * seconds, LEAST_PIXELS)

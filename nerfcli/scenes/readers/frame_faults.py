"""Collect the frames of a scene that cannot be used: an error, or left out where that is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nerfcli.core.errors import NerfError

MOST_NAMED = 10


class FrameFaults:
    """What is wrong with single frames of a scene.

    Args:
        skip: leave such frames out (scene.skip_bad_frames).
    """

    def __init__(self, *, skip: bool = False) -> None:
        self.skip = skip
        self.faults: list[NerfError] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep the error of one frame for `finish`."""
        try:
            yield
        except NerfError as error:
            self.faults.append(error)

    def finish(self, n_good: int) -> list[str]:
        """Return a note for each frame that is left out, and begin anew.

        Raises:
            NerfError: frames are faulty and are not to be left out, or no good one is left.
        """
        faults, self.faults = self.faults, []
        if not faults:
            return []
        n, total = len(faults), n_good + len(faults)
        if n_good == 0:
            raise faults[0]
        if not self.skip:
            raise NerfError(
                f"{faults[0]} Of {total} frames {n} cannot be used; --skip-bad-frames leaves "
                f"{'it' if n == 1 else 'them'} out."
            ) from faults[0]
        notes = [f"left out: {fault}" for fault in faults[:MOST_NAMED]]
        if n > MOST_NAMED:
            notes.append(f"left out: {n - MOST_NAMED} more frames of {total}")
        return notes

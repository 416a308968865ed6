"""Collect the frames of a scene that cannot be used: an error, or left out where that is wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nerfcli.core.errors import NerfError
from nerfcli.scenes.source import Frame

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

    def leave_out_repeated(self, frames: Sequence[Frame], file: Path) -> list[Frame]:
        """Keep the frames whose image is theirs alone; the others are faulty, all of them."""
        counts = Counter(frame.name for frame in frames)
        for name, n in counts.items():
            if n > 1:
                error = NerfError(
                    f"{file} states the image {name} more than once, and which of the {n} cameras "
                    "took it is unknown. Photos of two memory cards can share a name: give each a "
                    "name of its own, on the disk and in the program."
                )
                self.faults += [error] * n
        return [frame for frame in frames if counts[frame.name] == 1]

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
        named = list(dict.fromkeys(faults))[:MOST_NAMED]
        notes = [f"left out: {fault}" for fault in named]
        more = sum(fault not in named for fault in faults)
        if more:
            notes.append(f"left out: {more} more frames of {total}")
        return notes

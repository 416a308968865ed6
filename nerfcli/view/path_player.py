"""Plays a film in a page, at its own speed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MOST_TICKS = 20.0  # a second; the page needs no more


class Player:
    """A thread that counts frames while it plays.

    Args:
        show: called with the index of each frame whose time has come; False: end. end: called
            after the last one, not after `stop`.
    """

    def __init__(self, show: Callable[[int], bool], end: Callable[[], None]) -> None:
        self.show, self.end = show, end
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def plays(self) -> bool:
        return self._thread is not None and not self._stop.is_set()

    def play(self, n_frames: int, fps: float, first: int, *, is_loop: bool) -> None:
        """Play from a frame on."""
        self.stop()
        self._stop = threading.Event()
        arguments = n_frames, fps, first, is_loop, self._stop
        self._thread = threading.Thread(
            target=self._run, args=arguments, name="player", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End; does not wait for the frame under way."""
        self._stop.set()

    def _run(
        self, n_frames: int, fps: float, first: int, is_loop: bool, stop: threading.Event
    ) -> None:
        begin = time.monotonic()
        while not stop.is_set():
            index = first + int((time.monotonic() - begin) * fps)
            if index >= n_frames and not is_loop:
                break
            if not self.show(index % n_frames):
                stop.set()
            stop.wait(1.0 / min(fps, MOST_TICKS))
        if not stop.is_set():
            stop.set()
            self.end()

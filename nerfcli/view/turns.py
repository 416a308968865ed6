"""Whose turn it is to compute: a band of a picture, or the next training step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

MEMORY = 1.0  # seconds: what pictures took beyond their share counts for so long, at most
FIRST_SHARE = 0.5
IDLE_SHARE = 0.015  # of a training's time, for all pages at rest together


class _Owner(Enum):
    NOBODY = 0
    PICTURE = 1
    TRAINING = 2


class Turns:
    """Renderers take turns, a band each. A training lets one band in between two of its steps.

    Attributes:
        share: of the time that pictures may take from a training, from 0 to 1.
    """

    def __init__(self, share: float = FIRST_SHARE) -> None:
        self.share = share
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._owner, self._trains = _Owner.NOBODY, False
        self._debt = 0.0  # seconds that pictures took beyond their share
        self._last = time.perf_counter()
        self._n_painters = 0

    @contextmanager
    def painting(self) -> Iterator[None]:
        """Count as one of those who paint; they share what pictures at rest may take."""
        with self._changed:
            self._n_painters += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_painters -= 1

    def rest_after(self, cost: float) -> float:
        """How long a picture at rest must stand before it is painted anew, seconds.

        Args:
            cost: seconds that it took.
        """
        with self._changed:
            return cost * self._n_painters / IDLE_SHARE if self._trains else 0.0

    @contextmanager
    def band(self) -> Iterator[None]:
        """Hold the turn for a band; those who came first go first."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: self._owner is _Owner.NOBODY and self._waiting[0] is me)
            self._waiting.popleft()
            self._owner = _Owner.PICTURE
        begin = time.perf_counter()
        try:
            yield
        finally:
            with self._changed:
                self._debt += time.perf_counter() - begin
                self._owner = _Owner.TRAINING if self._trains else _Owner.NOBODY
                self._changed.notify_all()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Keep the turn but for the bands that `give_way` lets in."""
        try:
            self._begin()
            yield
        finally:
            self._end()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within `training`: leave all turns to the pictures in the block."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    def give_way(self, settle: Callable[[], None] | None = None) -> bool:
        """Let one band in, if somebody waits and the pictures had less than their share.

        Args:
            settle: called before a band is let in.
        """
        with self._changed:
            now = time.perf_counter()
            self._debt = max(self._debt - self.share * (now - self._last), 0.0)
            self._debt, self._last = min(self._debt, MEMORY), now
            if not self._waiting or self._debt > 0.0:
                return False
            if settle is not None:
                settle()
            self._owner = _Owner.NOBODY
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._owner is _Owner.TRAINING)
            return True

    def _begin(self) -> None:
        with self._changed:
            self._trains = True  # a band under way hands over to it
            self._changed.wait_for(lambda: self._owner is not _Owner.PICTURE)
            self._owner = _Owner.TRAINING

    def _end(self) -> None:
        with self._changed:
            self._trains = False
            if self._owner is _Owner.TRAINING:  # else a signal broke in while a band has the turn
                self._owner = _Owner.NOBODY
            self._changed.notify_all()

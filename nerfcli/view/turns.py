"""Whose turn it is to compute: a band of a picture, or the next training step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

MEMORY = 1.0  # seconds: what pictures took beyond their share counts for so long, at most
FIRST_SHARE = 0.5


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
        with self._changed:
            self._trains = True  # a band under way hands over to it
            self._changed.wait_for(lambda: self._owner is not _Owner.PICTURE)
            self._owner = _Owner.TRAINING
        try:
            yield
        finally:
            with self._changed:
                self._trains, self._owner = False, _Owner.NOBODY
                self._changed.notify_all()

    def give_way(self) -> bool:
        """Let one band in, if somebody waits and the pictures had less than their share."""
        with self._changed:
            now = time.perf_counter()
            self._debt = max(self._debt - self.share * (now - self._last), 0.0)
            self._debt, self._last = min(self._debt, MEMORY), now
            if not self._waiting or self._debt > 0.0:
                return False
            self._owner = _Owner.NOBODY
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._owner is _Owner.TRAINING)
            return True

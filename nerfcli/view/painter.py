"""A page's pictures: coarse while its camera moves, then sharp, band by band.

One thread a page. Each new look has a number; a thread that finds a newer one between two bands
drops the rest of its picture.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nerfcli.core.devices import use_picked
from nerfcli.core.errors import NerfError
from nerfcli.view.bands import Aim, Band, aim, paint_rows
from nerfcli.view.look import Look, with_bars
from nerfcli.view.pace import Pace
from nerfcli.view.sources import Cropped, Source

FRAME = 0.09  # seconds of a picture while the camera moves: ten a second, with the way to the page
BAND = 0.07  # seconds of a band at rest
REST = 0.15  # seconds without a new look that are rest
SHOWN_EVERY = 0.4  # seconds between unfinished pictures
SLOW = 4.0  # seconds: where a sharp picture takes longer, one of MIDDLE seconds comes before it
MIDDLE = 1.0
EDGE = 2  # pixels of the line between two runs
NEAR = np.full((2, 2), 0.02, np.float32)  # depth of a picture that hides all lines
FRESH = 0.5  # seconds at rest, at least, after which a field that changed is painted anew
GOODBYE = 5.0  # seconds that the band under way gets at the end


@dataclass(frozen=True, eq=False)
class Picture:
    """What goes to the page.

    Attributes:
        colors: [height, width, 3] uint8.
        depth: [height, width] float32 along the optical axis, scene units; None: not wanted.
        is_final: whether it is as sharp as it gets.
    """

    colors: np.ndarray
    depth: np.ndarray | None
    is_final: bool


class Painter:
    """Paints a page's looks in a thread of its own.

    Args:
        sources: one, or two to compare.
        show: gives a picture to the page. fail: tells the page what went wrong.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        show: Callable[[Picture], None],
        fail: Callable[[str], None],
    ) -> None:
        self.sources, self.show, self.fail = sources, show, fail
        self.moving, self.resting = Pace(), Pace()
        self._cropped = [Cropped(source) for source in sources]
        self._changed = threading.Condition()
        self._look: Look | None = None
        self._number = 0
        self._is_open = True
        self._cost = 0.0  # seconds of the last picture at rest, with its way to the page
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)

    @property
    def is_open(self) -> bool:
        return self._is_open

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the band under way."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the end."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(GOODBYE)

    def look_at(self, look: Look) -> None:
        """Paint this from now on; what is under way is dropped."""
        with self._changed:
            self._look, self._number = look, self._number + 1
            self._changed.notify_all()

    def _is_current(self, number: int) -> bool:
        return self._is_open and self._number == number

    def _versions(self) -> list[int]:
        return [source.version for source in self.sources]

    def _may_refresh(self, since: float) -> bool:
        """Whether a picture at rest, which stands since then, is old enough to be painted anew."""
        rests = (source.turns.rest_after(self._cost) for source in self.sources)
        return time.perf_counter() - since >= max(rests)

    def _run(self) -> None:
        use_picked()
        with ExitStack() as counted:
            for turns in {id(source.turns): source.turns for source in self.sources}.values():
                counted.enter_context(turns.painting())
            self._paint_all()

    def _paint_all(self) -> None:
        done, seen, since = 0, self._versions(), 0.0
        while True:
            with self._changed:
                if self._is_open and self._number == done:
                    self._changed.wait(FRESH)
                if not self._is_open:
                    return
                is_new, number, look = self._number != done, self._number, self._look
            if look is None:
                continue
            if not is_new and (self._versions() == seen or not self._may_refresh(since)):
                continue
            done, seen = number, self._versions()
            try:
                self._paint(look, number, moves=is_new)
            except Exception as error:  # the server lives on, whatever a renderer says
                told = str(error) if isinstance(error, NerfError) else repr(error)
                with suppress(Exception):  # the page may be gone
                    self.fail(told)
            since = time.perf_counter()

    def _paint(self, look: Look, number: int, *, moves: bool) -> None:
        """Paint a look: at once and coarse if the camera moves, then sharp if it rests."""
        self._cost = 0.0
        if moves:
            begin = time.perf_counter()
            coarse = look.sized(self.moving.pixels_in(FRAME))
            canvas = Canvas(coarse)
            self._paint_band(coarse, canvas, 0, coarse.size[1])
            self._deliver(canvas, is_final=coarse is look)
            self.moving.note(area(coarse), time.perf_counter() - begin)  # packed for the page, too
            if coarse is look:
                return
            with self._changed:
                if self._changed.wait_for(lambda: not self._is_current(number), timeout=REST):
                    return
            if area(look) > self.resting.pixels_in(SLOW):
                middle = look.sized(self.resting.pixels_in(MIDDLE))
                canvas = canvas.enlarged(middle)
                if not self._fill(middle, canvas, number, moves=True):
                    return
                self._deliver(canvas, is_final=False)
            canvas = canvas.enlarged(look)
        else:
            canvas = Canvas(look)
        self._cost = 0.0  # the next one at rest has no coarse one before it
        if self._fill(look, canvas, number, moves=moves):
            self._deliver(canvas, is_final=True)

    def _fill(self, look: Look, canvas: Canvas, number: int, *, moves: bool) -> bool:
        """Paint all bands; False: there is a newer look."""
        (width, height), row, last = look.size, 0, time.perf_counter()
        while row < height:
            if not self._is_current(number):
                return False
            n_rows = max(1, round(self.resting.pixels_in(BAND) / width))
            stop = min(row + n_rows, height)
            self._paint_band(look, canvas, row, stop)
            row, now = stop, time.perf_counter()
            if moves and row < height and now - last > SHOWN_EVERY:
                self._deliver(canvas, is_final=False)
                last = now
        return True

    def _deliver(self, canvas: Canvas, *, is_final: bool) -> None:
        begin = time.perf_counter()
        picture = canvas.picture(is_final=is_final)
        if len(self.sources) == 2 and canvas.page_size is None:
            draw_edge(picture.colors, canvas.split)
        self.show(picture)
        self._cost += time.perf_counter() - begin

    def _paint_band(self, look: Look, canvas: Canvas, start: int, stop: int) -> None:
        width = look.size[0]
        parts = [(0, width)]
        if len(self.sources) == 2:
            cut = min(max(round(look.split * width), 0), width)
            parts = [(0, cut), (cut, width)]
        for cropped, columns in zip(self._cropped, parts, strict=True):
            source = cropped.source
            if columns[0] == columns[1]:
                continue
            with source.turns.band():
                begin = time.perf_counter()
                try:
                    model = cropped.model(look.crop)
                    if source not in canvas.aims:
                        canvas.aims[source] = aim(model, look, self.sources[0].scene)
                    aimed = canvas.aims[source]
                    canvas.take(paint_rows(model, look, aimed, (start, stop), columns))
                finally:  # one that failed took its time, too
                    took = time.perf_counter() - begin
                    self._cost += took
            self.resting.note((stop - start) * (columns[1] - columns[0]), took)


def area(look: Look) -> int:
    """How many pixels it has."""
    return look.size[0] * look.size[1]


def draw_edge(colors: np.ndarray, split: float) -> None:
    """Draw the line between two runs onto a picture [height, width, 3], if it is wide enough."""
    width = colors.shape[1]
    cut = round(split * width)
    if width >= 100 and 0 < cut < width:
        colors[:, cut : cut + EDGE] = 255
        colors[:, max(cut - EDGE, 0) : cut] = 0


class Canvas:
    """The pixels of a picture under way."""

    def __init__(self, look: Look) -> None:
        width, height = look.size
        self.page_size, self.split = look.page_size, look.split
        self.colors = np.zeros((height, width, 3), np.uint8)
        self.depth = np.zeros((height, width), np.float32) if look.with_depth else None
        self.aims: dict[Source, Aim] = {}

    def take(self, band: Band) -> None:
        """Put a band where it belongs."""
        (top, bottom), (left, right) = band.rows, band.columns
        self.colors[top:bottom, left:right] = band.colors
        if self.depth is not None and band.depth is not None:
            self.depth[top:bottom, left:right] = band.depth

    def enlarged(self, look: Look) -> Canvas:
        """A canvas for a larger picture, with this one's stretched over it."""
        canvas = Canvas(look)
        image = Image.fromarray(self.colors).resize(look.size, Image.Resampling.BILINEAR)
        canvas.colors = np.array(image)
        if self.depth is not None:
            near = Image.fromarray(self.depth).resize(look.size, Image.Resampling.NEAREST)
            canvas.depth = np.array(near)
        return canvas

    def picture(self, *, is_final: bool) -> Picture:
        if self.page_size is not None:
            return Picture(with_bars(self.colors, self.page_size), NEAR, is_final)
        depth = None if self.depth is None else self.depth.copy()
        return Picture(self.colors.copy(), depth, is_final)

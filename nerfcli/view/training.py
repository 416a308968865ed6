"""A run that is training, as a viewer's source, and what its pages may ask of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nerfcli.core.errors import CannotWrite
from nerfcli.engine.loop import Loop
from nerfcli.engine.render import Model
from nerfcli.engine.runs import Run
from nerfcli.scenes import Scene
from nerfcli.view.turns import Turns

LOOK_EVERY = 0.1  # seconds between looks for a signal while a training is paused
MOST_POINTS = 400  # of a curve
ENDED_BY = "viewer"  # in the summary of a run that a page ended


@dataclass
class Curves:
    """PSNR on training rays and loss over steps: few points, evenly spread.

    Attributes:
        points: step, PSNR in dB, loss. stride: of the rows, every how many-th is kept.
    """

    points: list[tuple[int, float, float]] = field(default_factory=list)
    stride: int = 1
    _n_rows: int = 0

    def add(self, row: dict) -> None:
        """Take a row of metrics.jsonl. What lies beyond its step is forgotten: a run went back."""
        while self.points and self.points[-1][0] >= row["step"]:
            self.points = self.points[:-1]
        if self._n_rows % self.stride == 0:
            # a new list: a page may be reading the old one
            self.points = [*self.points, (row["step"], row["psnr"], row["loss"])]
        self._n_rows += 1
        if len(self.points) > MOST_POINTS:
            self.points, self.stride = self.points[::2], 2 * self.stride


class TrainingSource:
    """The field of a loop as it is between two steps.

    `after_step` is the loop's last callback; the loop goes on within `turns.training()`. It is
    there that bands get their turns, so a model is made between two steps only, of whatever trainer
    the loop has by then.

    On a GPU the steps, graph replays too, and the bands are launched from two threads on the one
    default stream, as neither sets another. The device takes them in the order in which they were
    launched: a band sees a whole step, and the next one waits for it. A band ends with a copy to
    the host. Only while a graph is captured must no other thread touch the device; that is within a
    step, when no band has the turn.

    Attributes:
        scene: of the training, with its photos.
        stopped: whether a signal asks the training to end; it ends a pause.
        loop: None before the first step is done.
        version: of the field; grows with each step, also where a run goes back.
        saved: the step of the last checkpoint, or None.
    """

    def __init__(self, scene: Scene, turns: Turns, stopped: Callable[[], bool]) -> None:
        self.scene, self.turns, self.stopped = scene, turns, stopped
        self.loop: Loop | None = None
        self.version = 0
        self.curves = Curves()
        self._made: Model | None = None
        self._row: dict | None = None
        self._asked = threading.Condition()
        self._pauses = self._saves = self._ends = False

    @property
    def name(self) -> str:
        return self.scene.name if self.loop is None else self.loop.run.path.name

    @property
    def path(self) -> Path | None:
        return None if self.loop is None else self.loop.run.path

    def codes(self) -> Tensor | None:
        """The exposure codes as they are now, [n_cameras, 6]; None: none are learned."""
        trained = None if self.loop is None else getattr(self.loop.trainer, "codes", None)
        return None if trained is None else trained.codes

    @property
    def saved(self) -> int | None:
        return None if self.loop is None else self.loop.saved

    @property
    def is_paused(self) -> bool:
        return self._pauses

    def model(self) -> Model:
        if self._made is None:
            assert self.loop is not None  # there is no band before the first step
            self._made = Model.of(self.loop.trainer)
        return self._made

    def pause(self, on: bool) -> None:
        """Pause the training, or let it go on."""
        with self._asked:
            self._pauses = on
            self._asked.notify_all()

    def save(self) -> None:
        """Ask for a checkpoint after the step under way."""
        with self._asked:
            self._saves = True
            self._asked.notify_all()

    def end(self) -> None:
        """Ask the training to end after the step under way, saved."""
        with self._asked:
            self._ends = True
            self._asked.notify_all()

    def after_step(self, loop: Loop) -> None:
        """Do what the pages asked for, and let a band in."""
        if self.loop is None:
            self._take_history(loop.run, loop.step)
        self.loop, self._made = loop, None
        self.version += 1
        if loop.row is not None and loop.row is not self._row:
            self._row = loop.row
            self.curves.add(loop.row)
        self._obey(loop)
        self.turns.give_way(self._settle)

    def _obey(self, loop: Loop) -> None:
        told = False
        while not self._ends:
            if self._saves:
                self._saves = False
                self._save(loop)
            if not self._pauses or self.stopped():
                return
            if not told:
                told = True
                loop.progress.note("paused by the viewer; Ctrl-C saves and ends")
            with loop.clock.paused(), self.turns.paused(), self._asked:
                while not (self._is_asked() or self.stopped()):
                    self._asked.wait(LOOK_EVERY)
        loop.asked_to_end = ENDED_BY

    def _is_asked(self) -> bool:
        return self._ends or self._saves or not self._pauses

    def _save(self, loop: Loop) -> None:
        try:
            if loop.saved != loop.step:
                loop.save()
        except CannotWrite as error:
            loop.go_on_unsaved(error)

    def _settle(self) -> None:
        """Let the steps finish that a GPU has in its queue: a band is to pay for itself alone."""
        assert self.loop is not None
        device = self.loop.trainer.device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()

    def _take_history(self, run: Run, step: int) -> None:
        """Take the curves of the earlier parts of a resumed run."""
        try:
            lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return
        for line in lines:
            try:
                row = json.loads(line)
                if row["step"] < step:
                    self.curves.add(row)
            except (ValueError, KeyError, TypeError):  # a line that a crash tore
                continue

"""`train --log tensorboard`: what metrics.jsonl has, and a view now and then, for TensorBoard."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nerfcli.core.devices import memory_errors
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import missing
from nerfcli.engine.render import Model, as_image, render_image, to_uint8

if TYPE_CHECKING:
    from nerfcli.engine.loop import Loop

FOLDER = "tensorboard"
WIDEST = 160  # pixels of the longer side of a picture
FIRST_PICTURE = 2.0  # seconds of training before the first one
FLUSH_SECONDS = 10
MOST_PICTURING = 0.005  # of the time, at most, goes into pictures


@dataclass
class TensorBoard:
    """A callback that writes scalars and pictures into RUN/tensorboard.

    A run that is resumed, or that goes back to its checkpoint, begins a file that takes back the
    steps which are taken again. Where the disk refuses, the training goes on without it.

    Attributes:
        due: seconds of training from which the next picture is due.
        last: the step of the last call.

    Raises:
        NerfError: the package tensorboard is not installed.
    """

    due: float | None = None
    last: int | None = None
    _create: Any = None
    _writer: Any = None
    _is_over: bool = False

    def __post_init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing("tensorboard", "--log tensorboard") from error
        self._create = SummaryWriter

    def __call__(self, loop: Loop) -> None:
        if self._is_over:
            return
        try:
            with memory_errors("drawing a picture", "leave --log tensorboard out"):
                self._write(loop)
        except (NerfError, MemoryError, OSError) as error:  # the training itself is sound
            self._is_over = True
            loop.progress.note(f"--log tensorboard ends here: {error or 'no memory'}")

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def _write(self, loop: Loop) -> None:
        if self.last is None or loop.step <= self.last:
            self._open(loop)
        self.last = loop.step
        if loop.row is not None and loop.row["step"] == loop.step:
            for name, value in scalars_of(loop.row).items():
                self._writer.add_scalar(name, value, loop.step)
        if self.due is None:
            self.due = loop.first_seconds + FIRST_PICTURE
        if loop.elapsed >= self.due:
            self._show(loop)
            now = loop.clock.elapsed()
            self.due = now + (now - loop.elapsed) / MOST_PICTURING

    def _open(self, loop: Loop) -> None:
        """Begin a file; what an earlier one has of this step and later ones no longer counts."""
        self.close()
        folder = str(loop.run.path / FOLDER)
        self._writer = self._create(folder, purge_step=loop.step, flush_secs=FLUSH_SECONDS)

    def _show(self, loop: Loop) -> None:
        scene = loop.trainer.scene
        held_out = scene.splits.get("test", ())
        split = "held_out" if held_out else "train"
        view = (held_out or scene.splits["train"])[0]
        name = f"{split}/{scene.names[view]}"
        model = Model.of(loop.trainer)
        cameras = scene.cameras[[view]]
        cameras = cameras.scaled(min(1.0, WIDEST / int(cameras.size.max())))
        image = as_image(render_image(model, cameras, 0).rgb, cameras, 0)
        self._writer.add_image(name, to_uint8(image), loop.step, dataformats="HWC")


def scalars_of(row: dict[str, Any]) -> dict[str, float]:
    """Name the numbers of a row of metrics.jsonl: loss, loss/<term>, train/<what else>."""
    scalars = {f"train/{k}": v for k, v in row.items() if k not in ("step", "terms", "loss")}
    terms = {f"loss/{name}": value for name, value in row["terms"].items()}
    return {"loss/total": row["loss"], **terms, **scalars}

"""The part of a page that shows a training and steers it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nerfcli.core.text import clock
from nerfcli.view.training import Curves, TrainingSource

if TYPE_CHECKING:
    import viser

    from nerfcli.view.page import Page

EVERY = 1.0  # seconds between updates
MOST_SHARE = 0.9
PAUSE, GO_ON = "Pause", "Go on"


@dataclass
class _Controls:
    """What of a page changes while it trains."""

    text: viser.GuiMarkdownHandle
    plots: dict[str, viser.GuiUplotHandle]
    pause: viser.GuiButtonHandle
    share: viser.GuiSliderHandle[float]
    shown: Any = None  # the point of the curves that was drawn last


class TrainingPanel:
    """Numbers, curves and buttons of a training, on every page; one thread keeps them new."""

    def __init__(self, source: TrainingSource) -> None:
        self.source = source
        self._pages: dict[Page, _Controls] = {}
        self._over = threading.Event()
        self._epilogue: str | None = None
        self._thread = threading.Thread(target=self._run, name="training panel", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, epilogue: str) -> None:
        """End, and leave these words on the pages."""
        self._epilogue = epilogue
        self._over.set()
        self._thread.join()
        self._update_all()

    def add_to(self, page: Page) -> None:
        """Make the controls of a page."""
        gui, source = page.client.gui, self.source
        with gui.add_folder("Training", order=-1.0):
            text = gui.add_markdown(describe(source))
            plots = {name: _add_plot(gui, name) for name in ("PSNR", "loss")}
            pause = gui.add_button(PAUSE, hint="The clock of the run stands still, too.")
            save = gui.add_button("Save now", hint="Write a checkpoint.")
            end = gui.add_button("Stop and save", color="red", hint="nerf train --resume goes on.")
            share = gui.add_slider("Share for pictures", 0.0, MOST_SHARE, 0.05, source.turns.share)
        controls = _Controls(text, plots, pause, share)

        @pause.on_click
        def _(_: Any) -> None:
            source.pause(not source.is_paused)
            self._update(controls)

        save.on_click(lambda _: source.save())

        @end.on_click
        def _(_: Any) -> None:
            source.end()

        @share.on_update
        def _(_: Any) -> None:
            source.turns.share = share.value

        self._pages[page] = controls
        self._update(controls)

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            self._update_all()

    def _update_all(self) -> None:
        for page, controls in list(self._pages.items()):
            try:
                if page.is_open:
                    self._update(controls)
                    continue
            except Exception:  # a page that goes away while it is updated: the others live on
                pass
            self._pages.pop(page, None)

    def _update(self, controls: _Controls) -> None:
        source = self.source
        _set(controls.text, "content", self._epilogue or describe(source))
        _set(controls.pause, "label", GO_ON if source.is_paused else PAUSE)
        _set(controls.share, "value", source.turns.share)
        points = source.curves.points
        if len(points) > 1 and points is not controls.shown:
            controls.shown = points
            for name, values in curves_of(source.curves).items():
                plot = controls.plots[name]
                plot.data, plot.visible = values, True


def describe(source: TrainingSource) -> str:
    """Say how far a training is, in Markdown."""
    loop = source.loop
    if loop is None:
        return "It begins."
    budget = loop.budget
    spent = clock(loop.elapsed)
    if budget.seconds:
        lines = [f"**Step {loop.step}**, {spent} of {clock(budget.seconds)}"]
    else:
        lines = [f"**Step {loop.step}** of {budget.total_steps}, {spent}"]
    if loop.shown:
        rate = loop.shown["rays_per_s"]
        lines.append(f"PSNR {loop.shown['psnr']:.2f} dB on training rays, {rate:,.0f} rays/s")
    if source.saved is not None:
        lines.append(f"saved at step {source.saved}")
    if source.is_paused:
        lines.append("*paused*")
    return "  \n".join(lines)


def curves_of(curves: Curves) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each curve."""
    steps, decibels, losses = np.array(curves.points, np.float64).T
    return {"PSNR": (steps, decibels), "loss": (steps, losses)}


def _add_plot(gui: viser.GuiApi, name: str) -> viser.GuiUplotHandle:
    from viser import uplot

    empty = np.zeros(0)
    y = uplot.Scale(auto=True, distr=3) if name == "loss" else uplot.Scale(auto=True)  # 3: log
    return gui.add_uplot(
        (empty, empty),
        (uplot.Series(label="step"), uplot.Series(label=name, stroke="#4682c8", width=2)),
        scales={"x": uplot.Scale(time=False, auto=True), "y": y},
        legend=uplot.Legend(show=False),
        title=f"{name}{' in dB' if name == 'PSNR' else ''} over steps",
        height=140,
        visible=False,
    )


def _set(handle: Any, name: str, value: Any) -> None:
    """Set what has changed; the rest need not go to the page again."""
    if getattr(handle, name) != value:
        setattr(handle, name, value)

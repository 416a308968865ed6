"""Controls that speak of training photos: which one `error` compares with, and its exposure."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from nerfcli.engine.pictures import ramp_colors
from nerfcli.engine.render import to_uint8
from nerfcli.methods.exposure import color_of
from nerfcli.view.bands import WORST

if TYPE_CHECKING:
    from nerfcli.view.page import Page

MEAN = "Mean of the photos"


def add_error_controls(page: Page) -> None:
    """Say which photo the error is against, and step from photo to photo."""
    gui = page.client.gui
    with page.folder:
        words = gui.add_markdown("", visible=False)
        bar = to_uint8(ramp_colors(np.linspace(0.0, 1.0, 256)))[None].repeat(12, axis=0)
        legend = gui.add_image(bar, visible=False)
        step = gui.add_button_group("Photo", ("Previous", "Next"), visible=False)

    def show() -> None:
        camera = page.wish.camera
        is_shown = page.wish.mode == "error" and camera is not None
        if is_shown and camera is not None:
            words.content = (
                f"Against {_short(page.scene.names[camera])}. Dark is no error, bright is "
                f"{WORST:.0%} or more (mean of R, G, B)."
            )
        for handle in (words, legend, step):
            handle.visible = is_shown

    @step.on_click
    def _(_: Any) -> None:
        known, camera = page.cameras_with_photos(), page.wish.camera
        if camera in known:
            by = 1 if step.value == "Next" else -1
            page.change(camera=known[(known.index(camera) + by) % len(known)], film=None)

    page.watchers.append(show)
    show()  # the mode may have been chosen before these controls were made


def add_exposure(page: Page) -> None:
    """Let the colours be those of a photo, where the run learned how photos differ."""
    codes = page.sources[0].codes()
    if codes is None:
        return
    trained = page.scene.splits["train"]
    shown = {f"{n}: {_short(page.scene.names[i])}": i for n, i in enumerate(trained, 1)}
    with page.folder:
        menu = page.client.gui.add_dropdown("As in", (MEAN, *shown))

    @menu.on_update
    def _(_: Any) -> None:
        index, latest = shown.get(menu.value), page.sources[0].codes()
        if index is None or latest is None:
            page.change(color=None)
        else:
            page.change(color=color_of(latest[[index]].detach().cpu()))


def _short(name: str) -> str:
    return PurePath(name).name

"""The crop box: handles in the picture, sliders for its size, a file for `--crop`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from nerfcli.cameras.crop import Crop
from nerfcli.engine.crop import crop_text, moved
from nerfcli.scenes import Scene
from nerfcli.view.page import rotation_of
from nerfcli.view.save_controls import SaveControls
from nerfcli.view.scenery import CORNERS, EDGES, LINE

if TYPE_CHECKING:
    from nerfcli.view.page import Page

LARGEST = 3.0  # sides of the scene's box
COLOR = (220, 60, 120)


def crop_of(scene: Scene, center: Any, wxyz: Any, size: Any) -> Crop:
    """The crop, in source units, of a box in the page.

    Args:
        center: [3], scene space. wxyz: its rotation. size: [3], source units.
    """
    by = scene.scene_from_source
    x, y, z = (float(v) for v in center)
    a, b, c = (float(v) * by.scale / 2.0 for v in size)
    rotation = tuple(rotation_of(wxyz).reshape(-1).tolist())
    return moved(Crop((x, y, z), (a, b, c), rotation), by.inverse())


def slider_numbers(side: float) -> tuple[float, float, float]:
    """Step, first value and largest of the sliders of a box's size, with few digits."""
    digits = 2 - math.floor(math.log10(side))
    step = 10.0**-digits
    first, most = (round(math.ceil(k * side / step) * step, digits) for k in (1.0, LARGEST))
    return step, first, most


def add_crop_box(page: Page) -> None:
    """Cut what is shown to a box that the user sets; it begins as the scene's own."""
    scene, gui, nodes = page.scene, page.client.gui, page.client.scene
    units = scene.scene_from_source.scale
    step, first, most = slider_numbers(2.0 * scene.box.half_size / units)
    size = [first] * 3
    handles = nodes.add_transform_controls(
        "/crop",
        scale=0.7 * scene.box.half_size,
        depth_test=False,
        position=scene.box.center,
        visible=False,
    )
    edges = np.array([[CORNERS[i], CORNERS[j]] for i, j in EDGES], np.float32)

    def corners() -> np.ndarray:
        return edges * np.array(size, np.float32) * units / 2.0

    how: Any = {"thickness": LINE, "thickness_units": "screen"}
    lines = nodes.add_line_segments("/crop/edges", corners(), COLOR, **how)
    with gui.add_folder("Crop box", expand_by_default=False):
        is_on = gui.add_checkbox("Crop", False)
        sliders = [
            gui.add_slider(
                f"Size {axis}",
                min=step,
                max=most,
                step=step,
                initial_value=first,
            )
            for axis in "xyz"
        ]
        reset = gui.add_button("Reset")
        SaveControls(page, "crops", "crop", lambda: crop_text(crop()), _commands)

    def crop() -> Crop:
        return crop_of(scene, handles.position, handles.wxyz, size)

    def apply(_: Any = None) -> None:
        size[:] = [slider.value for slider in sliders]
        lines.points = corners()
        handles.visible = is_on.value
        wanted = crop() if is_on.value else None
        if wanted != page.wish.crop:
            page.change(crop=wanted)

    @reset.on_click
    def _(_: Any) -> None:
        handles.position, handles.wxyz = scene.box.center, (1.0, 0.0, 0.0, 0.0)
        for slider in sliders:
            slider.value = first
        apply()

    for handle in (is_on, *sliders, handles):
        handle.on_update(apply)


def _commands(run: str, file: str) -> str:
    return f"nerf render {run} --crop {file}\nnerf export {run} --crop {file}"

"""One small picture of a run, soon: for a terminal."""

from __future__ import annotations

import time

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.core.errors import NerfError
from nerfcli.engine.render import Model, as_image, load_model, render_rays, to_uint8
from nerfcli.engine.run_folders import STATE
from nerfcli.engine.runs import Run

BAND = 4096  # rays between two looks at the clock


def render_small(
    model: Model, cameras: Cameras, longest: int, within: float | None = None
) -> np.ndarray | None:
    """Render the first camera, at most `longest` pixels a side. -> [height, width, 3] uint8

    within: seconds; None is returned where they do not suffice. None: however long it takes.
    """
    cameras = cameras[[0]]
    cameras = cameras.scaled(min(1.0, longest / int(cameras.size.max())))
    rays = cameras.image_rays(0, model.device, model.field.needs_radii)
    parts, start = [], time.monotonic()
    for first in range(0, len(rays), BAND):
        if within is not None and time.monotonic() - start > within:
            return None
        parts.append(render_rays(model, rays[first : first + BAND]).rgb)
    return to_uint8(as_image(torch.cat(parts), cameras, 0))


def glance(run: Run, longest: int, within: float) -> np.ndarray | None:
    """Show what a run has learned: its newest picture, or a small rendering of its first view.

    Args:
        longest: pixels of the longer side. within: seconds for a rendering.

    Returns:
        [height, width, 3] uint8; None where neither can be had in that time.
    """
    try:
        picture = newest_picture(run)
        if picture is not None:
            return picture
        model = load_model(run, "auto", "cpu")  # a GPU takes longer to start
        views = model.scene.splits.get("test") or model.scene.splits["train"]
        return render_small(model, model.scene.cameras[[views[0]]], longest, within)
    except (NerfError, OSError, RuntimeError, MemoryError, ValueError):  # it is an ornament
        return None


def newest_picture(run: Run) -> np.ndarray | None:
    """The newest frame among a run's renders, if no checkpoint was written after it."""
    from PIL import Image

    files = [*run.renders.glob("*.png"), *run.renders.glob("*.jpg")]
    newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
    written = (run.path / STATE).stat().st_mtime_ns
    if newest is None or newest.stat().st_mtime_ns < written:
        return None
    with Image.open(newest) as image:
        return np.asarray(image.convert("RGB"))

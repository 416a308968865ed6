"""What rendering will cost: a few bands of rays of the cameras are timed."""

from __future__ import annotations

import time

import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity, roughly
from nerfcli.engine.path_request import N_FRAMES
from nerfcli.engine.render import Model, load_model, render_rays
from nerfcli.engine.runs import Run

PREVIEW_AFTER = 60.0  # seconds of a render above which a smaller one is offered
PREVIEWS = (0.5, 0.25)  # scales
BANDS, FRAMES_A_BAND = 4, 8  # of neighbouring rays; a short path has fewer of them
SHUFFLE = 7  # has no factor in common with any number of bands
WARM_UP = 256  # rays before the clock runs: a first call allocates and loads


def estimate_seconds(model: Model, cameras: Cameras) -> float:
    """Estimate how long the images of `cameras` take to render, in seconds.

    The bands lie at different heights of images along the path, which see unlike parts of a
    scene. Encoding is not counted.
    """
    sizes = cameras.size.prod(-1)
    n_bands = max(1, min(BANDS, len(cameras) // FRAMES_A_BAND))
    seconds, n_rays = 0.0, 0
    for k in range(n_bands):
        camera = (2 * k + 1) * len(cameras) // (2 * n_bands)
        area = int(sizes[camera])
        length = min(model.field.rays_per_chunk, area)
        first = (area - length) * (2 * (SHUFFLE * k % n_bands) + 1) // (2 * n_bands)
        if k == 0:
            _render(model, cameras, camera, first, min(WARM_UP, length))
        start = time.perf_counter()
        _render(model, cameras, camera, first, length)
        seconds += time.perf_counter() - start
        n_rays += length
    return seconds / n_rays * int(sizes.sum())


def estimate_path(run: Run) -> float | None:
    """Estimate the seconds that N_FRAMES of a run's size take; None where it cannot be rendered.

    Nor where the memory is too small: it is asked for after a training, which must end well.
    """
    try:
        model = load_model(run, run.config.backend, run.config.device)
        views = list(model.scene.splits["train"])
        chosen = [views[i * len(views) // (2 * FRAMES_A_BAND)] for i in range(2 * FRAMES_A_BAND)]
        return N_FRAMES / len(chosen) * estimate_seconds(model, model.scene.cameras[chosen])
    except (NerfError, MemoryError, RuntimeError):  # torch's report of a full memory is the last
        return None


def preview_scale(seconds: float) -> float | None:
    """Choose a scale at which a render of `seconds` is short; None where it is short already."""
    if seconds <= PREVIEW_AFTER:
        return None
    return next((s for s in PREVIEWS if s * s * seconds <= 2 * PREVIEW_AFTER), PREVIEWS[-1])


def describe_views(cameras: Cameras, noun: str, seconds: float) -> str:
    """Say what is to be rendered and how long it takes: 7 views of 540x960, about 40 s."""
    width, height = cameras.size[0].tolist()
    return f"{quantity(len(cameras), noun)} of {width}x{height}, {roughly(seconds)}"


def _render(model: Model, cameras: Cameras, camera: int, first: int, length: int) -> None:
    """Render `length` rays of one camera from pixel `first` on, row after row, and wait."""
    width = int(cameras.size[camera, 0])
    index = torch.arange(first, first + length, device=model.device)
    pixels = torch.stack([torch.full_like(index, camera), index % width, index // width], dim=-1)
    seen = render_rays(model, cameras.rays(pixels, model.field.needs_radii))
    float(seen.opacity.sum())  # a GPU is done by then

"""What a trained field is worth on held-out views, from few of their pixels: `eval` takes all.

The pixels are those of the full images, so the estimate is of the same number as that of `eval`.
"""

from __future__ import annotations

import torch

from nerfcli.engine.image_metrics import psnr, round_to_8_bits
from nerfcli.engine.render import Model, render_rays
from nerfcli.scenes import Scene, load_views
from nerfcli.scenes.views import Views, over_background

MOST_VIEWS = 8
MOST_PIXELS = 4096  # of a view
# A ray takes a third of its time in training, or less, where it is only rendered: for a share of
# the rays that were trained, 5 % of the training time is never reached.
SHARE_OF_RAYS = 1 / 8


def estimate_held_out(model: Model, scene: Scene, n_trained: int) -> dict | None:
    """Estimate the mean PSNR of the held-out views; the same pixels whenever it is asked.

    Args:
        scene: with images.
        n_trained: rays of the whole training.

    Returns:
        psnr (None: each view is exact, or has no usable pixel), n_views that were looked at,
        n_held_out that there are, n_pixels of the view that gave most; None where no view is held
        out.

    Raises:
        NerfError: an image cannot be read, or the GPU's memory is full.
    """
    held_out = scene.splits.get("test", ())
    if not held_out:
        return None
    n_views = min(MOST_VIEWS, len(held_out))
    chosen = [held_out[(2 * i + 1) * len(held_out) // (2 * n_views)] for i in range(n_views)]
    limit = max(1, min(MOST_PIXELS, int(SHARE_OF_RAYS * n_trained) // n_views))
    generator = torch.Generator("cpu").manual_seed(0)
    scores, n_pixels = [], 0
    for index in chosen:
        views = load_views(scene, [index])
        n = min(limit, views.n_pixels)
        n_pixels = max(n_pixels, n)
        scores.append(_score(model, scene, views, n, generator) if n else None)
    known = [score for score in scores if score is not None]
    return {
        "psnr": round(sum(known) / len(known), 3) if known else None,
        "n_views": n_views,
        "n_held_out": len(held_out),
        "n_pixels": n_pixels,
    }


def _score(
    model: Model, scene: Scene, views: Views, n_pixels: int, generator: torch.Generator
) -> float | None:
    """PSNR of pixels spread over the one view in `views`; None where all are exact."""
    u = torch.rand(n_pixels, dtype=torch.float64, generator=generator)
    flat = views.draw((torch.arange(n_pixels) + u) / n_pixels)
    truth = over_background(views.colors(flat), model.background.cpu())
    rays = scene.cameras.rays(views.locate(flat).to(model.device), model.field.needs_radii)
    seen = render_rays(model, rays).rgb.cpu()
    decibels = psnr(*(round_to_8_bits(c.numpy())[None] for c in (seen, truth)))
    return decibels if decibels < float("inf") else None

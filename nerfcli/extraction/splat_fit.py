"""Fit splats to a field's renderings, and score them on held-out views.

Colours, opacities and sizes are fitted with Adam, a training view a step. Places and directions
stay: they are the field's surface.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.core.progress import Progress
from nerfcli.core.text import quantity
from nerfcli.engine.evaluate import read_photo
from nerfcli.engine.image_metrics import masked_psnr, round_to_8_bits
from nerfcli.engine.render import Model, as_image, render_image, render_rays
from nerfcli.extraction.splat_render import WINDOW, Gaussians, Window, render_splats, render_window
from nerfcli.extraction.splats import cameras_in_source
from nerfcli.reference.adam import AdamConfig, adam_step
from nerfcli.scenes.scene import Scene
from nerfcli.shapes.splat_files import Splats

RATES = {"harmonics": 0.01, "logits": 0.1, "log_scales": 0.02}
ADAM = AdamConfig(beta2=0.999)
MOST_SCORED = 24  # views
NEAR = 0.25  # of the scene's near: splats nearer to a camera are not drawn


def fit_splats(model: Model, splats: Splats, steps: int, seed: int, progress: Progress) -> Splats:
    """Bring the splats' views nearer to the field's, in `steps` steps.

    A step compares a window of at most WINDOW pixels of one training view.
    """
    scene = model.scene
    cameras, near = cameras_in_source(scene), near_in_source(scene)
    gaussians = Gaussians.of(splats)
    learned = {name: getattr(gaussians, name).requires_grad_() for name in RATES}
    moments = {name: torch.zeros(2, value.numel()) for name, value in learned.items()}
    rng = np.random.default_rng(seed)
    views = np.zeros(0, dtype=np.int64)
    for step in range(1, steps + 1):
        if not len(views):
            views = rng.permutation(scene.splits["train"])
        index, views = int(views[0]), views[1:]
        window = _draw_window(cameras, index, rng)
        rays = scene.cameras.rays(window.pixels(index), model.field.needs_radii)
        target = render_rays(model, rays).rgb.clamp(0.0, 1.0).clone()
        image = render_window(gaussians, cameras, index, window, model.background, near)
        error = (image - target).square().mean(dim=-1)
        error = error[_valid(cameras, index, window)]
        if not len(error):
            continue
        loss = error.mean()
        loss.backward()
        for name, value in learned.items():  # what the window does not show stays
            assert value.grad is not None
            flat, grad = value.detach().reshape(-1), value.grad.reshape(-1)
            m, v = moments[name]
            adam_step(flat, grad, m, v, ADAM, step=step, lr=RATES[name])
        progress.update(step, psnr=-10.0 * math.log10(max(loss.item(), 1e-10)))
    return replace(splats, **{name: value.detach().numpy() for name, value in learned.items()})


def score_splats(
    model: Model, splats: Splats, photos: Scene | None, progress: Progress
) -> dict[str, Any]:
    """Compare views that were not trained on; return PSNRs for the sidecar.

    photos: the scene with images; None: the field's renderings stand for them.
    """
    scene = model.scene
    split = next((name for name in ("test", "val", "train") if scene.splits.get(name)), "train")
    chosen = list(scene.splits[split])
    chosen = chosen[:: math.ceil(len(chosen) / MOST_SCORED)]
    cameras, near = cameras_in_source(scene), near_in_source(scene)
    gaussians = Gaussians.of(splats)
    rows: list[tuple[float, float, float]] = []
    for done, index in enumerate(chosen, start=1):
        rgb = render_splats(gaussians, cameras, index, model.background, near)
        image = round_to_8_bits(as_image(rgb, cameras, index))
        own = round_to_8_bits(
            as_image(render_image(model, scene.cameras, index).rgb, cameras, index)
        )
        if photos is None:
            valid = cameras.valid_pixels(index).reshape(own.shape[:2]).numpy()
            rows.append((masked_psnr(image, own, valid), math.nan, math.nan))
        else:
            photo, usable = read_photo(photos, index, model.background)
            scores = (masked_psnr(a, b, usable) for a, b in
                      ((image, own), (image, photo), (own, photo)))  # fmt: skip
            rows.append(tuple(scores))  # pyright: ignore[reportArgumentType]
        progress.update(done, total=len(chosen))
    to_field, psnr, field_psnr = (_mean(column) for column in zip(*rows, strict=True))
    return {
        "psnr": psnr,
        "field_psnr": field_psnr,
        "psnr_to_field": to_field,
        "scored_split": split,
        "scored_views": len(chosen),
    }


def describe_score(value: dict[str, Any]) -> str:
    """Say in one line how near the splats are, from the JSON value of the export."""
    views = quantity(value["scored_views"], f"{value['scored_split']} view")
    if value["psnr"] is None:
        return f"PSNR {_decibels(value['psnr_to_field'])} against the field's renderings of {views}"
    return (
        f"PSNR {_decibels(value['psnr'])} on {views}, the field's {_decibels(value['field_psnr'])}"
    )


def near_in_source(scene: Scene) -> float:
    return NEAR * scene.near / scene.scene_from_source.scale


def _draw_window(cameras: Cameras, index: int, rng: np.random.Generator) -> Window:
    """Choose the whole view, or a part of WINDOW pixels that is as square as fits."""
    width, height = cameras.size[index].tolist()
    wide = min(width, max(math.isqrt(WINDOW), WINDOW // height))
    high = min(height, WINDOW // wide)
    x, y = rng.integers(width - wide + 1), rng.integers(height - high + 1)
    return Window(int(x), int(y), int(x) + wide, int(y) + high)


def _valid(cameras: Cameras, index: int, window: Window) -> Tensor:
    """Whether the lens has a ray for each pixel of a window."""
    if cameras.lenses[index].is_pinhole:
        return torch.ones(window.n_pixels, dtype=torch.bool)
    width, height = cameras.size[index].tolist()
    valid = cameras.valid_pixels(index).reshape(height, width)
    return valid[window.y0 : window.y1, window.x0 : window.x1].reshape(-1)


def _mean(values: tuple[float, ...]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return round(sum(known) / len(known), 4) if known else None


def _decibels(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f} dB"

"""`eval`: held-out views against their photos, with the protocol written beside the numbers."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nerfcli.core.distributed import ALONE, World
from nerfcli.core.errors import NerfError
from nerfcli.core.files import write_json
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine.cost import describe_views, estimate_seconds
from nerfcli.engine.image_metrics import (
    SSIM_SIGMA,
    SSIM_WINDOW,
    fit_colors,
    masked_psnr,
    round_to_8_bits,
    ssim,
)
from nerfcli.engine.more_measures import MoreMeasures
from nerfcli.engine.render import Model, as_image, load_model, render_image, to_uint8
from nerfcli.engine.run_folders import score_file
from nerfcli.engine.runs import Run
from nerfcli.scenes import Scene, load_views
from nerfcli.scenes.blind import describe_blind_lenses, find_blind_lenses
from nerfcli.scenes.images import write_png
from nerfcli.scenes.views import over_background


@dataclass(frozen=True)
class ScoredView:
    """A view that was rendered and scored, for whoever shows it.

    Attributes:
        row: its name and scores. photo, image: [height, width, 3] in 8 bits, in [0, 1].
        usable: [height, width] bool, the pixels that are scored; None: all.
        depth: [height, width] along the ray, source units; 0 where nothing is hit.
        opacity: [height, width].
    """

    row: dict
    photo: np.ndarray
    image: np.ndarray
    usable: np.ndarray | None
    depth: np.ndarray
    opacity: np.ndarray


See = Callable[[ScoredView], None]


def evaluate(
    run: Run,
    scene: Scene,
    *,
    split: str = "test",
    save_images: bool = True,
    out: Path | None = None,
    backend: str = "auto",
    progress: Progress,
    stop: StopSignal | None = None,
    world: World = ALONE,
    more: MoreMeasures | None = None,
    see: See | None = None,
) -> dict:
    """PSNR, SSIM and `more` of every view of a split, and their means; writes `score_file`.

    A view that equals its photo has an infinite PSNR, which is null in JSON: `exact_views` counts
    these, and the mean is over the others.

    Args:
        scene: with images; its cameras are the run's.
        save_images: also write photo and rendering side by side, renders/<split>/<name>.png.
        out: a folder for all of that; None: the run.
        world: processes that share the views; the first one alone writes their scores.
        more: measures to take beside these.
        see: takes each view that this process scores, once it is; nothing keeps it afterwards.

    Raises:
        NerfError: the split is empty, or there is no readable checkpoint.
    """
    indices = scene.splits.get(split, ())
    if not indices:
        known = ", ".join(f"{name} ({len(views)})" for name, views in scene.splits.items())
        raise NerfError(f"scene {scene.name} has no {split!r} views; it has: {known}.")
    model = load_model(run, backend, run.config.device, progress.note)
    if more is None:
        more = MoreMeasures()
    else:
        more.load(model.device)
    progress.note(model.backend)
    views = scene.cameras[list(indices)]
    progress.note(describe_views(views, f"{split} view", estimate_seconds(model, views)))
    place = out or run.path
    folder = pairs_folder(place, split) if save_images else None
    start = time.perf_counter()
    rows, exposed = [], bool(run.config.train.exposure)
    own = indices[world.rank :: world.size]
    for done, index in enumerate(own, start=1):
        if stop is not None and stop.received:
            break
        rows.append(score_view(model, scene, index, folder, exposed, more, see))
        if missing := _unscored(rows[-1], scene, index):
            progress.note(missing)
        progress.update(min(done * world.size, len(indices)), psnr=rows[-1]["psnr"])
    rows = _of_all(rows, world)
    if stop is not None and not world.is_alone:
        stop.received = world.agree(0.0, [stop.received or 0])[1][0] or None
    keys = [*(["psnr_corrected"] if exposed else []), *more.keys]
    result = {
        "run": str(run.path),
        "step": run.step,
        "psnr": _mean([row["psnr"] for row in rows]),
        "ssim": _mean([row["ssim"] for row in rows]),
        **{key: _mean([row[key] for row in rows]) for key in keys},
        "n_views": len(rows),
        "exact_views": sum(row.get("exact", False) for row in rows),
        "seconds_per_view": round((time.perf_counter() - start) / max(len(rows), 1), 4),
        "protocol": protocol(model, split, exposed) | more.protocol(),
        "environment": environment(model),
        "views": rows,
    }
    if len(rows) == len(indices) and world.is_first:
        write_json(place / score_file(split), result)
    return result


def score_view(
    model: Model,
    scene: Scene,
    index: int,
    folder: Path | None,
    exposed: bool = False,
    more: MoreMeasures | None = None,
    see: See | None = None,
) -> dict:
    """One view: {name, psnr, ssim}, and exact where it is; the images go to `folder` and `see`.

    psnr is None where no pixel is usable, or the view is exact; ssim where no window is usable.

    Args:
        exposed: also give psnr_corrected, with the colours fitted to the photo.
        more: measures to take beside these.
    """
    reference, usable = read_photo(scene, index, model.background.cpu())
    pixels = render_image(model, scene.cameras, index)
    raw = as_image(pixels.rgb, scene.cameras, index)
    image = round_to_8_bits(raw)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_png(
            folder / pair_name(scene.names[index]),
            to_uint8(np.concatenate([reference, image], axis=1)),
        )
    decibels = masked_psnr(image, reference, usable)
    exact = {"exact": True} if decibels == math.inf else {}
    corrected = {}
    if exposed:
        fitted = fit_colors(image, reference, usable)
        corrected = {"psnr_corrected": _number(masked_psnr(fitted, reference, usable), 4)}
    row = {
        "name": scene.names[index],
        "psnr": _number(decibels, 4),
        **corrected,
        "ssim": _number(ssim(image, reference, usable), 5),
        **exact,
        **({} if more is None else more.score(raw, image, reference, usable)),
    }
    if see is not None:
        depth = as_image(pixels.depth, scene.cameras, index) / scene.scene_from_source.scale
        opacity = as_image(pixels.opacity, scene.cameras, index)
        see(ScoredView(row, reference, image, usable, depth, opacity))
    return row


def _of_all(rows: list[dict], world: World) -> list[dict]:
    """The rows of all processes, in the order of the views, which they take in turn."""
    parts = world.gather_objects(rows)
    most = max(map(len, parts))
    return [part[i] for i in range(most) for part in parts if i < len(part)]


def pairs_folder(place: Path, split: str) -> Path:
    """Where `evaluate` puts photo and rendering side by side."""
    return place / "renders" / split


def pair_name(name: str) -> str:
    """Name the file of photo and rendering side by side of the view `name`."""
    return Path(name).with_suffix("").as_posix().replace("/", "_") + ".png"


def reaches(result: dict, target: float) -> bool:
    """Whether the mean PSNR of `evaluate` is at least `target` decibels."""
    if result["psnr"] is None:  # every view is exact, or has no usable pixel
        return result["exact_views"] > 0
    return result["psnr"] >= target


def _unscored(row: dict, scene: Scene, index: int) -> str:
    """Say what a view cannot be scored by; empty if it has both numbers."""
    if row["psnr"] is None and not row.get("exact"):
        blind = find_blind_lenses(scene, [index])
        why = describe_blind_lenses(scene, blind) if blind else "all pixels are masked out"
        return f"{row['name']}: {why}; it has no PSNR and no SSIM"
    if row["ssim"] is None:
        window = f"{SSIM_WINDOW}x{SSIM_WINDOW}"
        return f"{row['name']}: no window of {window} usable pixels; it has no SSIM"
    if missing := row.get("missing"):
        return f"{row['name']}: " + "; ".join(f"no {key}: {why}" for key, why in missing.items())
    return ""


def read_photo(
    scene: Scene, index: int, background: torch.Tensor
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a photo over a background, in 8 bits [height, width, 3], and which pixels are scored."""
    views = load_views(scene, [index])
    truth = views.image(0).float() / 255.0
    shape = truth.shape[:2]
    truth = over_background(truth.reshape(-1, truth.shape[2]), background)
    reference = round_to_8_bits(truth.reshape(*shape, 3).numpy())
    if views.usable is None:
        return reference, None
    usable = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    usable[views.usable] = True
    return reference, usable.reshape(shape).numpy()


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(sum(known) / len(known), 4) if known else None


def _number(value: float, digits: int) -> float | None:
    """JSON has no nan or infinity: None stands for them."""
    return round(value, digits) if math.isfinite(value) else None


def protocol(model: Model, split: str, exposed: bool = False) -> dict:
    """Everything that another program must do alike to get the same numbers."""
    corrected = {}
    if exposed:
        corrected = {
            "exposure": "rendered with the mean of the photos' exposure codes",
            "psnr_corrected": "as psnr, after the gain and offset of each channel that bring the "
            "8-bit rendering nearest to its photo (least squares over the scored pixels), rounded "
            "to 8 bits again",
        }
    return {
        "split": split,
        "background": model.scene.background,
        "downscale": model.scene.downscale,
        "rounding": "8 bits",
        "psnr": "mean over views of -10 log10(MSE), range 1; exact views are left out",
        "ssim": f"Gaussian window {SSIM_WINDOW}x{SSIM_WINDOW}, sigma {SSIM_SIGMA}, range 1, "
        "mean over channels and the windows within the image that hold no masked pixel",
        **corrected,
        "masked_pixels": "not scored: masks, fisheye circle, limit of the lens",
    }


def environment(model: Model) -> dict:
    """What the numbers were computed with."""
    from nerfcli import __version__

    return {
        "nerf": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "backend": model.backend,
    }

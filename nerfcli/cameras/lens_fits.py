"""State a lens in the terms of another model: exactly where that is possible, else by a fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from nerfcli.cameras.intrinsics import Intrinsics, pixel_grid
from nerfcli.cameras.lens_models import BEND, MODELS
from nerfcli.cameras.lenses import Lens

GRID = 33  # points along each side of an image at which lenses are compared
WIDEST = math.radians(80.0)  # off the axis; in the plane, what is beyond would outweigh all else
MOST_TRIES = 100  # more only polishes parameters that nothing tells apart
ENOUGH = 0.05  # pixels: a model that is off by no more needs no further parameters
MOST_OFF = 0.05  # of the longer side, RMS: a fit beyond shows another scene
MOST_MISSED = 0.5  # of the pixels


@dataclass(frozen=True)
class Form:
    """A lens model as a file format holds it: those parameters that are not named are zero."""

    model: str
    names: tuple[str, ...] = ()

    @staticmethod
    def all_of(model: str) -> Form:
        """The form that holds every parameter."""
        return Form(model, MODELS[model].params)

    def lens(self, values: Sequence[float]) -> Lens:
        """The lens with these values of `names`."""
        return Lens.of(self.model, **dict(zip(self.names, values, strict=True)))


@dataclass(frozen=True)
class Fit:
    """A camera of another form, as near as it comes.

    Attributes:
        worst, rms: distance in pixels between the places where both see a direction.
        missed: share of the image's pixels that the new camera cannot see.
    """

    camera: Intrinsics
    worst: float
    rms: float
    missed: float

    @property
    def is_useless(self) -> bool:
        """Whether images would show next to nothing of what they show now."""
        return self.rms > MOST_OFF * max(self.camera.size) or self.missed > MOST_MISSED


def restate_lens(lens: Lens, form: Form) -> Lens | None:
    """State a lens exactly in another form; None where that is impossible."""
    if lens.is_pinhole or (lens.model in ("eucm", "fov") and lens.params[0] == 0):
        lens = Lens()
    old, new = MODELS[lens.model], MODELS[form.model]
    terms = {name: value for name, value in lens.named.items() if value}
    if not terms.keys() <= set(form.names):
        return None
    if lens.model != form.model:
        if not (_is_polynomial(lens.model) and _is_polynomial(form.model)):
            return None
        bend = terms.keys() & set(BEND)
        same_order = old.bends_last == new.bends_last or not bend or bend == terms.keys()
        if old.angular != new.angular or not same_order:
            return None
    return Lens(form.model, tuple(terms.get(name, 0.0) for name in new.params))


def fit_lenses(
    cameras: Sequence[Intrinsics],
    forms: Sequence[Form],
    done: Callable[[int, int], None] = lambda n, total: None,
) -> list[Fit]:
    """Fit cameras of one form to all cameras, by least squares over the pixels of their images.

    The form is the first that is off by no more than ENOUGH and sees every pixel, else the one that
    misses the fewest pixels, and of these the one that is off the least. Useless ones come last.
    The ratio of the focal lengths stays, and the principal point where the lens is round.

    Args:
        done: called with the number of fits so far, and how many they are at most.
    """
    best: tuple[tuple[bool, float, float], list[Fit]] | None = None
    for k, form in enumerate(forms):
        fits = []
        for camera in cameras:
            fits.append(_fit(camera, form))
            done(k * len(cameras) + len(fits), len(forms) * len(cameras))
        missed, worst = max(fit.missed for fit in fits), max(fit.worst for fit in fits)
        if worst <= ENOUGH and missed == 0:
            return fits
        score = any(fit.is_useless for fit in fits), round(missed, 2), worst
        if best is None or score < best[0]:
            best = score, fits
    assert best is not None
    return best[1]


@lru_cache(1 << 16)
def _fit(camera: Intrinsics, form: Form) -> Fit:
    from scipy.optimize import least_squares

    pixels = pixel_grid(camera.size, GRID)
    directions, valid = camera.directions(pixels)
    across = torch.hypot(directions[:, 0], directions[:, 1])
    angles = torch.atan2(across, directions[:, 2])
    angular = MODELS[form.model].angular
    used = valid if angular else valid & (angles < WIDEST)
    if not used.any():
        return Fit(_moved(camera, Lens()), 0.0, 0.0, 1.0)
    wanted = (pixels - torch.tensor(camera.principal, dtype=torch.float64))[used].numpy()
    away = torch.where(across > 1e-12, angles / across, 1.0) if angular else 1 / directions[:, 2]
    plane = (directions[:, :2] * away[:, None])[used]
    is_round = not any(camera.lens.named.get(name) for name in BEND)
    if is_round:
        form = Form(form.model, tuple(name for name in form.names if name not in BEND))
    n = len(form.names)

    def distances(values: np.ndarray) -> np.ndarray:
        seen = form.lens(values[1 : n + 1].tolist()).bend(plane).numpy()
        shift = 0.0 if is_round else values[n + 1 :]
        return (seen * values[0] * np.array(camera.focal) + shift - wanted).ravel()

    start = np.array([1.0] + [0.0] * (n if is_round else n + 2))
    found = least_squares(distances, start, x_scale="jac", xtol=1e-14, max_nfev=MOST_TRIES)
    scale, *rest = found.x.tolist()
    fitted = _moved(camera, form.lens(rest[:n]), scale, rest[n:] or (0.0, 0.0))
    off = torch.linalg.vector_norm(fitted.project(directions) - pixels, dim=-1)[used]
    seen = off[~off.isnan()]
    missed = 1 - len(seen) / int(valid.sum())
    if not len(seen):
        return Fit(fitted, 0.0, 0.0, 1.0)
    return Fit(fitted, float(seen.max()), float(seen.square().mean().sqrt()), missed)


def _is_polynomial(model: str) -> bool:
    return MODELS[model].closed is None and not MODELS[model].is_panorama


def _moved(
    camera: Intrinsics, lens: Lens, scale: float = 1.0, shift: Sequence[float] = (0.0, 0.0)
) -> Intrinsics:
    (fx, fy), (cx, cy) = camera.focal, camera.principal
    focal, principal = (scale * fx, scale * fy), (cx + shift[0], cy + shift[1])
    return Intrinsics(camera.size, focal, principal, lens)

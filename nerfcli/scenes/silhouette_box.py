"""Find the box of a cut-out object from its silhouettes, whatever its format says about a box."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import meeting_point
from nerfcli.scenes.alpha import SILHOUETTE_BORDER
from nerfcli.scenes.hull import (
    AGREED,
    LEAST_SHARE,
    Silhouettes,
    carve,
    contradict_each_other,
    count_views,
    count_votes,
    silhouettes_of,
)
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.views import Views

FEW = 0.1  # of the views: the far end of a silhouette's cone, rather than a part of the object
MOST_LARGER = 1.5  # than the detail cube of several: the cube around the hull has no finer one
REACHING, ROOM = 0.9, 1.25  # what this share of the views shows opaque, and room around it
LEAST_SINE = 0.25  # of the views' angles to a direction: else they do not show how far it goes
DIRECTIONS = 256  # in which an object may reach far


def silhouette_box(scene: Scene, views: Views, known: Silhouettes | None = None) -> Box | None:
    """Find the smallest cube that holds the object, with a margin on each side.

    It is that of the visual hull, or of few views, whose hull reaches far behind the object, that
    in which the hull is looked for. It follows from silhouettes and cameras alone, so that it is
    the same in every format. None if they do not belong together, or do not show where the object
    ends, or if the files state a smaller box.
    """
    if not views.has_alpha:
        return None
    silhouettes = known or silhouettes_of(scene, views)
    shown = _cube_around_silhouettes(silhouettes)
    whole = shown or Box(scene.box.center, scene.box.outer_half_size)
    if contradict_each_other(silhouettes, whole):
        return None
    votes, current = count_votes(silhouettes, whole), whole
    for resolution in (32, 64):  # the second pass is finer, within the cube of the first
        cells = carve(silhouettes, current, resolution, votes)
        n_seen, n_opaque = count_views(silhouettes, cells, current, resolution)
        cells = cells[(n_opaque >= max(FEW * len(silhouettes), 1)) & (n_opaque >= AGREED * n_seen)]
        if len(cells) < LEAST_SHARE * resolution**3:
            return None
        side = current.side / resolution
        low, high = cells.amin(0).double() - 1, cells.amax(0).double() + 2
        start = torch.tensor(current.center, dtype=torch.float64) - current.half_size
        half = side * float((high - low).max()) / 2
        if half >= current.half_size:
            continue
        current = Box(tuple((start + side * (low + high) / 2).tolist()), half)
    if shown is not None and not scene.box_is_stated:
        return current
    most = 1.0 if scene.box.n_cascades == 1 else MOST_LARGER
    return current if current.half_size < most * scene.box.half_size else None


def _cube_around_silhouettes(silhouettes: Silhouettes) -> Box | None:
    """Put a cube around the point where the views' silhouettes meet, as large as they show.

    None if they do not meet, do not show how far the object reaches away from the cameras, or are
    cut off by the images' borders.
    """
    shown = [s for s in silhouettes if len(s.outline)]
    if not shown or np.mean([s.border for s in shown]) > SILHOUETTE_BORDER:
        return None
    origins = torch.cat([s.camera.positions for s in shown])
    middles = normalize(torch.stack([s.outline.mean(0) for s in shown]), dim=-1)
    met = meeting_point(origins, middles)
    if met is None:
        return None
    center, _ = met
    # of each view, the largest distance between a ray and the centre
    reaches = [
        float(
            torch.linalg.cross((center - origin).expand_as(s.outline), s.outline).norm(dim=-1).max()
        )
        for s, origin in zip(shown, origins, strict=True)
    ]
    # a thin object shows only the sine of the angle between it and the ray
    cosines = normalize(center - origins, dim=-1) @ _sphere(DIRECTIONS).T
    sines = (1 - cosines**2).clamp(min=0).sqrt()
    least = float(torch.quantile(sines, REACHING, dim=0).min())
    if least < LEAST_SINE:
        return None
    return Box(tuple(center.tolist()), ROOM * float(np.quantile(reaches, REACHING)) / least)


def _sphere(n: int) -> Tensor:
    """Spread unit vectors evenly, [n, 3] float64 (Fibonacci's lattice)."""
    i = torch.arange(n, dtype=torch.float64)
    z, turn = 1 - (2 * i + 1) / n, math.pi * (3 - math.sqrt(5)) * i
    radius = (1 - z**2).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], dim=-1)

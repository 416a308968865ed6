"""Find out what a scene shows: an object alone, or a place, and how the cameras stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nerfcli.cameras.arrangement import arrangement_of
from nerfcli.core.errors import NerfError
from nerfcli.scenes.images import read_thumbnail
from nerfcli.scenes.scene import Scene

PLAIN_VIEWS, THUMBNAIL = 6, 64  # photos that are looked at, and pixels of their longer side
PLAIN_LEVELS, PLAIN_SHARE = 8, 0.8  # of 255 around one colour: this share of the photos' border


@dataclass(frozen=True)
class Capture:
    """What a scene shows.

    Attributes:
        kind: "object": nothing else is seen. Else a place, of which the photos show what lies
            behind, and how its cameras stand: see `Arrangement`.
        reason: why, in one line for the user.
    """

    kind: Literal["object", "around", "forward", "outward"]
    reason: str


def capture_of(scene: Scene) -> Capture:
    """Judge by alpha, by the borders of a few photos, and by the cameras.

    A scene that is read back from a run has no photos: what follows from this is to be decided
    and kept before.
    """
    if scene.has_alpha:
        return Capture("object", "the photos show an object on a transparent background")
    if has_plain_background(scene):
        return Capture("object", "the photos show an object on a plain background")
    arrangement = arrangement_of(scene.cameras)
    reason = f"the photos show what lies behind, and {arrangement.reason}"
    return Capture(arrangement.kind, reason + _describe_far_points(scene))


def faces_one_way(scene: Scene) -> bool:
    """Whether a scene is a place that all photos face from one side, as LLFF's are."""
    return capture_of(scene).kind == "forward"


def has_plain_background(scene: Scene) -> bool:
    """Whether the border of the photos has one colour; false where it cannot be told.

    Masks, the black around a fisheye's circle and unreadable photos do not tell.
    """
    with_image = [i for i in scene.splits.get("train", ()) if scene.image_paths[i] is not None]
    wide = any(lens.is_wide for lens in scene.cameras.lenses)
    if not with_image or wide or scene.crop_radius or scene.alpha_ignored or any(scene.mask_paths):
        return False
    chosen = np.linspace(0, len(with_image) - 1, min(PLAIN_VIEWS, len(with_image)), dtype=int)
    try:
        borders = [_border(scene.image_paths[with_image[i]]) for i in chosen]
    except NerfError:  # reading all photos names it
        return False
    border = np.concatenate(borders)
    away = np.abs(border - np.median(border, axis=0)).max(-1)
    return float((away <= PLAIN_LEVELS).mean()) >= PLAIN_SHARE


def _border(path: Path | None) -> np.ndarray:
    """Read the pixels along the border of a photo, [n, 3]."""
    assert path is not None
    pixels = read_thumbnail(path, THUMBNAIL).astype(np.int64)
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def _describe_far_points(scene: Scene) -> str:
    """Say how much of the sparse points lies beyond the detail cube; "" without points."""
    if scene.points is None:
        return ""
    center = scene.points.new_tensor(scene.box.center)
    reach = (scene.points - center).abs().amax(-1)
    share = float((reach > scene.box.half_size).float().mean())
    return f"; {share:.0%} of the sparse points lie beyond the detail cube"

"""How cameras stand to what they show: around it, facing one way, or looking outwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nerfcli.cameras.cameras import Cameras, common_focus

Array = np.ndarray
AIM = math.radians(35)  # of the optical axis: further off, a camera does not look at a point
LOOK_AT_IT = 0.75  # share of the cameras that must look at a focus
SAME_WAY = math.radians(20)  # of the mean direction: nearer, cameras face one way
SUBTENDED = math.radians(20)  # of the mean offset from the focus: wider, cameras stand around it
ADVANCE = 1.0  # spread along the common direction over that across it: above, it is a walk


@dataclass(frozen=True)
class Arrangement:
    """How the cameras of a capture stand.

    Attributes:
        kind: "around" a focus (a full circle or an arc), "forward" (all face one way, side by
            side), or "outward" (a walk, or cameras that look away from each other).
        reason: a clause for people.
        focus: [3], what the cameras look at, scene space; None where there is none.
        depth: median depth at which they see it; 0 without a focus.
    """

    kind: Literal["around", "forward", "outward"]
    reason: str
    focus: Array | None = None
    depth: float = 0.0


def arrangement_of(cameras: Cameras) -> Arrangement:
    """Tell how cameras stand, from their poses alone."""
    positions, forwards = cameras.positions.numpy(), cameras.forwards.numpy()
    if len(cameras) < 2:
        return Arrangement("forward", "there is one camera")
    mean = forwards.mean(0)
    mean = mean / max(float(np.linalg.norm(mean)), 1e-9)
    one_way = float(np.quantile(_angles(forwards, mean), 0.9)) < SAME_WAY
    found = common_focus(cameras)
    if found is not None:
        focus, depth = found[0].numpy(), found[1]
        offsets = positions - focus
        share = float((_angles(-offsets, forwards) < AIM).mean())
        if share >= LOOK_AT_IT:
            toward = offsets.mean(0)
            subtended = float(np.quantile(_angles(offsets, toward), 0.9))
            if one_way and subtended < SUBTENDED:
                return Arrangement("forward", "all cameras face one way", focus, depth)
            return Arrangement("around", "the cameras look at one place", focus, depth)
    if one_way and _advance(positions, mean) < ADVANCE:
        return Arrangement("forward", "all cameras face one way")
    if one_way:
        return Arrangement("outward", "the cameras move along the way they look")
    return Arrangement("outward", "the cameras look at no common place")


def _angles(a: Array, b: Array) -> Array:
    """Angles [n] between vectors [n, 3] and [n, 3] or [3]; a right angle for a zero vector."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.arccos(np.clip((a * b).sum(-1) / np.maximum(lengths, 1e-12), -1.0, 1.0))


def _advance(positions: Array, forward: Array) -> float:
    """Spread of positions along `forward` over their spread across it."""
    offsets = positions - positions.mean(0)
    along = offsets @ forward
    across = np.linalg.norm(offsets - along[:, None] * forward, axis=-1)
    return float(along.std() / max(np.sqrt((across**2).mean()), 1e-9))

"""The upward direction of a capture, and images that lie on their side.

A quarter turn k says which side of an image is up in the scene: 0 its top, 1 its right, 2 its
bottom, 3 its left. np.rot90(image, k) makes it stand upright.

People hold cameras level, in one of the four turns, mostly the same one. So up is the direction
that one edge of every image is square to. Where several directions fit, these decide, in this
order: floors and tables among the sparse points, that one turns a camera further than one tilts
it, that photos mostly stand upright, and that one looks down rather than up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rotations import mean_up

Array = np.ndarray
MOST_CAMERAS, MOST_POINTS = 200, 2000  # that are looked at
N_PAIRS = 80  # of cameras, whose edges are crossed for directions to try
ROLLED = math.radians(30)  # by more than this from a quarter turn, a camera says nothing
ODD_TURN = 0.5  # costs of what is rarer; a roll of ROLLED costs 1
LYING, UPSIDE_DOWN = 0.15, 0.4
TILTS, LOOKS_UP = 0.6, 0.1
FLOOR = 0.3
CLEAR = 0.05  # a second direction that costs less than this more is as likely
TOO_ROLLED = 0.5  # mean cost of roll above which the cameras do not agree on any direction
APART = math.cos(math.radians(45))


@dataclass(frozen=True)
class Upright:
    """Which way is up.

    Attributes:
        up: [3], unit length, scene space.
        turns: [n], the quarter turn of each camera's image.
        is_certain: False where another direction fits as well.
        reason: a clause for people.
    """

    up: Array
    turns: Array
    is_certain: bool
    reason: str


def find_upright(
    c2w: Array, points: Array | None = None, exif_turns: Array | None = None
) -> Upright:
    """Find the upward direction of a capture.

    Args:
        c2w: [n, 3, 4] OpenCV camera-to-world.
        points: [m, 3] sparse points in the same frame.
        exif_turns: [n] quarter turns that the photos' EXIF tags state; believed if any is not 0.
    """
    if exif_turns is not None and exif_turns.any():
        return Upright(fit_up(c2w, exif_turns), exif_turns, True, "EXIF tags turn the photos")
    some = c2w[:: math.ceil(len(c2w) / MOST_CAMERAS)]
    floor = None if points is None else find_floor(points, some)
    candidates = _list_candidates(some, floor)
    costs, rolls = _rate(some, candidates, floor)
    best = int(costs.argmin())
    if rolls[best] > TOO_ROLLED:
        up = fit_up(c2w, np.zeros(len(c2w), np.int64))
        return Upright(up, np.zeros(len(c2w), np.int64), False, "the cameras roll")
    up = candidates[best]
    for _ in range(2):
        turns = quarter_turns(c2w, up)
        up = fit_up(c2w, turns)
    turns = quarter_turns(c2w, up)
    rival = costs[candidates @ candidates[best] < APART].min(initial=math.inf)
    usual = int(np.bincount(turns, minlength=4).argmax())
    if usual == 0:
        told = _is_told(some, candidates, rolls, best) or floor is not None
        reason = "the cameras agree on it" if told else "as the photos stand"
        return Upright(up, turns, told, reason)
    is_certain = bool(rival - costs[best] > CLEAR)
    which = "upside down" if usual == 2 else "on their side"
    return Upright(up, turns, is_certain, f"the photos lie {which}")


def restrict(upright: Upright, chosen: list[int]) -> Upright:
    """The same for the chosen cameras."""
    return replace(upright, turns=upright.turns[chosen])


def up_along(c2w: Array, up: Array) -> Upright:
    """Take a stated upward direction [3], and find the quarter turns that go with it."""
    up = up / np.linalg.norm(up)
    return Upright(up, quarter_turns(c2w, up), True, "as stated")


def up_of_images(c2w: Array) -> Upright:
    """Take the images as they stand."""
    turns = np.zeros(len(c2w), np.int64)
    return Upright(fit_up(c2w, turns), turns, True, "as the photos stand")


def fit_up(c2w: Array, turns: Array) -> Array:
    """Fit the upward direction [3] to cameras whose images are turned by `turns` [n].

    It is square to the level edges of all images, whatever a camera's tilt. Where those are alike,
    as in a forward-facing capture, it is the mean of the images' own upward edges.
    """
    turned = _turn(c2w, turns)
    right, mean = turned[:, :, 0], mean_up(turned)
    weights, up = np.ones(len(right)), mean
    for _ in range(10):  # reweighted, so that some rolled cameras do not tilt the rest
        spread = (weights[:, None] * right).T @ right / weights.sum()
        up = np.linalg.eigh(spread + 0.02 * (np.eye(3) - np.outer(mean, mean)))[1][:, 0]
        up = up if up @ mean >= 0 else -up
        weights = 1.0 / (np.abs(right @ up) + 0.05)
    return up


def quarter_turns(c2w: Array, up: Array) -> Array:
    """The quarter turn [n] of each image under an upward direction [3].

    Cameras that look straight up or down have the most frequent one.
    """
    across, along = c2w[:, :, 0] @ up, -(c2w[:, :, 1] @ up)
    turns = np.round(np.arctan2(across, along) / (math.pi / 2)).astype(np.int64) % 4
    steep = np.hypot(across, along) < 0.3
    if (~steep).any():
        turns[steep] = np.bincount(turns[~steep], minlength=4).argmax()
    return turns


def straighten(cameras: Cameras, turns: Array) -> Cameras:
    """Turn cameras about their optical axes so that their images stand upright.

    Widths and heights change places where an image lay on its side. Lenses are not turned.
    """
    c2w = torch.from_numpy(_turn(cameras.c2w.numpy(), turns))
    k = torch.from_numpy(turns)[:, None]
    size, principal = cameras.size, cameras.principal
    x, y, (w, h) = principal[:, :1], principal[:, 1:], size.to(principal).split(1, dim=1)
    moved = torch.where(k == 0, torch.cat([x, y], 1), torch.cat([y, w - x], 1))
    moved = torch.where(k == 2, torch.cat([w - x, h - y], 1), moved)
    moved = torch.where(k == 3, torch.cat([h - y, x], 1), moved)
    lies = k % 2 == 1
    size = torch.where(lies, size.flip(1), size)
    focal = torch.where(lies, cameras.focal.flip(1), cameras.focal)
    return replace(cameras, c2w=c2w, focal=focal, principal=moved, size=size)


def find_floor(points: Array, c2w: Array) -> Array | None:
    """Find a floor or table: the plane that holds most points, if the cameras look along it.

    A plane that they face squarely may as well be a wall, and is none.

    Returns:
        Its normal [3] on the cameras' side, or None.
    """
    positions, forwards = c2w[:, :, 3], c2w[:, :, 2]
    points = points[np.isfinite(points).all(-1)].astype(np.float64)
    points = points[:: math.ceil(max(len(points), 1) / MOST_POINTS)]
    if len(points) < 50:
        return None
    middle = np.median(points, axis=0)
    size = float(np.median(np.linalg.norm(points - middle, axis=-1)))
    rng = np.random.default_rng(0)
    a, b, c = points[rng.integers(len(points), size=(3, 400))]
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = normals / np.maximum(lengths, 1e-12)
    near = np.abs(normals @ points.T - (normals * a).sum(-1)[:, None]) < 0.02 * size
    share = near.mean(-1) * (lengths[:, 0] > 1e-3 * size**2)
    best = int(share.argmax())
    if share[best] < 0.15:
        return None
    on_it = points[near[best]]
    center = on_it.mean(0)
    normal = np.linalg.svd(on_it - center, full_matrices=False)[2][2]
    sides = (positions - center) @ normal
    normal = normal if np.median(sides) >= 0 else -normal
    one_sided = float((np.sign(sides) == np.sign(np.median(sides))).mean()) > 0.95
    return normal if one_sided and abs(float((forwards @ normal).mean())) < 0.7 else None


def _turn(c2w: Array, turns: Array) -> Array:
    """Poses of the images turned by np.rot90(image, turns)."""
    right, down = c2w[:, :, 0], c2w[:, :, 1]
    cos, sin = (np.array(v)[turns][:, None] for v in ([1, 0, -1, 0], [0, 1, 0, -1]))
    turned = c2w.copy()
    turned[:, :, 0] = cos * right + sin * down
    turned[:, :, 1] = cos * down - sin * right
    return turned


def _list_candidates(c2w: Array, floor: Array | None) -> Array:
    """Directions to try [m, 3]: fits to uniform turns, and what pairs of image edges span."""
    n = len(c2w)
    found = [fit_up(c2w, np.full(n, k)) for k in range(4)]
    if floor is not None:
        found.append(floor)
    candidates = [np.array(found)]
    first, second = np.random.default_rng(0).integers(n, size=(2, N_PAIRS))
    for a in (0, 1):
        for b in (0, 1):
            across = np.cross(c2w[first, :, a], c2w[second, :, b])
            length = np.linalg.norm(across, axis=-1)
            across = across[length > 0.2] / length[length > 0.2, None]
            candidates += [across, -across]
    return np.concatenate(candidates)


def _rate(c2w: Array, candidates: Array, floor: Array | None) -> tuple[Array, Array]:
    """Cost of each candidate for up [m], and the part of it that is the cameras' roll [m]."""
    across, along = candidates @ c2w[:, :, 0].T, -(candidates @ c2w[:, :, 1].T)  # [m, n]
    angles = np.arctan2(across, along)[:, :, None] - math.pi / 2 * np.arange(4)
    angles = np.abs((angles + math.pi) % (2 * math.pi) - math.pi)
    weights = np.hypot(across, along)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)
    costs = np.minimum(angles / ROLLED, 1.0)  # [m, n, 4]
    usual = (weights[:, :, None] * costs).sum(1).argmin(-1)  # [m]
    odd = ODD_TURN * (np.arange(4) != usual[:, None])  # [m, 4]
    rolls = (weights * (costs + odd[:, None]).min(-1)).sum(-1)
    looks = candidates @ c2w[:, :, 2].T
    prior = np.array([0.0, LYING, UPSIDE_DOWN, LYING])[usual]
    total = rolls + prior + TILTS * looks.std(-1) + LOOKS_UP * looks.mean(-1)
    if floor is not None:
        total = total - FLOOR * (candidates @ floor > math.cos(math.radians(20)))
    return total, rolls


def _is_told(c2w: Array, candidates: Array, rolls: Array, best: int) -> bool:
    """Whether the cameras' roll alone rules out that all the photos lie on their side."""
    others = np.abs(candidates @ candidates[best]) < APART
    looks = candidates @ c2w[:, :, 2].T
    costs = rolls + TILTS * looks.std(-1)
    return bool(costs[others].min(initial=math.inf) - costs[best] > CLEAR)

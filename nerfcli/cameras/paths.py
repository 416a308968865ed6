"""Camera paths through a scene, fitted to the cameras that it was captured with.

azimuth: angle around `up`, elevation: angle above the plane across it, both seen from the focus,
the point that the cameras look at. All paths are of pinholes with the median intrinsics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rotations import look_at, mean_up, perpendicular
from nerfcli.cameras.splines import aim, catmull_rom, local_directions, rotation_spline

Array = np.ndarray
SURROUNDED = math.radians(120)  # a circle, where no gap between azimuths is wider than this
SWEEP_MARGIN = 0.9  # share of the covered azimuths that a sweep uses
SPIRAL_TURNS = 2
KEYFRAME_SPACING = 6  # frames of `interpolate` per camera that it passes
KEYFRAMES = 8  # at least: two cameras may look from opposite sides, with nothing between them


@dataclass(frozen=True)
class _Capture:
    """Cameras in spherical coordinates around what they look at.

    Attributes:
        focus: [3]. frame: [3, 3] columns: two axes across `up`, and `up`; azimuth 0 is the
            middle of the covered range.
        azimuths, elevations, radii: [n], radians and scene units.
        half_range: largest |azimuth|; the gap lies opposite.
        gap: widest range of azimuths without a camera.
    """

    focus: Array
    frame: Array
    azimuths: Array
    elevations: Array
    radii: Array
    half_range: float
    gap: float

    def positions(self, azimuths: Array, elevations: Array, radii: Array) -> Array:
        """Spherical coordinates [n] to scene points [n, 3]."""
        across = np.cos(elevations)
        local = np.stack(
            [across * np.cos(azimuths), across * np.sin(azimuths), np.sin(elevations)], axis=-1
        )
        return self.focus + (radii[:, None] * local) @ self.frame.T


def orbit(cameras: Cameras, box: Box, n_frames: int) -> Cameras:
    """A closed round about the focus, at the cameras' height and distance.

    A circle where the cameras surround the focus. Where they cover only an arc, a sweep there and
    back within it that follows their height and distance, so that it never looks from where
    nothing was seen. Where there is no focus, `spiral`, or `interpolate` if the cameras look
    outwards.

    Args:
        cameras: of the training views. box: of the scene, scene space.
    """
    capture = _capture(cameras)
    if capture is None:
        path = spiral if float(cameras.forwards.mean(0).norm()) > 0.8 else interpolate
        return path(cameras, box, n_frames)
    phase = 2 * math.pi * np.arange(n_frames) / n_frames
    if capture.gap < SURROUNDED:
        elevations = np.full(n_frames, _usual_elevation(capture.elevations))
        radii = np.full(n_frames, np.median(capture.radii))
        positions = capture.positions(phase, elevations, radii)
    else:
        azimuths = SWEEP_MARGIN * capture.half_range * np.sin(phase)
        elevations, spread = _local_mean(capture, capture.elevations, azimuths)
        radii, _ = _local_mean(capture, capture.radii, azimuths)
        # there and back on different heights, so that it is a round and not a swing
        positions = capture.positions(azimuths, elevations + 0.5 * spread * np.cos(phase), radii)
    return _path(cameras, look_at(positions, capture.focus, capture.frame[:, 2]))


def spiral(cameras: Cameras, box: Box, n_frames: int) -> Cameras:
    """The spiral of LLFF (Mildenhall et al. 2019), around the mean pose of the cameras.

    Its radii are the 90th percentiles of the cameras' offsets from the mean along its axes; it
    looks at the focus, or, without one, at the depth of the box's centre.
    """
    positions, up = cameras.positions.numpy(), _estimate_up(cameras)
    center = positions.mean(0)
    focus = common_focus(cameras)
    if focus is not None:
        target = focus[0].numpy()
    else:
        forward = cameras.forwards.mean(0).numpy()
        forward = forward / max(float(np.linalg.norm(forward)), 1e-9)
        depth = float((np.array(box.center) - center) @ forward)
        target = center + forward * max(depth, box.half_size)
    axes = look_at(center[None], target, up)[0, :, :3]
    offsets = (positions - center) @ axes
    radii = np.quantile(np.abs(offsets), 0.9, axis=0)
    theta = 2 * math.pi * SPIRAL_TURNS * np.arange(n_frames) / n_frames
    # one slow wave along the axis for all turns, as zrate 0.5 gives for two
    local = np.stack([np.cos(theta), np.sin(theta), np.sin(theta / SPIRAL_TURNS)], axis=-1) * radii
    return _path(cameras, look_at(center + local @ axes.T, target, up))


def interpolate(cameras: Cameras, box: Box, n_frames: int) -> Cameras:
    """A smooth flight through the cameras themselves, in a short order.

    Positions and rotations (as quaternions) follow centripetal Catmull-Rom splines; around a focus
    the distance to it does so too, so that no chord leads through the object, and it stays in the
    picture where the cameras have it. With many cameras
    it passes only a well-spread choice of them. `box` is not used: the cameras say where there is
    something to see.
    """
    chosen = _spread(cameras, max(n_frames // KEYFRAME_SPACING, KEYFRAMES))
    c2w = cameras.c2w.numpy()[_short_order(cameras, chosen)]
    if len(c2w) == 1:
        return _path(cameras, np.repeat(c2w, n_frames, axis=0))
    steps = np.linalg.norm(np.diff(c2w[:, :, 3], axis=0), axis=-1)
    # centripetal: knots by the square root of the distance; the floor keeps equal points apart
    knots = np.concatenate([[0.0], np.sqrt(steps + 1e-3 * steps.mean() + 1e-9).cumsum()])
    at = np.linspace(0.0, knots[-1], n_frames)
    positions = catmull_rom(knots, c2w[:, :, 3], at)
    focus = common_focus(cameras)
    center = focus[0].numpy() if focus is not None else np.zeros(3)
    if focus is not None:
        distances = np.linalg.norm(c2w[:, :, 3] - center, axis=-1, keepdims=True)
        wanted, offsets = catmull_rom(knots, distances, at), positions - center
        reached = np.linalg.norm(offsets, axis=-1, keepdims=True)
        positions = center + offsets * np.maximum(wanted / reached, 1.0)
    rotations = rotation_spline(knots, c2w[:, :, :3], at)
    if focus is not None:  # each passes it at its own place in the picture; so do those between
        seen = local_directions(c2w[:, :, :3], center - c2w[:, :, 3])
        rotations = aim(rotations, center - positions, catmull_rom(knots, seen, at))
    return _path(cameras, np.concatenate([rotations, positions[:, :, None]], axis=-1))


def _path(cameras: Cameras, c2w: Array) -> Cameras:
    """Pinholes at `c2w` [n, 3, 4] with the median intrinsics; even sizes, for video."""
    even = (cameras.size.double() / 2).quantile(0.5, dim=0).round().clamp(min=1) * 2
    relative = (cameras.focal / cameras.size).quantile(0.5, dim=0)
    if any(lens.is_wide for lens in cameras.lenses):  # 90 degrees of its view
        relative = relative * max(1.0, 0.5 / float(relative[0]))
    return Cameras(
        torch.from_numpy(np.ascontiguousarray(c2w)),
        (relative * even).repeat(len(c2w), 1),
        (even / 2).repeat(len(c2w), 1),
        even.to(torch.int64).repeat(len(c2w), 1),
        (Lens(),) * len(c2w),
    )


def _estimate_up(cameras: Cameras) -> Array:
    """Estimate the upward direction of the scene: [3], unit length.

    It is perpendicular to all cameras' x axes, which stay level whatever a camera's tilt. Where
    those are alike, as in a forward-facing capture, it is the mean of the cameras' own up axes.
    """
    right, mean = cameras.c2w[:, :, 0].numpy(), mean_up(cameras.c2w.numpy())
    weights, up = np.ones(len(right)), mean
    for _ in range(10):  # reweighted, so that some rolled cameras do not tilt the rest
        spread = (weights[:, None] * right).T @ right / weights.sum()
        up = np.linalg.eigh(spread + 0.02 * (np.eye(3) - np.outer(mean, mean)))[1][:, 0]
        up = up if up @ mean >= 0 else -up
        weights = 1.0 / (np.abs(right @ up) + 0.05)
    return up


def _capture(cameras: Cameras) -> _Capture | None:
    """The cameras seen from their common focus; None if there is none."""
    found = common_focus(cameras)
    if found is None:
        return None
    focus, up = found[0].numpy(), _estimate_up(cameras)
    offsets = cameras.positions.numpy() - focus
    radii = np.linalg.norm(offsets, axis=-1)
    elevations = np.arcsin(np.clip(offsets @ up / radii, -1, 1))
    first = perpendicular(up)
    second = np.cross(up, first)
    azimuths = np.arctan2(offsets @ second, offsets @ first)
    ordered = np.sort(azimuths)
    gaps = np.diff(np.append(ordered, ordered[0] + 2 * math.pi))
    widest = int(gaps.argmax())
    half_range = (2 * math.pi - gaps[widest]) / 2
    start = ordered[(widest + 1) % len(ordered)]
    middle = start + half_range
    turned = np.cos(middle) * first + np.sin(middle) * second
    frame = np.stack([turned, np.cross(up, turned), up], axis=-1)
    azimuths = (azimuths - middle + math.pi) % (2 * math.pi) - math.pi
    return _Capture(focus, frame, azimuths, elevations, radii, half_range, float(gaps[widest]))


def _usual_elevation(elevations: Array) -> float:
    """The median; but a little from above where the cameras are as much below as above."""
    middle, upper = np.quantile(elevations, [0.5, 0.75]).tolist()
    return middle if abs(middle) > math.radians(10) else min(math.radians(20), upper)


def _local_mean(capture: _Capture, values: Array, azimuths: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of the cameras' values around each azimuth."""
    width = max(0.25 * capture.half_range, math.radians(5))
    weights = np.exp(-0.5 * ((azimuths[:, None] - capture.azimuths) / width) ** 2)
    weights /= weights.sum(-1, keepdims=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(-1)
    return mean, np.sqrt(variance)


def _distances(cameras: Cameras, chosen: list[int]) -> Array:
    """How far apart poses are: position, and turning as if it moved a point in the scene."""
    positions, forwards = (v[chosen].numpy() for v in (cameras.positions, cameras.forwards))
    apart = np.linalg.norm(positions[:, None] - positions, axis=-1)
    size = float(np.median(apart)) or 1.0
    return apart + size * np.linalg.norm(forwards[:, None] - forwards, axis=-1)


def _spread(cameras: Cameras, n: int) -> list[int]:
    """At most n cameras that are far from each other, in their own order."""
    distances = _distances(cameras, list(range(len(cameras))))
    chosen, nearest = [0], distances[0]
    for _ in range(min(n, len(cameras)) - 1):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return sorted(chosen)


def _short_order(cameras: Cameras, chosen: list[int]) -> list[int]:
    """The order of capture if it is a smooth one, else a short open tour (2-opt)."""
    distances = _distances(cameras, chosen)
    captured = list(range(len(chosen)))
    tour, left = captured[:1], set(captured[1:])
    while left:
        tour.append(min(left, key=lambda i: distances[tour[-1], i]))
        left.remove(tour[-1])
    _two_opt(tour, distances)
    there, short = (float(distances[o[:-1], o[1:]].sum()) for o in (captured, tour))
    return [chosen[i] for i in (captured if there < 1.5 * short else tour)]


def _two_opt(tour: list[int], distances: Array) -> None:
    """Reverse stretches of an open tour, in place, as long as that shortens it."""
    n, improved = len(tour), True
    while improved:
        improved = False
        for i in range(n - 1):
            for j in range(i + 1, n):
                first, last, gain = tour[i], tour[j], 0.0
                if i > 0:
                    gain += distances[tour[i - 1], first] - distances[tour[i - 1], last]
                if j + 1 < n:
                    gain += distances[last, tour[j + 1]] - distances[first, tour[j + 1]]
                if gain > 1e-9:
                    tour[i : j + 1] = tour[i : j + 1][::-1]
                    improved = True

"""Camera paths through a scene, fitted to the cameras that it was captured with.

azimuth: angle around `up`, elevation: angle above the plane across it, both seen from the focus,
the point that the cameras look at. All paths are of pinholes with the median intrinsics of the
images as they stand upright.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from nerfcli.cameras.arrangement import arrangement_of
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rotations import level, look_at, perpendicular
from nerfcli.cameras.splines import (
    aim,
    between,
    catmull_rom,
    local_directions,
    rotation_spline,
    smooth,
)
from nerfcli.cameras.tours import short_order, spread_out
from nerfcli.cameras.upright import Upright, find_upright, straighten

Array = np.ndarray
SURROUNDED = math.radians(75)  # a circle, where no gap between azimuths is wider than this
SWEEP_MARGIN = 0.9  # share of the covered azimuths that a sweep uses
SPIRAL_TURNS = 2
KEYFRAME_SPACING = 6  # frames of `interpolate` per camera that it passes
KEYFRAMES = 8  # at least: two cameras may look from opposite sides, with nothing between them
WALK_KEYFRAMES = 60  # a walk keeps to its cameras, whatever the number of frames
LOCAL = math.radians(15), math.radians(40)  # least and largest width of a local mean by azimuth
SAME_HEIGHT = math.radians(20)  # of elevations; cameras further from the usual one count less


@dataclass(frozen=True)
class _Capture:
    """Cameras in spherical coordinates around what they look at.

    Attributes:
        focus: [3]. frame: [3, 3] columns: two axes across `up`, and `up`; azimuth 0 is the
            middle of the covered range.
        azimuths, elevations, radii: [n], radians and scene units.
        aims: [n, 3] the point of each optical axis that is nearest to the focus, from there.
        half_range: largest |azimuth|; the gap lies opposite.
        gap: widest range of azimuths without a camera.
    """

    focus: Array
    frame: Array
    azimuths: Array
    elevations: Array
    radii: Array
    aims: Array
    half_range: float
    gap: float

    @property
    def is_surrounded(self) -> bool:
        return self.gap < SURROUNDED

    def positions(self, azimuths: Array, elevations: Array, radii: Array) -> Array:
        """Spherical coordinates [n] to scene points [n, 3]."""
        across = np.cos(elevations)
        local = np.stack(
            [across * np.cos(azimuths), across * np.sin(azimuths), np.sin(elevations)], axis=-1
        )
        return self.focus + (radii[:, None] * local) @ self.frame.T

    def weights(self, azimuths: Array, width: float, elevation: float | None = None) -> Array:
        """Weights of the cameras [m, n] around each azimuth; rows sum to 1.

        Args:
            elevation: where cameras at different heights have one azimuth, those near this count.
        """
        apart = (azimuths[:, None] - self.azimuths + math.pi) % (2 * math.pi) - math.pi
        exponents = -0.5 * (apart / width) ** 2
        if elevation is not None:
            exponents = exponents - 0.5 * ((self.elevations - elevation) / SAME_HEIGHT) ** 2
        weights = np.exp(exponents - exponents.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)


def choose_path(cameras: Cameras, upright: Upright | None = None) -> tuple[str, str]:
    """Choose the path that shows a capture best: its name, and why, a clause for people."""
    arrangement = arrangement_of(cameras)
    if arrangement.kind == "outward":
        return "interpolate", arrangement.reason
    if arrangement.kind == "forward":
        return "spiral", arrangement.reason
    capture = _capture(*_straight(cameras, upright))
    if capture is None or capture.is_surrounded:
        return "orbit", f"{arrangement.reason} from all around"
    return "orbit", f"{arrangement.reason} from {round(math.degrees(2 * capture.half_range))}°"


def orbit(cameras: Cameras, box: Box, n_frames: int, upright: Upright | None = None) -> Cameras:
    """A closed round about the focus, at the cameras' height and distance.

    A circle where the cameras surround the focus. Where they cover only an arc, a sweep there and
    back within it. Height, distance and aim are those of the cameras nearby, so that it never
    looks from where nothing was seen. Where there is no focus, `spiral`, or `interpolate` if the
    cameras look outwards.

    Args:
        cameras: of the training views. box: of the scene, scene space.
        upright: which way is up; found from the cameras if absent.
    """
    straight, up = _straight(cameras, upright)
    capture = _capture(straight, up)
    if capture is None:
        path = spiral if arrangement_of(cameras).kind == "forward" else interpolate
        return path(cameras, box, n_frames, upright)
    phase = 2 * math.pi * np.arange(n_frames) / n_frames
    width = float(np.clip(0.25 * capture.half_range, *LOCAL))
    if capture.is_surrounded:
        azimuths, usual = phase, _usual_elevation(capture.elevations)
        width = float(np.clip(capture.gap, *LOCAL))
    else:
        azimuths = SWEEP_MARGIN * capture.half_range * np.sin(phase)
        usual = float(np.median(capture.elevations))
    weights = capture.weights(azimuths, width, usual)
    elevations, radii = weights @ capture.elevations, weights @ capture.radii
    if not capture.is_surrounded:  # there and back on different heights, a round and no swing
        spread = np.sqrt(np.maximum(weights @ capture.elevations**2 - elevations**2, 0.0))
        elevations = elevations + 0.5 * spread * np.cos(phase)
    targets = capture.focus + capture.weights(azimuths, 2 * width) @ capture.aims
    positions = capture.positions(azimuths, elevations, radii)
    return _path(straight, look_at(positions, targets, up))


def spiral(cameras: Cameras, box: Box, n_frames: int, upright: Upright | None = None) -> Cameras:
    """The spiral of LLFF (Mildenhall et al. 2019), around the mean pose of the cameras.

    Its radii are the 90th percentiles of the cameras' offsets from the mean along its axes; it
    looks at the focus, or, without one, at the depth of the box's centre.
    """
    cameras, up = _straight(cameras, upright)
    positions = cameras.positions.numpy()
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


def interpolate(
    cameras: Cameras, box: Box, n_frames: int, upright: Upright | None = None
) -> Cameras:
    """A smooth, level flight through the cameras, in the order of capture or a short one.

    Positions and rotations (as quaternions) follow centripetal Catmull-Rom splines, at an even
    speed. Around a focus the distance to it does so too, so that no chord leads through the
    object, and it stays in the picture where the cameras have it; with many cameras the path
    passes only a well-spread choice of them. Without a focus the flight keeps near all cameras,
    and what the hand shook is smoothed. `box` is not used: the cameras say where there is
    something to see.
    """
    cameras, up = _straight(cameras, upright)
    arrangement = arrangement_of(cameras)
    focus = None if arrangement.kind == "outward" else arrangement.focus
    n_keyframes = WALK_KEYFRAMES if focus is None else max(n_frames // KEYFRAME_SPACING, KEYFRAMES)
    chosen = spread_out(cameras, n_keyframes)
    c2w = cameras.c2w.numpy()[short_order(cameras, chosen)]
    if len(c2w) == 1:
        return _path(cameras, np.repeat(c2w, n_frames, axis=0))
    steps = np.linalg.norm(np.diff(c2w[:, :, 3], axis=0), axis=-1)
    turns = np.linalg.norm(np.diff(c2w[:, :, 2], axis=0), axis=-1)
    # centripetal: knots by the square root of the distance; the floor keeps equal poses apart
    size = max(float(np.median(np.linalg.norm(c2w[:, :, 3] - c2w[:, :, 3].mean(0), axis=1))), 1e-9)
    moved = steps + size * turns
    knots = np.concatenate([[0.0], np.sqrt(moved + 1e-3 * moved.mean() + 1e-9).cumsum()])

    at = np.linspace(0.0, knots[-1], max(8 * n_frames, 8 * len(c2w), 200))
    dense = _fly(c2w, knots, at, focus)
    is_walk = focus is None and len(c2w) > 2
    if is_walk:
        dense = smooth(dense, len(dense) / len(c2w))
    moved = np.linalg.norm(np.diff(dense[:, :, 3], axis=0), axis=-1)
    moved = moved + size * np.linalg.norm(np.diff(dense[:, :, 2], axis=0), axis=-1)
    way = np.concatenate([[0.0], (moved + 1e-9 * size).cumsum()])
    at = np.interp(np.linspace(0.0, way[-1], n_frames), way, at)
    poses = between(dense, at / knots[-1]) if is_walk else _fly(c2w, knots, at, focus)
    return _path(cameras, level(poses, up))


PATHS: dict[str, Callable[[Cameras, Box, int, Upright | None], Cameras]] = {
    "orbit": orbit,
    "spiral": spiral,
    "interpolate": interpolate,
}


def _fly(c2w: Array, knots: Array, at: Array, focus: Array | None) -> Array:
    """Poses [m, 3, 4] at `at` [m] of splines through `c2w` [n, 3, 4] at `knots` [n]."""
    positions = catmull_rom(knots, c2w[:, :, 3], at)
    rotations = rotation_spline(knots, c2w[:, :, :3], at)
    if focus is not None:
        offsets = positions - focus
        distances = np.linalg.norm(c2w[:, :, 3] - focus, axis=-1, keepdims=True)
        reached = np.maximum(np.linalg.norm(offsets, axis=-1, keepdims=True), 1e-12)
        wanted = catmull_rom(knots, distances, at)
        positions = focus + offsets * np.maximum(wanted / reached, 1.0)
        # each passes it at its own place in the picture; so do those between
        seen = local_directions(c2w[:, :, :3], focus - c2w[:, :, 3])
        rotations = aim(rotations, focus - positions, catmull_rom(knots, seen, at))
    return np.concatenate([rotations, positions[:, :, None]], axis=-1)


def _straight(cameras: Cameras, upright: Upright | None) -> tuple[Cameras, Array]:
    """The cameras with their images upright, and the upward direction [3]."""
    upright = upright or find_upright(cameras.c2w.numpy())
    return straighten(cameras, upright.turns), upright.up


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


def _capture(cameras: Cameras, up: Array) -> _Capture | None:
    """The cameras seen from their common focus; None if there is none."""
    found = common_focus(cameras)
    if found is None:
        return None
    focus, positions, forwards = found[0].numpy(), cameras.positions.numpy(), cameras.forwards
    offsets = positions - focus
    radii = np.maximum(np.linalg.norm(offsets, axis=-1), 1e-9)
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
    axes = forwards.numpy()
    aims = offsets - (offsets * axes).sum(-1, keepdims=True) * axes
    # a camera that looks elsewhere does not say where to look
    aims = np.where(np.linalg.norm(aims, axis=-1, keepdims=True) < 0.5 * radii[:, None], aims, 0.0)
    return _Capture(
        focus, frame, azimuths, elevations, radii, aims, half_range, float(gaps[widest])
    )


def _usual_elevation(elevations: Array) -> float:
    """The median; but a little from above where the cameras are as much below as above."""
    middle, upper = np.quantile(elevations, [0.5, 0.75]).tolist()
    return middle if abs(middle) > math.radians(10) else min(math.radians(20), upper)

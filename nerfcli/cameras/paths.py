"""Camera paths through a scene, fitted to the cameras that it was captured with.

The focus is the point that the cameras look at. All paths are of pinholes with the median
intrinsics of the images as they stand upright, and go at an even speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nerfcli.cameras.arrangement import arrangement_of
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.figures import dolly, ellipse, figure8, target_ahead, turntable, zoom
from nerfcli.cameras.orbit import (
    AS_THE_CAMERAS,
    Orbit,
    back_off,
    capture_around,
    circle,
    even_circle,
    shown,
)
from nerfcli.cameras.path_cameras import even_phases, pinholes, stand_upright
from nerfcli.cameras.rotations import level, look_at
from nerfcli.cameras.splines import (
    aim,
    between,
    catmull_rom,
    local_directions,
    rotation_spline,
    smooth,
)
from nerfcli.cameras.tours import short_order, spread_out
from nerfcli.cameras.upright import Upright

Array = np.ndarray
SPIRAL_TURNS = 2
KEYFRAME_SPACING = 6  # frames of `interpolate` per camera that it passes
KEYFRAMES = 8  # at least: two cameras may look from opposite sides, with nothing between them
WALK_KEYFRAMES = 60  # a walk keeps to its cameras, whatever the number of frames


def choose_path(cameras: Cameras, upright: Upright | None = None) -> tuple[str, str]:
    """Choose the path that shows a capture best: its name, and why, a clause for people."""
    arrangement = arrangement_of(cameras)
    if arrangement.kind == "outward":
        return "interpolate", arrangement.reason
    if arrangement.kind == "forward":
        return "spiral", arrangement.reason
    capture = capture_around(*stand_upright(cameras, upright))
    if capture is None or capture.is_surrounded:
        return "orbit", f"{arrangement.reason} from all around"
    return "orbit", f"{arrangement.reason} from {round(math.degrees(2 * capture.half_range))}°"


def orbit(
    cameras: Cameras,
    box: Box,
    n_frames: int,
    upright: Upright | None = None,
    request: Orbit = AS_THE_CAMERAS,
) -> Cameras:
    """A round about the focus or `request.target`: see `circle`.

    Where it would cut `request.subject`, it goes round the middle of that, and further away where
    the cameras were. Where there is no focus and no target, `spiral`, or `interpolate` if the
    cameras look outwards.

    Args:
        cameras: of the training views. box: of the scene, scene space.
        upright: which way is up; found from the cameras if absent.

    Raises:
        NerfError: as for `circle`.
    """
    views, up = stand_upright(cameras, upright)
    capture = capture_around(views, up, request.target)
    if capture is None:
        path = spiral if arrangement_of(cameras).kind == "forward" else interpolate
        return path(cameras, box, n_frames, upright)
    path = pinholes(views, even_circle(capture, up, n_frames, request))
    subject = request.subject
    if subject is None or shown(path, subject).all():
        return path
    if request.target is None:
        request = replace(request, target=np.median(subject, axis=0))
    capture = capture_around(views, up, request.target)
    assert capture is not None  # there is a target
    phases = 2 * math.pi * np.arange(n_frames) / n_frames
    least = back_off(
        *(capture, subject, n_frames),
        lambda least: pinholes(views, circle(capture, up, phases, request, least)),
    )
    return pinholes(views, even_circle(capture, up, n_frames, request, least))


def spiral(cameras: Cameras, box: Box, n_frames: int, upright: Upright | None = None) -> Cameras:
    """The spiral of LLFF (Mildenhall et al. 2019), around the mean pose of the cameras.

    Its radii are the 90th percentiles of the cameras' offsets from the mean along its axes; it
    looks at the focus, or, without one, at the depth of the box's centre.
    """
    cameras, up = stand_upright(cameras, upright)
    positions = cameras.positions.numpy()
    center = positions.mean(0)
    focus = common_focus(cameras)
    target = target_ahead(cameras, box) if focus is None else focus[0].numpy()
    axes = look_at(center[None], target, up)[0, :, :3]
    offsets = (positions - center) @ axes
    radii = np.quantile(np.abs(offsets), 0.9, axis=0)

    def place(phases: Array) -> Array:
        theta = SPIRAL_TURNS * phases
        # one slow wave along the axis for all turns, as zrate 0.5 gives for two
        waves = np.stack([np.cos(theta), np.sin(theta), np.sin(phases)], axis=-1)
        return center + (waves * radii) @ axes.T

    return pinholes(cameras, look_at(place(even_phases(place, n_frames)), target, up))


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
    cameras, up = stand_upright(cameras, upright)
    arrangement = arrangement_of(cameras)
    focus = None if arrangement.kind == "outward" else arrangement.focus
    n_keyframes = WALK_KEYFRAMES if focus is None else max(n_frames // KEYFRAME_SPACING, KEYFRAMES)
    chosen = spread_out(cameras, n_keyframes)
    c2w = cameras.c2w.numpy()[short_order(cameras, chosen)]
    if len(c2w) == 1:
        return pinholes(cameras, np.repeat(c2w, n_frames, axis=0))
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
    return pinholes(cameras, level(poses, up))


PATHS: dict[str, Callable[..., Cameras]] = {
    "orbit": orbit,
    "spiral": spiral,
    "interpolate": interpolate,
    "turntable": turntable,
    "ellipse": ellipse,
    "figure8": figure8,
    "dolly": dolly,
    "zoom": zoom,
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

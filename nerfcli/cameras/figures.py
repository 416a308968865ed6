"""Camera paths of a given form: turntable, ellipse, figure eight, dolly, zoom.

Each begins and ends at one place and goes at an even speed. They look at the focus of the cameras,
or at `request.target`; the viewpoint from which some start is in the middle of the cameras.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.orbit import (
    AS_THE_CAMERAS,
    BACK_OFF,
    LOCAL,
    Capture,
    Orbit,
    capture_around,
    even_circle,
    place,
    shown,
    usual_elevation,
)
from nerfcli.cameras.path_cameras import even_phases, pinholes, stand_upright
from nerfcli.cameras.rotations import look_at
from nerfcli.cameras.upright import Upright

Array = np.ndarray
OUTLIERS = 0.05  # share of the cameras beyond either end of an ellipse
# most azimuth of a swing to each side, and the share of what the cameras cover
WIDEST, COVERED = math.radians(45), 0.9
TALLEST, STEEPEST = math.radians(15), math.radians(80)  # most elevation to each side, and at all
DOLLY = 1.25, 0.75  # distances between which a dolly goes, of the viewpoint's
ZOOM = 2.0  # focal length at the near end


def turntable(
    cameras: Cameras,
    box: Box,
    n_frames: int,
    upright: Upright | None = None,
    request: Orbit = AS_THE_CAMERAS,
) -> Cameras:
    """A full circle about the focus, always as far and as high: as if the subject turned.

    It goes as far away as it must to show `request.subject`, where no distance is asked for.

    Raises:
        NerfError: as for `circle`.
    """
    views, capture, up = _stage(cameras, box, upright, request)
    is_free = request.distance is None and request.radius is None
    is_level = request.height is None and request.elevation is None
    asked = replace(
        request,
        target=capture.focus,
        turns=1.0 if request.turns is None else request.turns,
        distance=float(np.median(capture.radii)) if is_free else request.distance,
        elevation=usual_elevation(capture.elevations) if is_level else request.elevation,
    )
    path = pinholes(views, even_circle(capture, up, n_frames, asked))
    if request.subject is None or not is_free or shown(path, request.subject).all():
        return path
    if request.target is None:
        asked = replace(asked, target=np.median(request.subject, axis=0))
        capture = _around(views, up, asked.target)
    farthest = float(capture.radii.max())
    while asked.distance is not None:
        path = pinholes(views, even_circle(capture, up, n_frames, asked))
        if asked.distance >= farthest or shown(path, request.subject).all():
            break
        asked = replace(asked, distance=min(asked.distance * BACK_OFF, farthest))
    return path


def ellipse(
    cameras: Cameras,
    box: Box,
    n_frames: int,
    upright: Upright | None = None,
    request: Orbit = AS_THE_CAMERAS,
) -> Cameras:
    """A level ellipse among the cameras, whose axes are the spread of their places.

    Where the cameras cover only an arc, an ellipse on the sphere about the focus, within the arc.
    `request`: target, height, start and turns.
    """
    views, capture, up = _stage(cameras, box, upright, request)
    if not capture.is_surrounded:
        return _on_sphere(views, capture, up, n_frames, request, waves=(1, 1))
    local = (views.positions.numpy() - capture.focus) @ capture.frame
    flat = local[:, :2] - local[:, :2].mean(0)
    axes = np.linalg.svd(flat, full_matrices=True)[2]
    ends = np.quantile(local[:, :2] @ axes.T, [OUTLIERS, 1 - OUTLIERS], axis=0)
    middle, reach = ends.mean(0), (ends[1] - ends[0]) / 2
    height = float(np.median(local[:, 2])) if request.height is None else request.height
    turns = 1.0 if request.turns is None else request.turns
    first = np.array([math.cos(request.start), math.sin(request.start)]) @ axes.T
    start = math.atan2(first[1] * reach[0], first[0] * reach[1])
    hand = 1.0 if np.linalg.det(axes) > 0 else -1.0  # the same way round as an orbit

    def positions(phases: Array) -> Array:
        angle = start + hand * turns * phases
        on_axes = middle + reach * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        across = np.concatenate([on_axes @ axes, np.full((len(phases), 1), height)], axis=1)
        return capture.focus + across @ capture.frame.T

    places = positions(even_phases(positions, n_frames))
    return pinholes(views, look_at(places, capture.focus, up))


def figure8(
    cameras: Cameras,
    box: Box,
    n_frames: int,
    upright: Upright | None = None,
    request: Orbit = AS_THE_CAMERAS,
) -> Cameras:
    """A lying eight on the sphere about the focus, whose crossing is the viewpoint."""
    views, capture, up = _stage(cameras, box, upright, request)
    return _on_sphere(views, capture, up, n_frames, request, waves=(1, 2))


def dolly(
    cameras: Cameras,
    box: Box,
    n_frames: int,
    upright: Upright | None = None,
    request: Orbit = AS_THE_CAMERAS,
) -> Cameras:
    """A ride straight to the focus and back, through the viewpoint."""
    views, capture, up = _stage(cameras, box, upright, request)
    azimuth, elevation, distance = _viewpoint(capture, request)
    away = distance * (DOLLY[0] + (DOLLY[1] - DOLLY[0]) * _there_and_back(n_frames))
    ones = np.ones(n_frames)
    places = capture.positions(azimuth * ones, elevation * ones, away)
    return pinholes(views, look_at(places, capture.focus, up))


def zoom(
    cameras: Cameras,
    box: Box,
    n_frames: int,
    upright: Upright | None = None,
    request: Orbit = AS_THE_CAMERAS,
) -> Cameras:
    """A longer and longer lens at the viewpoint, and back."""
    views, capture, up = _stage(cameras, box, upright, request)
    azimuth, elevation, distance = (np.full(n_frames, v) for v in _viewpoint(capture, request))
    places = capture.positions(azimuth, elevation, distance)
    path = pinholes(views, look_at(places, capture.focus, up))
    longer = torch.from_numpy(ZOOM ** _there_and_back(n_frames))[:, None]
    return replace(path, focal=path.focal * longer)


def _on_sphere(
    views: Cameras,
    capture: Capture,
    up: Array,
    n_frames: int,
    request: Orbit,
    waves: tuple[int, int],
) -> Cameras:
    """Swing about the viewpoint on the sphere about the focus, within what the cameras cover.

    waves: to the sides, and up and down: 1 and 1 are an ellipse, 1 and 2 a lying eight.
    """
    azimuth, elevation, distance = _viewpoint(capture, request)
    wide = min(COVERED * capture.half_range, WIDEST)
    tall = min(wide / 2, TALLEST)
    turns = 1.0 if request.turns is None else request.turns
    lag = math.pi / 2 if waves == (1, 1) else 0.0

    def positions(phases: Array) -> Array:
        side, rise = (turns * phases * n for n in waves)
        elevations = np.clip(elevation + tall * np.sin(rise + lag), -STEEPEST, STEEPEST)
        azimuths = azimuth + wide * np.sin(side)
        return capture.positions(azimuths, elevations, np.full(len(phases), distance))

    places = positions(even_phases(positions, n_frames))
    return pinholes(views, look_at(places, capture.focus, up))


def _there_and_back(n_frames: int) -> Array:
    """Shares [n] of a way that begins at 0, is at 1 in the middle, and returns to 0."""
    return 1.0 - np.abs(1.0 - 2.0 * np.arange(n_frames) / n_frames)


def _stage(
    cameras: Cameras, box: Box, upright: Upright | None, request: Orbit
) -> tuple[Cameras, Capture, Array]:
    """Return the upright cameras, how they stand around what is shown, and up [3].

    Without a target and a focus, it lies ahead of the cameras at the depth of the box's centre.
    """
    views, up = stand_upright(cameras, upright)
    capture = capture_around(views, up, request.target)
    return views, capture or _around(views, up, target_ahead(views, box)), up


def _around(views: Cameras, up: Array, target: Array | None) -> Capture:
    capture = capture_around(views, up, target)
    assert capture is not None  # there is a target
    return capture


def target_ahead(cameras: Cameras, box: Box) -> Array:
    """Choose the point [3] ahead of the mean camera at the depth of the box's centre."""
    center = cameras.positions.numpy().mean(0)
    forward = cameras.forwards.mean(0).numpy()
    forward = forward / max(float(np.linalg.norm(forward)), 1e-9)
    depth = float((np.array(box.center) - center) @ forward)
    return center + forward * max(depth, box.half_size)


def _viewpoint(capture: Capture, request: Orbit) -> tuple[float, float, float]:
    """Choose azimuth, elevation and distance: those of the cameras there, or as asked for."""
    usual = usual_elevation(capture.elevations)
    weights = capture.weights(np.array([request.start]), LOCAL[0], usual)
    found = place(request, weights @ capture.elevations, weights @ capture.radii)
    return request.start, float(found[0][0]), float(found[1][0])

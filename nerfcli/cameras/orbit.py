"""A round about a point: where its cameras stand, and what the user asks of it.

azimuth: angle around `up`, elevation: angle above the plane across it, both seen from the target,
the focus that the cameras look at unless another is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.path_cameras import even_phases
from nerfcli.cameras.rotations import look_at, perpendicular
from nerfcli.core.errors import NerfError

Array = np.ndarray
SURROUNDED = math.radians(75)  # a circle, where no gap between azimuths is wider than this
SWEEP_MARGIN = 0.9  # share of the covered azimuths that a sweep uses
LOCAL = math.radians(15), math.radians(40)  # least and largest width of a local mean by azimuth
SAME_HEIGHT = math.radians(20)  # of elevations; cameras further from the usual one count less
SHOWN, FRAME = 0.95, 0.9  # share of a subject's points that is to be within this much of the frame
BACK_OFF = 1.03  # a step away from a subject that does not fit


@dataclass(frozen=True)
class Orbit:
    """What is asked of a round; None: as the cameras have it. Scene units and radians.

    Attributes:
        target: [3], what it goes round and looks at.
        subject: [n, 3], points that are to be in the frame: where a round about the focus cuts
            them, it goes round their middle.
        distance: from the target to the camera. height: of the camera above the target.
        radius: from the upward axis through the target to the camera. elevation: angle above the
            plane across it. Of distance and radius, and of height and elevation, at most one.
        turns: full turns, negative the other way round; None: one where the cameras surround the
            target, else a sweep there and back.
        start: azimuth of the first frame, from the middle of the cameras'.
    """

    target: Array | None = None
    subject: Array | None = None
    distance: float | None = None
    height: float | None = None
    radius: float | None = None
    elevation: float | None = None
    turns: float | None = None
    start: float = 0.0


AS_THE_CAMERAS = Orbit()


@dataclass(frozen=True)
class Capture:
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


def even_circle(
    capture: Capture, up: Array, n_frames: int, request: Orbit, least: Array | None = None
) -> Array:
    """Poses [n_frames, 3, 4] of `circle` at an even speed.

    least: as for `circle`, at n_frames equal phases.
    """

    def poses(phases: Array) -> Array:
        if least is None:
            return circle(capture, up, phases, request)
        equal = 2 * math.pi * np.arange(n_frames) / n_frames
        far = np.interp(phases, equal, least, period=2 * math.pi)
        return circle(capture, up, phases, request, far)

    return poses(even_phases(lambda phases: poses(phases)[:, :, 3], n_frames))


def circle(
    capture: Capture, up: Array, phase: Array, request: Orbit, least: Array | float = 0.0
) -> Array:
    """Poses [n, 3, 4] of a closed round about the capture's focus, at the cameras' height.

    A circle where the cameras surround the focus. Where they cover only an arc, a sweep there and
    back within it. Height, distance and aim are those of the cameras nearby, so that it never
    looks from where nothing was seen; what the request states takes their place.

    Args:
        phase: [n], of the whole round from 0 to 2 pi.
        least: distances [n] from the target that the frames keep at least.

    Raises:
        NerfError: a height that the distance does not allow, or a start outside of the arc.
    """
    width = float(np.clip(0.25 * capture.half_range, *LOCAL))
    is_full = capture.is_surrounded or request.turns is not None
    if is_full:
        phase = phase * (1.0 if request.turns is None else request.turns)
        azimuths, usual = phase + request.start, usual_elevation(capture.elevations)
        width = float(np.clip(capture.gap, *LOCAL))
    else:
        reach = SWEEP_MARGIN * capture.half_range
        phase = phase + math.asin(_within(request.start, reach) / max(reach, 1e-9))
        azimuths = reach * np.sin(phase)
        usual = float(np.median(capture.elevations))
    weights = capture.weights(azimuths, width, usual)
    elevations, radii = weights @ capture.elevations, weights @ capture.radii
    if not is_full:  # there and back on different heights, a round and no swing
        spread = np.sqrt(np.maximum(weights @ capture.elevations**2 - elevations**2, 0.0))
        elevations = elevations + 0.5 * spread * np.cos(phase)
    elevations, radii = place(request, elevations, np.maximum(radii, least))
    targets = np.broadcast_to(capture.focus, (len(phase), 3))
    if request.target is None:
        targets = capture.focus + capture.weights(azimuths, 2 * width) @ capture.aims
    return look_at(capture.positions(azimuths, elevations, radii), targets, up)


def place(request: Orbit, elevations: Array, radii: Array) -> tuple[Array, Array]:
    """Put what is asked for in the place of elevations and distances from the target, [n] each."""
    if request.elevation is not None:
        elevations = np.full_like(elevations, request.elevation)
    if request.distance is not None:
        radii = np.full_like(radii, request.distance)
    if request.radius is not None and request.height is not None:
        elevations = np.full_like(elevations, math.atan2(request.height, request.radius))
    elif request.height is not None:
        ensure_height(request.height, radii.min())
        elevations = np.arcsin(request.height / radii)
    if request.radius is not None:
        radii = request.radius / np.maximum(np.cos(elevations), 1e-6)
    return elevations, radii


def ensure_height(height: float, distance: float) -> None:
    """Raise NerfError for a height above the target that is no less than the distance from it."""
    if abs(height) >= distance:
        raise NerfError(
            "--height: the camera is no higher above the target than it is away from it; "
            "give a smaller one, or a greater --distance."
        )


def _within(start: float, reach: float) -> float:
    """The azimuth at which a sweep of `reach` to each side begins, from -pi to pi; radians."""
    azimuth = (start + math.pi) % (2 * math.pi) - math.pi
    if abs(azimuth) > reach + 1e-9:
        most = math.floor(math.degrees(reach))
        raise NerfError(
            f"--start {math.degrees(start):g}: the cameras see an arc, which the orbit sweeps from "
            f"{-most} to {most} degrees; give one of these, or --turns 1 for a whole round."
        )
    return max(-reach, min(azimuth, reach))


def shown(path: Cameras, points: Array) -> Array:
    """Tell in which frames of pinholes, [n] bool, points [m, 3] lie well within the frame."""
    c2w = path.c2w.numpy()
    local = np.einsum("nmi,nij->nmj", points - c2w[:, None, :, 3], c2w[:, :, :3])
    reach = FRAME * (path.size / (2 * path.focal)).numpy()
    ahead = local[:, :, 2:] > 1e-9
    inside = np.abs(local[:, :, :2]) <= reach[:, None] * np.where(ahead, local[:, :, 2:], -1.0)
    return inside.all(-1).mean(-1) >= SHOWN


def back_off(
    capture: Capture,
    points: Array,
    n_frames: int,
    path_from: Callable[[Array | float], Cameras],
) -> Array:
    """Find distances [n] from the target at which points [m, 3] are shown, smooth along the path.

    No further than the capture's farthest camera: what lies beyond was not seen from there.

    Args:
        path_from: the path whose frames keep at least these distances [n] from the target.
    """
    path = path_from(0.0)
    distances = np.linalg.norm(path.positions.numpy() - capture.focus, axis=-1)
    farthest = np.maximum(distances, capture.radii.max())
    least = distances.copy()
    while (far := ~shown(path, points) & (least < farthest)).any():
        least = np.where(far, np.minimum(least * BACK_OFF, farthest), least)
        path = path_from(least)
    width = max(n_frames // 16, 1)
    window = np.arange(-width, width + 1)
    index = (np.arange(n_frames)[:, None] + window) % n_frames
    return least[index].max(-1)[index].mean(-1)


def capture_around(cameras: Cameras, up: Array, target: Array | None = None) -> Capture | None:
    """See the cameras from `target`, [3], or else their common focus; None if there is none."""
    if target is None:
        found = common_focus(cameras)
        if found is None:
            return None
        target = found[0].numpy()
    focus, positions, forwards = target, cameras.positions.numpy(), cameras.forwards
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
    return Capture(focus, frame, azimuths, elevations, radii, aims, half_range, float(gaps[widest]))


def usual_elevation(elevations: Array) -> float:
    """The median; but a little from above where the cameras are as much below as above."""
    middle, upper = np.quantile(elevations, [0.5, 0.75]).tolist()
    return middle if abs(middle) > math.radians(10) else min(math.radians(20), upper)

"""Resample photos into pinhole cameras, for formats that hold no lens.

The new camera looks along the old axis, with square pixels, the axis in the middle, and the old
resolution on the axis. Its view is a rectangle in which the photo covers every pixel, so that
nothing has to be masked: first the largest of the photo's own shape, then widened and heightened as
far as that goes, to at most WIDEST degrees from the axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from nerfcli.cameras.intrinsics import Intrinsics, pixel_grid
from nerfcli.cameras.lenses import Lens
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.blind import CORRECT, describe_blind_frames, describe_camera
from nerfcli.scenes.images import exif_turn, read_with_alpha, write_png
from nerfcli.scenes.source import Frame, Points, Source
from nerfcli.scenes.writers.lenses import intrinsics_of_frame

WIDEST = 60.0  # degrees from the axis: beyond, a plane stretches what it shows
COVER_GRID = 65  # points along each side of a view that the photo must cover
SLACK = 1e-6  # pixels by which a view may reach over the photo's edge: rounding
ROWS = 256  # of an image that are resampled at a time
MOST_GROWN = 8  # times the photo's longer side; a lens that asks for more is none
KEPT_SAMPLES = 64  # images whose share of pixels that are shown is averaged
CENTRED = ("blender", "llff")  # formats of square pixels with the axis in the middle


def plan_undistorted(
    source: Source, target: str, done: Callable[[int, int], None] = lambda n, total: None
) -> Source:
    """Give every frame that the target cannot hold exactly the pinhole camera that it will have.

    Frames that stay as they are are the same objects. Images of the others are still to be made.

    Args:
        done: called with the number of cameras so far, and of all.

    Raises:
        NerfError: a frame whose lens shows nothing, or whose axis lies outside of its image.
    """
    crop = source.crop_radius
    named = {intrinsics_of_frame(frame): frame for frame in reversed(source.frames)}
    view_of: dict[Intrinsics, Intrinsics] = {}
    for camera, first in reversed(named.items()):
        view = _pinhole(camera, crop) if _is_off(camera, target, crop) else camera
        if view is None:
            raise NerfError(_explain(first, source))
        view_of[camera] = view
        done(len(view_of), len(named))
    views = [view_of[intrinsics_of_frame(frame)] for frame in source.frames]
    if target == "blender":
        views = _share_angle(views)
    frames = []
    for frame, view in zip(source.frames, views, strict=True):
        if view != intrinsics_of_frame(frame):
            assert frame.image is not None
            image, has_alpha = frame.image.with_suffix(".png"), frame.has_alpha
            frame = replace(frame, **vars(view), image=image, alpha=None, has_alpha=has_alpha)
        frames.append(frame)
    planned = replace(source, frames=tuple(frames), crop_radius=0.0)
    return replace(planned, points=_move_observations(source, planned))


def _explain(frame: Frame, source: Source) -> str:
    """Say why a frame gets no pinhole camera."""
    blind = describe_blind_frames([frame]) and describe_blind_frames(source.frames)
    if blind:
        return f"cannot undistort: {blind}."
    head, crop = f"{frame.name} cannot be undistorted: its", source.crop_radius
    offset = [c - side / 2 for c, side in zip(frame.principal, frame.size, strict=True)]
    if any(abs(o) > side / 2 for o, side in zip(offset, frame.size, strict=True)):
        width, height = frame.size
        return (
            f"{head} optical axis, at {frame.principal}, is outside of its {width}x{height} pixels."
        )
    if 0 < crop <= math.hypot(*offset) + 1:
        return f"{head} fisheye circle of {crop:g} pixels does not hold its optical axis."
    camera = describe_camera(intrinsics_of_frame(frame))
    return f"{head} camera is absurd ({camera}). {CORRECT}."


def describe_undistorted(source: Source, planned: Source) -> str:
    """Say what becomes of the images; empty if all stay as they are."""
    moved = [(a, b) for a, b in zip(source.frames, planned.frames, strict=True) if a is not b]
    if not moved:
        return ""
    some = moved[:: math.ceil(len(moved) / KEPT_SAMPLES)]
    kept = [_share_kept(intrinsics_of_frame(a), intrinsics_of_frame(b)) for a, b in some]
    width, height = moved[0][1].size
    across, down = (_degrees(side, moved[0][1].focal[0]) for side in (width, height))
    return (
        f"resampled into pinhole cameras: {quantity(len(moved), 'image')} (the first "
        f"{width}x{height}, {across:.3g} x {down:.3g} degrees; {np.mean(kept):.1%} of the pixels "
        "are shown)"
    )


def _degrees(length: int, focal: float) -> float:
    return 2 * math.degrees(math.atan2(length / 2, focal))


def _is_off(camera: Intrinsics, target: str, crop: float) -> bool:
    """Whether a camera is no pinhole camera, in a target's terms."""
    if not camera.lens.is_pinhole or crop > 0:
        return True
    middle = (camera.size[0] / 2, camera.size[1] / 2)
    ratio = camera.focal[0] / camera.focal[1]
    is_plain = abs(ratio - 1) <= 1e-9 and np.allclose(camera.principal, middle, rtol=0, atol=1e-6)
    return target in CENTRED and not is_plain


def _share_angle(views: list[Intrinsics]) -> list[Intrinsics]:
    """Narrow views to one angle across, the only one that Blender's files state."""
    half = min(view.size[0] / (2 * view.focal[0]) for view in views)
    shared = []
    for view in views:
        if view.size[0] / (2 * view.focal[0]) > half * (1 + 1e-9):
            width = max(1, math.floor(2 * half * view.focal[0]))
            focal = width / (2 * half)
            height = max(1, math.floor(view.size[1] * focal / view.focal[1]))
            view = _centred((width, height), focal)
        shared.append(view)
    return shared


def _centred(size: tuple[int, int], focal: float) -> Intrinsics:
    return Intrinsics(size, (focal, focal), (size[0] / 2, size[1] / 2), Lens())


def _pinhole(camera: Intrinsics, crop: float) -> Intrinsics | None:
    """Choose the pinhole camera for a photo; None if nothing around its axis is covered.

    None also where the lens sees nothing there, or so little that the image would be absurd.

    crop: radius of the photo's circle, 0 if it has none.
    """
    step = 1e-4
    ahead = torch.tensor([[0.0, 0.0, 1.0], [step, 0.0, 1.0], [0.0, step, 1.0]]).double()
    seen = camera.project(ahead)
    focal = float(torch.linalg.vector_norm(seen[1:] - seen[0], dim=-1).amax()) / step
    if not math.isfinite(focal) or focal <= 0:
        return None
    focal = max(camera.focal) * (round(focal / max(camera.focal), 5) or math.inf)
    middle = torch.tensor(camera.size, dtype=torch.float64) / 2

    def is_covered(half_width: float, half_height: float) -> bool:
        x, y = (
            torch.linspace(-half, half, COVER_GRID, dtype=torch.float64)
            for half in (half_width, half_height)
        )
        plane = torch.cartesian_prod(x, y)
        away = camera.project(torch.cat([plane, torch.ones_like(plane[:, :1])], -1)) - middle
        if crop and not bool((torch.linalg.vector_norm(away, dim=-1) <= crop + SLACK).all()):
            return False
        return bool((away.abs() <= middle + SLACK).all())  # false where nan

    widest = math.tan(math.radians(WIDEST))
    sides = [side / f for side, f in zip(camera.size, camera.focal, strict=True)]
    a, b = (widest * side / max(sides) for side in sides)
    scale = _largest(lambda t: is_covered(t * a, t * b), 0.0, 1.0)
    a, b = scale * a, scale * b
    a = _largest(lambda t: is_covered(t, b), a, widest)
    b = _largest(lambda t: is_covered(a, t), b, widest)
    sides = [2 * half * focal + 1e-3 for half in (a, b)]
    if not all(1 <= side <= MOST_GROWN * max(camera.size) for side in sides):  # false where nan
        return None
    width, height = map(math.floor, sides)
    return _centred((width, height), focal)


def _largest(fits: Callable[[float], bool], low: float, high: float) -> float:
    """Find the largest value up to `high` that fits, by bisection; `low` is taken to fit."""
    if fits(high):
        return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@lru_cache(KEPT_SAMPLES)
def _share_kept(old: Intrinsics, new: Intrinsics) -> float:
    directions, valid = old.directions(pixel_grid(old.size, COVER_GRID))
    seen = new.project(directions)
    inside = (seen >= 0) & (seen <= torch.tensor(new.size, dtype=torch.float64))
    return float((inside.all(-1) & valid).double().mean())


def _move_observations(source: Source, planned: Source) -> Points | None:
    """Move the places where points are seen; drop those that are no longer in the image."""
    points = source.points
    if points is None or not len(points.frame):
        return points
    xy, keep = points.xy.copy(), np.ones(len(points.frame), bool)
    for i, (old, new) in enumerate(zip(source.frames, planned.frames, strict=True)):
        mine = np.flatnonzero(points.frame == i)
        if old is new or not len(mine):
            continue
        directions, valid = intrinsics_of_frame(old).directions(torch.from_numpy(xy[mine]))
        seen = intrinsics_of_frame(new).project(directions).numpy()
        xy[mine] = seen
        keep[mine] = valid.numpy() & ((seen >= 0) & (seen <= np.array(new.size))).all(-1)
    return replace(points, point=points.point[keep], frame=points.frame[keep], xy=xy[keep])


@lru_cache(1)  # images of one camera follow each other
def pixel_places(old: Intrinsics, new: Intrinsics, size: tuple[int, int]) -> Tensor:
    """Where the pixels of an image of the new camera lie in the old image, [h, w, 2].

    -1 to 1 from edge to edge, as grid_sample wants it; size: width and height of the image.
    """
    scale = [view / side for view, side in zip(new.size, size, strict=True)]
    x, y = (
        (torch.arange(side, dtype=torch.float64) + 0.5) * step
        for side, step in zip(size, scale, strict=True)
    )
    whole = torch.tensor(old.size, dtype=torch.float64)
    x, y = ((v - c) / f for v, c, f in zip((x, y), new.principal, new.focal, strict=True))
    rows = []
    for part in y.split(ROWS):
        plane = torch.stack(torch.meshgrid(x, part, indexing="xy"), dim=-1)
        seen = old.project(torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1))
        rows.append((2 * seen / whole - 1).nan_to_num(0.0).float())
    return torch.cat(rows)


def _sample(
    values: Tensor, old: Frame, new: Frame, mode: str, size: tuple[int, int] | None = None
) -> Tensor:
    """Resample values [h, w, c] float32 of an old frame for a new one."""
    places = pixel_places(intrinsics_of_frame(old), intrinsics_of_frame(new), size or new.size)
    planes = values.permute(2, 0, 1)[None]
    rows = [
        grid_sample(planes, part[None], mode=mode, padding_mode="border", align_corners=False)[0]
        for part in places.split(ROWS)
    ]
    return torch.cat(rows, dim=1).permute(1, 2, 0)


def write_undistorted_image(old: Frame, new: Frame, place: Path) -> None:
    """Write a frame's image for its new camera as PNG: bicubic, colours weighted by alpha."""
    assert old.image is not None
    pixels = read_with_alpha(old.image, old.alpha, 1, old.size).float()
    if pixels.shape[-1] == 4:
        pixels[..., :3] *= pixels[..., 3:] / 255
    pixels = _sample(pixels, old, new, "bicubic")
    if pixels.shape[-1] == 4:
        pixels[..., :3] *= 255 / pixels[..., 3:].clamp(min=0.5)  # before both are cut off
    turn = exif_turn(old.image, old.size)
    write_png(place, pixels.clamp(0, 255).round().to(torch.uint8), turn)


def undistort_mask(usable: np.ndarray, old: Frame, new: Frame) -> np.ndarray:
    """Resample a mask [h, w] bool; a pixel is usable if all that it is made of is."""
    values = torch.from_numpy(usable).float()[..., None]
    return (_sample(values, old, new, "bilinear")[..., 0] > 1 - 1e-4).numpy()

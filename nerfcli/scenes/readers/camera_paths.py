"""Read the camera paths that nerfstudio's and instant-ngp's viewers write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.path_cameras import IPD, panorama_intrinsics
from nerfcli.core.errors import NerfError
from nerfcli.scenes.path_files import PathFile, cameras_of, entries
from nerfcli.scenes.path_frames import KnownFrames, move_cameras, nerfstudio_frame, ngp_frame
from nerfcli.scenes.readers.colmap import rotation_from_quaternion
from nerfcli.scenes.source import MOST_DISTANT, number, pose_from_opengl

TYPES = {  # nerfstudio's camera_type: our lens
    "perspective": "pinhole",
    "fisheye": "fisheye",
    "equirectangular": "equirectangular",
    "omnidirectional": "ods",
    "vr180": "vr180",
}
MOST_PIXELS = 2**16  # along a side


def read_nerfstudio_path(path: Path, data: dict[str, Any], known: KnownFrames) -> PathFile:
    """Read a camera_path.json: a frame of the film for each entry, in nerfstudio's model space.

    Raises:
        NerfError: a fault in it; names file, frame and key.
    """
    listed = entries(data, "camera_path", path)
    size = parse_pixels(data, ("render_width", "render_height"), path)
    stated = str(data.get("camera_type") or "perspective").strip().lower()
    if stated not in TYPES:
        raise NerfError(f"{path}: camera_type {stated!r} is not known; known: {', '.join(TYPES)}.")
    model = TYPES[stated]
    poses, intrinsics = [], []
    for i, entry in enumerate(listed):
        where = f"{path}, camera_path {i}"
        poses.append(parse_pose(entry, "camera_to_world", where))
        if model in ("pinhole", "fisheye"):
            focal = focal_of(entry.get("fov"), size[1], f"{where}: fov")
            lens = Lens() if model == "pinhole" else Lens("fisheye", (0.0,) * 4)
            middle = (size[0] / 2, size[1] / 2)
            intrinsics.append(Intrinsics(size, (focal, focal), middle, lens))
        else:
            intrinsics.append(panorama_intrinsics(model, size, IPD))
    seconds = data.get("seconds")
    seconds = None if seconds is None else number(seconds, f"{path}: seconds")
    if seconds is not None and seconds <= 0:
        raise NerfError(f"{path}: seconds must be above 0, got {seconds:g}.")
    frame, note = nerfstudio_frame(path, known)
    notes = [note]
    if isinstance(data.get("crop"), dict):
        notes.append(f"the crop of {path.name} is left out")
    if all("render_time" in entry for entry in listed):
        notes.append("render_time is left out: the scene does not move")
    return PathFile(
        "nerfstudio's camera path",
        move_cameras(cameras_of(poses, intrinsics), frame),
        "frames",
        fps=None if seconds is None else len(listed) / seconds,
        is_loop=data.get("is_cycle") is True,
        notes=tuple(notes),
    )


def read_ngp_path(
    path: Path, data: dict[str, Any], known: KnownFrames, size: tuple[int, int]
) -> PathFile:
    """Read a base_cam.json: key frames in the frame of instant-ngp's unit cube.

    Args:
        size: of the images; the file states none.

    Raises:
        NerfError: a fault in it; names file, frame and key.
    """
    poses, intrinsics = [], []
    has_depth_of_field = False
    for i, entry in enumerate(entries(data, "path", path)):
        where = f"{path}, path {i}"
        x, y, z, w = numbers(entry, "R", 4, where)
        length = math.sqrt(x * x + y * y + z * z + w * w)
        if length < 1e-6:
            raise NerfError(f"{where}: R must be a quaternion x, y, z, w, got {entry['R']}.")
        rotation = rotation_from_quaternion(np.array([w, x, y, z]) / length)
        position = np.array(numbers(entry, "T", 3, where))[:, None]
        poses.append(np.concatenate([rotation, position], axis=1))
        focal = focal_of(entry.get("fov"), size[1], f"{where}: fov")
        middle = (size[0] / 2, size[1] / 2)
        intrinsics.append(Intrinsics(size, (focal, focal), middle, Lens()))
        has_depth_of_field |= bool(entry.get("aperture_size") or entry.get("dof"))
    seconds, order = (data.get(key) for key in ("duration_seconds", "spline_order"))
    seconds = None if seconds is None else number(seconds, f"{path}: duration_seconds")
    if seconds is not None and seconds <= 0:
        raise NerfError(f"{path}: duration_seconds must be above 0, got {seconds:g}.")
    frame, note = ngp_frame(path, known)
    notes = [note]
    if has_depth_of_field:
        notes.append("the aperture is left out: everything is sharp")
    return PathFile(
        "instant-ngp's camera path",
        move_cameras(cameras_of(poses, intrinsics), frame),
        "keys",
        seconds=seconds,
        is_loop=data.get("loop") is True,
        spline_order=1 if order == 1 else 3,
        notes=tuple(notes),
    )


def focal_of(fov: Any, height: int, where: str) -> float:
    """Convert a vertical field of view in degrees to a focal length in pixels."""
    degrees = number(fov, where)
    if not 0 < degrees < 180:
        raise NerfError(
            f"{where}: a field of view of {degrees:g} degrees is impossible; it is from top to "
            "bottom, in degrees, above 0 and below 180."
        )
    return 0.5 * height / math.tan(math.radians(degrees) / 2)


def parse_pixels(data: Mapping[str, Any], keys: tuple[str, str], where: object) -> tuple[int, int]:
    """Parse width and height, whole numbers of pixels."""
    sides = []
    for key in keys:
        if key not in data:
            raise NerfError(f"{where}: {key} is missing; it is in pixels.")
        side = number(data[key], f"{where}: {key}")
        if not 1 <= round(side) <= MOST_PIXELS:
            raise NerfError(f"{where}: {key} must be from 1 to {MOST_PIXELS} pixels, got {side:g}.")
        sides.append(round(side))
    return sides[0], sides[1]


def numbers(entry: Mapping[str, Any], key: str, count: int, where: str) -> list[float]:
    """Parse a list of `count` finite numbers."""
    values = entry.get(key)
    if not isinstance(values, list) or len(values) != count:
        shown = "nothing" if values is None else str(values)[:60]
        raise NerfError(f"{where}: {key} must be {count} numbers, got {shown}.")
    found = [number(value, f"{where}: {key}") for value in values]
    if max(map(abs, found)) > MOST_DISTANT:
        raise NerfError(f"{where}: {key} has absurd values.")
    return found


def parse_pose(entry: Mapping[str, Any], key: str, where: str) -> np.ndarray:
    """Parse an OpenGL camera-to-world matrix to OpenCV's [3, 4].

    A table, or 16 or 12 numbers row after row, or such a list as text, as Blender's add-on has it.
    """
    matrix = entry.get(key)
    if isinstance(matrix, str):
        try:
            matrix = json.loads(matrix)
        except json.JSONDecodeError as error:
            raise NerfError(f"{where}: {key} is a text that lists no numbers.") from error
    if matrix is None:
        raise NerfError(f"{where} has no {key}; it is a 4x4 table of numbers.")
    if isinstance(matrix, list) and len(matrix) in (12, 16) and not isinstance(matrix[0], list):
        matrix = [matrix[i : i + 4] for i in range(0, len(matrix), 4)]
    return pose_from_opengl(matrix, where, key)[0]

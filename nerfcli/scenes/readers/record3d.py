"""Read Record3D's exports: metadata (of an unpacked .r3d) or metadata.json (EXR + JPG).

poses[i] = qx qy qz qw tx ty tz is camera to world with OpenGL's axes, in metres, +y up (ARKit), of
the image with number i. K is stored by columns.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.collector import Collector, Pinhole, list_images, stated_size
from nerfcli.scenes.readers.colmap import QUATERNION_TOLERANCE, rotation_from_quaternion
from nerfcli.scenes.source import NoFrames, Source, number, read_object

FILES = ("metadata", "metadata.json")
PLACES = (".", "EXR_RGBD")
IMAGE_FOLDERS = ("rgb", "rgbd")


def find_record3d(root: Path) -> Path | None:
    """Find the file of metadata beside a folder of images."""
    for folder in (root / place for place in PLACES):
        if any((folder / images).is_dir() for images in IMAGE_FOLDERS):
            found = next((folder / name for name in FILES if (folder / name).is_file()), None)
            if found is not None:
                return found
    return None


def read_record3d(root: Path, path: Path, wanted: SceneConfig) -> Source:
    """Read poses and intrinsics, and the images with their numbers.

    Raises:
        NerfError: a fault in the metadata; names key and pose.
    """
    data = read_object(path)
    poses = data.get("poses")
    if not isinstance(poses, list) or not poses:
        raise NoFrames(f"{path} has no poses; record with camera poses, or use nerf prepare.")
    files = list_images(path.parent, IMAGE_FOLDERS, wanted)
    images = {int(f.stem): f for f in files if f.stem.isdecimal() and len(f.stem) < 9}
    folder = files[0].parent
    collector = Collector(root, path, wanted, folder.name)
    per_frame = data.get("perFrameIntrinsicCoeffs")
    if not isinstance(per_frame, list) or len(per_frame) != len(poses):
        per_frame = None
    size = stated_size(data, ("w", "h"), str(path))
    for i, pose in enumerate(poses):
        with collector.faults.collect():
            where = f"{path}: pose {i}"
            stated = data.get("K") if per_frame is None else per_frame[i]
            camera = _intrinsics(
                stated, size, f"{path}: {'K' if per_frame is None else 'camera'} {i}"
            )
            collector.add(
                f"{folder.name}/{i}.jpg",
                images.get(i),
                _pose(pose, where),
                camera,
                where,
                opengl=True,
            )
    if (path.parent / "depth").is_dir() or folder.name == "rgbd":
        collector.notes.append("Record3D's depth (EXR or LZFSE files) is not used")
    return collector.finish("record3d")


def _numbers(values: Any, counts: tuple[int, ...], where: str) -> list[float]:
    if not isinstance(values, list) or len(values) not in counts:
        raise NerfError(
            f"{where} must list {' or '.join(map(str, counts))} numbers, got {str(values)[:60]!r}."
        )
    return [number(value, where) for value in values]


def _intrinsics(values: Any, size: tuple[int, int] | None, where: str) -> Pinhole:
    """Take fx, fy, cx, cy, or the nine entries of K by columns."""
    found = _numbers(values, (4, 9), where)
    if len(found) == 9:
        return Pinhole.of(np.array(found).reshape(3, 3).T, where, size)
    fx, fy, cx, cy = found
    return Pinhole((fx, fy), (cx, cy), size)


def _pose(values: Any, where: str) -> np.ndarray:
    x, y, z, w, *position = _numbers(values, (7,), where)
    length = math.hypot(x, y, z, w)
    if not abs(length - 1) < QUATERNION_TOLERANCE:
        raise NerfError(f"{where}: the rotation's quaternion has length {length:.4g} instead of 1.")
    rotation = rotation_from_quaternion(np.array([w, x, y, z]) / length)
    return np.concatenate([rotation, np.array(position)[:, None]], axis=1)

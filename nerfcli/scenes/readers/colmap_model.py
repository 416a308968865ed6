"""A COLMAP model as its files state it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.colmap_cameras import CameraModel
from nerfcli.scenes.source import abbreviate, find_duplicates

MAX_SIDE = 2**20  # pixels; a camera that states more is damaged


@dataclass(frozen=True)
class ColmapCamera:
    """cameras.bin, one entry; size is width and height."""

    id: int
    model: CameraModel
    size: tuple[int, int]
    params: tuple[float, ...]


@dataclass(frozen=True)
class ColmapImage:
    """images.bin, one entry.

    Attributes:
        rotation: quaternion w, x, y, z (Hamilton), world to camera.
        translation: world to camera.
        xy: [k, 2] float64 keypoints.
        point_ids: [k] int64, the point that a keypoint sees; -1: none.
    """

    id: int
    camera_id: int
    name: str
    rotation: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    xy: np.ndarray
    point_ids: np.ndarray


@dataclass(frozen=True)
class ColmapPoints:
    """points3D.bin: ids [n] int64, xyz [n, 3], rgb [n, 3] uint8, error [n] in pixels."""

    ids: np.ndarray
    xyz: np.ndarray
    rgb: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class ColmapModel:
    """Cameras by id, registered images in the order of the file, points."""

    cameras: dict[int, ColmapCamera]
    images: tuple[ColmapImage, ...]
    points: ColmapPoints


def no_points() -> ColmapPoints:
    """Return points of length zero."""
    nothing = np.zeros((0, 3))
    return ColmapPoints(np.zeros(0, np.int64), nothing, nothing.astype(np.uint8), np.zeros(0))


def check_camera(camera: ColmapCamera, where: str) -> ColmapCamera:
    """Return the camera if its size is possible; NerfError otherwise."""
    if not all(1 <= side <= MAX_SIDE for side in camera.size):
        raise NerfError(
            f"{where}: camera {camera.id} has {camera.size[0]}x{camera.size[1]} pixels, "
            "which is absurd; the file is damaged."
        )
    return camera


def check_images(
    images: list[ColmapImage], cameras: dict[int, ColmapCamera], where: str
) -> tuple[ColmapImage, ...]:
    """Return the images if there are any, with unique names and known cameras.

    Raises:
        NerfError: there is none, a name repeats, or a camera is unknown.
    """
    if not images:
        raise NerfError(f"{where} holds no registered image; the reconstruction failed.")
    twice = find_duplicates([image.name for image in images])
    if twice:
        raise NerfError(f"{where} holds the same image more than once: {abbreviate(twice)}.")
    for image in images:
        if image.camera_id not in cameras:
            raise NerfError(
                f"{where}: image {image.name!r} has camera {image.camera_id}, "
                "which the cameras file does not hold."
            )
    return tuple(images)

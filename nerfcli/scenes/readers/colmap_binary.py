"""Read and write COLMAP's binary model files: cameras.bin, images.bin, points3D.bin.

Numbers are little-endian. The reader compares each count with the bytes left before it allocates,
so a damaged file costs neither time nor memory. It skips rigs.bin and frames.bin (COLMAP 3.12 and
later), because images.bin holds the pose of every image in all versions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_no_pointer, replacing
from nerfcli.scenes.readers.colmap_cameras import BY_ID
from nerfcli.scenes.readers.colmap_model import (
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    check_camera,
    check_images,
    no_points,
)

KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
TRACK_ENTRY = 8  # bytes: image id, keypoint index
POINT = np.dtype(
    [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")]
)
NO_POINT = -1


class _Bytes:
    """A file read from front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = path.read_bytes()
        except OSError as error:
            raise NerfError(f"{path} cannot be read: {error.strerror}.") from error
        ensure_no_pointer(path, self.data)
        self.at = 0

    def need(self, n_bytes: int, what: str) -> None:
        left = len(self.data) - self.at
        if n_bytes > left:
            raise NerfError(
                f"{self.path} is truncated or damaged: {what} at byte {self.at} take {n_bytes} "
                f"bytes, {left} are left. Take an intact copy."
            )

    def take(self, form: str, what: str) -> tuple[Any, ...]:
        n = struct.calcsize(form)
        self.need(n, what)
        values = struct.unpack_from(form, self.data, self.at)
        self.at += n
        return values

    def count(self, least: int, what: str) -> int:
        """Take a count of items of at least `least` bytes each."""
        (n,) = self.take("<Q", f"the number of {what}")
        self.need(n * least, f"{n} {what}")
        return n

    def array(self, dtype: np.dtype, n: int, what: str) -> np.ndarray:
        self.need(n * dtype.itemsize, what)
        values = np.frombuffer(self.data, dtype, n, self.at)
        self.at += n * dtype.itemsize
        return values

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + 4097)
        if end < 0:
            raise NerfError(f"{self.path} is damaged: no end of the name at byte {self.at}.")
        raw, self.at = self.data[self.at : end], end + 1
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise NerfError(f"{self.path}: the name {raw[:80]!r} is not UTF-8.") from error

    def finish(self) -> None:
        left = len(self.data) - self.at
        if left:
            raise NerfError(
                f"{self.path} is damaged: {left} bytes follow after what it states to hold."
            )


def read_binary(folder: Path) -> ColmapModel:
    """Read a model from cameras.bin, images.bin and, if there is one, points3D.bin.

    Raises:
        NerfError: a file is missing, truncated or damaged, with the byte where.
    """
    cameras = _read_cameras(folder / "cameras.bin")
    images = _read_images(folder / "images.bin", cameras)
    points = folder / "points3D.bin"
    return ColmapModel(cameras, images, _read_points(points) if points.is_file() else no_points())


def _read_cameras(path: Path) -> dict[int, ColmapCamera]:
    file = _Bytes(path)
    cameras = {}
    for _ in range(file.count(24, "cameras")):
        id_, model_id, width, height = file.take("<IiQQ", "a camera")
        if model_id not in BY_ID:
            raise NerfError(
                f"{path}: camera {id_} has model {model_id}; known are 0 to {max(BY_ID)}."
            )
        model = BY_ID[model_id]
        params = file.take(f"<{model.n_params}d", "the camera's parameters")
        camera = ColmapCamera(id_, model, (width, height), params)
        cameras[id_] = check_camera(camera, str(path))
    file.finish()
    return cameras


def _read_images(path: Path, cameras: dict[int, ColmapCamera]) -> tuple[ColmapImage, ...]:
    file = _Bytes(path)
    images = []
    for _ in range(file.count(73, "images")):
        id_, *pose, camera_id = file.take("<I7dI", "an image")
        name = file.name()
        n = file.count(KEYPOINT.itemsize, f"keypoints of {name!r}")
        keypoints = file.array(KEYPOINT, n, "keypoints")
        w, x, y, z, tx, ty, tz = pose
        images.append(
            ColmapImage(
                *(id_, camera_id, name, (w, x, y, z), (tx, ty, tz)),
                *(keypoints["xy"], keypoints["point"]),
            )
        )
    file.finish()
    return check_images(images, cameras, str(path))


def _read_points(path: Path) -> ColmapPoints:
    file = _Bytes(path)
    n = file.count(POINT.itemsize, "points")
    starts = np.empty(n, np.int64)
    length = struct.Struct("<Q").unpack_from
    at, end = file.at, len(file.data) - POINT.itemsize
    for i in range(n):  # records differ in length, so each states where the next begins
        if at > end:
            file.at = at
            file.need(POINT.itemsize, f"point {i} of {n}")
        starts[i] = at
        (track,) = length(file.data, at + POINT.itemsize - 8)
        at += POINT.itemsize + TRACK_ENTRY * track
    file.at = min(at, len(file.data))
    if at > len(file.data):
        raise NerfError(f"{path} is truncated or damaged: the last track exceeds the file.")
    file.finish()
    raw = np.frombuffer(file.data, np.uint8)
    records = raw[starts[:, None] + np.arange(POINT.itemsize)].reshape(-1).view(POINT)
    return ColmapPoints(
        records["id"].astype(np.int64),
        records["xyz"].astype(np.float64),
        records["rgb"].copy(),
        records["error"].astype(np.float64),
    )


def write_binary(model: ColmapModel, folder: Path) -> None:
    """Write the three files, with the tracks of the images' keypoints.

    Raises:
        NerfError: the folder cannot be written.
    """
    cameras = [struct.pack("<Q", len(model.cameras))]
    for camera in model.cameras.values():
        cameras.append(struct.pack("<IiQQ", camera.id, camera.model.id, *camera.size))
        cameras.append(struct.pack(f"<{len(camera.params)}d", *camera.params))
    images = [struct.pack("<Q", len(model.images))]
    for image in model.images:
        pose = (*image.rotation, *image.translation)
        images.append(struct.pack("<I7dI", image.id, *pose, image.camera_id))
        images.append(image.name.encode("utf-8") + b"\0" + struct.pack("<Q", len(image.xy)))
        keypoints = np.empty(len(image.xy), KEYPOINT)
        keypoints["xy"], keypoints["point"] = image.xy, image.point_ids
        images.append(keypoints.tobytes())
    points = [struct.pack("<Q", len(model.points.ids))]
    for row, track in zip(_point_rows(model.points), list_tracks(model), strict=True):
        points.append(row[: POINT.itemsize - 8] + struct.pack("<Q", len(track)))
        points.append(np.asarray(track, "<u4").tobytes())
    for name, parts in (("cameras", cameras), ("images", images), ("points3D", points)):
        with replacing(folder / f"{name}.bin") as aside:
            aside.write_bytes(b"".join(parts))


def _point_rows(points: ColmapPoints) -> list[bytes]:
    rows = np.zeros(len(points.ids), POINT)
    rows["id"], rows["xyz"], rows["rgb"] = points.ids, points.xyz, points.rgb
    rows["error"] = points.error
    return [row.tobytes() for row in rows]


def list_tracks(model: ColmapModel) -> list[Sequence[tuple[int, int]]]:
    """List the image ids and keypoint indices that see each point."""
    found: dict[int, list[tuple[int, int]]] = {int(id_): [] for id_ in model.points.ids}
    for image in model.images:
        for index in np.flatnonzero(image.point_ids != NO_POINT):
            track = found.get(int(image.point_ids[index]))
            if track is not None:
                track.append((image.id, int(index)))
    return list(found.values())

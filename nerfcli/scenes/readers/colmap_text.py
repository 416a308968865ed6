"""Read and write COLMAP's text model files: cameras.txt, images.txt, points3D.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.files import write_text
from nerfcli.scenes.readers.colmap_binary import list_tracks
from nerfcli.scenes.readers.colmap_cameras import BY_NAME
from nerfcli.scenes.readers.colmap_model import (
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    check_camera,
    check_images,
    no_points,
)


def read_text_model(folder: Path) -> ColmapModel:
    """Read a model from cameras.txt, images.txt and, if there is one, points3D.txt.

    Raises:
        NerfError: a file is missing or malformed, with the line where.
    """
    cameras = _read_cameras(folder / "cameras.txt")
    images = _read_images(folder / "images.txt", cameras)
    points = folder / "points3D.txt"
    return ColmapModel(cameras, images, _read_points(points) if points.is_file() else no_points())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield all lines, stripped, with their numbers."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NerfError(f"{path} is not a UTF-8 text file. Take an intact copy.") from error
    except OSError as error:
        raise NerfError(f"{path} cannot be read: {error.strerror}.") from error
    # not splitlines: a name may hold characters that it takes for line ends
    yield from ((i, line.strip()) for i, line in enumerate(text.split("\n"), start=1))


def _is_content(line: str) -> bool:
    return bool(line) and not line.startswith("#")


def _bad(path: Path, number: int, want: str, line: str) -> NerfError:
    shown = line if len(line) <= 60 else line[:57] + "..."
    return NerfError(f"{path}, line {number}: expected {want}, got {shown!r}.")


def _read_cameras(path: Path) -> dict[int, ColmapCamera]:
    cameras = {}
    for number, line in _lines(path):
        if not _is_content(line):
            continue
        words = line.split()
        try:
            id_, name, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
            params = tuple(float(word) for word in words[4:])
        except (ValueError, IndexError) as error:
            raise _bad(path, number, "ID MODEL WIDTH HEIGHT PARAMS", line) from error
        if name not in BY_NAME:
            raise NerfError(
                f"{path}, line {number}: unknown camera model {name[:40]!r}; "
                f"known: {', '.join(BY_NAME)}."
            )
        camera = ColmapCamera(id_, BY_NAME[name], (width, height), params)
        cameras[id_] = check_camera(camera, f"{path}, line {number}")
    return cameras


def _read_images(path: Path, cameras: dict[int, ColmapCamera]) -> tuple[ColmapImage, ...]:
    lines = _lines(path)
    images = []
    for number, line in lines:
        if not _is_content(line):
            continue
        words = line.split(maxsplit=9)  # a name may hold spaces
        try:
            id_, camera_id, name = int(words[0]), int(words[8]), words[9]
            w, x, y, z, tx, ty, tz = (float(word) for word in words[1:8])
        except (ValueError, IndexError) as error:
            want = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
            raise _bad(path, number, want, line) from error
        # the line of keypoints follows, and may be empty
        number, line = next(lines, (number + 1, ""))
        keypoints = _keypoints(path, number, line)
        images.append(
            ColmapImage(
                *(id_, camera_id, name, (w, x, y, z), (tx, ty, tz)),
                *(keypoints[:, :2], keypoints[:, 2].astype(np.int64)),
            )
        )
    return check_images(images, cameras, str(path))


def _keypoints(path: Path, number: int, line: str) -> np.ndarray:
    want = "keypoints (X Y POINT3D_ID, any number of them; an empty line for none)"
    words = line.split()
    try:
        values = np.array(words, dtype=np.float64)
    except ValueError as error:
        raise _bad(path, number, want, line) from error
    if len(values) % 3 or not np.isfinite(values).all() or (abs(values) > 2.0**53).any():
        raise _bad(path, number, want, line)
    return values.reshape(-1, 3)


def _read_points(path: Path) -> ColmapPoints:
    rows = []
    ids = []
    for number, line in _lines(path):
        if not _is_content(line):
            continue
        words = line.split(maxsplit=8)
        try:
            ids.append(int(words[0]))
            rows.append([float(word) for word in words[1:8]])
        except ValueError as error:
            raise _bad(path, number, "POINT3D_ID X Y Z R G B ERROR TRACK", line) from error
        if len(rows[-1]) != 7 or not 0 <= ids[-1] < 2**63:
            raise _bad(path, number, "POINT3D_ID X Y Z R G B ERROR TRACK", line)
    if not rows:
        return no_points()
    table = np.array(rows, dtype=np.float64)
    rgb = np.nan_to_num(table[:, 3:6]).clip(0, 255).astype(np.uint8)
    return ColmapPoints(np.array(ids, np.int64), table[:, :3], rgb, table[:, 6])


def write_text_model(model: ColmapModel, folder: Path) -> None:
    """Write the three files; every number reads back exactly.

    Raises:
        NerfError: the folder cannot be written.
    """
    cameras = ["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS"]
    for camera in model.cameras.values():
        width, height = camera.size
        cameras.append(_words(camera.id, camera.model.name, width, height, *camera.params))
    images = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then X Y POINT3D_ID ..."]
    for image in model.images:
        pose = (*image.rotation, *image.translation)
        images.append(_words(image.id, *pose, image.camera_id, image.name))
        pairs = zip(image.xy.tolist(), image.point_ids.tolist(), strict=True)
        images.append(" ".join(_words(x, y, point) for (x, y), point in pairs))
    points = ["# POINT3D_ID X Y Z R G B ERROR TRACK (IMAGE_ID KEYPOINT ...)"]
    found = model.points
    for i, track in enumerate(list_tracks(model)):
        head = (int(found.ids[i]), *found.xyz[i].tolist(), *found.rgb[i].tolist())
        seen = [value for pair in track for value in pair]
        points.append(_words(*head, float(found.error[i]), *seen))
    for name, lines in (("cameras", cameras), ("images", images), ("points3D", points)):
        write_text(folder / f"{name}.txt", "\n".join(lines) + "\n")


def _words(*values: object) -> str:
    return " ".join(repr(value) if isinstance(value, float) else str(value) for value in values)

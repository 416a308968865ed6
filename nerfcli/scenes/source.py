"""`Source`, the result of every reader, and the checks that readers share.

Poses are in the OpenCV camera frame, everything else is in the source's own frame and units.
`build.scene_from_source` turns a `Source` into a `Scene`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.lenses import Lens
from nerfcli.core.errors import NerfError
from nerfcli.core.files import read_json
from nerfcli.scenes.images import image_header

# signs of a c2w's columns between OpenGL's camera axes (x right, y up) and OpenCV's (y down)
OPENGL_COLUMNS = np.array([1.0, -1.0, -1.0, 1.0])
POSE_TOLERANCE = 0.01  # of R^T R against the identity, before the nearest rotation is taken
MOST_DISTANT = 1e12  # units; coordinates beyond are damage, and their squares overflow
LEAST_HALF_SIZE = 1e-9  # of a box
FIELD_OF_VIEW = (0.1, 179.0)  # degrees; anything beyond is a mistake for a perspective lens


class NoFrames(NerfError):
    """Files of a format that hold no frame at all, such as files of another purpose."""


@dataclass(frozen=True)
class Depth:
    """A depth image of a view.

    Attributes:
        path: 16- or 32-bit image or .npy; 0 is unknown.
        scale: source units per unit of the file.
        is_euclidean: distance along the ray; else along the optical axis.
    """

    path: Path
    scale: float
    is_euclidean: bool = False


@dataclass(frozen=True)
class Points:
    """Sparse points of a capture, in the source's frame.

    Attributes:
        xyz: [n, 3] float64.
        rgb: [n, 3] uint8, or None.
        error: [n] float64, mean reprojection error in pixels of the stored images, or None.
        point, frame: [m] int64, where point `point[i]` was seen by frame `frame[i]`.
        xy: [m, 2] float64, at this place, in pixels of the stored image.
    """

    xyz: np.ndarray
    rgb: np.ndarray | None = None
    error: np.ndarray | None = None
    point: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    frame: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    xy: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class Frame:
    """One view as its file states it.

    Attributes:
        name: unique, shown to people.
        c2w: [3, 4] float64, OpenCV camera to source frame.
        focal, principal: in pixels of the stored image.
        size: width and height of the stored image.
        split: "train", "val" or "test" where the source says so.
        bounds: near and far depth of the view in source units, where the format has them (LLFF).
    """

    name: str
    c2w: np.ndarray
    focal: tuple[float, float]
    principal: tuple[float, float]
    size: tuple[int, int]
    lens: Lens
    image: Path | None
    mask: Path | None = None
    alpha: Path | None = None
    has_alpha: bool = False
    split: str | None = None
    depth: Depth | None = None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Source:
    """A scene as its files state it.

    Attributes:
        frames: in the order of the cameras to be.
        box, box_source: if the files state one, in source units, and where it is from.
        bounds: near and far in source units that go with `box`, if the format has them.
        points: sparse points, if there are any.
        applied_transform, applied_scale: [3, 4] and a factor, as nerfstudio has them: how the frame
            of an earlier stage was moved to this one, x = applied_scale * applied_transform x_old.
        keep_frame: scene space is the source's own frame (Blender).
        masked_where: "black" or "nonzero": pixels with such mask values are ignored.
        beyond: properties of the files that a Source does not hold: name, and detail.
        crop_radius: of a fisheye's circle, in pixels of the stored image; 0: none.
    """

    name: str
    root: Path
    kind: str
    frames: tuple[Frame, ...]
    box: Box | None = None
    box_source: str = ""
    bounds: tuple[float, float] | None = None
    points: Points | None = None
    applied_transform: np.ndarray | None = None
    applied_scale: float = 1.0
    keep_frame: bool = False
    masked_where: str = "black"
    crop_radius: float = 0.0
    beyond: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def read_object(path: Path, notes: list[str] | None = None) -> dict[str, Any]:
    """Read a JSON object, which may hold comments and trailing commas.

    Args:
        notes: gets a line if a key is stated more than once.

    Raises:
        NoFrames: as `read_json`, or not an object.
    """
    twice: list[str] = []
    try:
        data = read_json(path, lenient=True, twice=twice)
    except NerfError as error:
        raise NoFrames(str(error)) from error
    if twice and notes is not None:
        keys = abbreviate(list(dict.fromkeys(twice)))
        notes.append(f"{path.name} states a key more than once, the last value counts: {keys}")
    if not isinstance(data, dict):
        raise NoFrames(f"{path} must hold a JSON object, found a {type(data).__name__}.")
    return data


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key under which r_2 comes before r_10."""
    parts = re.findall(r"\d+|\D+", name)
    # Python refuses to read more than 4300 digits, and no file name has so many
    return [(0, int(p), "") if p.isdecimal() and len(p) < 4300 else (1, 0, p) for p in parts]


def number(value: Any, where: str) -> float:
    """Check that a value is a finite number; NerfError names `where`."""
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond what a float holds
        pass
    raise NerfError(f"{where} must be a finite number, got {str(value)[:60]!r}.")


def pose_from_opengl(
    matrix: Any, where: str, key: str = "transform_matrix"
) -> tuple[np.ndarray, float]:
    """Check a camera-to-world matrix as `check_pose` does, and turn its axes to OpenCV's."""
    c2w, scale = check_pose(matrix, where, key)
    return c2w * OPENGL_COLUMNS, scale


def check_pose(matrix: Any, where: str, key: str = "transform_matrix") -> tuple[np.ndarray, float]:
    """Check a camera-to-world matrix; its axes stay as they are.

    A uniform scale of the rotation is divided out. The nearest rotation replaces one with small
    rounding errors. The position is kept.

    Args:
        matrix: 3x4 or 4x4 nested lists. where: file and frame, for messages. key: its name there.

    Returns:
        c2w [3, 4], and the scale that the rotation had.

    Raises:
        NerfError: wrong shape, not finite, mirrored, or not a rotation within POSE_TOLERANCE.
    """
    try:
        array = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise NerfError(f"{where}: {key} is not a 4x4 table of numbers.") from error
    if array.shape not in ((3, 4), (4, 4)):
        raise NerfError(f"{where}: {key} must be 4x4 or 3x4, got {array.shape}.")
    if not np.isfinite(array).all():
        raise NerfError(f"{where}: {key} has values that are not finite.")
    if np.abs(array).max() > MOST_DISTANT:
        raise NerfError(f"{where}: {key} has absurd values ({np.abs(array).max():.3g}).")
    block = array[:3, :3]
    with np.errstate(divide="ignore"):  # where it is singular
        determinant = np.linalg.det(block)
    scale = float(np.cbrt(abs(determinant)))
    if scale < 1e-9:
        raise NerfError(f"{where}: the rotation in {key} is singular.")
    rotation = block / scale
    error = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if error > POSE_TOLERANCE:
        raise NerfError(
            f"{where}: the rotation in {key} is not orthonormal "
            f"(R^T R is off by {error:.2g}, allowed {POSE_TOLERANCE:g})."
        )
    if determinant < 0:
        raise NerfError(f"{where}: the rotation in {key} is mirrored (determinant -1).")
    u, _, vt = np.linalg.svd(rotation)
    return np.concatenate([u @ vt, array[:3, 3:]], axis=1), scale


def opengl_matrix(c2w: np.ndarray) -> list[list[float]]:
    """Convert c2w [3, 4] to 4x4 nested lists with OpenGL axes; undoes `pose_from_opengl`."""
    matrix = np.eye(4)
    matrix[:3] = c2w * OPENGL_COLUMNS
    return matrix.tolist()


def read_stored_size(path: Path, stated: tuple[int, int] | None) -> tuple[int, int, bool]:
    """Read the size of what `read_image(path, size=...)` returns, and whether it has alpha."""
    return stored_size(image_header(path), stated)


def stored_size(
    header: tuple[int, int, bool, bool], stated: tuple[int, int] | None
) -> tuple[int, int, bool]:
    """Choose width and height from what `image_header` reads, and whether it has alpha.

    The EXIF orientation counts only if the turned image alone has the stated size.
    """
    width, height, has_alpha, turned = header
    if turned and stated == (height, width) and width != height:
        return height, width, has_alpha
    return width, height, has_alpha


def check_focal(focal: tuple[float, float], size: tuple[int, int], lens: Lens, where: str) -> None:
    """Raise NerfError for an absurd focal length.

    A wide lens may see more than 180 degrees; FIELD_OF_VIEW bounds all others.
    """
    for axis, f, length in zip("xy", focal, size, strict=True):
        angle = math.degrees(2 * math.atan2(length / 2, f)) if f > 0 else math.nan
        widest = 179.9 if lens.is_wide else FIELD_OF_VIEW[1]
        if not (math.isfinite(f) and FIELD_OF_VIEW[0] <= angle <= widest):
            seen = f" (a field of view of {angle:.3g} degrees)" if f > 0 else ""
            raise NerfError(
                f"{where}: the focal length {f:g} along {axis} is absurd for {length} pixels{seen};"
                " focal lengths are in pixels, camera_angle_* in radians, *_fov in degrees."
            )


def check_principal(principal: tuple[float, float], size: tuple[int, int], where: str) -> None:
    """Raise NerfError for a principal point that is far outside of the image, or not finite."""
    (cx, cy), (width, height) = principal, size
    if not (-width <= cx <= 2 * width and -height <= cy <= 2 * height):
        raise NerfError(
            f"{where}: the principal point ({cx:g}, {cy:g}) is far outside of the "
            f"{width}x{height} image; cx and cy are in pixels."
        )


def check_box(box: Box, where: str) -> Box:
    """Return the box; NerfError if its size or its place is absurd."""
    distance = max(map(abs, box.center))
    if not (LEAST_HALF_SIZE < box.half_size < MOST_DISTANT and distance < MOST_DISTANT):
        shown = ", ".join(f"{value:g}" for value in box.center)
        raise NerfError(
            f"{where}: a box of half size {box.half_size:g} around ({shown}) is impossible."
        )
    return box


def abbreviate(names: Sequence[str], limit: int = 3) -> str:
    """List the first few of many names, for a message."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def find_duplicates(names: Iterable[str]) -> list[str]:
    """Find names that occur more than once, in order."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return [name for name, count in seen.items() if count > 1]


def check_images(frames: Sequence[Frame]) -> None:
    """Raise NerfError if one image file belongs to two poses; one of them must be wrong."""
    first: dict[Path, Frame] = {}
    for frame in frames:
        if frame.image is None:
            continue
        other = first.setdefault(frame.image, frame)
        if other is not frame and not np.allclose(frame.c2w, other.c2w, rtol=1e-3, atol=1e-3):
            raise NerfError(
                f"{frame.image} is the only file for two frames with different poses, {other.name} "
                f"and {frame.name}. If their folders differ, --images DIR must name the folder "
                "that holds both folders."
            )


def median_focal(frames: Sequence[Frame]) -> float:
    """Choose one focal length for all, relative to the width, for a target that holds only one."""
    ratios = sorted(frame.focal[0] / frame.size[0] for frame in frames)
    return ratios[len(ratios) // 2]

"""`--crop`: a box in the source's units, from numbers or from a file, around what is shown."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.cameras.crop import Crop
from nerfcli.core.errors import NerfError
from nerfcli.core.files import json_text, read_json
from nerfcli.engine.render import Model
from nerfcli.scenes.scene import Similarity

HOW = "x0,y0,z0,x1,y1,z1 or a JSON file with center, size and rotation"
NERFSTUDIO = {"crop_center": "center", "crop_scale": "size", "crop_rot": "rotation"}
TRANSFORMS = "dataparser_transforms.json"  # how a nerfstudio run's frame came from the source's
ORTHONORMAL = 1e-3


def read_crop(text: str) -> Crop:
    """Read what --crop says: two corners, or a JSON file; in source units.

    Raises:
        NerfError: it is no box.
    """
    path = Path(text)
    if path.suffix.lower() == ".json" or path.is_file():
        return _from_file(path)
    words = text.replace(",", " ").split()
    numbers = _numbers(words, 6, f"--crop {text!r}")
    low, high = np.array(numbers[:3]), np.array(numbers[3:])
    if not (high > low).all():
        raise NerfError(
            f"--crop {text}: x1, y1 and z1 must be greater than x0, y0 and z0; the box is empty."
        )
    return _crop((low + high) / 2.0, high - low, np.eye(3))


def crop_model(model: Model, crop: Crop) -> Model:
    """Show nothing of a model outside of a crop, which is in source units.

    The crop's cube takes the place of the detail cube, wherever it lies: depth is coloured, and
    shapes are extracted there.
    """
    inside = moved(crop, model.scene.scene_from_source)
    scene = replace(model.scene, box=inside.cube())
    return replace(model, field=model.field.within(inside), scene=scene, crop=inside)


def moved(crop: Crop, by: Similarity) -> Crop:
    """The same box after a similarity."""
    matrix = by.matrix
    center = matrix[:3, :3] @ np.array(crop.center) + matrix[:3, 3]
    rotation = np.array(by.rotation) @ np.array(crop.rotation).reshape(3, 3)
    return _crop(center, 2.0 * by.scale * np.array(crop.half), rotation)


def crop_text(crop: Crop) -> str:
    """State a crop in source units as the JSON that --crop reads."""
    value = {
        "center": list(crop.center),
        "size": [2.0 * half for half in crop.half],
        "rotation": np.array(crop.rotation).reshape(3, 3).tolist(),
    }
    return json_text(value, indent=1) + "\n"


def _crop(center: np.ndarray, size: np.ndarray, rotation: np.ndarray) -> Crop:
    x, y, z = center.tolist()
    a, b, c = (size / 2.0).tolist()
    return Crop((x, y, z), (a, b, c), tuple(rotation.reshape(-1).tolist()))


def _from_file(path: Path) -> Crop:
    """Read center, size and rotation, or nerfstudio's `crop` of a camera path."""
    value = read_json(path)
    if isinstance(value, dict) and isinstance(value.get("crop"), dict):
        value = value["crop"]
    if not isinstance(value, dict):
        raise NerfError(f"--crop {path}: not an object with center and size. Give {HOW}.")
    is_nerfstudio = "crop_center" in value
    if is_nerfstudio:
        value = {ours: value[theirs] for theirs, ours in NERFSTUDIO.items() if theirs in value}
    if "min" in value and "max" in value:
        low, high = (np.array(_numbers(value[key], 3, f"{path}: {key}")) for key in ("min", "max"))
        value = {"center": (low + high) / 2.0, "size": high - low} | value
    for key in ("center", "size"):
        if key not in value:
            raise NerfError(f"--crop {path}: {key} is missing. Give {HOW}.")
    center = np.array(_numbers(value["center"], 3, f"{path}: center"))
    size = np.array(_numbers(value["size"], 3, f"{path}: size"))
    if not (size > 0).all():
        raise NerfError(f"--crop {path}: size must be three numbers above 0, got {size.tolist()}.")
    rotation = np.eye(3)
    if value.get("rotation") is not None:
        rotation = _rotation(value["rotation"], path, in_degrees=not is_nerfstudio)
    crop = _crop(center, size, rotation)
    transforms = path.parent / TRANSFORMS
    if is_nerfstudio and transforms.is_file():
        return moved(crop, _source_from_nerfstudio(transforms))
    return crop


def _rotation(value: Any, path: Path, *, in_degrees: bool) -> np.ndarray:
    """Roll, pitch and yaw, or a 3x3 matrix whose columns are the box's axes."""
    where = f"{path}: rotation"
    rows = value if isinstance(value, list | tuple) else []
    if len(rows) == 3 and not isinstance(rows[0], list):
        angles = _numbers(value, 3, where)
        return _turn(*(math.radians(a) for a in angles) if in_degrees else angles)
    flat = [item for row in rows for item in (row if isinstance(row, list) else [row])]
    matrix = np.array(_numbers(flat, 9, where)).reshape(3, 3)
    if np.abs(matrix @ matrix.T - np.eye(3)).max() > ORTHONORMAL or np.linalg.det(matrix) < 0:
        raise NerfError(f"--crop {where} is no rotation: its rows are not orthonormal.")
    return matrix


def _turn(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll)."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(a), math.sin(a)) for a in (roll, pitch, yaw))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _source_from_nerfstudio(path: Path) -> Similarity:
    """Invert x_model = scale * (transform @ [x_source, 1])."""
    value = read_json(path)
    try:
        transform = np.array(value["transform"], dtype=float)[:3, :4]
        scale = float(value["scale"])
        rows = tuple(tuple(row) for row in transform[:, :3].tolist())
        shift = tuple((scale * transform[:, 3]).tolist())
        return Similarity(scale, rows, shift).inverse()
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise NerfError(f"{path}: not nerfstudio's transform and scale. Remove it.") from error


def _numbers(value: Any, n: int, where: str) -> list[float]:
    if isinstance(value, dict) and n == 3:  # older nerfstudio wrote x, y and z
        value = [value.get(axis) for axis in "xyz"]
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != n or not all(map(math.isfinite, numbers)):
        raise NerfError(f"{where} must be {n} numbers. --crop takes {HOW}.")
    return numbers

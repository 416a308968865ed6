"""Read RealityCapture's (RealityScan's) CSV "Internal/External camera parameters".

f is in millimetres of a sensor whose longer side has 36; px and py are the principal point's offset
from the middle, as a share of the longer side; k1..k4, t1, t2 are Brown's model, ordered as OpenCV
has it.
Camera to world is, with OpenGL's axes, Rz(-heading) Rx(pitch) Ry(roll): a camera with all three
zero looks down, its upper edge to the north (+y).
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from nerfcli.cameras.lenses import Lens
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.arrays import parse_numbers, read_text
from nerfcli.scenes.readers.collector import Collector, Pinhole, find_images
from nerfcli.scenes.readers.listings import list_files
from nerfcli.scenes.source import Source

POSE = ("x", "y", "alt", "heading", "pitch", "roll")
NEEDED = ("name", *POSE, "f")
OPTIONAL = ("px", "py", "k1", "k2", "k3", "k4", "t1", "t2")
MOST_FILES = 100  # that are looked into for the right one
FILM = 36.0  # millimetres


def find_realitycapture(root: Path) -> Path | None:
    """Find the first CSV file in a folder with the columns of this export."""
    for path in list_files(root, "*.[cC][sS][vV]")[:MOST_FILES]:
        try:
            with path.open("rb") as file:
                head = file.read(4096).decode("utf-8-sig", errors="replace")
        except OSError:
            continue
        if any(_header(line) is not None for line in head.split("\n")[:3]):
            return path
    return None


def _header(line: str) -> tuple[list[str], str] | None:
    """Split a line into column names, and name the separator, if it has the needed ones."""
    for separator in (",", ";", "\t"):
        names = [name.strip().lstrip("#").strip().lower() for name in line.split(separator)]
        if set(NEEDED) <= set(names):
            return names, separator
    return None


def read_realitycapture(root: Path, path: Path, wanted: SceneConfig) -> Source:
    """Read the table, and find the images by their names.

    Raises:
        NerfError: a fault in the table; names line and column.
    """
    lines = read_text(path).split("\n")
    start = next((i for i, line in enumerate(lines[:3]) if _header(line) is not None), None)
    header = None if start is None else _header(lines[start])
    if start is None or header is None:
        raise NerfError(
            f"{path} has no header with the columns {', '.join(NEEDED)}; export the registration "
            "as 'Internal/External camera parameters'."
        )
    names, separator = header
    rows = []
    for i, line in enumerate(lines[start + 1 :], start=start + 2):
        if line.strip():
            rows.append((f"{path}, line {i}", _row(line, names, separator, f"{path}, line {i}")))
    pictures = find_images(root, [row["name"] for _, row in rows], wanted)
    collector = Collector(root, path, wanted, pictures=pictures)
    for where, row in rows:
        with collector.faults.collect():
            image = pictures.find(row["name"])
            values = {
                name: parse_numbers(row.get(name) or "0", f"{where}: {name}", 1)[0]
                for name in (*NEEDED[1:], *OPTIONAL)
            }
            camera = Pinhole((1.0, 1.0))
            if image is not None:
                camera = _intrinsics(values, collector.header(image)[:2])
            collector.add(row["name"], image, _pose(values), camera, where, opengl=True)
    return collector.finish("realitycapture", near_origin=True)


def _row(line: str, names: list[str], separator: str, where: str) -> dict[str, str]:
    try:
        cells = next(csv.reader([line.strip("\r")], delimiter=separator))
    except (csv.Error, StopIteration) as error:
        raise NerfError(f"{where}: no row of a table ({error}).") from error
    if len(cells) != len(names):
        raise NerfError(f"{where}: expected {len(names)} columns, got {len(cells)}.")
    row = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    empty = [name for name in NEEDED if not row[name]]
    if empty:
        raise NerfError(f"{where}: {', '.join(empty)} is empty.")
    return row


def _pose(values: dict[str, float]) -> np.ndarray:
    heading, pitch, roll = (math.radians(values[name]) for name in POSE[3:])
    rotation = _turn(2, -heading) @ _turn(0, pitch) @ _turn(1, roll)
    position = np.array([values[name] for name in POSE[:3]])
    return np.concatenate([rotation, position[:, None]], axis=1)


def _turn(axis: int, angle: float) -> np.ndarray:
    """Rotate about a coordinate axis, [3, 3], by the right-hand rule."""
    matrix = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix


def _intrinsics(values: dict[str, float], size: tuple[int, int]) -> Pinhole:
    width, height = size
    longer = max(width, height)
    focal = values["f"] * longer / FILM
    principal = (width / 2 + values["px"] * longer, height / 2 + values["py"] * longer)
    radial = {name: values[name] for name in ("k1", "k2", "k3", "k4")}
    lens = Lens.of("brown", **radial, p1=values["t1"], p2=values["t2"])
    return Pinhole((focal, focal), principal, lens=lens)

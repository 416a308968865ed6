"""Read and write the sparse points of a capture as PLY files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerfcli.scenes.readers.listings import is_file
from nerfcli.scenes.source import MOST_DISTANT, Points

COLORS = ("red", "green", "blue")
LEAST = 20  # points; fewer do not locate a scene


def read_points(path: Path) -> tuple[Points | None, str]:
    """Read the points of a PLY file.

    The points only refine the box, so a damaged file gives a note and no error.

    Returns:
        The finite points with their colours or None, and a note or "".
    """
    if not is_file(path):
        return None, f"the points {path.name} do not exist; the box comes from the cameras"
    import trimesh

    try:
        loaded = trimesh.load(path, process=False)
        xyz = np.asarray(getattr(loaded, "vertices", ()), dtype=np.float64).reshape(-1, 3)
        rgb = _colors(loaded, len(xyz))
    except Exception as error:  # noqa: BLE001 - a library's parser: it raises anything
        return None, f"the points {path.name} cannot be read ({error}); the box is from the cameras"
    finite = (np.abs(xyz) < MOST_DISTANT).all(-1)  # false for NaN
    if finite.sum() < LEAST:
        return None, f"{path.name} holds only {finite.sum()} points; the box comes from the cameras"
    return Points(xyz[finite], None if rgb is None else rgb[finite]), ""


def _colors(loaded: object, n: int) -> np.ndarray | None:
    """Take the colours of a cloud or of a mesh's vertices, [n, 3] uint8; None without any."""
    visual = getattr(loaded, "visual", None)
    if visual is not None and getattr(visual, "kind", None) != "vertex":
        return None
    colors = getattr(visual, "vertex_colors", None)
    if colors is None:
        colors = getattr(loaded, "colors", None)
    if colors is None or np.shape(colors) not in ((n, 3), (n, 4)):
        return None
    return np.asarray(colors)[:, :3].astype(np.uint8)


def write_points(points: Points, path: Path) -> None:
    """Write a binary PLY of positions, in double precision, and of colours if there are any."""
    kinds = dict.fromkeys("xyz", "<f8")
    if points.rgb is not None:
        kinds |= dict.fromkeys(COLORS, "u1")
    columns = [*points.xyz.T, *(points.rgb.T if points.rgb is not None else ())]
    table = np.zeros(len(points), list(kinds.items()))
    for name, column in zip(kinds, columns, strict=True):
        table[name] = column
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    words = {"<f8": "double", "u1": "uchar"}
    header += [f"property {words[kind]} {name}" for name, kind in kinds.items()]
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + table.tobytes())

"""Sparse points of a capture, for the choice of the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerfcli.scenes.source import Points


def read_points(path: Path) -> tuple[Points | None, str]:
    """Points of a PLY file.

    The points only refine the box, so a file that cannot be read costs a note, not the run.

    Returns:
        The finite points or None, and a note or "".
    """
    if not path.is_file():
        return None, f"the points {path.name} do not exist; the box comes from the cameras"
    try:
        import trimesh

        loaded = trimesh.load(path)
        vertices = np.asarray(getattr(loaded, "vertices", ()), dtype=np.float64).reshape(-1, 3)
    except (ImportError, ValueError, OSError, KeyError, IndexError) as error:
        return None, f"the points {path.name} cannot be read ({error}); the box is from the cameras"
    finite = vertices[np.isfinite(vertices).all(-1)]
    if len(finite) < 20:
        return None, f"{path.name} holds only {len(finite)} points; the box comes from the cameras"
    return Points(finite), ""

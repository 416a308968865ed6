"""Read and write voxels and signed distances as NPZ: kind, values, origin, spacing, frame, unit.

`values_at` says where a value belongs: value [i, j, k] lies at origin + spacing * (i, j, k), which
is the centre of a voxel.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.shapes.types import SdfGrid, VoxelGrid

MAX_BYTES = 4_500_000_000  # unpacked, enough for 1024**3 distances: a few kB can hold far more
VALUES_AT = {"voxels": "voxel centers", "sdf": "grid points"}


def save_grid(grid: VoxelGrid | SdfGrid, path: Path) -> None:
    """Write a grid; voxels also have the keys threshold and, if they are coloured, colors."""
    kind = "voxels" if isinstance(grid, VoxelGrid) else "sdf"
    arrays: dict[str, Any] = {
        "kind": kind,
        "values_at": VALUES_AT[kind],
        "values": grid.values,
        "origin": np.asarray(grid.origin, dtype=np.float64),
        "spacing": np.asarray(grid.spacing, dtype=np.float64),
        "frame": grid.frame,
        "unit": grid.unit,
    }
    if isinstance(grid, VoxelGrid):
        arrays["threshold"] = grid.threshold
        if grid.colors is not None:
            arrays["colors"] = grid.colors
    np.savez_compressed(path, **arrays)


def binvox_bytes(grid: VoxelGrid) -> bytes:
    """Encode the full cells in the exchange format binvox, by its specification; no colours.

    https://www.patrickmin.com/binvox/binvox.html: `translate` is the lower corner of the cube of
    all voxels, `scale` its side, and voxel i of dim has its centre at (i + 0.5) / dim of it. The
    grid is filled up to a cube with empty cells beyond its far sides. The header holds no comments,
    since some readers take its lines by number.

    Raises:
        NerfError: the spacing differs between the axes.
    """
    if not np.allclose(grid.spacing, grid.spacing[0]):
        raise NerfError(
            f"binvox holds one spacing for all axes, the grid has {grid.spacing.tolist()}; "
            "use .npz."
        )
    full = grid.values >= grid.threshold
    dim = max(full.shape)
    full = np.pad(full, [(0, dim - n) for n in full.shape])
    corner = " ".join(f"{x:.9g}" for x in grid.origin - 0.5 * grid.spacing)
    header = f"#binvox 1\ndim {dim} {dim} {dim}\ntranslate {corner}\n"
    header += f"scale {dim * grid.spacing[0]:.9g}\ndata\n"
    return header.encode("ascii") + _run_lengths(full.transpose(0, 2, 1).ravel())  # y runs fastest


def _run_lengths(flat: np.ndarray) -> bytes:
    """Encode bools as pairs of bytes: a value, and how often it follows, at most 255 times."""
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    lengths = np.diff(np.r_[starts, len(flat)])
    n_pairs = -(-lengths // 255)
    pairs = np.empty((int(n_pairs.sum()), 2), dtype=np.uint8)
    pairs[:, 0] = np.repeat(flat[starts], n_pairs)
    pairs[:, 1] = 255
    pairs[np.cumsum(n_pairs) - 1, 1] = lengths - 255 * (n_pairs - 1)
    return pairs.tobytes()


def load_grid(path: Path) -> VoxelGrid | SdfGrid:
    """Read a grid; origin and spacing may be one number for all axes.

    Raises:
        NerfError: unreadable or huge file, a missing key, a wrong shape, values not finite.
    """
    arrays = _arrays(path)
    missing = [key for key in ("kind", "values", "origin", "spacing") if key not in arrays]
    if missing:
        raise NerfError(
            f"{path}: lacks {', '.join(missing)}; a shape NPZ has kind, values, origin, spacing, "
            "frame and unit."
        )
    kind = str(arrays["kind"])
    if kind not in VALUES_AT:
        raise NerfError(f"{path}: kind {kind!r} is unknown; it is 'voxels' or 'sdf'.")
    values = _values(path, arrays["values"])
    origin, spacing = (_triple(path, key, arrays[key]) for key in ("origin", "spacing"))
    if spacing.min() <= 0:
        raise NerfError(f"{path}: spacing {spacing.tolist()} must be positive.")
    frame, unit = str(arrays.get("frame", "source")), str(arrays.get("unit", "unknown"))
    if kind == "sdf":
        return SdfGrid(values, origin, spacing, frame, unit)
    threshold = _number(path, arrays.get("threshold", np.array(0.5)))
    if threshold.size != 1 or not np.isfinite(threshold).all():
        raise NerfError(f"{path}: threshold must be one finite number, got {threshold.tolist()}.")
    colors = arrays.get("colors")
    if colors is not None and _number(path, colors).shape != (*values.shape, 3):
        raise NerfError(f"{path}: colors must be {[*values.shape, 3]}, got {list(colors.shape)}.")
    return VoxelGrid(values, origin, spacing, float(threshold.item()), colors, frame, unit)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(item.file_size for item in archive.infolist())
        if n_bytes > MAX_BYTES:
            raise NerfError(
                f"{path}: unpacks to {n_bytes / 1e9:.3g} GB, more than the {MAX_BYTES / 1e9:g} GB "
                "that are read. Crop the grid or lower its resolution."
            )
        with np.load(path, allow_pickle=False) as file:
            return {key: np.asarray(file[key]) for key in file.files}
    except NerfError:
        raise
    except Exception as error:  # zip, zlib and numpy each have their own for a broken file
        raise NerfError(f"{path}: not readable as NPZ ({error}). Write it again.") from error


def _values(path: Path, values: np.ndarray) -> np.ndarray:
    if values.ndim != 3 or min(values.shape) < 2:
        raise NerfError(
            f"{path}: values must be [nx, ny, nz] with 2 or more along each axis, "
            f"got {values.shape}."
        )
    values = _number(path, values).astype(np.float32, copy=False)
    if not np.all(np.isfinite(values)):
        raise NerfError(f"{path}: values hold NaN or infinity. Write the grid again.")
    return values


def _triple(path: Path, key: str, value: np.ndarray) -> np.ndarray:
    flat = _number(path, value).astype(np.float64).ravel()
    if flat.size not in (1, 3) or not np.all(np.isfinite(flat)):
        raise NerfError(f"{path}: {key} must be one or 3 numbers, finite; got {value.tolist()}.")
    return np.broadcast_to(flat, 3).copy()


def _number(path: Path, value: np.ndarray) -> np.ndarray:
    if value.dtype.kind not in "biuf":
        raise NerfError(f"{path}: {value.dtype} where numbers belong. Write the grid again.")
    return value

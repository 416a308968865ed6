"""Gaussian splats, and the files that viewers of 3D Gaussian splatting read: PLY, .splat, .spz.

PLY is the layout of Kerbl et al. 2023: opacities as logits, scales as natural logarithms,
quaternions w x y z, and `f_rest` with all of red first. A `.splat` file has 32 bytes a splat and
one colour for all directions. `.spz` is written by the package gsply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed
from nerfcli.core.files import replacing

SPLAT_SUFFIXES = (".ply", ".splat", ".spz")
N_HARMONICS = 16
CONSTANT = 0.28209479177387814  # the harmonic of degree 0: a colour is 0.5 + CONSTANT * f_dc
LEAST_LOGIT = -5.5373  # an opacity of 1/255: less is not drawn
PROPERTIES = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *(f"f_dc_{i}" for i in range(3)),
    *(f"f_rest_{i}" for i in range(3 * (N_HARMONICS - 1))),
    "opacity",
    *(f"scale_{i}" for i in range(3)),
    *(f"rot_{i}" for i in range(4)),
)
SPZ_BITS = 23  # of a coordinate, without its sign


@dataclass(frozen=True, eq=False)
class Splats:
    """Gaussians in the source's frame.

    positions: [n, 3] float64.
    normals: [n, 3] float32, of unit length, or zero where unknown.
    harmonics: [n, 16, 3] float32; a colour is 0.5 + their sum over the direction from the camera.
    logits: [n] float32, of the opacity.
    log_scales: [n, 3] float32, of the standard deviations along the axes.
    quaternions: [n, 4] float32, w x y z: the rotation whose columns are the axes.
    """

    positions: np.ndarray
    normals: np.ndarray
    harmonics: np.ndarray
    logits: np.ndarray
    log_scales: np.ndarray
    quaternions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: np.ndarray) -> Splats:
        return Splats(**{name: values[rows] for name, values in vars(self).items()})

    @property
    def rotations(self) -> np.ndarray:
        """[n, 3, 3], the axes as columns."""
        return Rotation.from_quat(self.quaternions[:, [1, 2, 3, 0]]).as_matrix()

    @property
    def visible(self) -> Splats:
        """Those with an opacity that viewers draw, in numbers that a file can hold."""
        finite = np.isfinite(self.logits) & np.isfinite(self.log_scales).all(axis=1)
        finite &= np.isfinite(self.harmonics).all(axis=(1, 2))
        return self[finite & (self.logits >= LEAST_LOGIT)]


def quaternions_of(rotations: np.ndarray) -> np.ndarray:
    """Convert rotations [n, 3, 3] to quaternions w x y z [n, 4] float32."""
    return Rotation.from_matrix(rotations).as_quat()[:, [3, 0, 1, 2]].astype(np.float32)


def save_splats(splats: Splats, path: Path) -> None:
    """Write splats; the suffix decides the format.

    Raises:
        NerfError: another suffix, no package for it, or a path that cannot be written.
    """
    writers = {".ply": _write_ply, ".splat": _write_splat, ".spz": _write_spz}
    with replacing(path) as aside:
        writers[_suffix(path)](splats, aside)


def load_splats(path: Path) -> Splats:
    """Read splats that this program, or another one in the same layout, has written.

    Raises:
        NerfError: another suffix, no package for it, or a file without splats.
    """
    readers = {".ply": _read_ply, ".splat": _read_splat, ".spz": _read_spz}
    suffix = _suffix(path)
    try:
        return readers[suffix](path)
    except OSError as error:
        raise NerfError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        raise NerfError(f"{path}: no Gaussian splats as {suffix} ({error}).") from error


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SPLAT_SUFFIXES:
        known = " or ".join(SPLAT_SUFFIXES)
        raise NerfError(f"{path}: splats are {known} files.")
    return suffix


def _write_ply(splats: Splats, path: Path) -> None:
    rest = splats.harmonics[:, 1:].transpose(0, 2, 1).reshape(len(splats), -1)
    columns = [splats.positions, splats.normals, splats.harmonics[:, 0], rest]
    columns += [splats.logits[:, None], splats.log_scales, splats.quaternions]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(splats)}"]
    header += [f"property float {name}" for name in PROPERTIES]
    table = np.concatenate(columns, axis=1).astype("<f4")
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + table.tobytes())


def _read_ply(path: Path) -> Splats:
    data = path.read_bytes()
    end = data.find(b"end_header\n")
    if not data.startswith(b"ply\n") or end < 0:
        raise ValueError("no header of a PLY file")
    header = data[:end].decode("ascii").splitlines()
    if header[1] != "format binary_little_endian 1.0":
        raise ValueError(f"{header[1]!r}, not binary and little-endian")
    n = int(next((line.split()[2] for line in header if line.startswith("element vertex ")), "0"))
    found = [line.split()[1:] for line in header if line.startswith("property ")]
    if any(kind != "float" for kind, *_ in found):
        raise ValueError("a property that is no float")
    names = [name for _, name in found]
    if missing := [name for name in PROPERTIES if name not in names]:
        raise ValueError(f"property {missing[0]} is missing")
    table = np.frombuffer(data, "<f4", n * len(names), end + len(b"end_header\n"))
    table = table.reshape(n, len(names))[:, [names.index(name) for name in PROPERTIES]]
    positions, normals, first, rest, logits, scales, rotations = np.split(
        table, np.cumsum([3, 3, 3, 3 * (N_HARMONICS - 1), 1, 3]), axis=1
    )
    rest = rest.reshape(n, 3, N_HARMONICS - 1).transpose(0, 2, 1)
    harmonics = np.concatenate([first[:, None], rest], axis=1)
    return Splats(positions.astype(np.float64), normals, harmonics, logits[:, 0], scales, rotations)


_SPLAT = np.dtype(
    [("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)]
)


def _write_splat(splats: Splats, path: Path) -> None:
    """32 bytes a splat, the largest and most opaque first: viewers show them as they arrive."""
    opacity = 1.0 / (1.0 + np.exp(-splats.logits.astype(np.float64)))
    order = np.argsort(-np.exp(splats.log_scales.sum(axis=1)) * opacity, kind="stable")
    rgba = np.column_stack([0.5 + CONSTANT * splats.harmonics[:, 0], opacity])
    table = np.empty(len(splats), _SPLAT)
    table["position"], table["scale"] = splats.positions, np.exp(splats.log_scales)
    table["rgba"] = np.round(rgba * 255.0).clip(0, 255)
    table["rotation"] = np.round(splats.quaternions * 128.0 + 128.0).clip(0, 255)
    path.write_bytes(table[order].tobytes())


def _read_splat(path: Path) -> Splats:
    table = np.fromfile(path, np.uint8)
    if len(table) % _SPLAT.itemsize:
        raise ValueError(f"not a multiple of {_SPLAT.itemsize} bytes")
    table = table.view(_SPLAT)
    rgba = table["rgba"].astype(np.float32) / 255.0
    harmonics = np.zeros((len(table), N_HARMONICS, 3), np.float32)
    harmonics[:, 0] = (rgba[:, :3] - 0.5) / CONSTANT
    alpha = rgba[:, 3].clip(1e-4, 1.0 - 1e-4)
    quaternions = (table["rotation"].astype(np.float32) - 128.0) / 128.0
    return Splats(
        table["position"].astype(np.float64),
        np.zeros((len(table), 3), np.float32),
        harmonics,
        np.log(alpha / (1.0 - alpha)),
        np.log(table["scale"]),
        quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True),
    )


def _write_spz(splats: Splats, path: Path) -> None:
    spz, kinds = _gsply()
    most = float(np.abs(splats.positions).max(initial=0.0))
    bits = min(SPZ_BITS, SPZ_BITS - math.frexp(most)[1])  # after the point
    if bits < 1:
        raise NerfError(
            f".spz holds coordinates up to {2 ** (SPZ_BITS - 1):,}, and a splat lies at "
            f"{most:,.0f}. Write a .ply, or move the scene to its origin."
        )
    arrays = {
        "means": splats.positions,
        "scales": splats.log_scales,
        "quats": splats.quaternions,
        "opacities": splats.logits,
        "sh0": splats.harmonics[:, 0],
        "shN": splats.harmonics[:, 1:],
    }
    rows = {name: np.ascontiguousarray(values, np.float32) for name, values in arrays.items()}
    spz.write_spz(path, kinds.from_arrays(**rows, format="ply"), fractional_bits=bits)


def _read_spz(path: Path) -> Splats:
    found = _gsply()[0].read_spz(path)
    n = len(found.means)
    harmonics = np.zeros((n, N_HARMONICS, 3), np.float32)
    harmonics[:, 0] = found.sh0
    if found.shN is not None:
        harmonics[:, 1 : 1 + found.shN.shape[1]] = found.shN
    return Splats(
        found.means.astype(np.float64),
        np.zeros((n, 3), np.float32),
        harmonics,
        found.opacities.reshape(n),
        found.scales,
        found.quats,
    )


def _gsply() -> tuple[Any, Any]:
    ensure_installed("gsply", "a .spz file")
    from gsply import spz  # pyright: ignore[reportMissingImports]
    from gsply.gsdata import GSData  # pyright: ignore[reportMissingImports]

    return spz, GSData

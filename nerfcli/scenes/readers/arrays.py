"""Read small tables of numbers: .npy, .npz, and text. Sizes are checked before memory is taken."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_no_pointer
from nerfcli.scenes.source import MOST_DISTANT, NoFrames

HEADER = re.compile(
    rb"^\{'descr': '([<>]f[48])', 'fortran_order': (False|True), "
    rb"'shape': \((\d{1,9}), (\d{1,9})\), \}"
)
MOST_BYTES = 2**16  # of a file or member that holds one matrix
MOST_TEXT = 2**28  # of any text file


def parse_npy(data: bytes, where: str, columns: int, meaning: str = "") -> np.ndarray:
    """Parse the bytes of a .npy file as [n, columns] float64.

    Args:
        meaning: what columns and rows are, for a message.

    Raises:
        NerfError: not such a table, or truncated.
    """
    start = 10 if data[6:7] == b"\x01" else 12
    length = int.from_bytes(data[8:start], "little")
    header = HEADER.match(data[start : start + min(length, 200)])
    if data[:6] != b"\x93NUMPY" or header is None:
        ensure_no_pointer(Path(where), data)
        raise NerfError(f"{where} is not a NumPy file with a table of floating-point numbers.")
    shape = (int(header[3]), int(header[4]))
    if shape[1] != columns or shape[0] == 0:
        raise NerfError(
            f"{where} must have {columns} columns{meaning}, got {shape[0]} x {shape[1]}."
        )
    dtype = np.dtype(header[1].decode())
    body = data[start + length :]
    if len(body) != shape[0] * shape[1] * dtype.itemsize:
        raise NerfError(
            f"{where} is truncated or damaged: {shape[0]} rows take "
            f"{shape[0] * shape[1] * dtype.itemsize} bytes, {len(body)} are there."
        )
    order = "F" if header[2] == b"True" else "C"
    return np.frombuffer(body, dtype).reshape(shape, order=order).astype(np.float64)


def read_npz(path: Path, wanted: re.Pattern[str], columns: int) -> dict[str, np.ndarray]:
    """Read those tables of a .npz file whose names match; nothing is ever unpickled.

    Raises:
        NerfError: the archive is damaged, or one of them is not a table with so many columns.
    """
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if not wanted.fullmatch(name):
                    continue
                if member.file_size > MOST_BYTES:
                    raise NerfError(f"{path}: {name} is far too large for a matrix.")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise NerfError(f"{path}: {name} is packed in a way that NumPy never uses.")
                found[name] = archive.read(member)
    except NerfError:
        raise
    except Exception as error:  # noqa: BLE001 - a library's parser: it raises anything
        raise NoFrames(f"{path} is no intact .npz file ({error}). Take an intact copy.") from error
    return {name: parse_npy(data, f"{path}: {name}", columns) for name, data in found.items()}


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Read a text file.

    Raises:
        NerfError: it cannot be read, is absurdly large, or is not UTF-8.
    """
    try:
        if path.stat().st_size > most:
            raise NerfError(f"{path} is absurdly large ({path.stat().st_size / 1e6:.0f} MB).")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NerfError(f"{path} is not a UTF-8 text file. Take an intact copy.") from error
    except OSError as error:
        raise NerfError(f"{path} cannot be read: {error.strerror}.") from error


def parse_numbers(text: str, where: str, count: int | None = None) -> list[float]:
    """Parse numbers between white space, finite and not absurd.

    Args:
        count: how many there must be.

    Raises:
        NerfError: something is no finite number, or there are more or fewer.
    """
    words = text.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        shown = text.strip()[:60]
        raise NerfError(f"{where}: expected numbers, got {shown!r}.") from error
    if count is not None and len(numbers) != count:
        raise NerfError(f"{where}: expected {count} numbers, got {len(numbers)}.")
    if not np.isfinite(numbers).all():
        raise NerfError(f"{where} has values that are not finite.")
    largest = max(map(abs, numbers), default=0.0)
    if largest > MOST_DISTANT:
        raise NerfError(f"{where} has absurd values ({largest:.3g}).")
    return numbers


def read_rows(path: Path) -> list[list[float]]:
    """Read the lines of a text file of numbers; empty ones and # comments are left out.

    Raises:
        NerfError: it cannot be read, is absurdly large, or holds anything else.
    """
    text = read_text(path, MOST_BYTES)
    lines = ((i, line.partition("#")[0]) for i, line in enumerate(text.split("\n"), start=1))
    return [parse_numbers(line, f"{path}, line {i}") for i, line in lines if line.strip()]


def read_matrix(path: Path) -> np.ndarray:
    """Read a text file with a 4x4, 3x4 or 3x3 matrix, by rows or all in one line. Float64.

    Raises:
        NerfError: as `read_rows`, or of another shape.
    """
    rows = read_rows(path)
    lengths = [len(row) for row in rows]
    values = [value for row in rows for value in row]
    shapes = {16: (4, 4), 12: (3, 4), 9: (3, 3)}
    shape = shapes.get(len(values))
    if shape is None or (len(rows) > 1 and lengths != [shape[1]] * shape[0]):
        raise NerfError(f"{path} must hold a 4x4 matrix, got lines of {lengths[:6]} numbers.")
    return np.array(values).reshape(shape)

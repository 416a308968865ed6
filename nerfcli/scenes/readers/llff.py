"""Read LLFF's poses_bounds.npy: a row per view with its pose, near and far depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nerfcli.cameras.lenses import Lens
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.images import ensure_complete
from nerfcli.scenes.readers.arrays import parse_npy
from nerfcli.scenes.readers.folders import resized_note, size_ratio
from nerfcli.scenes.readers.frame_faults import FrameFaults
from nerfcli.scenes.readers.pictures import (
    image_files,
    image_folders,
    one_of_each,
    relative_name,
)
from nerfcli.scenes.source import (
    Frame,
    NoFrames,
    Source,
    check_focal,
    pose_from_opengl,
    read_stored_size,
)

NAME = "poses_bounds.npy"


def read_llff(root: Path, wanted: SceneConfig | None = None) -> Source:
    """Read poses_bounds.npy and the images, whose sorted names match its rows.

    Raises:
        NerfError: a fault in the table or the images; names row or file.
    """
    path = root / NAME
    rows = read_table(path)
    wanted = wanted or SceneConfig()
    folders = image_folders(root) if wanted.images is None else [Path(wanted.images)]
    images, notes = _images(folders, len(rows), path)
    faults, frames, resized = FrameFaults(skip=wanted.skip_bad_frames), [], []
    for i, (row, image) in enumerate(zip(rows, images, strict=True)):
        with faults.collect():
            if wanted.skip_bad_frames:
                ensure_complete(image)
            frame, stated = _frame(row, image, f"{path}, row {i} ({image.name})")
            name = relative_name(image, root)
            if wanted.images is not None:  # the same wherever that folder lies
                name = f"images/{image.name}"
            frame = replace(frame, name=name)
            frames.append(frame)
            if frame.size != stated:
                resized.append((frame.size, stated))
    notes += faults.finish(len(frames))
    return Source(
        name=root.resolve().name,
        root=root,
        kind="llff",
        frames=tuple(frames),
        notes=tuple(notes + resized_note(resized)),
    )


def _frame(row: np.ndarray, image: Path, where: str) -> tuple[Frame, tuple[int, int]]:
    """Make the frame of a row, and read the image size that it states."""
    if not np.isfinite(row).all():
        raise NerfError(f"{where} has values that are not finite.")
    height, width, focal = row[:15].reshape(3, 5)[:, 4].tolist()
    if not (1 <= height <= 2**20 and 1 <= width <= 2**20):
        raise NerfError(f"{where}: height {height:g} and width {width:g} cannot be a size.")
    stated = (round(width), round(height))
    check_focal((focal, focal), stated, Lens(), where)
    real_width, real_height, has_alpha = read_stored_size(image, stated)
    real = (real_width, real_height)
    sx, sy = size_ratio(real, stated, where)
    frame = Frame(
        name=image.name,
        c2w=_c2w(row, where),
        focal=(focal * sx, focal * sy),
        principal=(real_width / 2, real_height / 2),
        size=real,
        lens=Lens(),
        image=image,
        has_alpha=has_alpha,
        bounds=_bounds(row, where),
    )
    return frame, stated


def read_table(path: Path) -> np.ndarray:
    """Read a .npy file as [n, 17] float64.

    Raises:
        NerfError: not such a table, truncated, or not finite.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NerfError(f"{path} cannot be read: {error.strerror}.") from error
    return parse_npy(data, str(path), 17, " (pose 3x5, near, far) and a row for each image")


def _images(folders: list[Path], n_rows: int, path: Path) -> tuple[list[Path], list[str]]:
    """Find the first folder with images, which must hold one for each row, and notes."""
    for folder in folders:
        images = image_files(folder)
        if len(images) == n_rows:
            return images, []
        one_each = one_of_each(images)
        if len(one_each) == n_rows:
            endings = sorted({image.suffix for image in one_each})
            return one_each, [
                f"{folder.name} holds images in several formats; of each one is read "
                f"({', '.join(endings)})"
            ]
        if images:
            raise NerfError(
                f"{path} has {n_rows} rows, one for each image in the order of their names; "
                f"{folder} holds {quantity(len(images), 'image')}."
            )
    looked = ", ".join(str(folder) for folder in folders)
    raise NoFrames(f"{path} has no images. Looked in {looked}; --images DIR says where they are.")


def _c2w(row: np.ndarray, where: str) -> np.ndarray:
    """Convert LLFF's columns (down, right, back), by way of OpenGL's (right, up, back), to c2w."""
    pose = row[:15].reshape(3, 5)
    opengl = np.stack([pose[:, 1], -pose[:, 0], pose[:, 2], pose[:, 3]], axis=1)
    return pose_from_opengl(opengl, where)[0]


def _bounds(row: np.ndarray, where: str) -> tuple[float, float]:
    near, far = row[15:].tolist()
    if not 0 < near < far:
        raise NerfError(
            f"{where}: the depth bounds must be positive and ascending, got {near:g} and {far:g}."
        )
    return near, far

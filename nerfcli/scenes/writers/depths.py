"""Write depth images, copied or resampled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.scenes.images import write_png
from nerfcli.scenes.source import Depth, Frame
from nerfcli.scenes.writers.lenses import intrinsics_of_frame
from nerfcli.scenes.writers.undistort import pixel_places


def is_ngp_depth(depth: Depth) -> bool:
    """Whether instant-ngp reads a depth image: it wants PNG files, and depths along the axis."""
    return depth.path.suffix.lower() == ".png" and not depth.is_euclidean


def write_depths(
    old: Sequence[Frame], frames: Sequence[Frame], names: Sequence[str], folder: Path, target: str
) -> list[str | None]:
    """Copy or resample the depth images: each new pixel's value is that of the nearest old one.

    instant-ngp wants 16 bits, and the size of the photo. For nerfstudio, which wants all or none,
    frames without one get one that knows nothing.

    Args:
        old, frames: as they were, and as they are written; the same objects where nothing changes.
        names: of the images, below their folder.

    Returns:
        The files' paths relative to `folder`.

    Raises:
        NerfError: a file cannot be read.
    """
    placed: list[str | None] = []
    is_ngp = target == "instant-ngp"
    any_ = any(frame.depth is not None for frame in frames)
    for before, frame, name in zip(old, frames, names, strict=True):
        depth = frame.depth
        if is_ngp and depth is not None and not is_ngp_depth(depth):
            depth = None
        if depth is None and (is_ngp or not any_):
            placed.append(None)
            continue
        suffix = ".png" if depth is None else depth.path.suffix
        place = f"depths/{PurePosixPath(name).with_suffix(suffix)}"
        placed.append(place)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if depth is None:
            write_png(folder / place, np.zeros(frame.size[::-1], np.uint16))
            continue
        if frame is before and not is_ngp:
            shutil.copyfile(depth.path, folder / place)
            continue
        values = _read(depth.path)
        if is_ngp:
            values = values.reshape(*values.shape[:2], -1)[..., 0].astype(np.uint16)
        _write(_resample(values, before, frame, frame.size if is_ngp else None), folder / place)
    return placed


def _read(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path)
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise NerfError(f"{path} is corrupt or no depth image ({error}).") from error


def _resample(
    depth: np.ndarray, old: Frame, new: Frame, size: tuple[int, int] | None
) -> np.ndarray:
    """Resample a depth image [h, w, ...]; its axis stays, and so do depths along it or along rays.

    size: width and height of the result; None: as fine as the image was, beside its photo.
    """
    flat = depth.reshape(*depth.shape[:2], -1)
    height, width = flat.shape[:2]
    size = size or (
        max(1, round(new.size[0] * width / old.size[0])),
        max(1, round(new.size[1] * height / old.size[1])),
    )
    # which pixel, not its value: floats do not hold all 32-bit numbers
    if new is old:
        x, y = (
            ((np.arange(side) + 0.5) * stored / side).astype(np.int64)
            for side, stored in zip(size, (width, height), strict=True)
        )
        chosen = y[:, None] * width + x
    else:
        at = torch.arange(height * width, dtype=torch.float64).reshape(height, width, 1)
        places = pixel_places(intrinsics_of_frame(old), intrinsics_of_frame(new), size).double()
        chosen = grid_sample(
            at.permute(2, 0, 1)[None], places[None], mode="nearest", align_corners=False,
            padding_mode="border",
        )[0, 0].long().numpy()  # fmt: skip
    return flat.reshape(height * width, -1)[chosen].reshape(*chosen.shape, *depth.shape[2:])


def _write(depth: np.ndarray, place: Path) -> None:
    suffix = place.suffix.lower()
    with replacing(place) as aside, open(aside, "wb") as file:
        if suffix == ".npy":
            np.save(file, depth)
        else:
            Image.fromarray(depth).save(file, format="PNG" if suffix == ".png" else "TIFF")

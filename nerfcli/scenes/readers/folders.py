"""Find the images of a capture, and scale intrinsics to images of another size than stated."""

from __future__ import annotations

import re
from pathlib import Path

from nerfcli.core.errors import NerfError
from nerfcli.scenes.source import EXTENSIONS, is_file

ASPECT_TOLERANCE = 0.05
OTHER_NAMES = ("input", "rgb")  # of the folder of images, by some tools


def image_folders(root: Path) -> list[Path]:
    """List candidates in order: images, images_2, images_4, ..., other names, the folder itself."""
    reduced = []
    for folder in root.iterdir():
        match = re.fullmatch(r"images_(\d{1,4})", folder.name)
        if match and folder.is_dir():
            reduced.append((int(match[1]), folder))
    named = [root / "images", *(folder for _, folder in sorted(reduced))]
    named += [root / name for name in OTHER_NAMES]
    return [folder for folder in named if folder.is_dir()] + [root]


def image_files(folder: Path) -> list[Path]:
    """List the image files in a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file())


def find_named(folder: Path, name: str) -> Path | None:
    """Find an image by name; one of another format counts if the stated one is missing."""
    path = folder / name
    if is_file(path):
        return path
    tried = (path.parent / (path.stem + extension) for extension in EXTENSIONS)
    return next(filter(is_file, tried), None)


def size_ratio(real: tuple[int, int], stated: tuple[int, int], where: str) -> tuple[float, float]:
    """Compute the factors from stated pixels to those of an image of another size.

    Raises:
        NerfError: the shapes differ, so that the intrinsics cannot be right.
    """
    ratio = (real[0] / stated[0], real[1] / stated[1])
    if abs(ratio[0] / ratio[1] - 1) > ASPECT_TOLERANCE:
        raise NerfError(
            f"{where}: the image has {real[0]}x{real[1]} pixels, {stated[0]}x{stated[1]} are "
            "stated; the shapes differ (cropped or turned?), so the intrinsics cannot be right."
        )
    return ratio


def resized_note(resized: list[tuple[tuple[int, int], tuple[int, int]]]) -> list[str]:
    """Note images of another size than stated; pairs of real and stated sizes."""
    if not resized:
        return []
    (w, h), (stated_w, stated_h) = resized[0]
    return [
        f"{len(resized)} images have another size than stated ({w}x{h} instead of "
        f"{stated_w}x{stated_h}); the intrinsics follow the images"
    ]

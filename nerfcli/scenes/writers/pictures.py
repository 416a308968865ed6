"""Name and write the images of the new folder: as they are, or as PNG where they cannot stay so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from nerfcli.scenes.images import exif_turn, has_rgb_pixels, is_turned, read_with_alpha, write_png
from nerfcli.scenes.photo_formats import HEIF, RAW, open_photo
from nerfcli.scenes.source import Frame, find_duplicates, natural_key
from nerfcli.scenes.writers.undistort import write_undistorted_image

TABLES = ("transforms", "instant-ngp")  # both are a transforms.json
# Pillow's names of what instant-ngp opens, whatever the suffix says. Of PNM it knows some kinds
NGP_KINDS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "TGA", "PSD")


def image_names(frames: Sequence[Frame], target: str) -> list[str]:
    """Name the images in the new folder, as before where the format allows.

    Names are numbered if they would collide, or if their order would differ from that of the
    frames and matters: LLFF's rows follow it (by characters), and without a split every n-th view
    is held out by it (in natural order). Masks and depth images of a transforms.json are named by
    the stem.
    """
    names = _without_common_folder([frame.name for frame in frames])
    folders = ["images"] * len(frames)
    if target == "blender":
        folders = [frame.split or "train" for frame in frames]
        names = [n.removeprefix(f"{s}/") for n, s in zip(names, folders, strict=True)]
    if target in ("blender", "llff"):
        names = [name.replace("/", "_") for name in names]
    names = [
        str(PurePosixPath(name).with_suffix(file_kind(frame, target)[0]))
        for frame, name in zip(frames, names, strict=True)
    ]
    key = str if target == "llff" else natural_key
    ordered = target == "llff" or any(frame.split is None for frame in frames)
    by_stem = target in TABLES and any(frame.depth or frame.mask for frame in frames)
    for folder in set(folders):
        mine = [n for n, f in zip(names, folders, strict=True) if f == folder]
        unique = [str(PurePosixPath(n).with_suffix("")) for n in mine] if by_stem else mine
        if find_duplicates(unique) or (ordered and mine != sorted(mine, key=key)):
            flat = (PurePosixPath(name.replace("/", "_")) for name in names)
            names = [f"{i:05d}_{name}" for i, name in enumerate(flat)]
            break
    return [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]


def _without_common_folder(names: Sequence[str]) -> list[str]:
    parts = [[p for p in PurePosixPath(n).parts if p not in ("..", "/")] for n in names]
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return ["/".join(p) for p in parts]


def file_kind(frame: Frame, target: str) -> tuple[str, bool]:
    """Return the suffix of an image in the new folder, and whether its file stays as it is.

    It becomes a PNG if a separate alpha image is merged in (only instant-ngp reads such), if it
    only fits turned as EXIF says, or if the format's other readers could not open it: those of
    Blender scenes and LLFF go by the suffix and want three or four channels.
    """
    image = frame.image
    assert image is not None
    suffix, is_planned = image.suffix, not image.is_file()  # of pixels yet to be resampled
    if suffix.lower() in RAW + HEIF or (frame.alpha is not None and target != "instant-ngp"):
        return ".png", False
    if not is_planned and is_turned(image, frame.size):
        return ".png", False
    if target == "instant-ngp" and not is_planned:
        files = [image] if frame.alpha is None else [image, frame.alpha]
        return (suffix, True) if suffix and all(map(_is_for_ngp, files)) else (".png", False)
    if target not in ("blender", "llff"):
        return suffix, True
    known = (".png",) if target == "blender" else (".png", ".jpg", ".JPG")
    other = {".PNG": ".png", ".jpeg": ".jpg", ".JPEG": ".jpg"}.get(suffix, suffix)
    is_kept = other in known and (is_planned or has_rgb_pixels(image))
    return (other, True) if is_kept else (".png", False)


def _is_for_ngp(path: Path) -> bool:
    with open_photo(path) as image:
        return image.format in NGP_KINDS


def write_image(old: Frame, frame: Frame, place: Path, target: str, *, link: bool = False) -> Frame:
    """Copy or link an image; write it anew where its file cannot stay as it is.

    Returns:
        The frame, with its new image if it had none yet.
    """
    assert old.image is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    if frame is not old:
        write_undistorted_image(old, frame, place)
        return replace(frame, image=place)
    if not file_kind(frame, target)[1]:
        pixels = read_with_alpha(old.image, frame.alpha, 1, frame.size)
        write_png(place, pixels, exif_turn(old.image, frame.size))
        return frame
    _copy(old.image, place, link)
    if frame.alpha is not None:  # instant-ngp's name for it
        _copy(frame.alpha, place.with_name(f"{place.name}.alpha{place.suffix}"), link)
    return frame


def _copy(file: Path, place: Path, link: bool) -> None:
    if link:
        place.symlink_to(Path(os.path.abspath(file)))
    else:
        shutil.copyfile(file, place)

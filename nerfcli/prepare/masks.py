"""Take masks of photos into the new scene: black pixels are neither matched nor trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.core.progress import Note
from nerfcli.core.text import quantity
from nerfcli.prepare.photos import Photo
from nerfcli.scenes.images import TURNS
from nerfcli.scenes.photo_formats import open_photo
from nerfcli.scenes.readers.pictures import Pictures

MASKS = "masks"  # in the new scene; among photos, a folder that holds masks and no photos


def find_masks(folder: Path, names: Sequence[str], note: Note) -> dict[str, Path]:
    """Find the masks of photos by their names: name.jpg.png, name.png, or the very name.

    Raises:
        NerfError: there is none.
    """
    masks = Pictures(folder, what="masks")
    found = {name: path for name in names if (path := masks.find_here(f"{name}.png"))}
    found |= masks.find_all(name for name in names if name not in found)
    if not found:
        raise NerfError(
            f"{folder} holds no mask of any photo; name them as the photos: {names[0]}.png or "
            f"{Path(names[0]).with_suffix('.png')}."
        )
    without = len(names) - len(found)
    if without:
        note(f"{quantity(without, 'photo')} without a mask in {folder}: all of them is used")
    return found


def take_masks(
    found: Mapping[str, Path], taken: Mapping[str, Photo], out: Path, note: Note
) -> None:
    """Write a mask of each photo to `out`, named as COLMAP has it, upright, black or white.

    Args:
        found: masks by name of the photo. taken: photos by name. note: takes remarks.

    Raises:
        NerfError: a mask cannot be read.
    """
    masks = {name: path for name, path in found.items() if name in taken}
    stored = _find_stored(masks, taken, note)
    for name, photo in taken.items():
        target = out / f"{photo.name}.png"
        if target.exists():
            continue
        if name in masks:
            mask = _read_mask(masks[name], photo, name in stored)
        else:
            mask = Image.new("L", photo.size, 255)
        with replacing(target) as aside:
            mask.save(aside)


def _find_stored(masks: Mapping[str, Path], taken: Mapping[str, Photo], note: Note) -> set[str]:
    """Return the photos whose mask is of the pixels as stored, to be turned as the photo.

    The size of a mask says it for a turn by 90 degrees. The other masks are taken to be as those.
    """
    stored, upright, unclear = set(), set(), set()
    for name, path in masks.items():
        photo = taken[name]
        if photo.orientation == 1:
            continue
        with open_photo(path) as image:
            size = image.size
        if photo.orientation < 5 or photo.size[0] == photo.size[1]:
            unclear.add(name)
        elif size == photo.size[::-1]:
            stored.add(name)
        elif size == photo.size:
            upright.add(name)
    if stored and not upright:
        return stored | unclear
    if unclear and not (upright and not stored):
        note(
            f"{quantity(len(unclear), 'mask')} of photos turned by EXIF taken as upright "
            f"({min(unclear)}): no size says how they are stored"
        )
    return stored


def _read_mask(path: Path, photo: Photo, is_stored: bool) -> Image.Image:
    with open_photo(path) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise NerfError(f"{path} is corrupt or truncated ({error}).") from error
        mask = image.convert("RGB").convert("L").point([0] + [255] * 255)
    if is_stored:
        mask = mask.transpose(TURNS[photo.orientation])
    return mask if mask.size == photo.size else mask.resize(photo.size, Image.Resampling.NEAREST)

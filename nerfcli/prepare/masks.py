"""Take masks of photos into the new scene: black pixels are neither matched nor trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.core.progress import Note
from nerfcli.core.text import quantity
from nerfcli.prepare.photos import Photo
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
    folder: Path, found: Mapping[str, Path], taken: Mapping[str, Photo], out: Path
) -> None:
    """Write a mask of each photo to `out`, named as COLMAP has it, upright, black or white.

    Args:
        folder: of the photos. taken: by name in `folder`.

    Raises:
        NerfError: a mask cannot be read.
    """
    for name, photo in taken.items():
        target = out / f"{photo.name}.png"
        if target.exists():
            continue
        if name in found:
            mask = _read_mask(found[name], folder / name, photo.size)
        else:
            mask = Image.new("L", photo.size, 255)
        with replacing(target) as aside:
            mask.save(aside)


def _read_mask(path: Path, photo: Path, size: tuple[int, int]) -> Image.Image:
    with open_photo(path) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise NerfError(f"{path} is corrupt or truncated ({error}).") from error
        mask = image.convert("RGB").convert("L").point([0] + [255] * 255)
    turned = mask.size != size and mask.size == size[::-1]
    if turned:  # made of the pixels as stored: turn it as the photo
        with open_photo(photo) as stored:
            mask.getexif()[0x0112] = stored.getexif().get(0x0112, 1)
        mask = ImageOps.exif_transpose(mask)
    return mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)

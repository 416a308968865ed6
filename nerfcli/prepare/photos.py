"""Copy photos into the new scene's folder, upright; the originals stay untouched."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageChops, ImageOps

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.core.progress import Note, Update, ignore_update
from nerfcli.core.text import quantity
from nerfcli.scenes.images import ALPHA_MODES
from nerfcli.scenes.photo_formats import AVIF, HEIF, RAW, open_photo
from nerfcli.scenes.source import natural_key

COPIED = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")  # pycolmap reads them as they are
TO_JPEG = (".jpe", ".jfif", ".mpo", *HEIF, *RAW)
TO_PNG = (".webp", ".jp2", ".ppm", ".pgm", ".tga", *AVIF)
NOT_READ = (".exr", ".hdr", ".jxl", ".psd", ".gif", ".svg")
ORIENTATION = 0x0112
NEUTRAL = (128, 128, 128)  # behind transparent pixels while matching: it has no features
QUALITY = 95


@dataclass(frozen=True)
class Photo:
    """A photo that was copied into the scene.

    Attributes:
        name: path below the scene's images/, with forward slashes.
        size: width and height, upright.
        has_alpha: whether it has transparency.
        exif: the tags that identify a lens: maker, model, focal length.
    """

    name: str
    size: tuple[int, int]
    has_alpha: bool
    exif: tuple[str, ...]


def find_photos(folder: Path, note: Note = lambda text: None) -> list[str]:
    """Find image files below a folder; return paths relative to it, in natural order.

    A folder `masks` among them holds no photos. Of a raw, HEIC or AVIF photo that is there as
    JPEG, PNG, ... too, the latter is taken.

    Args:
        note: takes remarks on what is left out.

    Raises:
        NerfError: there are fewer than three.
    """
    files = [
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]
    files = [path for path in files if path.parts[0] != "masks"]
    usual = {path.with_suffix("") for path in files if path.suffix.lower() in COPIED}
    names, doubled, unread = [], [], []
    for path in sorted(files, key=lambda path: natural_key(path.as_posix())):
        suffix = path.suffix.lower()
        if suffix in NOT_READ:
            unread.append(path)
        elif suffix in (*HEIF, *RAW, *AVIF) and path.with_suffix("") in usual:
            doubled.append(path)
        elif suffix in (*COPIED, *TO_JPEG, *TO_PNG):
            names.append(path.as_posix())
    if doubled:
        note(f"{len(doubled)} photos are there twice; as {doubled[0].suffix} they are left out")
    if unread:
        endings = ", ".join(sorted({path.suffix.lower() for path in unread}))
        note(f"{quantity(len(unread), 'file')} ({endings}) cannot be read; convert them to PNG")
    if len(names) < 3:
        raise NerfError(
            f"{folder} holds {len(names)} images ({', '.join(COPIED)}, ...); at least three are "
            "needed, and twenty or more for a good scene."
        )
    return names


def take_photos(
    folder: Path, names: Sequence[str], out: Path, update: Update = ignore_update
) -> tuple[list[Photo], dict[str, str]]:
    """Copy photos, turned upright by their EXIF orientation; keep copies that exist.

    Returns:
        The photos in the order of `names`, and by name the reasons why others cannot be used.
    """
    new_names = make_names(names)

    def take(name: str) -> Photo | str:
        try:
            return _take_photo(folder / name, out / new_names[name], new_names[name])
        except (OSError, ValueError, SyntaxError, EOFError, NerfError) as error:
            return f"cannot be read ({str(error).rstrip('.')})"

    photos, failed = [], {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for i, (name, result) in enumerate(zip(names, pool.map(take, names), strict=True)):
            if isinstance(result, Photo):
                photos.append(result)
            else:
                failed[name] = result
            update(i + 1)
    return photos, failed


def make_names(names: Sequence[str]) -> dict[str, str]:
    """Map names to unique names that pycolmap can work with.

    Its lists of pairs end a name at white space and skip lines that begin with #. It reads no WebP.
    """
    new: dict[str, str] = {name: name for name in names if name == _make_valid(name)}
    for name in names:
        wanted = PurePosixPath(_make_valid(name))
        n, candidate = 1, wanted
        while name not in new and str(candidate) in new.values():
            n += 1
            candidate = wanted.with_stem(f"{wanted.stem}_{n}")
        new.setdefault(name, str(candidate))
    return new


def _make_valid(name: str) -> str:
    path = PurePosixPath(re.sub(r"\s+|#", "_", name))
    for suffixes, new in ((TO_JPEG, ".jpg"), (TO_PNG, ".png")):
        if path.suffix.lower() in suffixes:
            return str(path.with_suffix(new))
    return str(path)


def _take_photo(source: Path, target: Path, name: str) -> Photo:
    with open_photo(source) as image:
        image.load()
        exif = image.getexif()
        lens = {**exif, **exif.get_ifd(0x8769)}
        tags = tuple(str(lens.get(tag, "")) for tag in (0x010F, 0x0110, 0xA405, 0x920A))
        is_same = target.suffix.lower() == source.suffix.lower()
        has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
        is_turned = exif.get(ORIENTATION, 1) != 1
        size = ImageOps.exif_transpose(image).size if is_turned else image.size
        if not target.exists():
            with replacing(target) as aside:
                if is_turned or not is_same:
                    _save_upright(image, aside, image.format if is_same else None)
                else:
                    shutil.copyfile(source, aside)
    return Photo(name, size, has_alpha and target.suffix != ".jpg", tags)


def _save_upright(image: Image.Image, path: Path, kind: str | None) -> None:
    """Save an image upright, in the format of that name, or else of the path's suffix."""
    exif = image.getexif()
    upright = ImageOps.exif_transpose(image)
    exif[ORIENTATION] = 1
    keep = {"exif": exif.tobytes(), "icc_profile": image.info.get("icc_profile")}
    kind = kind or ("JPEG" if path.suffix == ".jpg" else "PNG")
    if kind == "JPEG":
        keep |= {"quality": QUALITY, "subsampling": 0}
        upright = upright if upright.mode in ("RGB", "L", "CMYK") else upright.convert("RGB")
    upright.save(path, format=kind, **keep)


def flatten(
    images: Path,
    photo: Photo,
    flat: Path,
    masks: Path | None,
    zoom: int = 1,
    given: Path | None = None,
) -> None:
    """Write a copy for structure from motion, opaque and `zoom` times as large, and its mask.

    The mask keeps features off the silhouette, which is another curve on the object in every view.

    Args:
        masks: folder for the masks. given: folder of masks of which black is ignored, too.
    """
    target = flat / photo.name
    mask = None if masks is None else masks / f"{photo.name}.png"
    if target.exists() and (mask is None or mask.exists()):
        return
    with Image.open(images / photo.name) as image:
        rgba = image.convert("RGBA")
    if zoom > 1:
        size = (rgba.width * zoom, rgba.height * zoom)
        rgba = rgba.resize(size, Image.Resampling.BICUBIC)
    alpha = rgba.getchannel("A")
    paper = Image.new("RGB", rgba.size, NEUTRAL)
    paper.paste(rgba, mask=alpha)
    if mask is not None:
        with replacing(mask) as aside:
            seen = alpha.point([0] * 128 + [255] * 128)
            if given is not None:
                with Image.open(given / f"{photo.name}.png") as usable:
                    seen = ImageChops.darker(seen, usable.resize(seen.size))
            seen.save(aside)
    with replacing(target) as aside:
        paper.save(aside, quality=QUALITY, subsampling=0)


def write_pyramid(images: Path, out: Path, levels: int) -> None:
    """Write halved copies of images/ beside it: images_2, images_4, ..."""
    from nerfcli.scenes.images import read_image

    for path in sorted(p for p in images.rglob("*") if p.is_file()):
        for level in range(1, levels + 1):
            factor = 2**level
            small = Image.fromarray(read_image(path, factor).numpy())
            target = out / f"images_{factor}" / path.relative_to(images)
            with replacing(target) as aside:
                small.save(aside, quality=QUALITY)

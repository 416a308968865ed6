"""Copy photos into the new scene's folder, upright; the originals stay untouched."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageChops

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.core.progress import Note, Update, ignore_update
from nerfcli.core.text import quantity
from nerfcli.scenes.images import ALPHA_MODES, TURNS
from nerfcli.scenes.photo_formats import AVIF, EXIF_IFD, HEIF, RAW, keep_lens_tags, open_photo
from nerfcli.scenes.readers.listings import is_hidden
from nerfcli.scenes.source import natural_key

COPIED = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")  # pycolmap reads them as they are
TO_JPEG = (".jpe", ".jfif", ".mpo", *HEIF, *RAW)
TO_PNG = (".webp", ".jp2", ".ppm", ".pgm", ".tga", *AVIF)
NOT_READ = (".exr", ".hdr", ".jxl", ".psd", ".gif", ".svg")
# what pycolmap reads, whatever the name; a JPEG with a second picture is MPO to Pillow
READABLE = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "TIFF": "TIFF", "BMP": "BMP"}
ORIENTATION = 0x0112
LENS_TAGS = (0x010F, 0x0110, 0xA405, 0x920A)  # maker, model, focal lengths
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
        orientation: EXIF orientation of the original, 1 to 8; 1 is upright.
    """

    name: str
    size: tuple[int, int]
    has_alpha: bool
    exif: tuple[str, ...]
    orientation: int = 1


def find_photos(folder: Path, note: Note = lambda text: None) -> list[str]:
    """Find image files below a folder; return paths relative to it, in natural order.

    A folder `masks` among them holds no photos, nor do hidden folders or those in which other
    systems keep thumbnails. Of a raw, HEIC or AVIF photo that is there as
    JPEG, PNG, ... too, the latter is taken.

    Args:
        note: takes remarks on what is left out.

    Raises:
        NerfError: there are fewer than three.
    """
    files = [path for path in _list_files(folder) if path.parts[0] != "masks"]
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
            f"{folder} holds {quantity(len(names), 'image')} ({', '.join(COPIED)}, ...); at "
            "least three are "
            "needed, and twenty or more for a good scene."
        )
    return names


def _list_files(folder: Path) -> list[Path]:
    """List files below a folder, relative to it, without hidden ones and thumbnails."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [path for path in paths if not any(map(is_hidden, path.parts))]


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
        except Exception as error:  # decoders raise errors of every kind for a broken file
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

    Its lists of pairs end a name at white space and skip lines that begin with #. It reads no WebP,
    and takes no name that is not UTF-8 (surrogates stand for its bytes).
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
    path = PurePosixPath(re.sub(r"\s+|[#\ud800-\udfff]", "_", name))
    for suffixes, new in ((TO_JPEG, ".jpg"), (TO_PNG, ".png")):
        if path.suffix.lower() in suffixes:
            return str(path.with_suffix(new))
    return str(path)


def _take_photo(source: Path, target: Path, name: str) -> Photo:
    with open_photo(source) as image:
        image.load()
        exif = _read_exif(image)
        orientation = _read_orientation(exif)
        turn = TURNS.get(orientation)
        size = image.size if orientation < 5 else (image.height, image.width)
        kind = READABLE.get(image.format or "")
        has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
        # a misnamed photo keeps its transparency, though its name says JPEG
        is_jpeg = target.suffix.lower() in (".jpg", ".jpeg") and not has_alpha
        new_kind = kind or ("JPEG" if is_jpeg else "PNG")
        if not target.exists():
            with replacing(target) as aside:
                if turn is None and kind is not None:
                    shutil.copyfile(source, aside)
                else:
                    upright = image if turn is None else image.transpose(turn)
                    _save(upright, aside, new_kind, exif, image.info.get("icc_profile"))
    return Photo(name, size, has_alpha, _name_lens(exif), orientation)


def _read_exif(image: Image.Image) -> Image.Exif:
    """Read the EXIF tags of an image; none if they are broken."""
    with suppress(Exception):  # Pillow raises errors of every kind
        return image.getexif()
    return Image.Exif()


def _read_orientation(exif: Image.Exif) -> int:
    """Return the EXIF orientation; 1, upright, if it is absent or broken."""
    with suppress(Exception):
        return exif[ORIENTATION] if exif[ORIENTATION] in TURNS else 1
    return 1


def _name_lens(exif: Image.Exif) -> tuple[str, ...]:
    """Return the tags that identify a lens as text; "" for those that are absent or broken."""
    lens = [""] * len(LENS_TAGS)
    for i, tag in enumerate(LENS_TAGS):
        with suppress(Exception):
            lens[i] = str(exif.get_ifd(EXIF_IFD).get(tag, exif.get(tag, "")))
    return tuple(lens)


def _save(image: Image.Image, path: Path, kind: str, exif: Image.Exif, profile: object) -> None:
    """Save an upright image with its EXIF tags, or those that can be written."""
    exif[ORIENTATION] = 1
    try:
        tags = exif.tobytes()
    except Exception:  # of every kind, for a tag whose value is not of its type
        tags = keep_lens_tags(exif)
    keep: dict[str, object] = {"exif": tags, "icc_profile": profile}
    if kind == "JPEG":
        keep |= {"quality": QUALITY, "subsampling": 0}
        image = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
    image.save(path, format=kind, **keep)


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

    for name in sorted(_list_files(images)):
        for level in range(1, levels + 1):
            factor = 2**level
            small = Image.fromarray(read_image(images / name, factor).numpy())
            # transparency is in no JPEG, whatever the name says
            kind = "PNG" if small.mode == "RGBA" else None
            with replacing(out / f"images_{factor}" / name) as aside:
                small.save(aside, format=kind, quality=QUALITY)

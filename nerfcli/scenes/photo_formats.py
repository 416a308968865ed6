"""Open photos of any kind; some kinds need a package that is not always installed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from nerfcli.core.errors import NerfError
from nerfcli.core.extras import EXTRAS, how_to_install, is_there, missing
from nerfcli.core.files import ensure_no_pointer

HEIF = (".heic", ".heif")
AVIF = (".avif",)
RAW = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAKER, MODEL, EXIF_IFD = 0x010F, 0x0110, 0x8769
LENS = (0x829A, 0x829D, 0x920A, 0xA405)  # in EXIF_IFD: exposure, aperture, both focal lengths


def open_photo(path: Path) -> Image.Image:
    """Open an image file; raw photos are developed, others decoded later.

    Raises:
        NerfError: the file is missing, of an unknown kind, or of a kind that needs a package.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in RAW and path.is_file():
            return _develop(path)
        if suffix in HEIF and path.is_file():
            _register_heif(path)
        return Image.open(path)
    except FileNotFoundError as error:
        raise NerfError(f"{path} does not exist.") from error
    except UnidentifiedImageError as error:
        if _is_heif(path) and suffix not in HEIF:
            _register_heif(path)
            with suppress(OSError, ValueError):
                return Image.open(path)
        if suffix in AVIF:
            raise NerfError(
                f"{path} is AVIF, which this Pillow cannot read: pip install 'pillow>=11.3'."
            ) from error
        with path.open("rb") as file:
            ensure_no_pointer(path, file.read(64))
        raise NerfError(f"{path} is corrupt, or not an image of a known kind.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise NerfError(f"{path} cannot be read: {error}.") from error


def list_unreadable(names: Sequence[str]) -> tuple[list[str], str]:
    """List the photos that need a package that is not installed, and say how to install it."""
    lacking, texts = [], []
    for module, suffixes in (("pillow_heif", HEIF), ("rawpy", RAW)):
        found = [name for name in names if Path(name).suffix.lower() in suffixes]
        if found and not is_there(module):
            lacking += found
            kind = Path(found[0]).suffix.lower()
            package = EXTRAS[module][0]
            texts.append(f"{kind} needs the package {package}: {how_to_install(module)}")
    return lacking, "; ".join(texts)


def _register_heif(path: Path) -> None:
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing("pillow_heif", f"{path} is HEIC, which") from error
    pillow_heif.register_heif_opener()


def _is_heif(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        head = file.read(12)
        return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS
    return False


def _develop(path: Path) -> Image.Image:
    """Develop a raw photo to 8-bit sRGB with the camera's white balance, upright."""
    try:
        import rawpy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing("rawpy", f"{path} is a raw photo, which") from error
    failures: Any = getattr(rawpy, "LibRawError", OSError)
    try:
        with rawpy.imread(str(path)) as raw:
            image = Image.fromarray(raw.postprocess(use_camera_wb=True))
    except (failures, ValueError) as error:
        raise NerfError(f"{path} is corrupt, or not a raw photo of a known kind.") from error
    with suppress(Exception):  # most raw files are TIFF files, whose tags Pillow reads
        image.info["exif"] = _read_lens_tags(path)
    return image


def _read_lens_tags(path: Path) -> bytes:
    """Read the tags that identify a lens; the others describe the raw pixels."""
    with Image.open(path) as stored:
        return keep_lens_tags(stored.getexif())


def keep_lens_tags(tags: Image.Exif) -> bytes:
    """Return EXIF data with those tags only that identify a lens and can be written; or none."""
    kept = Image.Exif()
    with suppress(Exception):  # Pillow raises errors of every kind for a broken tag
        kept.update({tag: tags[tag] for tag in (MAKER, MODEL) if tag in tags})
        kept.tobytes()
        lens = tags.get_ifd(EXIF_IFD)
        kept[EXIF_IFD] = {tag: lens[tag] for tag in LENS if tag in lens}
        return kept.tobytes()
    return b""

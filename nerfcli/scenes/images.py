"""Read and write image files: 8 bits a channel, sRGB, straight alpha.

EXIF orientation: a posed image's size is part of its camera, so the pixels are taken as stored,
unless only the turned image has the size that the caller states.

imageio writes; reading is Pillow's own. Through imageio we would not see what decides how a file is
read: its mode before any conversion, a palette's transparent colour, and the orientation without
decoding the image.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imageio.v3 import imwrite
from PIL import Image
from torch import Tensor

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.scenes.photo_formats import RAW, open_photo

ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
ENDS = (  # how files begin and end: PNG and its chunk IEND, JPEG's SOI and EOI
    (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
    (b"\xff\xd8", b"\xff\xd9"),
)
ORIENTATION = 0x0112  # EXIF's tag
TURNS = {  # by EXIF orientation: how to make stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = {3: 2, 6: 3, 8: 1}  # those of TURNS that mirror nothing


def image_header(path: Path) -> tuple[int, int, bool, bool]:
    """Read width, height, has transparency, and whether EXIF turns it by 90 degrees.

    Only the header is read, but of raw photos. Width and height are those of the stored pixels.

    Raises:
        NerfError: not an image that Pillow can read.
    """
    with open_photo(path) as image:
        has_alpha = image.mode in ALPHA_MODES or "transparency" in image.info
        return image.width, image.height, has_alpha, _orientation(image) >= 5


def is_turned(path: Path, size: tuple[int, int]) -> bool:
    """Whether an image of this width and height is the stored one turned by 90 degrees."""
    width, height, _, turned = image_header(path)
    return turned and size == (height, width) != (width, height)


def has_rgb_pixels(path: Path) -> bool:
    """Whether an image's file holds three or four channels as they are, not grey or a palette."""
    with open_photo(path) as image:
        return image.mode in ("RGB", "RGBA") and "transparency" not in image.info


def exif_turn(path: Path, size: tuple[int, int]) -> int:
    """Read by how many quarter turns (np.rot90) EXIF asks to turn what `read_image` returns.

    Args:
        size: width and height that `read_image` is called with. An image that it turns needs none.

    Returns:
        0 to 3; 0 for raw photos, which are developed upright, and what cannot be read.
    """
    if path.suffix.lower() in RAW:
        return 0
    try:
        with open_photo(path) as image:
            orientation, stored = _orientation(image), image.size
    except NerfError:  # whoever needs its pixels says so
        return 0
    turned = orientation >= 5 and size == stored[::-1] != stored
    return 0 if turned else QUARTER_TURNS.get(orientation, 0)


def read_image(path: Path, downscale: int = 1, size: tuple[int, int] | None = None) -> Tensor:
    """Read an image file of any common kind (16-bit, grey, palette, CMYK included).

    Args:
        downscale: average blocks of this many pixels squared, weighted by alpha; a remainder at
            the right and lower edges is cut off.
        size: expected width and height after the downscaling; if only the image turned by its
            EXIF orientation comes to this size, it is turned. Not checked otherwise.

    Returns:
        [height, width, 3], or 4 where the file has transparency, uint8, straight alpha.

    Raises:
        NerfError: the file is missing, corrupt, truncated or of an unknown kind.
    """
    with open_photo(path) as image:
        try:
            image.load()
            turn = TURNS.get(_orientation(image))
            pixels = _to_rgb(image)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise NerfError(f"{path} is corrupt or truncated ({error}).") from error
        if turn is not None and size is not None:
            turned = pixels.transpose(turn)
            stored = _downscaled_size(pixels.size, downscale)
            if _downscaled_size(turned.size, downscale) == size != stored:
                pixels = turned
    # asarray would share memory that Pillow marks read-only
    return torch.from_numpy(_average(np.array(pixels), downscale))


def read_thumbnail(path: Path, longest: int) -> np.ndarray:
    """Read a small version of an image, [height, width, 3] uint8, without its alpha.

    Args:
        longest: most pixels of a side.

    Raises:
        NerfError: as `read_image`.
    """
    with open_photo(path) as image:
        try:
            image.draft("RGB", (longest, longest))  # a JPEG is decoded at a fraction of its size
            image.load()
            pixels = _to_rgb(image).convert("RGB")
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise NerfError(f"{path} is corrupt or truncated ({error}).") from error
        pixels.thumbnail((longest, longest), Image.Resampling.BOX)
        return np.array(pixels)


def ensure_complete(path: Path) -> None:
    """Raise NerfError if an image file is missing or cut off.

    Reads both ends of the file, and decodes it only where they do not tell: another kind than
    PNG and JPEG, or something behind the image, as some cameras put it there.
    """
    with suppress(OSError), path.open("rb") as file:
        head = file.read(8)
        file.seek(-8, os.SEEK_END)
        tail = file.read()
        if any(head.startswith(start) and tail.endswith(end) for start, end in ENDS):
            return
    read_image(path)


def read_with_alpha(
    path: Path, alpha: Path | None, downscale: int, size: tuple[int, int]
) -> Tensor:
    """Read an image and its separate alpha image, as instant-ngp has them, as one.

    Args:
        size: width and height after the downscaling.

    Returns:
        As read_image; 4 channels where there is an alpha image.

    Raises:
        NerfError: as read_image, or the alpha image is of another size.
    """
    image = read_image(path, downscale, size)
    if alpha is None:
        return image
    values = _srgb_to_linear(read_image(alpha, downscale, size)[..., :1])
    if values.shape[:2] != image.shape[:2]:
        raise NerfError(f"{alpha} must have the size of {path.name}.")
    return torch.cat([image[..., :3], values], dim=-1)


def _srgb_to_linear(alpha: Tensor) -> Tensor:
    """Linearise the red channel of an alpha image, as instant-ngp does."""
    value = alpha.to(torch.float64) / 255
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return (linear * 255).to(torch.uint8)


def read_mask(path: Path, size: tuple[int, int], ignored: str, downscale: int = 1) -> Tensor:
    """Read from a mask file which pixels of an image may be used.

    Args:
        size: width and height of the image after the downscaling; a mask that does not come to
            it is resampled.
        ignored: "black": pixels that are zero are ignored; "nonzero": those that are not.
        downscale: a pixel may be used if all those that it averages may.

    Returns:
        [height, width] bool, true where the pixel may be used.

    Raises:
        NerfError: the mask cannot be read.
    """
    nonzero = read_image(path)[..., :3].amax(-1).numpy() > 0
    width, height = size
    if _downscaled_size(nonzero.shape[::-1], downscale) != size:
        mask = Image.fromarray(nonzero.astype(np.uint8))
        full = (width * downscale, height * downscale)
        nonzero = np.array(mask.resize(full, Image.Resampling.NEAREST)) > 0
    usable = nonzero if ignored == "black" else ~nonzero
    usable = usable[: height * downscale, : width * downscale]
    blocks = usable.reshape(height, downscale, width, downscale)
    return torch.from_numpy(blocks.all(axis=(1, 3)))


def _downscaled_size(size: tuple[int, ...], downscale: int) -> tuple[int, int]:
    return size[0] // downscale, size[1] // downscale


def write_png(path: Path, pixels: Tensor | np.ndarray, turn: int = 0) -> None:
    """Write a PNG; it is either whole or absent.

    Args:
        pixels: uint8 [height, width] or [height, width, 3 or 4], or uint16 [height, width].
        turn: quarter turns that EXIF is to ask for, as `exif_turn` reads them.

    Raises:
        NerfError: the file cannot be written.
    """
    array = pixels.cpu().numpy() if isinstance(pixels, Tensor) else pixels
    more: dict[str, Any] = {"compress_level": 3}
    if turn:
        tags = more["exif"] = Image.Exif()
        tags[ORIENTATION] = next(o for o, turns in QUARTER_TURNS.items() if turns == turn)
    with replacing(path) as aside, open(aside, "wb") as file:
        imwrite(file, array, extension=".png", plugin="pillow", **more)


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 5 to 8 swap width and height. What is none counts as 1."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # asking Pillow would decode the whole image in search of it
    try:
        orientation = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a library's parser of tags that may hold anything
        return 1
    return orientation if orientation in TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB or RGBA; Pillow itself clips 16-bit grey."""
    if image.mode.startswith("I;16") or image.mode == "I":
        high = np.clip(np.array(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((high * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported; convert to 8-bit PNG")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB")


def _average(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of factor x factor pixels, colours weighted by alpha. [h, w, c] uint8."""
    if factor == 1:
        return pixels
    height, width, channels = pixels.shape
    h, w = height // factor, width // factor
    if h == 0 or w == 0:
        raise NerfError(f"An image of {width}x{height} pixels cannot be downscaled by {factor}.")
    # sums of strided slices: nothing larger than the result is made
    total = np.zeros((h, w, channels), dtype=np.uint32)
    for y in range(factor):
        for x in range(factor):
            part = pixels[y : h * factor : factor, x : w * factor : factor]
            if channels == 4:
                total[..., :3] += part[..., :3].astype(np.uint32) * part[..., 3:]
                total[..., 3] += part[..., 3]
            else:
                total += part
    if channels == 3:
        return ((total + factor**2 // 2) // factor**2).astype(np.uint8)
    alpha = total[..., 3:]
    colour = (total[..., :3] + alpha // 2) // np.maximum(alpha, 1)
    alpha = (alpha + factor**2 // 2) // factor**2
    return np.concatenate([colour, alpha], axis=-1).astype(np.uint8)

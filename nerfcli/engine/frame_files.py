"""One layer of one frame as files: a picture, 16-bit depth, OpenEXR or NPY; and read back whole.

A picture is an 8-bit PNG or JPEG. PNGs have straight alpha, as their specification says. OpenEXR
files are linear, with colours multiplied by alpha, as theirs says; NPY files hold the layer's
numbers as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerfcli.core.extras import missing
from nerfcli.core.files import replacing
from nerfcli.engine.layers import DepthScale, View
from nerfcli.engine.pictures import depth_colors, draw_layer, normal_colors
from nerfcli.engine.render import to_uint8
from nerfcli.engine.render_files import ESTIMATORS, PICTURE, suffixes

JPEG = {"quality": 95, "subsampling": 0}
CHANNELS = {"rgb": "RGB", "rgba": "RGBA", "normal": "RGB", "opacity": "Y"}
DEPTH_CHANNEL = "Z"


def encode_layer(
    view: View, layer: str, kind: str, scale: DepthScale
) -> list[tuple[str, np.ndarray]]:
    """What the files of one layer hold, by their suffixes."""
    if kind in (PICTURE, "jpg"):
        return [(suffixes(layer, kind)[0], draw_layer(view, layer, scale))]
    values = view[layer]
    if kind == "npy":
        return [(".npy", values.astype(np.float32))]
    if kind == "exr":
        return [(".exr", to_linear(values) if layer in ("rgb", "rgba") else values)]
    if layer in ESTIMATORS:
        return [(".png", scale.to_uint16(values)), (".npy", values.astype(np.float32))]
    if layer == "opacity":
        return [(".png", to_uint8(values))]
    return [(".png", draw_layer(view, layer, scale))]


def write_layer(path: Path, layer: str, values: np.ndarray) -> None:
    """Write a file of one layer; its suffix says how.

    Raises:
        NerfError: it cannot be written, or a package is missing.
    """
    suffix = path.suffix
    with replacing(path) as aside:
        if suffix == ".exr":
            _write_exr(aside, layer, values)
            return
        with aside.open("wb") as file:
            if suffix == ".npy":
                np.save(file, values)
            elif suffix == ".jpg":
                Image.fromarray(values).save(file, format="JPEG", **JPEG)
            else:
                Image.fromarray(values).save(file, format="PNG", compress_level=1)


def read_layer(path: Path, layer: str, kind: str, size: tuple[int, int]) -> np.ndarray:
    """Read a file of one layer and make sure that it is whole.

    Raises:
        ValueError: it is torn, or no file of that layer and size.
    """
    try:
        if path.suffix == ".npy":
            values = np.load(path)
        elif path.suffix == ".exr":
            values = _read_exr(path, layer)
        else:
            with Image.open(path) as image:
                values = np.asarray(image)
    except (OSError, ValueError, EOFError, SyntaxError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path.name} is torn") from error
    n = {"rgba": 4, "depth": 0, "median-depth": 0, "opacity": 0}.get(layer, 3)
    if kind in (PICTURE, "jpg"):
        n = n or 3
    if values.shape != ((size[1], size[0], n) if n else (size[1], size[0])):
        raise ValueError(f"{path.name} has another size")
    return values


def picture_of(values: np.ndarray, layer: str, path: Path, kind: str, scale: DepthScale) -> Any:
    """What `read_layer` read as a picture, [h, w, 3 or 4] uint8."""
    if kind in (PICTURE, "jpg"):
        return values
    if layer in ESTIMATORS:
        depth = values * scale.step if path.suffix == ".png" else values
        return to_uint8(depth_colors(depth, None, scale.limits))
    if layer == "normal":
        return values if values.dtype == np.uint8 else normal_colors(values)
    if path.suffix == ".exr" and layer in ("rgb", "rgba"):
        values = from_linear(values)
    values = values if values.dtype == np.uint8 else to_uint8(values)
    return np.repeat(values[..., None], 3, axis=-1) if values.ndim == 2 else values


def to_linear(colors: np.ndarray) -> np.ndarray:
    """sRGB-encoded colours [..., 3 or 4] -> linear ones, multiplied by alpha if there is one."""
    rgb = colors[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    alpha = colors[..., 3:]
    out = np.concatenate([linear * alpha, alpha], axis=-1) if alpha.shape[-1] else linear
    return out.astype(np.float32)


def from_linear(colors: np.ndarray) -> np.ndarray:
    """The inverse of `to_linear`; black where alpha is 0."""
    linear, alpha = colors[..., :3], colors[..., 3:]
    if alpha.shape[-1]:
        linear = linear / np.maximum(alpha, 1e-6)
    linear = np.clip(linear, 0.0, 1.0)
    rgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.concatenate([rgb, alpha], axis=-1).astype(np.float32)


def _openexr() -> Any:
    try:
        import OpenEXR  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing("OpenEXR", "EXR") from error
    return OpenEXR


def _write_exr(path: Path, layer: str, values: np.ndarray) -> None:
    exr = _openexr()
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
    channel = CHANNELS.get(layer, DEPTH_CHANNEL)
    pixels = np.ascontiguousarray(values, dtype=np.float32)
    with exr.File(header, {channel: pixels}) as file:
        file.write(str(path))


def _read_exr(path: Path, layer: str) -> np.ndarray:
    with _openexr().File(str(path)) as file:
        return np.array(file.channels()[CHANNELS.get(layer, DEPTH_CHANNEL)].pixels)

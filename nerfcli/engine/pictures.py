"""Layers as pictures: depth in colours with a legend, normals as colours, a sheet of frames."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nerfcli.core.files import replacing
from nerfcli.engine.layers import DepthScale, View
from nerfcli.engine.render import to_uint8
from nerfcli.engine.render_files import ESTIMATORS

RAMP = np.array(
    [
        [0.10, 0.05, 0.25],
        [0.35, 0.10, 0.50],
        [0.70, 0.20, 0.45],
        [0.95, 0.45, 0.30],
        [1.00, 0.75, 0.40],
        [1.00, 1.00, 0.80],
    ]
)
LEAST_LEGEND = 160  # pixels of a picture's width that a legend needs
SHEET_FRAMES = 16  # of a contact sheet, at most
SHEET_WIDTH = 480  # pixels of a frame in it, at most
SQUARE = 8  # pixels of the checkerboard behind what is transparent


def depth_colors(
    depth: np.ndarray, opacity: np.ndarray | None, limits: tuple[float, float]
) -> np.ndarray:
    """Depth as a picture: near is bright, far is dark, nothing is black. -> [h, w, 3] in [0, 1].

    opacity: None: full wherever there is a depth.
    """
    near, far = limits
    nearness = np.clip((far - depth) / max(far - near, 1e-9), 0.0, 1.0)
    colors = ramp_colors(nearness)
    shown = (depth > 0).astype(np.float64) if opacity is None else np.clip(opacity, 0.0, 1.0)
    return colors * shown[..., None]


def ramp_colors(nearness: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> [..., 3] in [0, 1]."""
    knots = np.linspace(0.0, 1.0, len(RAMP))
    return np.stack([np.interp(nearness, knots, RAMP[:, c]) for c in range(3)], axis=-1)


def draw_legend(picture: np.ndarray, scale: DepthScale) -> np.ndarray:
    """Draw a bar of the colours of depth, with numbers, onto a picture [h, w, 3] uint8.

    A picture that is too small for it stays as it is.
    """
    height, width = picture.shape[:2]
    size = max(10, min(width, height) // 28)
    if width < LEAST_LEGEND or height < 6 * size:
        return picture
    near, far = scale.limits
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    font = _font(size)
    ticks = _round_numbers(near, far, 3 if width < 2 * LEAST_LEGEND else 5)
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]))) if len(ticks) > 1 else 2
    title = f"{'depth' if scale.kind == 'z' else 'distance'}, source units"
    edge, bar = size // 2, max(4, size // 2)
    length = min(width - 6 * size, 14 * size)
    left, top = width - length - 3 * size, height - 3 * size - bar - 2 * edge
    draw.rectangle(
        (left - 2 * size, top - edge, left + length + 2 * size, height - edge), (0, 0, 0, 150)
    )
    middle = left + length / 2
    draw.text((middle, top), title, (255, 255, 255, 255), font=font, anchor="mt")
    top += size + edge
    colors = to_uint8(ramp_colors(np.linspace(1.0, 0.0, length)))  # near on the left
    strip = np.repeat(colors[None], bar, axis=0)
    image.paste(Image.fromarray(strip), (left, top))
    for tick in ticks:
        x = left + (tick - near) / (far - near) * (length - 1)
        draw.line((x, top, x, top + bar + 2), (255, 255, 255, 255))
        text = f"{tick:.{digits}f}"
        draw.text((x, top + bar + 3), text, (255, 255, 255, 255), font=font, anchor="mt")
    return np.asarray(image)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):  # Pillow before 10.1, or without FreeType
        return ImageFont.load_default()


def _round_numbers(low: float, high: float, n: int) -> list[float]:
    """About n round numbers within [low, high]."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / n))
    step = next(k * power for k in (1, 2, 5, 10) if span / (k * power) <= n)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def draw_layer(view: View, layer: str, scale: DepthScale) -> np.ndarray:
    """One layer of a view as a picture: [h, w, 3] uint8, rgba [h, w, 4]."""
    values = view[layer]
    if layer in ESTIMATORS:
        colors = depth_colors(values, view.get("opacity"), scale.limits)
        return draw_legend(to_uint8(colors), scale)
    if layer == "normal":
        return normal_colors(values)
    if layer == "opacity":
        return np.repeat(to_uint8(values)[..., None], 3, axis=-1)
    return values if values.dtype == np.uint8 else to_uint8(values)


def normal_colors(normals: np.ndarray) -> np.ndarray:
    """Unit vectors [h, w, 3] as colours (n + 1) / 2 in 8 bits; nothing is grey."""
    return to_uint8((normals + 1.0) / 2.0)


def over_checkerboard(picture: np.ndarray) -> np.ndarray:
    """[h, w, 4] uint8 with straight alpha -> [h, w, 3] uint8."""
    y, x = np.indices(picture.shape[:2]) // SQUARE
    board = np.where((x + y) % 2, 0.8, 0.6)[..., None]
    alpha = picture[..., 3:] / 255.0
    return to_uint8(picture[..., :3] / 255.0 * alpha + board * (1.0 - alpha))


def sheet_frames(n_frames: int) -> list[int]:
    """Which frames of a path a contact sheet shows, spread evenly."""
    n = min(n_frames, SHEET_FRAMES)
    return [(2 * i + 1) * n_frames // (2 * n) for i in range(n)]


def write_sheet(path: Path, pictures: dict[int, np.ndarray]) -> None:
    """Write frames, by their numbers, side by side into one picture."""
    cells = []
    for index, picture in sorted(pictures.items()):
        if picture.shape[-1] == 4:
            picture = over_checkerboard(picture)
        image = Image.fromarray(picture)
        factor = min(1.0, SHEET_WIDTH / image.width)
        if factor < 1.0:
            size = (round(image.width * factor), max(1, round(image.height * factor)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        if image.width >= LEAST_LEGEND:
            draw, font = ImageDraw.Draw(image, "RGBA"), _font(max(10, image.width // 32))
            box = draw.textbbox((6, 5), str(index), font=font)
            draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), (0, 0, 0, 150))
            draw.text((6, 5), str(index), (255, 255, 255, 255), font=font)
        cells.append(image)
    n_columns = math.ceil(math.sqrt(len(cells)))
    width, height = (max(getattr(cell, side) for cell in cells) for side in ("width", "height"))
    n_rows = -(-len(cells) // n_columns)
    sheet = Image.new("RGB", (n_columns * (width + 4) - 4, n_rows * (height + 4) - 4), "white")
    for place, cell in enumerate(cells):
        row, column = divmod(place, n_columns)
        sheet.paste(cell, (column * (width + 4), row * (height + 4)))
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    with replacing(path) as aside, aside.open("wb") as file:
        sheet.save(file, format=kind, **({"quality": 92} if kind == "JPEG" else {}))

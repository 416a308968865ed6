"""Pictures of scored views as JPEG, made while the views go by."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from nerfcli.engine.evaluate import ScoredView
from nerfcli.engine.pictures import depth_colors, ramp_colors
from nerfcli.engine.render import to_uint8
from nerfcli.report.page import esc

PAGE_BYTES = 7_000_000  # of all pictures of a page; base64 makes a third more of it
LEAST_BYTES = 24_000  # of a view's pictures, however many views there are
LARGEST, SMALLEST = 800, 64  # pixels of the longer side
QUALITY = 85  # of JPEG
MOST_ERROR = 64  # 255ths, from which an error map shows no more
ERROR_TICKS = (0, 4, 16, 36, 64)  # lie evenly under a square root
ERROR_TEXT = "mean absolute difference of the channels, in 255ths"
UNSCORED = 0.5  # grey of a pixel that is not scored, in an error map


@dataclass(frozen=True)
class ViewPictures:
    """A view's scores and its pictures.

    Attributes:
        row: name and scores. jpegs: by role, all of one size. shown, size: (width, height) of the
            pictures, and of the view. depths: nearest and farthest of the depth's colours, source
            units; None: nothing is hit. is_masked: whether some pixels are not scored.
    """

    row: dict
    jpegs: dict[str, bytes]
    shown: tuple[int, int]
    size: tuple[int, int]
    depths: tuple[float, float] | None = None
    is_masked: bool = False


@dataclass
class Gallery:
    """Takes the views of `evaluate`, and keeps their pictures alone.

    n_views: of the whole page, which share its size.
    """

    n_views: int
    views: list[ViewPictures] = field(default_factory=list)

    def add(self, view: ScoredView) -> None:
        colors, depths = depth_picture(view.depth, view.opacity)
        pictures = {
            "image": to_uint8(view.image),
            "photo": to_uint8(view.photo),
            "error": error_map(view.image, view.photo, view.usable),
            "depth": colors,
        }
        jpegs, shown = encode_together(pictures, bytes_of_view(self.n_views))
        size = (view.image.shape[1], view.image.shape[0])
        masked = view.usable is not None and not bool(view.usable.all())
        self.views.append(ViewPictures(view.row, jpegs, shown, size, depths, masked))


def bytes_of_view(n_views: int) -> int:
    """How many bytes the pictures of one view may take, so that the page stays small."""
    return max(PAGE_BYTES // max(n_views, 1), LEAST_BYTES)


def encode_together(
    pictures: dict[str, np.ndarray], most_bytes: int
) -> tuple[dict[str, bytes], tuple[int, int]]:
    """Encode pictures of one size so that all together take at most `most_bytes`.

    They are made smaller until they do, but never below SMALLEST pixels.

    Args:
        pictures: [height, width, 3] uint8.

    Returns:
        JPEG data, and its (width, height).
    """
    images = {role: Image.fromarray(picture) for role, picture in pictures.items()}
    width, height = next(iter(images.values())).size
    factor = min(1.0, LARGEST / max(width, height))
    while True:
        shown = (max(1, round(factor * width)), max(1, round(factor * height)))
        jpegs = {role: _jpeg(image, shown) for role, image in images.items()}
        total = sum(map(len, jpegs.values()))
        if total <= most_bytes or factor * max(width, height) <= SMALLEST:
            return jpegs, shown
        factor = max(
            min(0.95, 0.97 * (most_bytes / total) ** 0.5) * factor, SMALLEST / max(width, height)
        )


def _jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, format="JPEG", quality=QUALITY, optimize=True)
    return packed.getvalue()


def error_map(image: np.ndarray, photo: np.ndarray, usable: np.ndarray | None) -> np.ndarray:
    """Colour the difference of two images in [0, 1]: dark is none, bright MOST_ERROR and more.

    Returns:
        [height, width, 3] uint8; what is not scored is grey.
    """
    error = np.abs(image.astype(np.float32) - photo.astype(np.float32)).mean(axis=-1) * 255.0
    colors = ramp_colors(np.sqrt(np.minimum(error / MOST_ERROR, 1.0)))
    if usable is not None:
        colors[~usable] = UNSCORED
    return to_uint8(colors)


def depth_picture(
    depth: np.ndarray, opacity: np.ndarray
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Colour a depth by what lies in its view, and give the (near, far) of the colours."""
    hit = depth[(opacity > 0.5) & np.isfinite(depth) & (depth > 0)]
    if not hit.size:
        return np.zeros((*depth.shape, 3), np.uint8), None
    near, far = (float(v) for v in np.percentile(hit, [1, 99]))
    return to_uint8(depth_colors(np.nan_to_num(depth), opacity, (near, far))), (near, far)


def size_remark(views: Sequence[ViewPictures]) -> str:
    """Say how large the pictures are against their views; "" where they are as large."""
    smaller = [view for view in views if view.shown != view.size]
    if not smaller:
        return ""
    widths = sorted({view.shown[0] for view in smaller})
    span = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    of = "" if len(smaller) == len(views) else f" of {len(smaller)} views"
    return (
        f"Pictures{of} are scaled down to {span} pixels in width, to keep the page small. Scores "
        "are of all pixels."
    )


def error_caption(name: str) -> str:
    """Name an error map, and say what its colours mean; HTML."""
    ticks = "".join(f"<span>{tick}{'+' * (tick == 64)}</span>" for tick in ERROR_TICKS)
    scale = f'<span class="scale"></span><span class="ticks">{ticks}</span>'
    return f"<b>{esc(name)}</b>: {ERROR_TEXT}{scale}"

"""Scale intrinsics to images of another size than stated, and write notes about frames."""

from __future__ import annotations

from collections.abc import Sequence

from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.source import Frame, abbreviate

ASPECT_TOLERANCE = 0.05


def size_ratio(real: tuple[int, int], stated: tuple[int, int], where: str) -> tuple[float, float]:
    """Compute the factors from stated pixels to those of an image of another size.

    Raises:
        NerfError: the shapes differ, so that the intrinsics cannot be right.
    """
    ratio = (real[0] / stated[0], real[1] / stated[1])
    if abs(ratio[0] / ratio[1] - 1) > ASPECT_TOLERANCE:
        raise NerfError(
            f"{where}: the image has {real[0]}x{real[1]} pixels, {stated[0]}x{stated[1]} are "
            "stated; the shapes differ (cropped or turned?), so the intrinsics cannot be right."
        )
    return ratio


def mask_note(frames: Sequence[Frame]) -> list[str]:
    """Note that only some frames have a mask."""
    bare = [frame.name for frame in frames if frame.mask is None]
    if not bare or len(bare) == len(frames):
        return []
    return [
        f"{len(bare)} of {len(frames)} images have no mask, all of their pixels count: "
        f"{abbreviate(bare)}"
    ]


def resized_note(resized: list[tuple[tuple[int, int], tuple[int, int]]]) -> list[str]:
    """Note images of another size than stated; pairs of real and stated sizes."""
    if not resized:
        return []
    (w, h), (stated_w, stated_h) = resized[0]
    return [
        f"another size than stated in {quantity(len(resized), 'image')} ({w}x{h} instead of "
        f"{stated_w}x{stated_h}); the intrinsics follow the images"
    ]

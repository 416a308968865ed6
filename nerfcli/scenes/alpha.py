"""What the alpha of images means: nothing is there, or the pixel is to be ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.images import read_with_alpha
from nerfcli.scenes.source import Frame

SAMPLE = 16  # images that are looked at
FEW = 4  # where all have alpha, and it is only a remark
OPAQUE = 250  # of 255: averaging and lossy formats take a little off an opaque pixel
HALF = 128
LEAST_TRANSPARENT = 0.001  # of an image's pixels, below which it counts as opaque
# share of the border of images that is opaque: an object on nothing hardly touches it
SILHOUETTE_BORDER, MASK_BORDER = 0.1, 0.5


@dataclass(frozen=True)
class AlphaSurvey:
    """What some images with alpha show.

    Attributes:
        n_transparent: images with transparent pixels.
        border: share of these images' outermost pixels that is opaque.
    """

    n_transparent: int
    border: float

    @property
    def is_mask_like(self) -> bool:
        """Whether what surrounds the transparent parts is mostly there."""
        return self.n_transparent > 0 and self.border >= MASK_BORDER

    @property
    def is_silhouette_like(self) -> bool:
        """Whether nearly nothing surrounds what is opaque."""
        return self.n_transparent > 0 and self.border <= SILHOUETTE_BORDER


def survey_alpha(frames: Sequence[Frame]) -> AlphaSurvey:
    """Look at the alpha of up to SAMPLE of the frames that have one, spread evenly.

    Raises:
        NerfError: an image cannot be read.
    """
    frames = [frame for frame in frames if frame.has_alpha and frame.image is not None]
    chosen = np.linspace(0, len(frames) - 1, min(SAMPLE, len(frames)), dtype=int)
    borders = []
    for frame in (frames[i] for i in chosen):
        assert frame.image is not None
        pixels = read_with_alpha(frame.image, frame.alpha, 1, frame.size)
        opaque = pixels[..., -1].numpy() >= HALF
        if 1 - opaque.mean() >= LEAST_TRANSPARENT:
            border = np.concatenate([opaque[0], opaque[-1], opaque[:, 0], opaque[:, -1]])
            borders.append(border.mean())
    return AlphaSurvey(len(borders), float(np.mean(borders)) if borders else 0.0)


def _doubt(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Note that images which all have alpha look masked; unreadable ones are named elsewhere."""
    try:
        survey = survey_alpha(frames[:: max(1, len(frames) // FEW)][:FEW])
    except NerfError:
        return ()
    if not survey.is_mask_like:
        return ()
    return (
        f"alpha counts as empty space, though {survey.border:.0%} of the images' border is opaque: "
        "if it means 'ignore this pixel', use --alpha ignore",
    )


def decide_alpha(frames: Sequence[Frame], wanted: str | None) -> tuple[bool, bool, tuple[str, ...]]:
    """Decide what alpha means for a scene.

    Args:
        wanted: "transparent", "ignore", or None: by what the images show.

    Returns:
        Whether images have transparency, whether alpha is a mask, and notes.

    Raises:
        NerfError: only some images have alpha, and it could mean either.
    """
    frames = [frame for frame in frames if frame.image is not None]
    clear = [frame.name for frame in frames if frame.has_alpha]
    opaque = [frame.name for frame in frames if not frame.has_alpha]
    if not clear:
        return False, False, ()
    if wanted == "ignore":
        return False, True, ()
    if wanted == "transparent":
        return True, False, ()
    if not opaque:
        return True, False, _doubt(frames)
    which = f"{len(clear)} of {len(frames)} images have an alpha channel"
    survey = survey_alpha(frames)
    if survey.is_silhouette_like:
        note = f"{which}: the others count as opaque (else --alpha ignore)"
        return True, False, (note,)
    if survey.is_mask_like or not survey.n_transparent:
        note = f"{which}: it counts as a mask, as others show all (else --alpha transparent)"
        return False, True, (note,)
    raise NerfError(
        f"an alpha channel is in {quantity(len(clear), 'image')} and not in {len(opaque)} "
        f"({clear[0]}, but not {opaque[0]}), and {survey.border:.0%} of the former's border is "
        "opaque. Say what alpha means: --alpha transparent (nothing is there) or "
        "--alpha ignore (a mask)."
    )

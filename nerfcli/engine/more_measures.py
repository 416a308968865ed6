"""Measures that `eval` takes only where they are asked for: LPIPS, MS-SSIM, corrected colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.engine.image_metrics import (
    LEAST_MS_SSIM,
    MS_WEIGHTS,
    color_correct,
    masked_psnr,
    ms_ssim,
    round_to_8_bits,
)
from nerfcli.engine.lpips import NETS, Lpips

DIGITS = {"psnr_cc": 4}  # others: 5


@dataclass
class MoreMeasures:
    """What is measured of a view beside PSNR and SSIM.

    Attributes:
        lpips: networks. weights: a folder with their files; None: the installed package's.
    """

    lpips: Sequence[str] = ()
    ms_ssim: bool = False
    psnr_cc: bool = False
    weights: Path | None = None
    _nets: dict[str, Lpips] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        names = [f"lpips_{net}" for net in self.lpips]
        names += ["ms_ssim"] * self.ms_ssim
        return names + ["psnr_cc"] * self.psnr_cc

    def load(self, device: str) -> None:
        """Read the weights, before anything is rendered.

        Raises:
            NerfError: they are not there, or not what they should be.
        """
        self._nets = {net: Lpips(net, self.weights, device) for net in self.lpips}

    def score(
        self,
        raw: np.ndarray,
        image: np.ndarray,
        reference: np.ndarray,
        usable: np.ndarray | None,
    ) -> dict[str, Any]:
        """Measure one view: a value or None by key; `missing` says why some are None.

        Args:
            raw: the rendering. image: it in 8 bits. reference: the photo. [height, width, 3] each
            usable: [height, width] bool, the pixels that are scored; None: all.
        """
        is_blind = usable is not None and not usable.any()
        row: dict[str, Any] = {}
        missing: dict[str, str] = {}

        def keep(key: str, value: float, why: str) -> None:
            is_known = math.isfinite(value)
            row[key] = round(value, DIGITS.get(key, 5)) if is_known else None
            if not is_known:
                missing[key] = "no pixel is scored" if is_blind else why

        for name, net in self._nets.items():
            value = math.nan
            if not is_blind:
                seen = image if usable is None else np.where(usable[..., None], image, reference)
                value = net.distance(seen, reference)
            keep(f"lpips_{name}", value, f"a side is under {NETS[name].least} pixels")
        if self.ms_ssim:
            small = min(image.shape[:2]) < LEAST_MS_SSIM
            why = f"a side is under {LEAST_MS_SSIM} pixels"
            why = why if small else "a scale has no window of usable pixels"
            keep("ms_ssim", ms_ssim(image, reference, usable), why)
        if self.psnr_cc:
            corrected = round_to_8_bits(color_correct(raw, reference, usable))
            keep("psnr_cc", masked_psnr(corrected, reference, usable), "equal to the photo")
        return row | ({"missing": missing} if missing else {})

    def protocol(self) -> dict[str, str]:
        """Say how each is defined, and by what weights."""
        said = {
            f"lpips_{name}": f"{net.description}; colours scaled to [-1, 1]; masked pixels are "
            "given the photo's colours and count in the mean over pixels"
            for name, net in self._nets.items()
        }
        if self.ms_ssim:
            said["ms_ssim"] = (
                f"Wang et al. (2003), weights {MS_WEIGHTS}, window and mean of ssim, 2x2 means "
                "between scales; a coarse pixel is masked if one below it is"
            )
        if self.psnr_cc:
            said["psnr_cc"] = (
                "as psnr, after color_correct of multinerf: a quadratic polynomial of the colours, "
                "least squares over scored pixels that are not clipped, 5 rounds, applied before "
                "rounding to 8 bits"
            )
        return said


def parse_nets(text: str) -> list[str]:
    """Read --lpips: network names with commas between them.

    Raises:
        NerfError: one is unknown.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NETS:
            raise NerfError(f"--lpips {text}: no network {name!r}; known: {', '.join(NETS)}.")
    return list(dict.fromkeys(names))

"""Scores of views, whichever there are: their names, their digits, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nerfcli.report.page import to_number
from nerfcli.report.run_record import is_number, number

LABELS = {
    "psnr": "PSNR",
    "psnr_corrected": "PSNR corrected",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips_vgg": "LPIPS VGG",
    "lpips_alex": "LPIPS Alex",
}
DECIBELS = ("psnr",)  # begins the names of what is in decibels
SMALLER_IS_BETTER = ("lpips",)


def names_of_scores(rows: Sequence[dict[str, Any]]) -> list[str]:
    """List every score that a view has a number of, in the order in which they stand."""
    names: dict[str, None] = {}
    for row in rows:
        names |= {name: None for name, value in row.items() if is_number(value)}
    return list(names)


def label(name: str) -> str:
    """Name a score for people."""
    return LABELS.get(name, name.replace("_", " "))


def is_decibels(name: str) -> bool:
    return name.startswith(DECIBELS)


def unit(name: str) -> str:
    return "dB" if is_decibels(name) else ""


def is_higher_better(name: str) -> bool:
    return not name.startswith(SMALLER_IS_BETTER)


def digits(name: str) -> int:
    return 2 if is_decibels(name) else 4


def cell(row: dict[str, Any], name: str) -> str:
    """Format a view's score; an exact view has an infinite PSNR."""
    if name == "psnr" and row.get("exact"):
        return "∞"
    return to_number(row.get(name), digits(name))


def worst_first(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Sort views by their error: the lowest PSNR first, exact ones after it, unscored ones last."""

    def key(i: int) -> tuple[int, float]:
        value = number(rows[i], "psnr")
        if value is not None:
            return 0, value
        return (1 if rows[i].get("exact") else 2), 0.0

    return sorted(range(len(rows)), key=key)

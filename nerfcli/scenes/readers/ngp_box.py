"""Read and write instant-ngp's box: the unit cube of its frame, p * scale + offset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nerfcli.cameras.boxes import Box
from nerfcli.core.errors import NerfError
from nerfcli.scenes.extent import MAX_CASCADES
from nerfcli.scenes.source import check_box, number

NGP_SCALE, NGP_OFFSET = 0.33, (0.5, 0.5, 0.5)  # instant-ngp's defaults


def parse_box(data: Mapping[str, Any], where: str) -> tuple[Box | None, str]:
    """Parse instant-ngp's detail cube in source units; None if no key states it.

    Its frame is p * scale + offset, its detail cube the unit cube, and aabb_scale widens it. The
    second value names the keys.

    Raises:
        NerfError: values that instant-ngp refuses, too.
    """
    if not {"aabb_scale", "scale", "offset", "aabb"} & data.keys():
        return None, ""
    scale = number(data.get("scale", NGP_SCALE), f"{where}: scale")
    widening = number(data.get("aabb_scale", 1), f"{where}: aabb_scale")
    if scale <= 0:
        raise NerfError(f"{where}: scale must be positive, got {scale:g}.")
    if widening not in [2.0**i for i in range(MAX_CASCADES)]:
        raise NerfError(
            f"{where}: aabb_scale must be a power of two from 1 to 128, got {widening:g}."
        )
    cascades = 1 + round(math.log2(widening))
    if "aabb" in data:
        try:
            corners = np.array(data["aabb"], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            corners = np.zeros(0)
        if corners.shape != (2, 3) or not np.isfinite(corners).all():
            raise NerfError(f"{where}: aabb must be [[x, y, z], [x, y, z]].")
        center = tuple(corners.mean(0).tolist())
        half = float(np.abs(corners[1] - corners[0]).max()) / 2
        box = check_box(Box(center, max(half, 1e-6), cascades), f"{where}: aabb")
        return box, f"aabb, aabb_scale {widening:g}"
    offset = data.get("offset", NGP_OFFSET)
    if not isinstance(offset, list | tuple) or len(offset) != 3:
        raise NerfError(f"{where}: offset must be three numbers, got {offset!r}.")
    x, y, z = ((0.5 - number(o, f"{where}: offset")) / scale for o in offset)
    words = f"aabb_scale {widening:g}" if "aabb_scale" in data else "scale and offset"
    return check_box(Box((x, y, z), 0.5 / scale, cascades), f"{where}: {words}"), words


def box_keys(box: Box) -> dict[str, Any]:
    """Return the keys from which `parse_box` reads this box; at most MAX_CASCADES cascades."""
    scale = 0.5 / box.half_size
    return {
        "aabb_scale": 2 ** (min(box.n_cascades, MAX_CASCADES) - 1),
        "scale": scale,
        "offset": [0.5 - scale * c for c in box.center],
    }

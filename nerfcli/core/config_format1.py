"""Settings of format 1: tables by pipeline stage, 0 or "auto" for automatic.

Run folders of that format are read through `translate`. Remove it when no such run matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nerfcli.core.config import METHOD_TABLES

DEFAULT_METHOD = "hashgrid"  # of format 1
OLD_TABLES = ("model", "sampling", "occupancy")
# old key -> where its value stands now; width was shared, and is the table's of either method
MOVED = {
    "model.method": ("method",),
    "model.n_levels": ("hashgrid.n_levels",),
    "model.n_features": ("hashgrid.n_features",),
    "model.log2_table_size": ("hashgrid.log2_table_size",),
    "model.base_resolution": ("hashgrid.base_resolution",),
    "model.max_resolution": ("hashgrid.max_resolution",),
    "model.width": ("hashgrid.width", "classic.width"),
    "model.depth": ("classic.depth",),
    "model.position_frequencies": ("classic.position_frequencies",),
    "model.direction_frequencies": ("classic.direction_frequencies",),
    "sampling.n_coarse": ("classic.n_coarse",),
    "sampling.n_fine": ("classic.n_fine",),
    "sampling.density_noise": ("classic.density_noise",),
    "sampling.steps_per_box": ("hashgrid.steps_per_box",),
    "sampling.cone": ("hashgrid.cone",),
    "sampling.min_transmittance": ("hashgrid.min_transmittance",),
    "occupancy.resolution": ("hashgrid.occupancy_resolution",),
    "occupancy.decay": ("hashgrid.occupancy_decay",),
    "occupancy.threshold": ("hashgrid.occupancy_threshold",),
    "occupancy.every": ("hashgrid.occupancy_every",),
    "occupancy.cells": ("hashgrid.occupancy_cells",),
    "train.n_rays": ("classic.n_rays",),
    "train.n_samples": ("hashgrid.n_samples",),
    "train.ema_decay": ("hashgrid.ema_decay",),
    "train.weight_decay": ("hashgrid.weight_decay",),
    "train.crop_steps": ("classic.crop_steps",),
    "train.crop_fraction": ("classic.crop_fraction",),
}
AUTO_AT_0 = {  # every other 0 means 0
    *("scene.downscale", "scene.near", "scene.far", "scene.box", "scene.cascades"),
    *("model.log2_table_size", "model.max_resolution", "model.width", "sampling.steps_per_box"),
    *("occupancy.cells", "train.steps", "train.minutes", "train.n_rays", "train.n_samples"),
    *("train.lr", "train.lr_final"),
}
AUTO_BY_NAME = {"scene.background", "model.method", "train.loss"}


def is_format1(values: Mapping[str, Any]) -> bool:
    """Whether dotted keys are those of format 1."""
    return any(key in MOVED or key.partition(".")[0] in OLD_TABLES for key in values)


def translate(values: Mapping[str, Any], method: object = None) -> dict[str, Any]:
    """Turn dotted keys and values of format 1 into those of today; leave unknown keys.

    Old settings of a method that is not used are dropped, as format 1 ignored them.

    Args:
        method: that the command names; None: the one in `values`, or the default.
    """
    own = values.get("model.method", "auto")
    method = method or (DEFAULT_METHOD if own == "auto" else own)
    found: dict[str, Any] = {}
    for key, value in values.items():
        if (key in AUTO_AT_0 and value == 0) or (key in AUTO_BY_NAME and value == "auto"):
            continue
        for place in MOVED.get(key, (key,)):
            table = place.partition(".")[0]
            if key not in MOVED or table not in METHOD_TABLES or table == method:
                found[place] = value
    return found


def new_home(key: str) -> str | None:
    """Where a setting of format 1 stands now; None if it never was one, or has not moved."""
    return " or ".join(MOVED[key]) if key in MOVED else None

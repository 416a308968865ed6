"""Write the Blender layout: one transforms file for each split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from nerfcli.cameras.boxes import Box
from nerfcli.core.files import write_json
from nerfcli.scenes.readers.blender import SPLITS
from nerfcli.scenes.readers.ngp_box import box_keys
from nerfcli.scenes.source import Frame, median_focal, opengl_matrix
from nerfcli.scenes.writers.lenses import state_lenses
from nerfcli.scenes.writers.splits import hold_out, split_lists


def write_blender(
    frames: Sequence[Frame], names: Sequence[str], folder: Path, box: Box | None
) -> list[Path]:
    """Write a transforms file for each split and return their paths.

    None of the files is empty, since programs look into the first frame of each.

    Args:
        box: where it is not the usual one; stated in instant-ngp's keys.
        frames: of which the format holds poses, splits, and one focal length over the width.
        names: their images, PNG files relative to `folder`.
    """
    frames, _ = state_lenses(frames, "blender")
    angle = 2 * math.atan(0.5 / median_focal(frames))
    entries = [
        {"file_path": "./" + name.removesuffix(".png"), "transform_matrix": opengl_matrix(f.c2w)}
        for f, name in zip(frames, names, strict=True)
    ]
    stated = {} if box is None else box_keys(box)
    lists = split_lists(hold_out(frames))
    files = []
    for split in SPLITS:
        listed = lists.get(split) or range(len(frames))  # all, where there is but one view
        table = {"camera_angle_x": angle, **stated, "frames": [entries[i] for i in listed]}
        files.append(folder / f"transforms_{split}.json")
        write_json(files[-1], table)
    return files

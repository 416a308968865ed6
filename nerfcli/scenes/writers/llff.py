"""Write LLFF's poses_bounds.npy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerfcli.core.files import replacing
from nerfcli.scenes.readers.llff import NAME
from nerfcli.scenes.source import Frame
from nerfcli.scenes.writers.lenses import state_lenses


def write_llff(
    frames: Sequence[Frame], bounds: Sequence[tuple[float, float]], folder: Path
) -> None:
    """Write poses_bounds.npy; the images' sorted names must be in the order of `frames`."""
    frames, _ = state_lenses(frames, "llff")
    rows = []
    for frame, (near, far) in zip(frames, bounds, strict=True):
        right, down, ahead, center = frame.c2w.T
        width, height = frame.size
        columns = [down, right, -ahead, center, [height, width, frame.focal[0]]]
        rows.append([*np.stack(columns, axis=1).ravel(), near, far])
    with replacing(folder / NAME) as aside:
        np.save(aside, np.array(rows))

"""Read camera paths from files: nerfstudio's, instant-ngp's, lists of poses, and our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.core.errors import NerfError

FORMATS = (
    'a path of this program ("format": "nerf camera path"), nerfstudio\'s camera_path.json '
    "(camera_path), instant-ngp's base_cam.json (path), a transforms.json (frames), or the folder "
    "of a COLMAP model"
)


@dataclass(frozen=True)
class PathFile:
    """A camera path as its file states it.

    Attributes:
        kind: of the file, for people.
        cameras: along it, in the scene's source frame and units.
        are: "frames" of a film; "keys": key frames, flown through; "views": a list of poses, each
            with its own intrinsics.
        fps: of the film; None: not stated.
        n_frames, seconds: length of the film through key frames; None: not stated.
        is_loop: the first camera follows the last.
        spline_order: of instant-ngp's B-spline; None: through the key frames themselves.
        notes: what the user should know, a line each.
    """

    kind: str
    cameras: Cameras
    are: Literal["frames", "keys", "views"]
    fps: float | None = None
    n_frames: int | None = None
    seconds: float | None = None
    is_loop: bool = False
    spline_order: int | None = None
    notes: tuple[str, ...] = ()


def cameras_of(poses: Sequence[np.ndarray], intrinsics: Sequence[Intrinsics]) -> Cameras:
    """Join poses [3, 4] and intrinsics, one of each a camera."""
    return Cameras(
        torch.from_numpy(np.stack(poses)),
        torch.tensor([one.focal for one in intrinsics], dtype=torch.float64),
        torch.tensor([one.principal for one in intrinsics], dtype=torch.float64),
        torch.tensor([one.size for one in intrinsics], dtype=torch.int64),
        tuple(one.lens for one in intrinsics),
    )


def entries(data: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """Return the objects that a key lists, at least one.

    Raises:
        NerfError: there is no such list, it is empty, or an entry is no object.
    """
    listed = data.get(key)
    if not isinstance(listed, list) or not listed:
        found = "is empty" if listed == [] else "is no list" if key in data else "is missing"
        raise NerfError(f"{path}: {key} {found}; it lists the cameras of the path, at least one.")
    for i, entry in enumerate(listed):
        if not isinstance(entry, dict):
            kind = type(entry).__name__
            raise NerfError(f"{path}, {key} {i}: must be an object with a pose, found a {kind}.")
    return listed

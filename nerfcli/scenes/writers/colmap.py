"""Write a scene as a COLMAP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.core.files import write_text
from nerfcli.scenes.readers.colmap import SPLIT_LISTS
from nerfcli.scenes.readers.colmap_binary import write_binary
from nerfcli.scenes.readers.colmap_cameras import camera_model_of
from nerfcli.scenes.readers.colmap_model import (
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    no_points,
)
from nerfcli.scenes.readers.colmap_text import write_text_model
from nerfcli.scenes.source import Frame, Points
from nerfcli.scenes.writers.lenses import intrinsics_of_frame, state_lenses
from nerfcli.scenes.writers.splits import split_lists


def write_colmap(
    frames: Sequence[Frame],
    points: Points | None,
    names: Sequence[str],
    folder: Path,
    *,
    text: bool = False,
) -> None:
    """Write sparse/0, and the lists of splits where the scene has any.

    Args:
        names: the images' names relative to folder/images. text: files as text, not binary.
    """
    model = colmap_model(frames, points, names)
    (write_text_model if text else write_binary)(model, folder / "sparse/0")
    for split, listed in split_lists(frames).items():
        for file in {SPLIT_LISTS[split], f"{split}_list.txt"}:  # nerfstudio looks for either
            write_text(folder / file, "".join(f"{names[i]}\n" for i in listed))


def colmap_model(
    frames: Sequence[Frame], points: Points | None, names: Sequence[str]
) -> ColmapModel:
    """Build the model: equal intrinsics share a camera, keypoints are the observations."""
    frames, _ = state_lenses(frames, "colmap")
    cameras: dict[Intrinsics, ColmapCamera] = {}
    images = []
    for i, (frame, name) in enumerate(zip(frames, names, strict=True)):
        key = intrinsics_of_frame(frame)
        if key not in cameras:
            cameras[key] = _camera(len(cameras) + 1, key)
        seen = np.flatnonzero(points.frame == i) if points is not None else np.zeros(0, np.int64)
        images.append(
            ColmapImage(
                id=i + 1,
                camera_id=cameras[key].id,
                name=name,
                rotation=quaternion_of(frame.c2w[:, :3].T),
                translation=tuple((-frame.c2w[:, :3].T @ frame.c2w[:, 3]).tolist()),
                xy=points.xy[seen] if points is not None else np.zeros((0, 2)),
                point_ids=points.point[seen] + 1 if points is not None else seen,
            )
        )
    return ColmapModel({c.id: c for c in cameras.values()}, tuple(images), _points(points))


def _camera(id_: int, intrinsics: Intrinsics) -> ColmapCamera:
    found = camera_model_of(intrinsics)
    assert found is not None, intrinsics.lens
    return ColmapCamera(id_, found[0], intrinsics.size, found[1])


def quaternion_of(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """[3, 3] -> w, x, y, z with w not negative."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    sign = -1.0 if w < 0 else 1.0
    return float(sign * w), float(sign * x), float(sign * y), float(sign * z)


def _points(points: Points | None) -> ColmapPoints:
    if points is None:
        return no_points()
    n = len(points)
    rgb = points.rgb if points.rgb is not None else np.zeros((n, 3), np.uint8)
    error = points.error if points.error is not None else np.full(n, -1.0)  # COLMAP's "unknown"
    return ColmapPoints(np.arange(1, n + 1), points.xyz, rgb, error)

"""Write nerfstudio's transforms.json, which instant-ngp reads as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.core.files import write_json
from nerfcli.scenes.readers.ngp_box import box_keys
from nerfcli.scenes.readers.points import write_points
from nerfcli.scenes.readers.transforms import SPLIT_KEYS
from nerfcli.scenes.scene import Similarity
from nerfcli.scenes.source import Frame, Source, opengl_matrix
from nerfcli.scenes.writers.splits import split_lists

POINTS = "sparse_pc.ply"  # nerfstudio's name


def write_transforms(
    source: Source,
    names: Sequence[str],
    masks: Sequence[str | None],
    depths: Sequence[str | None],
    folder: Path,
) -> None:
    """Write transforms.json, and the points beside it.

    Args:
        names, masks, depths: per frame, paths relative to `folder`.
    """
    frames = source.frames
    tables = [_intrinsics(frame) for frame in frames]
    shared = tables[0] if all(table == tables[0] for table in tables) else {}
    top: dict[str, Any] = _camera_model(frames) | shared
    if source.box is not None:
        top |= box_keys(source.box)
    if source.applied_transform is not None:
        top["applied_transform"] = source.applied_transform.tolist()
    if source.applied_scale != 1.0:
        top["applied_scale"] = source.applied_scale
    if source.crop_radius:
        top["fisheye_crop_radius"] = source.crop_radius
    kinds = [frame.depth for frame in frames if frame.depth is not None]
    if kinds:
        top["depth_unit_scale_factor"] = kinds[0].scale
        top["is_euclidean_depth"] = kinds[0].is_euclidean
    if source.points is not None:
        write_points(source.points, folder / POINTS)
        top["ply_file_path"] = POINTS
    for split, listed in split_lists(frames).items():
        top[SPLIT_KEYS[split]] = [names[i] for i in listed]
    top["frames"] = [
        {
            "file_path": names[i],
            **({} if shared else tables[i]),
            **({"mask_path": masks[i]} if masks[i] else {}),
            **({"depth_file_path": depths[i]} if depths[i] else {}),
            "transform_matrix": opengl_matrix(frame.c2w),
        }
        for i, frame in enumerate(frames)
    ]
    write_json(folder / "transforms.json", top)


def camera_table(frame: Frame, name: str) -> dict[str, Any]:
    """Return a frame's entry with its own intrinsics; `name` is its image's path."""
    pose = opengl_matrix(frame.c2w)
    return {"file_path": name, **_intrinsics(frame), "transform_matrix": pose}


def _intrinsics(frame: Frame) -> dict[str, Any]:
    """Size, focal lengths, principal point and lens of a frame; other lenses have no keys."""
    lens = frame.lens
    table: dict[str, Any] = {
        "w": frame.size[0],
        "h": frame.size[1],
        "fl_x": frame.focal[0],
        "fl_y": frame.focal[1],
        "cx": frame.principal[0],
        "cy": frame.principal[1],
    }
    if lens.model == "equirectangular":  # nerfstudio's scale of longitude and latitude
        return table | {"fl_x": frame.size[0] / 2, "fl_y": frame.size[1]}
    if lens.model == "fisheye":
        return table | {"is_fisheye": True, **lens.named}
    return table | (lens.named if lens.model == "brown" else {})


def _camera_model(frames: Sequence[Frame]) -> dict[str, str]:
    """One model for all frames, as nerfstudio has it; in a mixture each frame states is_fisheye."""
    if all(frame.lens.model == "equirectangular" for frame in frames):
        return {"camera_model": "EQUIRECTANGULAR"}
    fisheyes = {frame.lens.model == "fisheye" for frame in frames}
    if fisheyes == {True}:
        return {"camera_model": "OPENCV_FISHEYE"}
    distorted = any(frame.lens.model == "brown" for frame in frames)
    return {"camera_model": "OPENCV" if distorted else "PINHOLE"} if len(fisheyes) == 1 else {}


def dataparser_transforms(source: Source, scene_from_source: Similarity) -> dict[str, Any]:
    """Return nerfstudio's record of how training moves a scene.

    x_model = scale * (transform @ x_original). The original frame is the one before
    `applied_transform`.
    """
    matrix = np.eye(4)
    if source.applied_transform is not None:
        matrix[:3] = source.applied_transform
    scale = scene_from_source.scale * source.applied_scale
    similarity = np.eye(4)
    similarity[:3, :3] = scene_from_source.rotation
    similarity[:3, 3] = np.array(scene_from_source.translation) / scale
    return {"transform": (similarity @ matrix)[:3].tolist(), "scale": scale}

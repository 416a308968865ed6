"""Write transforms.json: nerfstudio's, or instant-ngp's, which has fewer keys."""

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
from nerfcli.scenes.writers.lenses import state_lenses
from nerfcli.scenes.writers.splits import split_lists

NO_TERM = 1e-12  # not 0, and moves no pixel
POINTS = "sparse_pc.ply"  # nerfstudio's name
CAMERA_MODELS = {  # nerfstudio's names of those that are not perspective
    "fisheye": "OPENCV_FISHEYE",
    "rad_tan_thin_prism_fisheye": "FISHEYE624",
    "equirectangular": "EQUIRECTANGULAR",
}


def write_transforms(
    source: Source,
    names: Sequence[str],
    masks: Sequence[str | None],
    depths: Sequence[str | None],
    folder: Path,
    target: str = "transforms",
) -> None:
    """Write transforms.json, and the points beside it.

    Args:
        names, masks, depths: per frame, paths relative to `folder`.
        target: "transforms" (nerfstudio's) or "instant-ngp", which ignores all keys that are not
            its own.
    """
    frames, _ = state_lenses(source.frames, target)
    is_ngp = target == "instant-ngp"
    tables = [_intrinsics(frame) for frame in frames]
    for table in tables if is_ngp else ():  # without a term it takes a fisheye for a pinhole
        if "is_fisheye" in table and not any(table[f"k{i}"] for i in range(1, 5)):
            table["k1"] = NO_TERM
    shared = tables[0] if all(table == tables[0] for table in tables) else {}
    top: dict[str, Any] = ({} if is_ngp else _camera_model(frames)) | shared
    if source.box is not None:
        top |= box_keys(source.box)
    if source.applied_transform is not None:
        top["applied_transform"] = source.applied_transform.tolist()
    if source.applied_scale != 1.0:
        top["applied_scale"] = source.applied_scale
    if source.crop_radius:
        top["fisheye_crop_radius"] = source.crop_radius
    kinds = [f.depth for f, name in zip(frames, depths, strict=True) if f.depth and name]
    depth_key = "depth_path" if is_ngp else "depth_file_path"
    if kinds:
        top["integer_depth_scale" if is_ngp else "depth_unit_scale_factor"] = kinds[0].scale
        top |= {} if is_ngp else {"is_euclidean_depth": kinds[0].is_euclidean}
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
            **({depth_key: depths[i]} if depths[i] else {}),
            "transform_matrix": opengl_matrix(frame.c2w),
        }
        for i, frame in enumerate(frames)
    ]
    write_json(folder / "transforms.json", top)


def mixture_note(frames: Sequence[Frame]) -> list[str]:
    """Note that nerfstudio's file states no camera model that holds for all frames."""
    if _camera_model(state_lenses(frames, "transforms")[0]):
        return []
    return ["each image states its own camera model, of which nerfstudio reads none"]


def camera_table(frame: Frame, name: str) -> dict[str, Any]:
    """Return a frame's entry with its own intrinsics; `name` is its image's path."""
    (frame,), _ = state_lenses([frame], "transforms")
    pose = opengl_matrix(frame.c2w)
    return {"file_path": name, **_intrinsics(frame), "transform_matrix": pose}


def _intrinsics(frame: Frame) -> dict[str, Any]:
    """Size, focal lengths, principal point and lens of a frame that `state_lenses` has stated."""
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
    if lens.model == "rad_tan_thin_prism_fisheye":
        return table | {"camera_model": "FISHEYE624", "distortion_params": list(lens.params)}
    return table | lens.named


def _camera_model(frames: Sequence[Frame]) -> dict[str, str]:
    """One model for all frames, as nerfstudio has it; in a mixture each frame states its own."""
    models = {"pinhole" if frame.lens.is_pinhole else frame.lens.model for frame in frames}
    if models <= {"pinhole", "brown"}:
        return {"camera_model": "OPENCV" if "brown" in models else "PINHOLE"}
    return {"camera_model": CAMERA_MODELS[models.pop()]} if len(models) == 1 else {}


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

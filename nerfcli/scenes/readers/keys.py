"""Sort the keys of a transforms.json into read, harmless, unused and unsupported ones.

A key that would change rays or pixels in a way we do not support is an error. An unused key is a
note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.intrinsics import COLMAP_KEYS, camera_model_name

INTRINSICS = {
    *("w", "h", "cx", "cy", "fl_x", "fl_y", "x_fov", "y_fov", "camera_angle_x", "camera_angle_y"),
    *("k1", "k2", "k3", "k4", "p1", "p2", "distortion_params", "is_fisheye", "camera_model"),
}
READ_TOP = INTRINSICS | {
    *("frames", "aabb_scale", "scale", "offset", "aabb", "ply_file_path", "fisheye_crop_radius"),
    *("train_filenames", "val_filenames", "test_filenames"),
}
READ_FRAME = INTRINSICS | {"file_path", "transform_matrix", "mask_path"}
# known, and without influence on what we do
HARMLESS = {
    *("applied_transform", "applied_scale", "orientation_override", "render_aabb", "up"),
    *("importance_sampling", "integer_depth_scale", "enable_depth_loading", "n_frames"),
    *("enable_ray_loading", "sharpness_discard_threshold", "depth_unit_scale_factor", "version"),
    *("sharpness", "depth_path", "depth_file_path", "is_euclidean_depth", "rotation"),
    *("colmap_im_id", "colmap_id"),
    *("driver_parameters", "file_name", "id", "image_id", "name", "timestamp", "camera", "aspect"),
    *("depth_scale", "normal_file_path", "render_aabb_to_local", "shutter_speed", "up_vector"),
    "exposure_ev",  # of our own courtyard: found from the photos, never read
}
# instant-ngp or others act on these when they are set; we do not, and say so
UNUSED = {
    "white_transparent": "white pixels stay opaque",
    "black_transparent": "black pixels stay opaque",
    "sharpen": "images are not sharpened",
    "fix_premult": "alpha is taken as straight",
    "n_extra_learnable_dims": "there are no per-image latents",
    "envmap": "there is no environment map",
    "k5": "only k1 to k4 are part of the lens, as in nerfstudio",
    "k6": "only k1 to k4 are part of the lens, as in nerfstudio",
}
UNSUPPORTED = {
    "orthographic": "an orthographic camera",
    "equirectangular": "an equirectangular camera",
    "latlong": "a latitude-longitude camera",
    **{f"ftheta_p{i}": "an f-theta lens" for i in range(5)},
    "rolling_shutter": "a rolling shutter",
    "from_mitsuba": "Mitsuba's camera frame",
    "transform_matrix_start": "a camera that moves during exposure",
    "transform_matrix_end": "a camera that moves during exposure",
}


# `check_keys` lets these pass, and a scene keeps their content
KEPT = {
    *("applied_transform", "applied_scale", "depth_unit_scale_factor", "depth_file_path"),
    *("depth_path", "integer_depth_scale", "is_euclidean_depth", "rotation", "n_frames", "aspect"),
    *("version", "enable_depth_loading"),
}


def keys_beyond(
    top: Mapping[str, Any], frames: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, str], ...]:
    """List the keys whose content a scene does not keep."""
    names = {key for keys in (top, *frames) for key, value in keys.items() if _is_set(value)}
    other = sorted(names - READ_TOP - READ_FRAME - KEPT - _lens_keys(top, frames))
    return (("other keys", ", ".join(other)),) if other else ()


def check_keys(
    top: Mapping[str, Any], frames: Sequence[Mapping[str, Any]], path: Path
) -> list[str]:
    """Write notes about unused and unknown keys.

    Raises:
        NerfError: an unsupported key; names it.
    """
    used: dict[str, str] = {}  # key -> first place where it is set
    for place, keys in [(str(path), top)] + [
        (f"{path}, frame {frame.get('file_path', i)}", frame) for i, frame in enumerate(frames)
    ]:
        for key, value in keys.items():
            if _is_set(value):
                used.setdefault(key, place)
    for key, meaning in UNSUPPORTED.items():
        if key in used:
            raise NerfError(f"{used[key]}: {key} means {meaning}, which is not supported.")
    lens_keys = _lens_keys(top, frames)
    unused = [key for key in UNUSED if key in used and key not in lens_keys]
    notes = [f"{key} is not used: {UNUSED[key]}" for key in unused]
    if len({repr(frame.get("time")) for frame in frames}) > 1:
        notes.append("frames have different times; the scene is treated as static")
    known = READ_TOP | READ_FRAME | HARMLESS | UNUSED.keys() | {"time"} | lens_keys
    unknown = sorted(used.keys() - known)
    if unknown:
        notes.append(f"unknown keys in {path.name} are ignored: {', '.join(unknown)}")
    if not top.get("is_fisheye") and "FISHEYE" not in camera_model_name(top):
        notes += _brown_note(top, frames)
    return notes


def _lens_keys(top: Mapping[str, Any], frames: Sequence[Mapping[str, Any]]) -> set[str]:
    """List the keys that the file's camera models read beyond the usual ones."""
    models = {camera_model_name(keys) for keys in (top, *frames)}
    return {key for model in models for key in COLMAP_KEYS.get(model, ())}


def _is_set(value: Any) -> bool:
    """Whether a value says anything: not null, false, zero, or a list of such."""
    if isinstance(value, list):
        return any(_is_set(item) for item in value)
    return value not in (None, False, 0, "")


def _brown_note(top: Mapping[str, Any], frames: Sequence[Mapping[str, Any]]) -> list[str]:
    high = any(_is_set(keys.get(key)) for keys in (top, *frames) for key in ("k3", "k4"))
    if high and "camera_model" not in top and not any(f.get("is_fisheye") for f in frames):
        return ["k3 and k4 are taken as the r^6 and r^8 terms of the lens (instant-ngp drops them)"]
    return []

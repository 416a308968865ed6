"""Parse focal lengths, principal point and lens from the keys of a transforms.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from nerfcli.cameras.lens_models import MODELS
from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.colmap_cameras import BY_NAME, CameraModel
from nerfcli.scenes.readers.folders import size_ratio
from nerfcli.scenes.source import check_focal, check_principal, number

# nerfstudio's way: all of these keys count for each of these models
PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
FISHEYE = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE", "FISHEYE")
LENS_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")
# COLMAP's names of a lens's parameters, in the order of its files
COLMAP_KEYS = {
    "FULL_OPENCV": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "FOV": ("omega",),
    "THIN_PRISM_FISHEYE": ("k1", "k2", "p1", "p2", "k3", "k4", "sx1", "sy1"),
    "RAD_TAN_THIN_PRISM_FISHEYE": (
        *(f"k{i}" for i in range(6)),
        *("p0", "p1", "s0", "s1", "s2", "s3"),
    ),
    "SIMPLE_DIVISION": ("k",),
    "DIVISION": ("k",),
    "EUCM": ("alpha", "beta"),
}
SAME_MODEL = {"FISHEYE624": "RAD_TAN_THIN_PRISM_FISHEYE"}  # Project Aria's name
SUPPORTED = (*PERSPECTIVE, *FISHEYE, *COLMAP_KEYS, *SAME_MODEL, "EQUIRECTANGULAR")


def camera_model_name(keys: Mapping[str, Any]) -> str:
    """Return the `camera_model` in COLMAP's spelling; OPENCV where none is stated."""
    name = str(keys.get("camera_model", "OPENCV")).strip().upper().replace("-", "_")
    return SAME_MODEL.get(name, name)


def parse_size(keys: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """Parse `w` and `h`, which may be floats; None unless both are there."""
    if "w" not in keys or "h" not in keys:
        return None
    width, height = (number(keys[key], f"{where}: {key}") for key in ("w", "h"))
    if width < 1 or height < 1:
        raise NerfError(f"{where}: w and h must be positive, got {width:g} and {height:g}.")
    return round(width), round(height)


def parse_lens(keys: Mapping[str, Any], where: str) -> Lens:
    """Parse the lens of a frame that is no panorama.

    By `camera_model` or `is_fisheye`, else Brown or pinhole.

    Raises:
        NerfError: a camera model that is not supported, or parameters that it does not have.
    """
    model = camera_model_name(keys)
    if model in COLMAP_KEYS:
        return _parse_colmap_lens(BY_NAME[model], COLMAP_KEYS[model], keys, where)
    if model not in (*PERSPECTIVE, *FISHEYE):
        raise NerfError(
            f"{where}: camera_model {keys['camera_model']!r} is not supported; "
            f"supported: {', '.join(SUPPORTED)}."
        )
    listed = _parse_list(keys, LENS_KEYS, where)
    params = listed or [number(keys.get(key, 0.0), f"{where}: {key}") for key in LENS_KEYS]
    if model in FISHEYE or keys.get("is_fisheye"):
        return Lens("fisheye", tuple(params[:4]))
    return Lens("brown", tuple(params)) if any(params) else Lens()


def _parse_colmap_lens(
    model: CameraModel, names: tuple[str, ...], keys: Mapping[str, Any], where: str
) -> Lens:
    params = _parse_list(keys, names, where)
    if params is None:
        missing = [name for name in names if name not in keys]
        if missing and MODELS[model.lens].closed is not None:  # no harmless value of these
            raise NerfError(f"{where}: camera_model {model.name} needs {', '.join(missing)}.")
        params = [number(keys.get(name, 0.0), f"{where}: {name}") for name in names]
        others = [key for key in keys if re.fullmatch(r"[kps]\d", key) and key not in names]
        stated = [key for key in others if keys[key]]
        if stated:
            raise NerfError(
                f"{where}: {stated[0]} is no parameter of camera_model {model.name}, which has "
                f"{', '.join(names)}."
            )
    return Lens.of(model.lens, **dict(zip(model.names, params, strict=True)))


def _parse_list(keys: Mapping[str, Any], names: tuple[str, ...], where: str) -> list[float] | None:
    """Parse `distortion_params`, which lists the parameters of these names."""
    listed = keys.get("distortion_params")
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) != len(names):
        raise NerfError(
            f"{where}: distortion_params must list {', '.join(names)}, got {str(listed)[:200]}."
        )
    return [number(value, f"{where}: distortion_params") for value in listed]


def _focal_along(keys: Mapping[str, Any], axis: str, length: int, where: str) -> float | None:
    """Parse a focal length in instant-ngp's order: degrees, then pixels, then radians."""
    half_angle = None
    if f"{axis}_fov" in keys:
        half_angle = math.radians(number(keys[f"{axis}_fov"], f"{where}: {axis}_fov")) / 2
    elif f"fl_{axis}" in keys:
        return number(keys[f"fl_{axis}"], f"{where}: fl_{axis}")
    elif f"camera_angle_{axis}" in keys:
        name = f"camera_angle_{axis}"
        half_angle = number(keys[name], f"{where}: {name}") / 2
    if half_angle is None:
        return None
    if not 0 < half_angle < math.pi / 2:
        raise NerfError(
            f"{where}: a field of view of {math.degrees(2 * half_angle):g} degrees along {axis} is "
            "absurd; camera_angle_* is in radians, *_fov in degrees."
        )
    return 0.5 * length / math.tan(half_angle)


def parse_intrinsics(
    frame: Mapping[str, Any],
    top: Mapping[str, Any],
    real: tuple[int, int],
    where: str,
) -> tuple[tuple[float, float], tuple[float, float], Lens]:
    """Parse focal lengths and principal point in pixels of the stored image, and the lens.

    Args:
        frame, top: keys of the frame, which win, and of the file.
        real: width and height of the stored image; where they differ from the stated w and h,
            everything in pixels follows the ratio.

    Raises:
        NerfError: no focal length, an absurd one, an unsupported lens, or an image of another
            shape than stated.
    """
    keys = {**top, **frame}
    width, height = parse_size(keys, where) or real
    if camera_model_name(keys) == "EQUIRECTANGULAR":  # its focal lengths say nothing
        size_ratio(real, (width, height), where)
        return *panorama(real), Lens("equirectangular")
    # a frame that states any focal length speaks for itself: its fl_x beats the file's x_fov
    own = any(key in frame for axis in "xy" for key in _focal_keys(axis))
    focal_keys = frame if own else keys
    fx = _focal_along(focal_keys, "x", width, where)
    fy = _focal_along(focal_keys, "y", height, where)
    if fx is None and fy is None:
        raise NerfError(
            f"{where} has no focal length; one of fl_x, camera_angle_x, x_fov (or y) is needed."
        )
    fx, fy = (fx if fx is not None else fy), (fy if fy is not None else fx)
    assert fx is not None and fy is not None
    cx = number(keys.get("cx", width / 2), f"{where}: cx")
    cy = number(keys.get("cy", height / 2), f"{where}: cy")
    check_principal((cx, cy), (width, height), where)
    ratio = size_ratio(real, (width, height), where)
    lens = parse_lens(keys, where)
    check_focal((fx, fy), (width, height), lens, where)
    return (fx * ratio[0], fy * ratio[1]), (cx * ratio[0], cy * ratio[1]), lens


def _focal_keys(axis: str) -> tuple[str, str, str]:
    return f"{axis}_fov", f"fl_{axis}", f"camera_angle_{axis}"

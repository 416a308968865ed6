"""Read and write our own camera path: JSON to edit, in the scene's source units.

See docs/rendering.md for its keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.cameras.lens_models import MODELS
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.path_cameras import IPD, panorama_intrinsics
from nerfcli.core.errors import NerfError
from nerfcli.core.files import json_text, write_text
from nerfcli.scenes.path_files import PathFile, cameras_of, entries
from nerfcli.scenes.readers.camera_paths import focal_of, parse_pixels, parse_pose
from nerfcli.scenes.source import check_principal, number, opengl_matrix

MARK, VERSION = "nerf camera path", 1
KINDS = {"frames": "frames", "key_frames": "keys"}
PANORAMAS = tuple(name for name, model in MODELS.items() if model.is_panorama)
SHARED = ("width", "height", "fov", "fl_x", "fl_y", "cx", "cy", "lens", "ipd")  # or in a frame
TOP = ("format", "version", "frame", "fps", "loop", "n_frames", *SHARED, *KINDS)


def read_own_path(path: Path, data: dict[str, Any]) -> PathFile:
    """Read a path that `write_own_path` or the user wrote, in the frame of the scene's source.

    Raises:
        NerfError: a fault in it; names file, frame and key.
    """
    if data.get("version") != VERSION:
        raise NerfError(
            f"{path}: version {data.get('version')!r} is not known; this program reads {VERSION}."
        )
    _ensure_known(data, TOP, str(path))
    lists = [key for key in KINDS if key in data]
    if len(lists) != 1:
        raise NerfError(f"{path}: needs either frames or key_frames, a list of cameras.")
    poses, intrinsics = [], []
    for i, entry in enumerate(entries(data, lists[0], path)):
        where = f"{path}, {lists[0]} {i}"
        _ensure_known(entry, ("camera_to_world", *SHARED), where)
        poses.append(parse_pose(entry, "camera_to_world", where))
        focal = {"fov", "fl_x", "fl_y"}
        beaten = focal if focal & entry.keys() else set()  # by the frame's own
        shared = {key: data[key] for key in SHARED if key in data and key not in beaten}
        intrinsics.append(_parse_camera({**shared, **entry}, where))
    kinds = {(one.size, one.lens) for one in intrinsics}
    if lists[0] == "key_frames" and len(kinds) > 1:
        raise NerfError(
            f"{path}: key_frames differ in width, height or lens; one flight needs one of each."
        )
    fps, count = data.get("fps"), data.get("n_frames")
    fps = None if fps is None else number(fps, f"{path}: fps")
    count = None if count is None else number(count, f"{path}: n_frames")
    for name, value in (("fps", fps), ("n_frames", count)):
        if value is not None and value <= 0:
            raise NerfError(f"{path}: {name} must be above 0, got {value:g}.")
    is_mixed = len(kinds) > 1
    return PathFile(
        "a path of this program",
        cameras_of(poses, intrinsics),
        "views" if is_mixed else "frames" if lists[0] == "frames" else "keys",
        fps=fps,
        n_frames=None if count is None else max(round(count), 1),
        is_loop=data.get("loop") is True,
    )


def write_own_path(
    path: Path, cameras: Cameras, *, fps: float, is_loop: bool, key_frames: int | None = None
) -> int:
    """Write a path, in the frame of the scene's source.

    Args:
        key_frames: write only so many of the cameras, to fly through; None: all, as they are.

    Returns:
        How many cameras are written.

    Raises:
        NerfError: the file cannot be written.
    """
    n, chosen = len(cameras), list(range(len(cameras)))
    if key_frames is not None and key_frames < n:
        last = n if is_loop else n - 1
        parts = key_frames if is_loop else max(key_frames - 1, 1)
        chosen = [round(i * last / parts) for i in range(key_frames)]
    n_frames = None if key_frames is None else n
    write_text(path, own_path_text(cameras[chosen], fps=fps, is_loop=is_loop, n_frames=n_frames))
    return len(chosen)


def own_path_text(cameras: Cameras, *, fps: float, is_loop: bool, n_frames: int | None) -> str:
    """State a path as JSON, in the frame of the scene's source.

    Args:
        n_frames: of the film that flies through the cameras; None: they are its frames.
    """
    tables = [_describe(cameras, i) for i in range(len(cameras))]
    shared = {
        key: value for key, value in tables[0].items() if all(t.get(key) == value for t in tables)
    }
    top: dict[str, Any] = {
        "format": MARK,
        "version": VERSION,
        "frame": "the scene's files: their units; OpenGL camera-to-world, +y up, looks along -z",
        "fps": fps,
        "loop": is_loop,
        **shared,
    }
    if n_frames is not None:
        top["n_frames"] = n_frames
    rows = [
        {
            "camera_to_world": opengl_matrix(c2w.numpy()),
            **{key: value for key, value in table.items() if key not in shared},
        }
        for c2w, table in zip(cameras.c2w, tables, strict=True)
    ]
    head = json_text(top, indent=2).rstrip().removesuffix("}").rstrip()
    name = "frames" if n_frames is None else "key_frames"
    lines = ",\n".join(f"    {json_text(row)}" for row in rows)  # a line a camera
    return f'{head},\n  "{name}": [\n{lines}\n  ]\n}}\n'


def _describe(cameras: Cameras, index: int) -> dict[str, Any]:
    """State a camera without its pose."""
    lens, (width, height) = cameras.lenses[index], cameras.size[index].tolist()
    table: dict[str, Any] = {"width": width, "height": height}
    if lens.is_panorama:
        table["lens"] = {"model": lens.model}
        return table | ({"ipd": lens.eye_distance} if lens.is_stereo else {})
    (fx, fy), (cx, cy) = cameras.focal[index].tolist(), cameras.principal[index].tolist()
    table |= {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    return table | ({} if lens.is_pinhole else {"lens": {"model": lens.model, **lens.named}})


def _parse_camera(keys: Mapping[str, Any], where: str) -> Intrinsics:
    size = parse_pixels(keys, ("width", "height"), where)
    stated = keys.get("lens", {"model": "pinhole"})
    stated = {"model": stated} if isinstance(stated, str) else stated
    if not isinstance(stated, Mapping) or stated.get("model") not in MODELS:
        raise NerfError(
            f"{where}: lens must be an object with a model, one of {', '.join(MODELS)}; got "
            f"{str(stated)[:60]}."
        )
    model = stated["model"]
    if model in PANORAMAS:
        ipd = number(keys.get("ipd", IPD), f"{where}: ipd")
        return panorama_intrinsics(model, size, ipd, is_whole=True)
    params = {k: number(v, f"{where}: lens {k}") for k, v in stated.items() if k != "model"}
    _ensure_known(params, MODELS[model].params, f"{where}: lens {model}")
    if "fl_x" in keys or "fl_y" in keys:
        focal = [number(keys[k], f"{where}: {k}") for k in ("fl_x", "fl_y") if k in keys]
        if min(focal) <= 0:
            raise NerfError(f"{where}: fl_x and fl_y must be above 0, in pixels, got {focal}.")
    elif "fov" in keys:
        focal = [focal_of(keys["fov"], size[1], f"{where}: fov")]
    else:
        raise NerfError(f"{where} has neither fov, in degrees from top to bottom, nor fl_x.")
    cx, cy = (
        number(keys.get(key, side / 2), f"{where}: {key}")
        for key, side in zip(("cx", "cy"), size, strict=True)
    )
    check_principal((cx, cy), size, where)
    lens = Lens(model, tuple(params.get(name, 0.0) for name in MODELS[model].params))
    return Intrinsics(size, (focal[0], focal[-1]), (cx, cy), lens)


def _ensure_known(keys: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise NerfError for a key that would do nothing."""
    strange = [key for key in keys if key not in known]
    if strange:
        raise NerfError(f"{where}: unknown key {strange[0]!r}; known: {', '.join(known)}.")

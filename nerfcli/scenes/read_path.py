"""Tell what kind of camera path a file is, and read it."""

from __future__ import annotations

from pathlib import Path

from nerfcli.core.errors import NerfError
from nerfcli.scenes.own_path import MARK, read_own_path
from nerfcli.scenes.path_files import FORMATS, PathFile
from nerfcli.scenes.path_frames import KnownFrames
from nerfcli.scenes.readers.camera_paths import read_nerfstudio_path, read_ngp_path
from nerfcli.scenes.readers.colmap_folders import colmap_models, describe_incomplete
from nerfcli.scenes.readers.pose_lists import read_colmap_path, read_transforms_path
from nerfcli.scenes.source import read_object


def read_path(path: Path, known: KnownFrames, size: tuple[int, int]) -> PathFile:
    """Read a camera path into the frame and units of the scene's source.

    Args:
        path: a JSON file, or the folder of a COLMAP model or above it.
        known: of the frame of the source. size: of images, where the file states none.

    Raises:
        NerfError: nothing is there, no known format, or a fault in the file.
    """
    try:
        return _read(path, known, size)
    except OSError as error:
        raise NerfError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read(path: Path, known: KnownFrames, size: tuple[int, int]) -> PathFile:
    if path.is_dir():
        models = colmap_models(path)
        if not models:
            hint = describe_incomplete(path) or f"{path} is a folder without a COLMAP model."
            raise NerfError(f"--path: {hint} A path is {FORMATS}.")
        return read_colmap_path(models[0].path, known)
    if not path.is_file():
        raise NerfError(f"--path {path}: there is no such file. A path is {FORMATS}.")
    data = read_object(path)
    if data.get("format") == MARK:
        return read_own_path(path, data)
    if "camera_path" in data:
        return read_nerfstudio_path(path, data, known)
    if "path" in data:
        return read_ngp_path(path, data, known, size)
    if "frames" in data:
        return read_transforms_path(path, data, known, size)
    if "keyframes" in data:
        raise NerfError(
            f"{path} holds key frames of nerfstudio's viewer, but no camera_path: press Generate "
            "Command there, which writes both."
        )
    keys = ", ".join(list(data)[:5]) or "nothing"
    raise NerfError(f"{path} is no camera path: it holds {keys}. Known are {FORMATS}.")

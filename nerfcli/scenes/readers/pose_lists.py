"""Read transforms files and COLMAP models as lists of poses, without their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.core.errors import NerfError
from nerfcli.scenes.path_files import PathFile, cameras_of, entries
from nerfcli.scenes.path_frames import KnownFrames, move_cameras, transforms_frame
from nerfcli.scenes.readers.camera_paths import parse_pose
from nerfcli.scenes.readers.colmap import model_views
from nerfcli.scenes.readers.intrinsics import parse_intrinsics, parse_size
from nerfcli.scenes.source import natural_key


def read_transforms_path(
    path: Path, data: dict[str, Any], known: KnownFrames, size: tuple[int, int]
) -> PathFile:
    """Read the poses of a transforms file in its own order, such as BlenderNeRF's test file.

    Args:
        size: of images whose size it does not state.

    Raises:
        NerfError: a fault in it; names file, frame and key.
    """
    poses, intrinsics, notes = [], [], []
    for i, frame in enumerate(entries(data, "frames", path)):
        where = f"{path}, frame {i}"
        poses.append(parse_pose(frame, "transform_matrix", where))
        stated = parse_size({**data, **frame}, where)
        if stated is None and not notes:
            notes.append(f"{path.name} states no w and h: {size[0]}x{size[1]} as the photos")
        real = stated or size
        intrinsics.append(Intrinsics(real, *parse_intrinsics(frame, data, real, where)))
    frame = transforms_frame(data, path, known)
    cameras = move_cameras(cameras_of(poses, intrinsics), frame)
    return PathFile("a transforms file", cameras, "views", notes=tuple(notes))


def read_colmap_path(folder: Path, known: KnownFrames) -> PathFile:
    """Read the poses of a COLMAP model, in natural order of its images' names.

    Raises:
        NerfError: a fault in the model; names file and image.
    """
    views = sorted(model_views(folder), key=lambda view: natural_key(view[0]))
    if not views:
        raise NerfError(f"{folder} holds no registered image; the path needs at least one.")
    cameras = cameras_of([c2w for _, c2w, _ in views], [camera for _, _, camera in views])
    moved = move_cameras(cameras, known.source_from_original)
    return PathFile("a COLMAP model", moved, "views")

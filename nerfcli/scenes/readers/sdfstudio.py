"""Read SDFStudio's meta_data.json.

A frame has rgb_path, intrinsics, and camtoworld with OpenCV's axes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.cameras.boxes import Box
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.collector import Collector, Pinhole, stated_size
from nerfcli.scenes.readers.pictures import Pictures
from nerfcli.scenes.source import NoFrames, Source, check_box, read_object

FILE = "meta_data.json"


def find_sdfstudio(root: Path) -> Path | None:
    return root / FILE if (root / FILE).is_file() else None


def read_sdfstudio(root: Path, path: Path, wanted: SceneConfig) -> Source:
    """Read the frames and the scene box.

    Raises:
        NerfError: a fault in the file; names frame and key.
    """
    data = read_object(path)
    frames = data.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise NoFrames(f"{path} has no list of frames.")
    if not any(frame.get("rgb_path") for frame in frames):
        raise NoFrames(f"{path}: frame 0 has no rgb_path, nor has any other.")
    size = stated_size(data, ("width", "height"), str(path))
    pictures = Pictures(root, given=wanted.images)
    pictures.find_all(f["rgb_path"] for f in frames if isinstance(f.get("rgb_path"), str))
    collector = Collector(root, path, wanted, pictures=pictures)
    outlines = _outlines(root, data, frames, collector)
    for i, frame in enumerate(frames):
        with collector.faults.collect():
            stated = frame.get("rgb_path")
            if not isinstance(stated, str) or not stated:
                raise NerfError(f"{path}: frame {i} has no rgb_path.")
            where = f"{path}, frame {stated}"
            camera = Pinhole.of(
                _matrix(frame.get("intrinsics"), f"{where}: intrinsics"), where, size
            )
            collector.add(
                *(stated, pictures.find(stated), frame.get("camtoworld"), camera, where),
                key="camtoworld",
                alpha=outlines[i],
            )
    if data.get("has_mono_prior"):
        collector.notes.append("monocular depth and normals are not used")
    if data.get("has_sensor_depth"):
        collector.notes.append("sensor depth is not used")
    box = _box(data.get("scene_box"), path)
    source = f"scene_box of {path.name}" if box else ""
    moved = data.get("worldtogt")
    is_moved = moved is not None and moved != np.eye(4).tolist()
    beyond = (("worldtogt", "the way to the frame of the true shape"),) if is_moved else ()
    return collector.finish("sdfstudio", box=box, box_source=source, beyond=beyond)


def _outlines(
    root: Path, data: dict[str, Any], frames: list[dict[str, Any]], collector: Collector
) -> list[Path | None]:
    """Find the outlines of the object; none unless all frames have one."""
    nothing: list[Path | None] = [None] * len(frames)
    if not data.get("has_foreground_mask"):
        return nothing
    stated = [frame.get("foreground_mask") for frame in frames]
    masks = Pictures(root, what="masks")
    found = [masks.find(name) if isinstance(name, str) else None for name in stated]
    if None in found:
        collector.notes.append(
            f"{found.count(None)} of {len(frames)} foreground masks do not exist; none is used"
        )
        return nothing
    collector.notes.append("what is black in the foreground masks is transparent")
    return found


def _matrix(value: Any, where: str) -> np.ndarray:
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((3, 3), (4, 4)) or not np.isfinite(matrix).all():
        raise NerfError(f"{where} must be a 4x4 table of finite numbers.")
    return matrix


def _box(value: Any, path: Path) -> Box | None:
    if not isinstance(value, dict) or value.get("aabb") is None:
        return None
    where = f"{path}: scene_box.aabb"
    try:
        low, high = np.array(value["aabb"], dtype=np.float64).reshape(2, 3)
    except (TypeError, ValueError, OverflowError) as error:
        raise NerfError(f"{where} must be two corners of three numbers.") from error
    half = float((high - low).max()) / 2 if (high > low).all() else 0.0
    return check_box(Box(tuple(((low + high) / 2).tolist()), half), where)

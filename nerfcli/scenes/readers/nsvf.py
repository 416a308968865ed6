"""Read the layout of NSVF: rgb/, pose/, intrinsics.txt, bbox.txt.

Poses are camera to world with OpenCV's axes. The leading digit of a name is its split. The
intrinsics are a matrix, or, as in SRN, a first line "f cx cy ..." and a last one "height width".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerfcli.cameras.boxes import Box
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.arrays import read_matrix, read_rows
from nerfcli.scenes.readers.collector import Collector, Pinhole, list_images, possible_size
from nerfcli.scenes.readers.listings import list_files
from nerfcli.scenes.source import Source, abbreviate, check_box

FILE = "intrinsics.txt"
IMAGE_FOLDERS = ("rgb", "images", "image")
SPLITS = {"0_": "train", "1_": "val", "2_": "test"}


def find_nsvf(root: Path) -> Path | None:
    """Find the file of intrinsics in a folder of this layout."""
    whole = (root / FILE).is_file() and (root / "pose").is_dir()
    return root / FILE if whole else None


def read_nsvf(root: Path, path: Path, wanted: SceneConfig) -> Source:
    """Read poses, intrinsics and the images whose names match.

    Raises:
        NerfError: a fault in the files; names it.
    """
    camera = _intrinsics(path)
    files = list_images(root, IMAGE_FOLDERS, wanted)
    images = {image.stem: image for image in files}
    poses = list_files(root / "pose", "*.txt")
    if not poses:
        raise NerfError(f"{root / 'pose'} holds no poses; it needs a .txt file for each image.")
    collector = Collector(root, root / "pose", wanted, files[0].parent.name)
    known = all(pose.stem[:2] in SPLITS for pose in poses)
    for pose in poses:
        with collector.faults.collect():
            split = SPLITS[pose.stem[:2]] if known else None
            image = images.pop(pose.stem, None)
            collector.add(pose.stem, image, read_matrix(pose), camera, str(pose), split=split)
    if images:
        collector.notes.append(f"left out are images without a pose: {abbreviate(sorted(images))}")
    if (root / "test_traj.txt").is_file():
        collector.notes.append("test_traj.txt, a camera path, is not used")
    box = _box(root / "bbox.txt")
    return collector.finish("nsvf", box=box, box_source="bbox.txt" if box else "")


def _intrinsics(path: Path) -> Pinhole:
    rows = read_rows(path)
    lengths = [len(row) for row in rows]
    if lengths in ([16], [9], [4] * 4, [4] * 3, [3] * 3):
        return Pinhole.of(read_matrix(path), str(path))
    if not rows or lengths[0] not in (3, 4):
        raise NerfError(
            f"{path} must hold a 4x4 matrix, or a first line 'f cx cy 0', "
            f"got lines of {lengths[:6]} numbers."
        )
    f, cx, cy = rows[0][:3]
    size = None
    if len(rows) > 1 and len(rows[-1]) == 2:
        height, width = rows[-1]
        size = possible_size(width, height, str(path))
    return Pinhole((f, f), (cx, cy), size)


def _box(path: Path) -> Box | None:
    """Read x, y, z of the least and of the greatest corner; a voxel size may follow."""
    if not path.is_file():
        return None
    numbers = [number for row in read_rows(path) for number in row]
    if len(numbers) not in (6, 7):
        raise NerfError(f"{path} must hold 6 numbers and a voxel size, got {len(numbers)}.")
    low, high = np.array(numbers[:3]), np.array(numbers[3:6])
    half = float((high - low).max()) / 2 if (high > low).all() else 0.0
    return check_box(Box(tuple(((low + high) / 2).tolist()), half), str(path))

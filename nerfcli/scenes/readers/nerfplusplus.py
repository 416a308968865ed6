"""Read the layout of NeRF++: {train,validation,test}/{rgb,pose,intrinsics}, 4x4 matrices as text.

Poses are camera to world with OpenCV's axes; the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from pathlib import Path

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.readers.arrays import read_matrix
from nerfcli.scenes.readers.collector import Collector, Pinhole
from nerfcli.scenes.readers.listings import list_files
from nerfcli.scenes.readers.pictures import image_files
from nerfcli.scenes.source import Source

SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
PATHS = ("camera_path",)  # splits that only state cameras


def find_nerfplusplus(root: Path) -> Path | None:
    """Find the training split of a folder of this layout."""
    train = root / "train"
    return train if all((train / name).is_dir() for name in ("pose", "intrinsics")) else None


def read_nerfplusplus(root: Path, train: Path, wanted: SceneConfig) -> Source:
    """Read the views of all splits that have images.

    Raises:
        NerfError: a fault in the files; names it.
    """
    if wanted.images is not None:
        raise NerfError(f"{root}: --images is not for NeRF++, whose splits have their own images.")
    collector = Collector(root, root, wanted, "rgb of each split")
    for folder in (root / name for name in (*SPLITS, *PATHS)):
        if (folder / "pose").is_dir():
            _read_split(folder, SPLITS.get(folder.name), collector)
    return collector.finish("nerf++")


def _read_split(folder: Path, split: str | None, collector: Collector) -> None:
    images = image_files(folder / "rgb") if (folder / "rgb").is_dir() else []
    poses = list_files(folder / "pose", "*.txt")
    if not images or split is None:
        collector.notes.append(
            f"{folder.name} has {quantity(len(poses), 'camera')} and no images; this camera path "
            "is left out"
        )
        return
    cameras = _pair(poses, list_files(folder / "intrinsics", "*.txt"), folder / "intrinsics")
    files = _pair(poses, images, folder / "rgb")
    masks = image_files(folder / "mask") if (folder / "mask").is_dir() else []
    masks_of = _pair(poses, masks, folder / "mask") if masks else {}
    for pose in poses:
        with collector.faults.collect():
            camera = Pinhole.of(read_matrix(cameras[pose]), str(cameras[pose]))
            image, mask = files[pose], masks_of.get(pose)
            collector.add(
                image.name, image, read_matrix(pose), camera, str(pose), split=split, mask=mask
            )


def _pair(poses: list[Path], files: list[Path], folder: Path) -> dict[Path, Path]:
    """Pair poses and files by name, or by order if their numbers agree."""
    by_stem = {file.stem: file for file in files}
    if all(pose.stem in by_stem for pose in poses):
        return {pose: by_stem[pose.stem] for pose in poses}
    if len(files) != len(poses):
        raise NerfError(
            f"{folder} holds {quantity(len(files), 'file')} for {len(poses)} poses; each pose "
            "needs one."
        )
    return dict(zip(poses, files, strict=True))

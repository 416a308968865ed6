"""Read Polycam's raw data: keyframes/ with images, and a JSON for each with its camera.

t_ij is row i, column j of camera to world with OpenGL's axes, in metres, +y up (ARKit). The
corrected cameras belong to the corrected (undistorted) images.
"""

from __future__ import annotations

from pathlib import Path

from nerfcli.core.config import SceneConfig
from nerfcli.scenes.readers.collector import Collector, Pinhole, list_images, stated_size
from nerfcli.scenes.readers.listings import list_files
from nerfcli.scenes.readers.pictures import image_files
from nerfcli.scenes.source import Depth, Source, number, read_object

PAIRS = (("corrected_cameras", "corrected_images"), ("cameras", "images"))
MILLIMETRES = 1e-3


def find_polycam(root: Path) -> Path | None:
    """Find the folder of keyframes; it may be the scene itself."""
    for folder in (root / "keyframes", root):
        if any(list_cameras(folder / cameras) for cameras, _ in PAIRS):
            return folder
    return None


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and bool(list_files(folder, "*"))


def list_cameras(folder: Path) -> list[Path]:
    return list_files(folder, "*.json") if folder.is_dir() else []


def read_polycam(root: Path, folder: Path, wanted: SceneConfig) -> Source:
    """Read the corrected cameras and images, or the raw ones where there are none.

    Raises:
        NerfError: a fault in the files; names file and key.
    """
    cameras, images = next(
        (pair for pair in PAIRS if all(_is_filled(folder / name) for name in pair)),
        next(pair for pair in PAIRS if list_cameras(folder / pair[0])),
    )
    files = {image.stem: image for image in list_images(folder, (images,), wanted)}
    collector = Collector(root, folder / cameras, wanted, images)
    if cameras == PAIRS[1][0]:
        collector.notes.append(
            "there are no corrected cameras: the poses are ARKit's, and the images are distorted"
        )
    for path in list_cameras(folder / cameras):
        with collector.faults.collect():
            data = read_object(path)
            values = {
                key: number(data.get(key), f"{path}: {key}") for key in ("fx", "fy", "cx", "cy")
            }
            pose = [
                [number(data.get(f"t_{i}{j}"), f"{path}: t_{i}{j}") for j in range(4)]
                for i in range(3)
            ]
            size = stated_size(data, ("width", "height"), str(path))
            camera = Pinhole((values["fx"], values["fy"]), (values["cx"], values["cy"]), size)
            depth = folder / "depth" / f"{path.stem}.png"
            collector.add(
                *(path.stem, files.get(path.stem), pose, camera, str(path)),
                opengl=True,
                depth=Depth(depth, MILLIMETRES) if depth.is_file() else None,
            )
    confidence = folder / "confidence"
    n = len(image_files(confidence)) if confidence.is_dir() else 0
    beyond = (("confidence", f"of {n} depth images"),) if n else ()
    return collector.finish("polycam", beyond=beyond)

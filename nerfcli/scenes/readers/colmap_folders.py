"""Find COLMAP models in a scene's folders, and the folders where their images may lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nerfcli.scenes.readers.pictures import OTHER_NAMES, image_folders

# where models lie, and models in pieces in their numbered folders: COLMAP, nerfstudio, 3DGS before
# its undistortion, COLMAP's undistorter
PLACES = ("sparse", "colmap/sparse", "distorted/sparse", "dense/sparse", "dense/0/sparse", ".")
STRUCTURE = re.compile(r"sparse|colmap|distorted|dense", re.IGNORECASE)
LEAST_BYTES = 64  # of an image in images.bin
HEADER = re.compile(rb"#\s*Number of images:\s*(\d{1,9})")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model, and how many registered images it states."""

    path: Path
    n_images: int


def colmap_models(root: Path) -> list[ModelFolder]:
    """List the models of a scene, the one with most images first; all are pieces of one whole."""
    for place in PLACES:
        folder = root / place
        pieces = [*_numbered(folder), folder]
        models = [ModelFolder(path, _count_images(path)) for path in pieces if is_model(path)]
        if models:
            return sorted(models, key=lambda model: -model.n_images)  # keeps the order of equals
    return []


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model's cameras and images."""
    return any(
        all((folder / f"{name}.{kind}").is_file() for name in ("cameras", "images"))
        for kind in ("bin", "txt")
    )


def describe_incomplete(root: Path) -> str:
    """Name a folder with only a part of a model, for a message; "" if there is none."""
    for place in (root / place for place in PLACES):
        for folder in (*_numbered(place), place):
            names = ("cameras.bin", "cameras.txt", "images.bin", "images.txt")
            found = [name for name in names if (folder / name).is_file()]
            if found and not is_model(folder):
                return (
                    f"{folder} has no complete COLMAP model: cameras and images are needed, both "
                    f"as .bin or both as .txt, found {', '.join(found)}."
                )
    return ""


def scene_folder(root: Path, model: Path) -> Path:
    """Return the scene that a folder of models belongs to: sparse/1 is no scene of its own."""
    place = root
    if model == root or (model.parent == root and model.name.isdecimal()):
        while _is_structure(place.resolve()):
            place = _parent(place)
    return place


def folders_of_images(root: Path, model: Path) -> list[Path]:
    """List where a model's images may lie, in order: near the model, in the scene, in its parents.

    distorted/ holds a model of the photos in input/, not of the undistorted ones in images/.
    """
    inner: list[Path] = []
    place = model.parent
    while place not in (root, place.parent) and _is_structure(place):
        inner += image_folders(place)[:-1]
        place = place.parent
    places = inner if place == root else []
    if "distorted" in model.parts:
        places += [root / name for name in OTHER_NAMES if (root / name).is_dir()]
    places += image_folders(root)
    scene, place = scene_folder(root, model), root
    while place != scene:
        place = _parent(place)
        places += image_folders(place)
    if scene == root == model:
        places += image_folders(_parent(root))[:-1]
    return list(dict.fromkeys(places))


def _is_structure(folder: Path) -> bool:
    name = folder.parent.name if folder.name.isdecimal() else folder.name
    return STRUCTURE.fullmatch(name) is not None


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if re.fullmatch(r"\d{1,9}", path.name)]
    return [folder / name for name in sorted(names, key=int)]


def _count_images(folder: Path) -> int:
    """Read how many images a model states; no more than its file has room for."""
    try:
        path = folder / "images.bin"
        if path.is_file():
            with path.open("rb") as file:
                stated = int.from_bytes(file.read(8), "little")
            return min(stated, path.stat().st_size // LEAST_BYTES)
        data = (folder / "images.txt").read_bytes()
    except OSError:
        return 0
    header = HEADER.search(data[:4096])
    if header is not None:
        return min(int(header[1]), len(data))
    lines = [line for line in data.splitlines() if not line.startswith(b"#")]
    return len(lines) // 2


def _parent(folder: Path) -> Path:
    """Return the folder above, also of a path such as `.` or `..`."""
    return folder.parent if folder.name not in ("", "..") else folder.resolve().parent

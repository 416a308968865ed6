"""Read folders of posed images in the common formats into one struct."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.build import scene_from_source
from nerfcli.scenes.image_cache import ImageCache, load_views, views_bytes
from nerfcli.scenes.readers import llff
from nerfcli.scenes.readers.blender import SPLITS, blender_files, read_blender
from nerfcli.scenes.readers.colmap import read_colmap_models
from nerfcli.scenes.readers.colmap_folders import PLACES, colmap_models
from nerfcli.scenes.readers.transforms import read_transforms
from nerfcli.scenes.scene import Scene, Similarity
from nerfcli.scenes.source import Source

__all__ = [
    "ImageCache",
    "Scene",
    "Similarity",
    "Source",
    "load_scene",
    "load_views",
    "read_source",
    "views_bytes",
]


def load_scene(path: str | Path, wanted: SceneConfig | None = None) -> Scene:
    """Read a scene's cameras and image headers; `load_views` reads the pixels.

    Args:
        path: a folder in a known format, or a transforms*.json file.
        wanted: what the user says about the scene; the rest is found out.

    Raises:
        NerfError: no such folder, no known format, or whatever is wrong in the files.
    """
    wanted = wanted or SceneConfig()
    return scene_from_source(read_source(path, wanted), wanted)


def read_source(path: str | Path, wanted: SceneConfig | None = None) -> Source:
    """Read what the files of a scene state, in their own frame and units.

    In a folder, the first of these counts: transforms_train.json and its kin (Blender),
    transforms.json (instant-ngp, nerfstudio), a COLMAP model, poses_bounds.npy (LLFF).

    Args:
        wanted: says where the images are, and whether bad frames are left out.

    Raises:
        NerfError: no such folder, no known format, or whatever is wrong in the files.
    """
    path = Path(path)
    wanted = wanted or SceneConfig()
    if wanted.images is not None and not Path(wanted.images).is_dir():
        raise NerfError(f"the folder of images {wanted.images} (scene.images) does not exist.")
    if path.is_file():
        if path.name == llff.NAME:
            return llff.read_llff(path.parent, wanted)
        if path.suffix.lower() != ".json":
            raise NerfError(
                f"{path} is no scene; give a folder, a transforms*.json or a {llff.NAME}."
            )
        is_blender = path.stem in [f"transforms_{split}" for split in SPLITS]
        if is_blender:
            return read_blender(path.parent, path, wanted)
        return read_transforms(path, wanted)
    if not path.is_dir():
        raise NerfError(f"{path} does not exist.")
    found = _formats(path, wanted)
    if not found:
        raise NerfError(
            f"{path} has no known format. Looked for: transforms_train.json, transforms_val.json, "
            "transforms_test.json (Blender); transforms.json (instant-ngp, nerfstudio); "
            f"cameras.bin or cameras.txt in {', '.join(PLACES)}, or numbered, "
            f"as sparse/0 (COLMAP); {llff.NAME} (LLFF)."
        )
    (name, read), *others = found.items()
    source = read()
    if others:
        also = " and ".join(other for other, _ in others)
        note = f"the folder also holds {also}, which is not used: {name} is read"
        source = replace(source, notes=(note, *source.notes))
    return source


def _formats(path: Path, wanted: SceneConfig) -> dict[str, Callable[[], Source]]:
    """Find the formats that a folder holds, by the name of their file; the first one is read."""
    found: dict[str, Callable[[], Source]] = {}
    splits = blender_files(path)
    if splits:
        found[next(iter(splits.values())).name] = lambda: read_blender(path, None, wanted)
    if (path / "transforms.json").is_file():
        found["transforms.json"] = lambda: read_transforms(path / "transforms.json", wanted)
    models = colmap_models(path)
    if models:
        where = models[0].path.relative_to(path)
        found[f"a COLMAP model in {where}"] = lambda: read_colmap_models(path, models, wanted)
    if (path / llff.NAME).is_file():
        found[llff.NAME] = lambda: llff.read_llff(path, wanted)
    return found

"""Scenes: folders of posed images in the common formats, read into one struct."""

from __future__ import annotations

from pathlib import Path

from nerfcli.errors import NerfError
from nerfcli.scenes.blender import SPLITS, blender_files, read_blender
from nerfcli.scenes.build import Options, scene_from_source
from nerfcli.scenes.scene import Scene, Similarity
from nerfcli.scenes.source import Source
from nerfcli.scenes.transforms import read_transforms
from nerfcli.scenes.views import load_views, views_bytes

__all__ = ["Scene", "Similarity", "load_scene", "load_views", "views_bytes"]


def load_scene(
    path: str | Path,
    *,
    downscale: int = 1,
    holdout: int = 8,
    box: float = 0.0,
    cascades: int = 0,
    near: float = 0.0,
    far: float = 0.0,
) -> Scene:
    """Read a scene's cameras and image headers; `load_views` reads the pixels.

    Args:
        path: a folder in a known format, or a transforms*.json file.
        downscale: read images at 1/downscale of their size.
        holdout: every n-th image is a test view where the source has no split; 0: none.
        box: half size of the detail cube in source units; 0: from the scene.
        cascades: doublings of the detail cube, itself included; 0: from the scene.
        near, far: first and last distance along a ray, in scene units; 0: from the scene.

    Raises:
        NerfError: no such folder, no known format, or whatever is wrong in the files.
    """
    source = _read(Path(path))
    return scene_from_source(source, Options(downscale, holdout, box, cascades, near, far))


def _read(path: Path) -> Source:
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise NerfError(f"{path} is no scene; give a folder or a transforms*.json file.")
        is_blender = path.stem in [f"transforms_{split}" for split in SPLITS]
        return read_blender(path.parent, path) if is_blender else read_transforms(path)
    if not path.is_dir():
        raise NerfError(f"{path} does not exist.")
    if blender_files(path):
        return read_blender(path)
    if (path / "transforms.json").is_file():
        return read_transforms(path / "transforms.json")
    raise NerfError(
        f"{path} has no known format. Looked for: transforms_train.json, transforms_val.json, "
        "transforms_test.json (Blender); transforms.json (instant-ngp, nerfstudio)."
    )

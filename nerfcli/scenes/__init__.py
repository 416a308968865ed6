"""Read folders of posed images in the common formats into one struct."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.build import scene_from_source
from nerfcli.scenes.formats import Format, describe_formats, format_of, formats_in
from nerfcli.scenes.image_cache import ImageCache, load_views, views_bytes
from nerfcli.scenes.readers import llff
from nerfcli.scenes.readers.foreign import describe_foreign
from nerfcli.scenes.scene import Scene, Similarity
from nerfcli.scenes.source import Source, abbreviate, check_images

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


MOST_FOLDERS = 50  # that are looked into for a scene


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

    Args:
        path: a folder, of which the first format of `formats.FORMATS` counts, or one of its files.
        wanted: says where the images are, and whether bad frames are left out.

    Raises:
        NerfError: no such folder, no known format, or whatever is wrong in the files.
    """
    source = _read_source(Path(path), wanted or SceneConfig())
    check_images(source.frames)
    return source


def _read_source(path: Path, wanted: SceneConfig) -> Source:
    if wanted.images is not None and not Path(wanted.images).is_dir():
        raise NerfError(f"the folder of images {wanted.images} (scene.images) does not exist.")
    if path.is_file():
        form = format_of(path)
        if form is None:
            known = describe_foreign(path)
            raise NerfError(
                f"{path} is no scene; give a folder, a transforms*.json, a {llff.NAME}, or another "
                f"format's file of cameras.{' ' + known if known else ''}"
            )
        return form.read(path.parent, path, wanted)
    if not path.is_dir():
        raise NerfError(f"{path} does not exist.")
    found = formats_in(path)
    if not found:
        known = _scene_within(path) or describe_foreign(path)
        known = f"{known} " if known else ""
        raise NerfError(f"{path} has no known format. {known}Looked for: {describe_formats()}.")
    (form, shown), *others = found
    source = form.read(path, shown, wanted)
    if others:
        also = " and ".join(_shown_as(path, *other) for other in others)
        note = f"the folder also holds {also}, which is not used: "
        note += f"{_shown_as(path, form, shown)} is read"
        source = replace(source, notes=(note, *source.notes))
    return source


def _scene_within(path: Path) -> str:
    """Name the first folders within a folder that are scenes; "" if there is none."""
    inner = sorted(child for child in path.iterdir() if child.is_dir())[:MOST_FOLDERS]
    scenes = [str(child) for child in inner if formats_in(child)]
    return f"Scenes within it: {abbreviate(scenes)}." if scenes else ""


def _shown_as(root: Path, form: Format, shown: Path) -> str:
    """Name what shows a format in a folder."""
    place = shown.relative_to(root)
    return f"a COLMAP model in {place}" if form.name == "COLMAP" else str(place)

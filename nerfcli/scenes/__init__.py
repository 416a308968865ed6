"""Read folders of posed images in the common formats into one struct."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.build import scene_from_source
from nerfcli.scenes.formats import Format, describe_formats, format_of, formats_in
from nerfcli.scenes.image_cache import ImageCache, load_views, views_bytes
from nerfcli.scenes.readers import llff
from nerfcli.scenes.readers.colmap_folders import describe_incomplete
from nerfcli.scenes.readers.foreign import describe_foreign
from nerfcli.scenes.scene import Scene, Similarity
from nerfcli.scenes.source import NoFrames, Source, abbreviate, check_images

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
    try:
        source = _read_source(Path(path), wanted or SceneConfig())
    except OSError as error:
        what = error.filename or path
        raise NerfError(f"{what} cannot be read: {error.strerror or error}.") from error
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
        known = describe_incomplete(path) or _scene_within(path) or describe_foreign(path)
        known = f"{known} " if known else ""
        raise NerfError(f"{path} has no known format. {known}Looked for: {describe_formats()}.")
    return _read_first(path, found, wanted)


def _read_first(path: Path, found: list[tuple[Format, Path]], wanted: SceneConfig) -> Source:
    """Read the first format that holds any frames; a fault within its frames is an error."""
    failures: list[tuple[str, NerfError]] = []
    for i, (form, shown) in enumerate(found):
        try:
            source = form.read(path, shown, wanted)
        except NerfError as error:
            failures.append((_shown_as(path, form, shown), error))
            if isinstance(error, NoFrames):
                continue
            break
        notes = [f"{what} is not used: {error}" for what, error in failures]
        read = f"{_shown_as(path, form, shown)} is read"
        if notes:
            notes.append(read)
        if others := found[i + 1 :]:
            also = " and ".join(_shown_as(path, *other) for other in others)
            notes.append(f"the folder also holds {also}, which is not used: {read}")
        return replace(source, notes=(*notes, *source.notes))
    (_, first), *others = failures
    if not others:
        raise first
    also = " ".join(f"Nor can {what} be read: {error}" for what, error in others)
    raise NerfError(f"{first} {also}") from first


def _scene_within(path: Path) -> str:
    """Name the first folders within a folder that are scenes; "" if there is none."""
    inner = sorted(child for child in path.iterdir() if os.path.isdir(child))[:MOST_FOLDERS]
    scenes = []
    for child in inner:
        with suppress(OSError):  # one that may not be read, such as lost+found
            scenes += [str(child)] if formats_in(child) else []
    return f"Scenes within it: {abbreviate(scenes)}." if scenes else ""


def _shown_as(root: Path, form: Format, shown: Path) -> str:
    """Name what shows a format in a folder."""
    place = shown.relative_to(root)
    return f"a COLMAP model in {place}" if form.name == "COLMAP" else str(place)

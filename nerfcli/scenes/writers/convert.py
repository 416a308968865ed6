"""Write a scene in another format: a self-contained folder, images included."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.files import write_json
from nerfcli.scenes.build import box_in_source, scene_from_source
from nerfcli.scenes.extent import depths_in_view
from nerfcli.scenes.images import has_rgb_pixels, read_mask, read_with_alpha, write_png
from nerfcli.scenes.photo_formats import HEIF, RAW
from nerfcli.scenes.source import Frame, Source, find_duplicates, natural_key
from nerfcli.scenes.writers.blender import write_blender
from nerfcli.scenes.writers.colmap import write_colmap
from nerfcli.scenes.writers.llff import write_llff
from nerfcli.scenes.writers.splits import hold_out
from nerfcli.scenes.writers.transforms import dataparser_transforms, write_transforms

BOUND_SHARES = (0.001, 0.999)  # quantiles of the points' depths that LLFF takes for near and far
DATAPARSER = "dataparser_transforms.json"


@dataclass(frozen=True)
class WriteOptions:
    """Options of `write_scene`.

    Attributes:
        target: "blender", "llff", "colmap" or "transforms".
        link: symbolic links to the images instead of copies, where their pixels stay as they are.
        text: a COLMAP model as text.
        dataparser: also write nerfstudio's dataparser_transforms.json.
    """

    target: str
    link: bool = False
    text: bool = False
    dataparser: bool = False


@dataclass(frozen=True)
class WriteResult:
    """The new name of each image, and notes for the user."""

    names: dict[str, str]
    notes: tuple[str, ...]


def write_scene(
    source: Source,
    folder: Path,
    options: WriteOptions,
    done: Callable[[int], None] = lambda n: None,
) -> WriteResult:
    """Write `source` into an empty folder. `list_unsupported` says what is lost.

    Args:
        done: called with the number of images written so far.

    Raises:
        NerfError: an image cannot be read, or the folder not written.
    """
    target = options.target
    if target == "blender":
        source = replace(source, frames=tuple(hold_out(source.frames)))
    names = image_names(source.frames, target)
    frames, notes = list(source.frames), []
    for i, frame in enumerate(frames):
        try:
            _write_image(frame, folder / names[i], options)
        except OSError as error:
            raise NerfError(f"cannot write {folder / names[i]}: {error.strerror}.") from error
        done(i + 1)
    if target == "blender":
        write_blender(frames, names, folder, _box_to_state(source))
    elif target == "llff":
        bounds, note = _bounds(source)
        notes += note
        write_llff(frames, bounds, folder)
    elif target == "colmap":
        below = [name.removeprefix("images/") for name in names]
        write_colmap(frames, source.points, below, folder, text=options.text)
        _write_masks(source, [f"masks/{name}.png" for name in below], folder)
    else:
        below = [name.removeprefix("images/") for name in names]
        masks = _write_masks(source, [f"masks/{name}.png" for name in below], folder, all_=True)
        write_transforms(source, names, masks, _copy_depths(source, below, folder), folder)
    if options.dataparser:
        scene = scene_from_source(source, SceneConfig(alpha="transparent"))
        write_json(folder / DATAPARSER, dataparser_transforms(source, scene.scene_from_source))
    return WriteResult({f.name: n for f, n in zip(frames, names, strict=True)}, tuple(notes))


def image_names(frames: Sequence[Frame], target: str) -> list[str]:
    """Name the images in the new folder, as before where the format allows.

    Names are numbered if they would collide, or if their order would differ from that of the
    frames and matters: LLFF's rows follow it (by characters), and without a split every n-th view
    is held out by it (in natural order).
    """
    names = _without_common_folder([frame.name for frame in frames])
    folders = ["images"] * len(frames)
    if target == "blender":
        folders = [frame.split or "train" for frame in frames]
        names = [n.removeprefix(f"{s}/") for n, s in zip(names, folders, strict=True)]
    if target in ("blender", "llff"):
        names = [name.replace("/", "_") for name in names]
    names = [
        str(PurePosixPath(name).with_suffix(_file_kind(frame, target)[0]))
        for frame, name in zip(frames, names, strict=True)
    ]
    key = str if target == "llff" else natural_key
    ordered = target == "llff" or any(frame.split is None for frame in frames)
    for folder in set(folders):
        mine = [n for n, f in zip(names, folders, strict=True) if f == folder]
        if find_duplicates(mine) or (ordered and mine != sorted(mine, key=key)):
            flat = (PurePosixPath(name.replace("/", "_")) for name in names)
            names = [f"{i:05d}_{name}" for i, name in enumerate(flat)]
            break
    return [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]


def _without_common_folder(names: Sequence[str]) -> list[str]:
    parts = [[p for p in PurePosixPath(n).parts if p not in ("..", "/")] for n in names]
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return ["/".join(p) for p in parts]


def _file_kind(frame: Frame, target: str) -> tuple[str, bool]:
    """Return the suffix of an image in the new folder, and whether its file stays as it is.

    It becomes a PNG if a separate alpha image is merged in, or if the format's other readers could
    not open it: those of Blender scenes and LLFF go by the suffix and want three or four channels.
    """
    assert frame.image is not None
    suffix = frame.image.suffix
    if suffix.lower() in RAW + HEIF or (frame.alpha is not None and target != "transforms"):
        return ".png", False
    if target in ("colmap", "transforms"):
        return suffix, True
    known = (".png",) if target == "blender" else (".png", ".jpg", ".JPG")
    other = {".PNG": ".png", ".jpeg": ".jpg", ".JPEG": ".jpg"}.get(suffix, suffix)
    if other not in known or not has_rgb_pixels(frame.image):
        return ".png", False
    return other, True


def _write_image(frame: Frame, place: Path, options: WriteOptions) -> None:
    """Copy or link an image; write it anew where its file cannot stay as it is."""
    assert frame.image is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    if not _file_kind(frame, options.target)[1]:
        write_png(place, read_with_alpha(frame.image, frame.alpha, 1, frame.size))
        return
    _copy(frame.image, place, options.link)
    if frame.alpha is not None:
        _copy(frame.alpha, place.with_name(f"{place.stem}.alpha{place.suffix}"), options.link)


def _copy(file: Path, place: Path, link: bool) -> None:
    if link:
        place.symlink_to(Path(os.path.abspath(file)))
    else:
        shutil.copyfile(file, place)


def _write_masks(
    source: Source, names: Sequence[str], folder: Path, *, all_: bool = False
) -> list[str | None]:
    """Write masks as PNG in which black is ignored.

    all_: if any frame has a mask, every frame gets one.
    """
    any_ = any(frame.mask is not None for frame in source.frames)
    placed: list[str | None] = []
    for frame, name in zip(source.frames, names, strict=True):
        if frame.mask is None and not (any_ and all_):
            placed.append(None)
            continue
        width, height = frame.size
        usable = np.ones((height, width), bool)
        if frame.mask is not None:
            usable = read_mask(frame.mask, frame.size, source.masked_where).numpy()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / name, usable.astype(np.uint8) * 255)
        placed.append(name)
    return placed


def _copy_depths(source: Source, names: Sequence[str], folder: Path) -> list[str | None]:
    """Copy the depth images; where some frames have one, the others get one that knows nothing."""
    if all(frame.depth is None for frame in source.frames):
        return [None] * len(names)
    placed: list[str | None] = []
    for frame, name in zip(source.frames, names, strict=True):
        suffix = ".png" if frame.depth is None else frame.depth.path.suffix
        place = f"depths/{PurePosixPath(name).with_suffix(suffix)}"
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if frame.depth is None:
            write_png(folder / place, np.zeros(frame.size[::-1], np.uint16))
        else:
            _copy(frame.depth.path, folder / place, link=False)
        placed.append(place)
    return placed


def _box_to_state(source: Source) -> Box | None:
    """Return the box, in source units, unless readers of Blender scenes guess it."""
    if source.keep_frame:
        return None
    if source.box is not None:
        return source.box
    return box_in_source(scene_from_source(source, SceneConfig(alpha="transparent")))


def _bounds(source: Source) -> tuple[list[tuple[float, float]], list[str]]:
    """Find near and far depth of each view: stated, else from points in view, else the box."""
    stated = [frame.bounds for frame in source.frames if frame.bounds is not None]
    if len(stated) == len(source.frames):
        return stated, []
    scene = scene_from_source(source, SceneConfig(alpha="transparent"))
    scale = scene.scene_from_source.scale
    whole = (scene.near / scale, scene.far / scale)
    if source.points is None:
        return [whole] * len(source.frames), ["near and far are those of the scene's box"]
    points = scene.scene_from_source.apply(torch.from_numpy(source.points.xyz))
    found = []
    for i in range(len(source.frames)):
        depths = depths_in_view(points, scene.cameras, i).numpy() / scale
        near, far = np.quantile(depths, BOUND_SHARES).tolist() if len(depths) else whole
        found.append((near, far) if near < far else whole)
    return found, ["near and far are from the points that each view sees"]

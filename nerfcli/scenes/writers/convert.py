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
from nerfcli.scenes.source import Depth, Frame, Source, find_duplicates, natural_key
from nerfcli.scenes.writers.blender import write_blender
from nerfcli.scenes.writers.colmap import write_colmap
from nerfcli.scenes.writers.llff import write_llff
from nerfcli.scenes.writers.splits import hold_out
from nerfcli.scenes.writers.transforms import (
    dataparser_transforms,
    is_ngp_depth,
    mixture_note,
    write_transforms,
)
from nerfcli.scenes.writers.undistort import (
    describe_undistorted,
    plan_undistorted,
    undistort_mask,
    write_undistorted_depth,
    write_undistorted_image,
)
from nerfcli.scenes.writers.unsupported import TABLES

BOUND_SHARES = (0.001, 0.999)  # quantiles of the points' depths that LLFF takes for near and far
DATAPARSER = "dataparser_transforms.json"


@dataclass(frozen=True)
class WriteOptions:
    """Options of `write_scene`.

    Attributes:
        target: one of unsupported.TARGETS.
        link: symbolic links to the images instead of copies, where their pixels stay as they are.
        text: a COLMAP model as text.
        dataparser: also write nerfstudio's dataparser_transforms.json.
        undistort: resample the images of cameras that are no plain pinholes.
    """

    target: str
    link: bool = False
    text: bool = False
    dataparser: bool = False
    undistort: bool = False


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
    old = source
    source = plan_undistorted(old, target) if options.undistort else old
    names = image_names(source.frames, target)
    notes = [describe_undistorted(old, source)] if options.undistort else []
    frames = []
    for before, frame, name in zip(old.frames, source.frames, names, strict=True):
        try:
            frames.append(_write_image(before, frame, folder / name, options))
        except OSError as error:
            raise NerfError(f"cannot write {folder / name}: {error.strerror}.") from error
        done(len(frames))
    source = replace(source, frames=tuple(frames))
    below = [name.removeprefix("images/") for name in names]
    if target == "blender":
        write_blender(frames, names, folder, _box_to_state(source))
    elif target == "llff":
        bounds, note = _bounds(source)
        notes += note
        write_llff(frames, bounds, folder)
    elif target == "colmap":
        write_colmap(frames, source.points, below, folder, text=options.text)
        _write_masks(old, frames, [f"masks/{name}.png" for name in below], folder)
    elif target == "instant-ngp":
        beside = [PurePosixPath(name) for name in names]
        beside = [str(p.with_name(f"dynamic_mask_{p.stem}.png")) for p in beside]
        _write_masks(old, frames, beside, folder, usable=0)
        depths = _write_depths(old, frames, below, folder, is_ngp_depth)
        write_transforms(
            _without_nerfstudios(source), names, [None] * len(names), depths, folder, target
        )
    else:
        masks = _write_masks(old, frames, [f"masks/{n}.png" for n in below], folder, all_=True)
        depths = _write_depths(old, frames, below, folder)
        write_transforms(source, names, masks, depths, folder)
        notes += mixture_note(frames)
    if options.dataparser:
        scene = scene_from_source(source, SceneConfig(alpha="transparent"))
        write_json(folder / DATAPARSER, dataparser_transforms(source, scene.scene_from_source))
    names_of = {frame.name: name for frame, name in zip(frames, names, strict=True)}
    return WriteResult(names_of, tuple(note for note in notes if note))


def _without_nerfstudios(source: Source) -> Source:
    """Leave out what only nerfstudio's keys hold."""
    frames = tuple(replace(frame, split=None) for frame in source.frames)
    source = replace(source, frames=frames, points=None, crop_radius=0.0)
    return replace(source, applied_transform=None, applied_scale=1.0)


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
    if suffix.lower() in RAW + HEIF or (frame.alpha is not None and target not in TABLES):
        return ".png", False
    if target not in ("blender", "llff"):
        return suffix, True
    known = (".png",) if target == "blender" else (".png", ".jpg", ".JPG")
    other = {".PNG": ".png", ".jpeg": ".jpg", ".JPEG": ".jpg"}.get(suffix, suffix)
    is_planned = not frame.image.is_file()  # of pixels that are yet to be resampled
    is_kept = other in known and (is_planned or has_rgb_pixels(frame.image))
    return (other, True) if is_kept else (".png", False)


def _write_image(old: Frame, frame: Frame, place: Path, options: WriteOptions) -> Frame:
    """Copy or link an image; write it anew where its file cannot stay as it is.

    Returns:
        The frame, with its new image if it had none yet.
    """
    assert old.image is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    if frame is not old:
        write_undistorted_image(old, frame, place)
        return replace(frame, image=place)
    if not _file_kind(frame, options.target)[1]:
        write_png(place, read_with_alpha(old.image, frame.alpha, 1, frame.size))
        return frame
    _copy(old.image, place, options.link)
    if frame.alpha is not None:
        _copy(frame.alpha, place.with_name(f"{place.stem}.alpha{place.suffix}"), options.link)
    return frame


def _copy(file: Path, place: Path, link: bool) -> None:
    if link:
        place.symlink_to(Path(os.path.abspath(file)))
    else:
        shutil.copyfile(file, place)


def _write_masks(
    old: Source,
    frames: Sequence[Frame],
    names: Sequence[str],
    folder: Path,
    *,
    all_: bool = False,
    usable: int = 255,
) -> list[str | None]:
    """Write masks as PNG.

    Args:
        frames: as they are written. all_: if any frame has a mask, every frame gets one.
        usable: value of the pixels that may be used, 255 or 0; the others have the other one.
    """
    any_ = any(frame.mask is not None for frame in frames)
    placed: list[str | None] = []
    for before, frame, name in zip(old.frames, frames, names, strict=True):
        if frame.mask is None and not (any_ and all_):
            placed.append(None)
            continue
        width, height = frame.size
        mask = np.ones((height, width), bool)
        if frame.mask is not None:
            mask = read_mask(frame.mask, before.size, old.masked_where).numpy()
            mask = mask if frame is before else undistort_mask(mask, before, frame)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / name, np.where(mask, usable, 255 - usable).astype(np.uint8))
        placed.append(name)
    return placed


def _write_depths(
    old: Source,
    frames: Sequence[Frame],
    names: Sequence[str],
    folder: Path,
    is_held: Callable[[Depth], bool] | None = None,
) -> list[str | None]:
    """Copy or resample the depth images.

    is_held: which of them the format holds; None: all, and where some frames have one, the others
        get one that knows nothing, since nerfstudio wants all or none.
    """
    placed: list[str | None] = []
    any_ = any(frame.depth is not None for frame in frames)
    for before, frame, name in zip(old.frames, frames, names, strict=True):
        is_there = frame.depth is not None and (is_held is None or is_held(frame.depth))
        if not is_there and (is_held is not None or not any_):
            placed.append(None)
            continue
        suffix = ".png" if frame.depth is None else frame.depth.path.suffix
        place = f"depths/{PurePosixPath(name).with_suffix(suffix)}"
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if frame.depth is None:
            write_png(folder / place, np.zeros(frame.size[::-1], np.uint16))
        elif frame is before:
            _copy(frame.depth.path, folder / place, link=False)
        else:
            write_undistorted_depth(before, frame, folder / place)
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

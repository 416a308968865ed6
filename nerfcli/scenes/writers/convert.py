"""Write a scene in another format: a self-contained folder, images included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.lens_fits import Fit
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.files import write_json
from nerfcli.scenes.blind import describe_blind_frames
from nerfcli.scenes.build import box_in_source, scene_from_source
from nerfcli.scenes.extent import depths_in_view
from nerfcli.scenes.images import read_mask, write_png
from nerfcli.scenes.source import Frame, Source
from nerfcli.scenes.writers.blender import write_blender
from nerfcli.scenes.writers.colmap import write_colmap
from nerfcli.scenes.writers.depths import write_depths
from nerfcli.scenes.writers.lenses import state_lenses
from nerfcli.scenes.writers.llff import write_llff
from nerfcli.scenes.writers.pictures import TABLES, image_names, write_image
from nerfcli.scenes.writers.splits import hold_out
from nerfcli.scenes.writers.transforms import (
    dataparser_transforms,
    mixture_note,
    write_transforms,
)
from nerfcli.scenes.writers.undistort import (
    describe_undistorted,
    plan_undistorted,
    undistort_mask,
)
from nerfcli.scenes.writers.unsupported import Unsupported, describe_box, list_unsupported

BOUND_SHARES = (0.001, 0.999)  # quantiles of the points' depths that LLFF takes for near and far
DATAPARSER = "dataparser_transforms.json"
PLAIN = SceneConfig(alpha="transparent", holdout=0)  # for the box, which depends on neither


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
class Plan:
    """What a conversion writes.

    Attributes:
        old: the source, every frame with a split where the target needs one.
        new: with the cameras that remain after the undistortion. Frames whose images stay as they
            are are the same objects.
        stated: the frames of `new` with the lenses that are written.
        lost: all that the target cannot hold.
    """

    old: Source
    new: Source
    stated: tuple[Frame, ...]
    lost: tuple[Unsupported, ...]


@dataclass(frozen=True)
class WriteResult:
    """The new name of each image, and notes for the user."""

    names: dict[str, str]
    notes: tuple[str, ...]


def plan_scene(
    source: Source, options: WriteOptions, done: Callable[[int, int], None] = lambda n, total: None
) -> Plan:
    """Choose the cameras and lenses that are written, and list what is lost.

    This takes a while where each image has a camera of its own.

    Args:
        done: called with the number of cameras so far, and of all.

    Raises:
        NerfError: a lens of which no image can be made, or that the target shows nothing of.
    """
    target, old = options.target, source
    if target == "blender":
        old = replace(source, frames=tuple(hold_out(source.frames)))
    new = plan_undistorted(old, target, done) if options.undistort else old
    stated, fits = state_lenses(new.frames, target, done)
    for frame, fit in zip(new.frames, fits, strict=True):
        if fit is not None and fit.is_useless:
            raise NerfError(_refuse(frame, fit, target, new.frames))
    splits = [frame.split for frame in source.frames]  # as the source states them
    planned = [replace(f, split=s) for f, s in zip(new.frames, splits, strict=True)]
    shown = [replace(f, split=s) for f, s in zip(stated, splits, strict=True)]
    lost = list_unsupported(replace(new, frames=tuple(planned)), target, (shown, fits))
    return Plan(old, new, tuple(stated), tuple(lost))


def _refuse(frame: Frame, fit: Fit, target: str, frames: Sequence[Frame]) -> str:
    blind = describe_blind_frames([frame]) and describe_blind_frames(frames)
    if blind:
        return f"{blind}."
    model = fit.camera.lens.model
    others = "" if target not in TABLES else ", and no panorama beside images of another lens"
    return (
        f"{target} has no lens like that of {frame.name} ({frame.lens.model}){others}: the nearest "
        f"{model} is off by {fit.rms:.3g} pixels (RMS) and misses {fit.missed:.0%} of them. "
        "--undistort resamples such images into pinhole cameras."
    )


def write_scene(
    source: Source,
    folder: Path,
    options: WriteOptions,
    done: Callable[[int], None] = lambda n: None,
    plan: Plan | None = None,
) -> WriteResult:
    """Write `source` into an empty folder. `Plan.lost` says what is lost.

    Args:
        done: called with the number of images written so far.
        plan: for these options, if it is there already.

    Raises:
        NerfError: an image cannot be read, or the folder not written.
    """
    target = options.target
    plan = plan or plan_scene(source, options)
    old, source = plan.old, plan.new
    names = image_names(source.frames, target)
    notes = [describe_undistorted(old, source)] if options.undistort else []
    frames = []
    for before, frame, name in zip(old.frames, source.frames, names, strict=True):
        try:
            frames.append(write_image(before, frame, folder / name, target, link=options.link))
        except OSError as error:
            raise NerfError(f"cannot write {folder / name}: {error.strerror}.") from error
        done(len(frames))
    stated = [replace(f, image=new.image) for f, new in zip(plan.stated, frames, strict=True)]
    source = replace(source, frames=tuple(stated))
    below = [name.removeprefix("images/") for name in names]
    if target == "blender":
        write_blender(stated, names, folder, _box_to_state(source))
    elif target == "llff":
        bounds, note = _bounds(source)
        notes += note
        write_llff(stated, bounds, folder)
    elif target == "colmap":
        write_colmap(stated, source.points, below, folder, text=options.text)
        _write_masks(old, frames, [f"masks/{name}.png" for name in below], folder)
    elif target == "instant-ngp":
        beside = [PurePosixPath(name) for name in names]
        beside = [str(p.with_name(f"dynamic_mask_{p.stem}.png")) for p in beside]
        _write_masks(old, frames, beside, folder, usable=0)
        depths = write_depths(old.frames, frames, below, folder, target)
        box = source.box or _box_to_state(source)  # without one it sees +-1.5 around the origin
        if source.box is None and box is not None:
            notes.append(f"the box is found: {describe_box(box)}")
        boxed = replace(_without_nerfstudios(source), box=box)
        write_transforms(boxed, names, [None] * len(names), depths, folder, target)
    else:
        masks = _write_masks(old, frames, [f"masks/{n}.png" for n in below], folder, all_=True)
        depths = write_depths(old.frames, frames, below, folder, target)
        write_transforms(source, names, masks, depths, folder)
        notes += mixture_note(stated)
    if options.dataparser:
        scene = scene_from_source(source, PLAIN)
        write_json(folder / DATAPARSER, dataparser_transforms(source, scene.scene_from_source))
    names_of = {frame.name: name for frame, name in zip(frames, names, strict=True)}
    return WriteResult(names_of, tuple(note for note in notes if note))


def _without_nerfstudios(source: Source) -> Source:
    """Leave out what only nerfstudio's keys hold."""
    frames = tuple(replace(frame, split=None) for frame in source.frames)
    source = replace(source, frames=frames, points=None, crop_radius=0.0)
    return replace(source, applied_transform=None, applied_scale=1.0)


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


def _box_to_state(source: Source) -> Box | None:
    """Return the box, in source units, unless readers of Blender scenes guess it."""
    if source.keep_frame:
        return None
    if source.box is not None:
        return source.box
    return box_in_source(scene_from_source(source, PLAIN))


def _bounds(source: Source) -> tuple[list[tuple[float, float]], list[str]]:
    """Find near and far depth of each view: stated, else from points in view, else the box."""
    stated = [frame.bounds for frame in source.frames if frame.bounds is not None]
    if len(stated) == len(source.frames):
        return stated, []
    scene = scene_from_source(source, PLAIN)
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

"""Turn a reader's source into a scene (box, scene space, splits, downscaling), and back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.upright import find_upright
from nerfcli.core.config import SceneConfig
from nerfcli.core.distributed import processes_here, world
from nerfcli.core.errors import NerfError
from nerfcli.core.memory import image_budget
from nerfcli.core.settings import ensure_valid
from nerfcli.core.text import quantity
from nerfcli.scenes.alpha import decide_alpha
from nerfcli.scenes.extent import (
    NEAR_OF_NEAREST,
    bounds_from_cameras,
    box_from_cameras,
    box_from_points,
    nearest_depth,
    points_in_view,
)
from nerfcli.scenes.images import exif_turn
from nerfcli.scenes.scene import Scene, Similarity, holdout_split
from nerfcli.scenes.source import Frame, Source, abbreviate

EXIF_SAMPLES = 8  # photos that are asked first whether EXIF turns them
MOST_DOWNSCALE = 8  # by itself; what still does not fit takes turns in memory


def scene_from_source(source: Source, wanted: SceneConfig) -> Scene:
    """Make the scene: choose the box, move it to [-1, 1]^3, split and downscale.

    Raises:
        NerfError: impossible settings, or images that do not go together.
    """
    ensure_valid("scene", wanted)
    has_alpha, alpha_ignored, alpha_notes = decide_alpha(source.frames, wanted.alpha)
    downscale, fit_notes = wanted.downscale, ()
    if downscale is None:
        downscale, fit_notes = choose_downscale(source.frames, alpha_ignored)
    cameras = _cameras(source.frames, downscale)
    box, box_source = _choose_box(source, cameras, wanted)
    scene_from = Similarity()
    if not source.keep_frame:
        scale = 1.0 / box.half_size
        scene_from = Similarity(scale, translation=tuple(-scale * c for c in box.center))
    moved = replace(cameras, c2w=scene_from.apply_c2w(cameras.c2w))
    if not source.keep_frame:
        box = Box((0.0, 0.0, 0.0), 1.0, box.n_cascades)
    near, far = _bounds(source, wanted, cameras, moved, box, scene_from.scale)
    near, far = wanted.near or near, wanted.far or far
    if near >= far:
        raise NerfError(f"near ({near:g}) must be smaller than far ({far:g}), in scene units.")
    splits, split_notes = _splits(source.frames, wanted.holdout)
    points = _points(source, scene_from)
    xyz = None if points is None else points.numpy()
    upright = find_upright(moved.c2w.numpy(), xyz, _exif_turns(source.frames))
    return Scene(
        name=source.name,
        path=source.root,
        kind=source.kind,
        names=tuple(frame.name for frame in source.frames),
        cameras=moved,
        image_paths=tuple(frame.image for frame in source.frames),
        mask_paths=tuple(frame.mask for frame in source.frames),
        alpha_paths=tuple(frame.alpha for frame in source.frames),
        masked_where=source.masked_where,
        splits=splits,
        box=box,
        near=near,
        far=far,
        background=wanted.background or ("white" if has_alpha else "black"),
        has_alpha=has_alpha,
        scene_from_source=scene_from,
        box_source=box_source,
        downscale=downscale,
        crop_radius=source.crop_radius / downscale,
        notes=source.notes + alpha_notes + split_notes + fit_notes,
        alpha_ignored=alpha_ignored,
        points=points,
        upright=upright,
        applied_transform=source.applied_transform,
        applied_scale=source.applied_scale,
        # Blender's usual box is a guess
        box_is_stated=bool(wanted.box) or (source.box is not None and not source.keep_frame),
    )


def move_box(scene: Scene, box: Box, box_source: str) -> Scene:
    """Give a scene another box; near and far follow where they came from the old one."""
    near, far = bounds_from_cameras(scene.cameras, box)
    old_near, old_far = bounds_from_cameras(scene.cameras, scene.box)
    return replace(
        scene,
        box=box,
        box_source=box_source,
        near=near if scene.near == old_near else scene.near,
        far=far if scene.far == old_far else scene.far,
    )


def source_from_scene(scene: Scene) -> Source:
    """Describe a scene in its source's frame and units, for the writers.

    This undoes `scene_from_source`, except that image sizes and intrinsics stay downscaled and
    that sparse points, depth images and bounds of views do not come back.
    """
    cameras = scene.cameras
    c2w = scene.scene_from_source.inverse().apply_c2w(cameras.c2w).numpy()
    split_of = {index: split for split, indices in scene.splits.items() for index in indices}
    frames = []
    for i, name in enumerate(scene.names):
        (fx, fy), (cx, cy) = cameras.focal[i].tolist(), cameras.principal[i].tolist()
        width, height = cameras.size[i].tolist()
        frames.append(
            Frame(
                name=name,
                c2w=c2w[i],
                focal=(fx, fy),
                principal=(cx, cy),
                size=(width, height),
                lens=cameras.lenses[i],
                image=scene.image_paths[i],
                mask=scene.mask_paths[i],
                alpha=scene.alpha_paths[i],
                has_alpha=scene.has_alpha,
                split=split_of.get(i),
            )
        )
    return Source(
        name=scene.name,
        root=scene.path or Path(),
        kind=scene.kind,
        frames=tuple(frames),
        box=box_in_source(scene),
        box_source=scene.box_source,
        keep_frame=scene.scene_from_source == Similarity(),
        masked_where=scene.masked_where,
        crop_radius=scene.crop_radius,
    )


def box_in_source(scene: Scene) -> Box:
    """Return the scene's box in the source's frame and units."""
    source_from_scene = scene.scene_from_source.inverse()
    center = source_from_scene.apply(torch.tensor(scene.box.center, dtype=torch.float64))
    half_size = source_from_scene.scale * scene.box.half_size
    return Box(tuple(center.tolist()), half_size, scene.box.n_cascades)


def choose_downscale(
    frames: tuple[Frame, ...], alpha_ignored: bool = False
) -> tuple[int, tuple[str, ...]]:
    """Choose the least downscale at which all images fit into memory, and a note about it."""
    channels = 4 if any(frame.has_alpha for frame in frames) and not alpha_ignored else 3
    masked = 4 if alpha_ignored or any(frame.mask is not None for frame in frames) else 0
    needed = (channels + masked) * sum(frame.size[0] * frame.size[1] for frame in frames)
    budget = image_budget() // processes_here()
    smallest = min(min(frame.size) for frame in frames)
    downscale = min(math.ceil(math.sqrt(needed / max(budget, 1))), MOST_DOWNSCALE, smallest)
    downscale = round(world().largest(max(downscale, 1)))  # all processes read them alike
    if downscale == 1:
        return 1, ()
    width, height = frames[0].size
    return downscale, (
        f"{quantity(len(frames), 'image')} of {width}x{height} need {needed / 1e9:.1f} GB, "
        f"{budget / 1e9:.1f} GB of memory are free for them: they are read at 1/{downscale} of "
        f"their size; --downscale {downscale} repeats this anywhere (with --downscale 1 they keep "
        "their size and take turns in memory)",
    )


def _cameras(frames: tuple[Frame, ...], downscale: int) -> Cameras:
    # whole blocks of pixels are averaged and a remainder is cut off, so intrinsics divide exactly
    size = torch.tensor([frame.size for frame in frames], dtype=torch.int64) // downscale
    if int(size.min()) < 1:
        raise NerfError(f"--downscale {downscale}: nothing would remain of the images.")
    return Cameras(
        torch.from_numpy(np.stack([frame.c2w for frame in frames])),
        torch.tensor([frame.focal for frame in frames], dtype=torch.float64) / downscale,
        torch.tensor([frame.principal for frame in frames], dtype=torch.float64) / downscale,
        size,
        tuple(frame.lens for frame in frames),
    )


def _exif_turns(frames: tuple[Frame, ...]) -> np.ndarray | None:
    """The quarter turns [n] that EXIF asks for; None without any, or where an image is absent."""
    paths = [frame.image for frame in frames]
    if any(path is None for path in paths):
        return None
    turns = np.zeros(len(frames), np.int64)
    some = set(range(0, len(frames), math.ceil(len(frames) / EXIF_SAMPLES)))
    for chosen in (some, set(range(len(frames))) - some):
        for i in chosen:
            path = frames[i].image
            turns[i] = 0 if path is None else exif_turn(path, frames[i].size)
        if not turns.any():  # captures have the tag in all photos or in none
            return None
    return turns


def _points(source: Source, scene_from: Similarity) -> Tensor | None:
    if source.points is None or not len(source.points):
        return None
    return scene_from.apply(torch.from_numpy(source.points.xyz)).float()


def _choose_box(source: Source, cameras: Cameras, wanted: SceneConfig) -> tuple[Box, str]:
    if source.box is not None:
        box, words = source.box, source.box_source
    elif source.points is not None:
        box, words = (
            box_from_points(source.points.xyz, cameras),
            f"{quantity(len(source.points), 'point')}",
        )
    elif all(frame.bounds for frame in source.frames):
        seen = points_in_view(cameras, [frame.bounds for frame in source.frames if frame.bounds])
        box, words = box_from_points(seen, cameras), "what the views see within their depth bounds"
    else:
        box, words = box_from_cameras(cameras)
    if wanted.box:
        box, words = replace(box, half_size=wanted.box), f"given, centred by {words}"
    if wanted.cascades:
        box = replace(box, n_cascades=wanted.cascades)
        words += ", cascades given"
    return box, words


def _bounds(
    source: Source, wanted: SceneConfig, cameras: Cameras, moved: Cameras, box: Box, scale: float
) -> tuple[float, float]:
    """Choose near and far in scene units.

    cameras: in source units. moved, box: in scene space.
    """
    if source.bounds is not None and not wanted.box and not wanted.cascades:
        return source.bounds[0] * scale, source.bounds[1] * scale
    near, far = bounds_from_cameras(moved, box)
    if source.points is not None:
        nearest = nearest_depth(source.points.xyz, cameras) * scale
    else:
        nearest = min((f.bounds[0] for f in source.frames if f.bounds), default=0.0) * scale
    if nearest > 0:  # never behind what is known to be there
        near = max(min(near, nearest), NEAR_OF_NEAREST * nearest)
    # the box reaches behind the farthest bound, so that there is a place for what lies there
    return near, far


def _splits(
    frames: tuple[Frame, ...], holdout: int
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Split the frames as the source states, or by every n-th name; and notes about it."""
    if all(frame.split is None for frame in frames):
        return holdout_split(len(frames), holdout), ()
    splits = {
        split: tuple(i for i, frame in enumerate(frames) if frame.split == split)
        for split in ("train", "val", "test")
    }
    notes = []
    states_test = bool(splits["test"] or splits["val"])
    if not splits["test"] and splits["val"]:
        splits["test"] = splits["val"]
        notes.append("there is no test split; the validation views serve as one")
    elif not splits["test"]:
        rest = holdout_split(len(splits["train"]), holdout)
        train = splits["train"]
        splits = {split: tuple(train[i] for i in chosen) for split, chosen in rest.items()}
        notes.append("the source has only training views; some of them are held out")
    if states_test and holdout != SceneConfig().holdout:
        notes.append(f"--holdout {holdout} is not used: the files state a split")
    trained = {frames[i].image for i in splits["train"]}
    both = [frames[i].name for i in splits["test"] if frames[i].image in trained]
    if both:
        notes.append(f"{len(both)} test views are training views too: {abbreviate(both)}")
    return splits, tuple(notes)

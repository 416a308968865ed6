"""Read COLMAP reconstructions: a sparse model and the images that it names."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.images import ensure_complete
from nerfcli.scenes.readers.colmap_binary import read_binary
from nerfcli.scenes.readers.colmap_cameras import Intrinsics, intrinsics_of
from nerfcli.scenes.readers.colmap_folders import ModelFolder, folders_of_images, scene_folder
from nerfcli.scenes.readers.colmap_model import ColmapImage, ColmapModel
from nerfcli.scenes.readers.colmap_text import read_text_model
from nerfcli.scenes.readers.folders import mask_note, resized_note, size_ratio
from nerfcli.scenes.readers.frame_faults import FrameFaults
from nerfcli.scenes.readers.pictures import Pictures, is_image_folder
from nerfcli.scenes.source import (
    MOST_DISTANT,
    Frame,
    NoFrames,
    Points,
    Source,
    abbreviate,
    check_focal,
    natural_key,
    read_stored_size,
)

# a name in two lists belongs to the first
SPLIT_LISTS = {"train": "train_list.txt", "test": "test_list.txt", "val": "validation_list.txt"}
QUATERNION_TOLERANCE = 0.01  # of its length against 1, before it is normalised


def read_colmap_models(
    root: Path, models: list[ModelFolder], wanted: SceneConfig | None = None
) -> Source:
    """Read the first of a reconstruction's models, and name the others in a note.

    Raises:
        NerfError: a fault in the model or its images; names file and image.
    """
    first, *others = models
    source = read_colmap(root, first.path, wanted)
    if not others:
        return source
    holder = os.path.relpath(others[0].path.parent, root)
    names = [f"{other.path.name} ({other.n_images})" for other in others]
    note = (
        f"{holder if holder != '.' else root.resolve().name} holds {len(models)} models, which "
        f"means that images were not connected; {first.path.name} with {first.n_images} images is "
        f"read, not {abbreviate(names)}"
    )
    return replace(source, notes=(note, *source.notes))


def read_colmap(root: Path, folder: Path, wanted: SceneConfig | None = None) -> Source:
    """Read the model in `folder` and find its images under `root`.

    Raises:
        NerfError: a fault in the model or its images; names file and image.
    """
    wanted = wanted or SceneConfig()
    model, notes = _read_model(folder)
    images = sorted(model.images, key=lambda image: natural_key(image.name))
    pictures = Pictures(root, folders_of_images(root, folder), given=wanted.images)
    place, found = _find_images(pictures, images)
    missing = [image.name for image in images if image.name not in found]
    if missing:
        notes.append(
            f"{len(missing)} of {len(images)} images of the model have no file in {place} and are "
            f"left out: {abbreviate(missing)}"
        )
    scene = scene_folder(root, folder)
    beside = place.parent if is_image_folder(place) else place
    bases = list(dict.fromkeys((root, scene, beside)))
    splits, more = _splits(bases, list(found))
    images = [i for i in images if i.name in found and (not splits or i.name in splits)]
    masks = _find_masks(bases, place, [image.name for image in images], pictures)
    faults, frames, used = FrameFaults(skip=wanted.skip_bad_frames), [], []
    cameras: dict[int, Intrinsics] = {}
    for image in images:
        with faults.collect():
            if image.camera_id not in cameras:
                cameras[image.camera_id] = _intrinsics(model, image.camera_id, folder)
            path = found[image.name]
            if wanted.skip_bad_frames:
                ensure_complete(path)
            frame = _frame(image, cameras[image.camera_id], path, folder)
            mask = masks.get(image.name)
            frames.append(replace(frame, mask=mask, split=splits.get(image.name)))
            used.append(image)
    notes += faults.finish(len(frames))
    stated = [cameras[image.camera_id].size for image in used]
    resized = [(f.size, size) for f, size in zip(frames, stated, strict=True) if f.size != size]
    return Source(
        name=scene.resolve().name,
        root=root,
        kind="colmap",
        frames=tuple(frames),
        points=_points(model, used, [_ratio(f, s) for f, s in zip(frames, stated, strict=True)]),
        masked_where="black",
        beyond=_beyond(model, folder),
        notes=tuple(notes + pictures.notes + resized_note(resized) + mask_note(frames) + more),
    )


def _read_model(folder: Path) -> tuple[ColmapModel, list[str]]:
    """Read the binary model before the text one, as COLMAP does; note if they differ."""
    binary, text = (
        all((folder / f"{name}.{kind}").is_file() for name in ("cameras", "images"))
        for kind in ("bin", "txt")
    )
    if not binary and not text:
        raise NoFrames(
            f"{folder} has no complete COLMAP model: cameras and images are needed, both as .bin "
            "or both as .txt."
        )
    if not binary:
        return read_text_model(folder), []
    model = read_binary(folder)
    if not text:
        return model, []
    try:
        difference = _difference(model, read_text_model(folder))
    except NerfError as error:
        difference = f"the text cannot be read ({error})"
    if not difference:
        return model, []
    return model, [f"{folder.name} holds the model twice; binary is read, and {difference}"]


def _difference(binary: ColmapModel, text: ColmapModel) -> str:
    """Describe how two forms of a model differ beyond rounding; "" if they agree."""
    theirs = {image.name: image for image in text.images}
    if {image.name for image in binary.images} != theirs.keys():
        return f"the text has other images ({len(binary.images)} and {len(theirs)})"
    for image in binary.images:
        other = theirs[image.name]
        pose, its = (np.array([*i.rotation, *i.translation]) for i in (image, other))
        if not np.allclose(pose, its, rtol=1e-4, atol=1e-4):
            return f"the text has another pose of {image.name}"
        camera, its = binary.cameras[image.camera_id], text.cameras[other.camera_id]
        if (camera.model, camera.size) != (its.model, its.size) or not np.allclose(
            camera.params, its.params, rtol=1e-4, atol=1e-6
        ):
            return f"the text has another camera of {image.name}"
    if len(binary.points.ids) != len(text.points.ids):
        return f"the text has {len(text.points.ids)} points instead of {len(binary.points.ids)}"
    return ""


def _find_images(pictures: Pictures, images: list[ColmapImage]) -> tuple[Path, dict[str, Path]]:
    """Find the folder of the images, and their files by name."""
    found = pictures.find_all(image.name for image in images)
    if found:
        return pictures.folder or pictures.root, found
    root = pictures.root
    places = [os.path.relpath(place, root) for place in pictures.places]
    looked = ", ".join("the folder itself" if place == "." else place for place in places)
    raise NoFrames(
        f"{root}: none of the {quantity(len(images), 'image')} of the COLMAP model exists, the "
        "first is "
        f"{images[0].name!r}. Looked in: {looked}. "
        "--images DIR says where they are."
    )


def _intrinsics(model: ColmapModel, id_: int, folder: Path) -> Intrinsics:
    camera = model.cameras[id_]
    where = f"{folder}, camera {id_}"
    stated = intrinsics_of(camera.model, camera.size, camera.params, where)
    if stated.lens.model != "equirectangular":
        check_focal(stated.focal, stated.size, stated.lens, where)
    return stated


def _frame(image: ColmapImage, camera: Intrinsics, path: Path, folder: Path) -> Frame:
    where = f"{folder}, image {image.name!r}"
    width, height, has_alpha = read_stored_size(path, camera.size)
    sx, sy = size_ratio((width, height), camera.size, where)
    (fx, fy), (cx, cy) = camera.focal, camera.principal
    return Frame(
        name=image.name,
        c2w=_c2w(image, where),
        focal=(fx * sx, fy * sy),
        principal=(cx * sx, cy * sy),
        size=(width, height),
        lens=camera.lens,
        image=path,
        has_alpha=has_alpha,
    )


def _ratio(frame: Frame, stated: tuple[int, int]) -> tuple[float, float]:
    return frame.size[0] / stated[0], frame.size[1] / stated[1]


def _c2w(image: ColmapImage, where: str) -> np.ndarray:
    """Invert x_camera = R x_world + t: c2w [3, 4]."""
    pose = np.array([*image.rotation, *image.translation])
    if not np.isfinite(pose).all() or np.abs(pose).max() > MOST_DISTANT:
        raise NerfError(f"{where}: the pose is not finite.")
    length = float(np.linalg.norm(pose[:4]))
    if abs(length - 1) > QUATERNION_TOLERANCE:
        raise NerfError(f"{where}: the rotation's quaternion has length {length:.4g} instead of 1.")
    rotation = rotation_from_quaternion(pose[:4] / length)
    return np.concatenate([rotation.T, (-rotation.T @ pose[4:])[:, None]], axis=1)


def rotation_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Convert a quaternion [w, x, y, z] of length 1 to a matrix [3, 3]."""
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _points(
    model: ColmapModel, images: list[ColmapImage], ratios: list[tuple[float, float]]
) -> Points | None:
    """Collect the finite points, and where the images see them."""
    points = model.points
    keep = np.isfinite(points.xyz).all(-1) & (np.abs(points.xyz) < MOST_DISTANT).all(-1)
    if not keep.any():
        return None
    ids = points.ids[keep]
    order = np.argsort(ids)
    rows, frames, places = [], [], []
    for i, (image, ratio) in enumerate(zip(images, ratios, strict=True)):
        at = np.searchsorted(ids, image.point_ids, sorter=order).clip(max=len(ids) - 1)
        row = order[at]
        seen = (ids[row] == image.point_ids) & np.isfinite(image.xy).all(-1)
        rows.append(row[seen])
        frames.append(np.full(int(seen.sum()), i))
        places.append(image.xy[seen] * ratio)
    point, frame = np.concatenate(rows), np.concatenate(frames)
    return Points(
        points.xyz[keep],
        points.rgb[keep],
        _scaled_error(points.error[keep], point, np.array(ratios).mean(axis=1), frame),
        point,
        frame,
        np.concatenate(places),
    )


def _scaled_error(
    error: np.ndarray, point: np.ndarray, ratios: np.ndarray, frame: np.ndarray
) -> np.ndarray:
    """Convert mean errors [n] from pixels of the model's cameras to those of the stored images.

    point, frame: [m], where points are seen. ratios: of each frame. COLMAP's -1 is "unknown".
    """
    seen = np.bincount(point, minlength=len(error))
    sums = np.bincount(point, weights=ratios[frame], minlength=len(error))
    mean = np.where(seen > 0, sums / np.maximum(seen, 1), ratios.mean())
    return np.where(error >= 0, error * mean, error)


def _beyond(model: ColmapModel, folder: Path) -> tuple[tuple[str, str], ...]:
    """List the contents of a model that a Source cannot hold."""
    found = []
    alone = sum(int((image.point_ids < 0).sum()) for image in model.images)
    if alone:
        found.append(("keypoints", f"{alone} that see no point"))
    if any((folder / f"rigs.{kind}").is_file() for kind in ("bin", "txt")):
        found.append(("rigs", "which cameras are mounted together; each image keeps its pose"))
    return tuple(found)


def _splits(bases: list[Path], names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Read nerfstudio's list files: image -> split, and notes about them."""
    splits: dict[str, str] = {}
    places = [base for base in bases if (base / SPLIT_LISTS["train"]).is_file()]
    if not places:
        return {}, []
    lists = {split: places[0] / name for split, name in SPLIT_LISTS.items()}
    files = {split: path for split, path in lists.items() if path.is_file()}
    for split, path in files.items():
        try:
            listed = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise NerfError(f"{path} cannot be read ({error}).") from error
        for name in filter(None, map(str.strip, listed)):
            if splits.setdefault(name, split) == "train" != split:
                raise NerfError(f"{path}: {name} is listed for training and for {split}.")
    if not any(splits.get(name) == "train" for name in names):
        raise NerfError(f"{files['train']}: none of its names is an image of the model.")
    lost = [name for name in names if name not in splits]
    if not lost:
        return splits, []
    return splits, [f"left out are images that no list names: {abbreviate(lost)}"]


def _find_masks(
    bases: list[Path], images: Path, names: list[str], pictures: Pictures
) -> dict[str, Path | None]:
    """Find the images' masks: COLMAP appends .png to the name, others keep it.

    They lie beside images, in masks_2 or else masks for images_2, in masks for any other name.
    """
    reduced = images not in bases and images.name.startswith("images")
    kinds = dict.fromkeys((images.name.replace("images", "masks") if reduced else "masks", "masks"))
    places = (base / kind for kind in kinds for base in bases)
    for folder in (place for place in places if place.is_dir() and place != images):
        masks = Pictures(folder, what="masks", known=pictures)
        appended = {name: masks.find_here(f"{name}.png") for name in names}
        same = masks.find_all(name for name in names if appended[name] is None)
        found = {name: path or same.get(name) for name, path in appended.items()}
        if any(found.values()):
            return found
    return {}

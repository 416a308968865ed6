"""Read instant-ngp's and nerfstudio's transforms.json: frames with poses and intrinsics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.images import ensure_complete
from nerfcli.scenes.readers.folders import mask_note, resized_note
from nerfcli.scenes.readers.frame_faults import FrameFaults
from nerfcli.scenes.readers.intrinsics import parse_intrinsics, parse_size
from nerfcli.scenes.readers.keys import check_keys, keys_beyond
from nerfcli.scenes.readers.listings import DEPTH_EXTENSIONS
from nerfcli.scenes.readers.ngp_box import parse_box
from nerfcli.scenes.readers.pictures import (
    Pictures,
    image_folders,
)
from nerfcli.scenes.readers.points import read_points
from nerfcli.scenes.source import (
    Depth,
    Frame,
    NoFrames,
    Source,
    abbreviate,
    natural_key,
    number,
    pose_from_opengl,
    read_object,
    read_stored_size,
)

# a name in two lists belongs to the first
SPLIT_KEYS = {"train": "train_filenames", "test": "test_filenames", "val": "val_filenames"}
# key of a frame's path, the file's key for the unit, and the default unit
DEPTH_KEYS = (
    ("depth_file_path", "depth_unit_scale_factor", 1e-3),
    ("depth_path", "integer_depth_scale", None),  # without it instant-ngp reads no depth either
)
NERFSTUDIO_KEYS = {"camera_model", "applied_transform", "ply_file_path", *SPLIT_KEYS.values()}


def read_transforms(path: Path, wanted: SceneConfig | None = None) -> Source:
    """Read one transforms*.json.

    Raises:
        NerfError: a fault in the file; names file, frame and key.
    """
    data, notes = read_table(path)
    root = path.parent
    files = TransformsFiles(root, wanted)
    frames, more, kind = read_frames(path, data, files)
    notes += more
    box, box_source = parse_box(data, str(path))
    frames = _with_splits(frames, data, path, files)
    points = None
    if data.get("ply_file_path"):
        stated = str(data["ply_file_path"])
        points, note = read_points(files.points.find(stated) or root / stated)
        notes += [note] if note else []
    notes += files.notes
    return Source(
        name=root.resolve().name,
        root=root,
        kind=kind,
        frames=tuple(frames),
        box=box,
        box_source=box_source,
        points=points,
        masked_where="black" if any(f.get("mask_path") for f in data["frames"]) else "nonzero",
        beyond=keys_beyond(data, data["frames"]),
        applied_transform=_applied_transform(data, path),
        applied_scale=number(data.get("applied_scale", 1.0), f"{path}: applied_scale"),
        crop_radius=_crop_radius(data, frames[0], path),
        notes=tuple(notes),
    )


def read_table(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a transforms file without what is null, and notes about its JSON.

    Raises:
        NoFrames: as `read_object`.
    """
    notes: list[str] = []
    data = _without_nulls(read_object(path, notes))
    if isinstance(data.get("frames"), list):
        frames = data["frames"]
        data["frames"] = [_without_nulls(f) if isinstance(f, dict) else f for f in frames]
    return data, notes


def _without_nulls(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


class TransformsFiles:
    """The images, masks and depth images of one folder's transforms files."""

    def __init__(self, root: Path, wanted: SceneConfig | None = None) -> None:
        wanted = wanted or SceneConfig()
        self.skip_bad_frames = wanted.skip_bad_frames
        self.images = images = Pictures(root, others=image_folders(root), given=wanted.images)
        self.masks = Pictures(root, what="masks", known=images)
        self.depths = Pictures(root, what="depth images", extensions=DEPTH_EXTENSIONS, known=images)
        self.points = Pictures(root, what="point files", extensions=(), known=images)

    @property
    def notes(self) -> list[str]:
        kinds = (self.images, self.masks, self.depths, self.points)
        return [note for kind in kinds for note in kind.notes]


def read_frames(
    path: Path, data: Mapping[str, Any], files: TransformsFiles, split: str | None = None
) -> tuple[list[Frame], list[str], str]:
    """Read the frames of a transforms file, sorted by natural order of their names.

    Leaves out frames without an image file.

    Returns:
        frames, notes, and the kind: "nerfstudio" or "instant-ngp".

    Raises:
        NoFrames: no frames, or none with an image.
        NerfError: a fault in one of the frames.
    """
    listed = data.get("frames")
    if listed == []:
        raise NoFrames(f"{path} has no frames.")
    if not isinstance(listed, list):
        raise NoFrames(f"{path} has no frames; a transforms file needs a list of that name.")
    if not all(isinstance(frame, dict) for frame in listed):
        raise NerfError(f"{path}: each entry of frames must be an object.")
    if not any(frame.get("file_path") for frame in listed):
        raise NoFrames(f"{path}: frame 0 has no file_path, nor has any other.")
    notes = check_keys(data, listed, path)
    has_masks = any(frame.get("mask_path") for frame in listed)
    reading = _Reading(path, data, files, split, has_masks)
    files.images.find_all(_texts(listed, "file_path"))
    files.masks.find_all(_texts(listed, "mask_path"))
    for key, _, _ in DEPTH_KEYS:
        files.depths.find_all(_texts(listed, key))
    faults = FrameFaults(skip=files.skip_bad_frames)
    for i, frame in enumerate(listed):
        with faults.collect():
            reading.add(frame, i)
    reading.frames = faults.leave_out_repeated(reading.frames, path)
    notes += faults.finish(len(reading.frames))
    if not reading.frames:
        raise NoFrames(
            f"{path}: none of the {quantity(len(listed), 'image')} exists, the first was looked "
            "for at "
            f"{path.parent / reading.missing[0]}. --images DIR says where they are."
        )
    frames = sorted(reading.frames, key=lambda frame: natural_key(frame.name))
    nerfstudio = NERFSTUDIO_KEYS & data.keys() or reading.has_mask_paths
    return frames, notes + reading.notes(), "nerfstudio" if nerfstudio else "instant-ngp"


def _texts(frames: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Collect the values of a key that are file names."""
    return [frame[key] for frame in frames if isinstance(frame.get(key), str) and frame[key]]


@dataclass
class _Reading:
    """Collect the frames of one file, and notes about them."""

    path: Path
    top: Mapping[str, Any]
    files: TransformsFiles
    split: str | None
    has_mask_paths: bool

    def __post_init__(self) -> None:
        self.frames: list[Frame] = []
        self.missing: list[str] = []
        self.missing_depths: list[str] = []
        self.resized: list[tuple[tuple[int, int], tuple[int, int]]] = []
        self.scales: list[float] = []

    def add(self, frame: Mapping[str, Any], at: int) -> None:
        stated = frame.get("file_path")
        if not isinstance(stated, str) or not stated:
            raise NerfError(f"{self.path}: frame {at} has no file_path.")
        where = f"{self.path}, frame {stated}"
        if "transform_matrix" not in frame:
            raise NerfError(f"{where} has no transform_matrix.")
        image = self.files.images.find(stated)
        if image is None:
            self.missing.append(str(PurePosixPath(stated)))
            return
        c2w, scale = pose_from_opengl(frame["transform_matrix"], where)
        if self.files.skip_bad_frames:
            ensure_complete(image)
        size = parse_size({**self.top, **frame}, where)
        width, height, has_alpha = read_stored_size(image, size)
        focal, principal, lens = parse_intrinsics(frame, self.top, (width, height), where)
        alpha, mask = self._alpha(image, stated), self._mask(frame, image, where)
        depth = self._depth(frame, where)
        self.scales.append(scale)
        if size is not None and size != (width, height):
            self.resized.append(((width, height), size))
        self.frames.append(
            Frame(
                name=self.files.images.name_of(stated, image),
                c2w=c2w,
                focal=focal,
                principal=principal,
                size=(width, height),
                lens=lens,
                image=image,
                mask=mask,
                alpha=alpha,
                has_alpha=has_alpha or alpha is not None,
                split=self.split,
                depth=depth,
            )
        )

    def _alpha(self, image: Path, stated: str) -> Path | None:
        """Find the alpha file: instant-ngp appends ".alpha.<ext>" to file_path or to its stem."""
        stems = (PurePosixPath(stated).name, image.stem)
        find = self.files.images.find_beside
        found = (find(image, f"{stem}.alpha{image.suffix}") for stem in stems)
        return next((path for path in found if path is not None), None)

    def _mask(self, frame: Mapping[str, Any], image: Path, where: str) -> Path | None:
        if self.has_mask_paths:
            if not frame.get("mask_path"):
                return None
            mask = self.files.masks.find(str(frame["mask_path"]))
            if mask is None:
                raise NerfError(f"{where}: the mask {frame['mask_path']} does not exist.")
            return mask
        return self.files.images.find_beside(image, f"dynamic_mask_{image.stem}.png")

    def _depth(self, frame: Mapping[str, Any], where: str) -> Depth | None:
        """Find a frame's depth file and its unit, by the keys of `DEPTH_KEYS`."""
        for key, unit, default in DEPTH_KEYS:
            stated = frame.get(key)
            unit_value = self.top.get(unit, default)
            if not stated or unit_value is None:
                continue
            path = self.files.depths.find(str(stated))
            if path is None:
                self.missing_depths.append(str(stated))
                return None
            scale = number(unit_value, f"{self.path}: {unit}")
            if scale <= 0:
                raise NerfError(f"{where}: {unit} must be positive, got {scale:g}.")
            is_euclidean = key == DEPTH_KEYS[0][0] and bool(self.top.get("is_euclidean_depth"))
            return Depth(path, scale, is_euclidean)
        return None

    def notes(self) -> list[str]:
        notes = []
        if self.missing_depths:
            notes.append(
                f"{len(self.missing_depths)} depth images do not exist: "
                f"{abbreviate(self.missing_depths)}"
            )
        if self.missing:
            total = len(self.missing) + len(self.frames)
            notes.append(
                f"{len(self.missing)} of {total} frames of {self.path.name} have no image file and "
                f"are left out: {abbreviate(self.missing)}"
            )
        notes += resized_note(self.resized) + mask_note(self.frames)
        scaled = [s for s in self.scales if abs(s - 1) > 1e-3]
        if scaled:
            notes.append(
                f"{len(scaled)} poses of {self.path.name} carry a scale (the first "
                f"{scaled[0]:.4g}); it is divided out of the rotation, positions are kept"
            )
        return notes


def _applied_transform(data: Mapping[str, Any], path: Path) -> np.ndarray | None:
    """Parse nerfstudio's [3, 4], from the frame of an earlier stage to that of the poses."""
    stated = data.get("applied_transform")
    if stated is None:
        return None
    try:
        matrix = np.array(stated, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
        raise NerfError(f"{path}: applied_transform must be a 3x4 table of numbers.")
    return matrix[:3]


def _crop_radius(data: Mapping[str, Any], frame: Frame, path: Path) -> float:
    """Parse the radius of the fisheye circle, in pixels of the stored images; 0: no circle."""
    radius = number(data.get("fisheye_crop_radius") or 0.0, f"{path}: fisheye_crop_radius")
    stated = parse_size(data, str(path))
    return radius if stated is None else radius * frame.size[0] / stated[0]


def _with_splits(
    frames: Sequence[Frame], data: Mapping[str, Any], path: Path, files: TransformsFiles
) -> list[Frame]:
    """Apply nerfstudio's explicit lists; drop the frames that no list names."""
    lists = {split: data[key] for split, key in SPLIT_KEYS.items() if data.get(key) is not None}
    if not lists:
        return list(frames)
    if "train" not in lists:
        raise NerfError(f"{path} lists {', '.join(lists)} files but has no train_filenames.")
    split_of: dict[Path, str] = {}
    images = files.images.again()
    for split, names in lists.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise NerfError(f"{path}: {SPLIT_KEYS[split]} must be a list of file names.")
        for name, found in images.find_all(names).items():
            if split_of.setdefault(found, split) == "train" != split:
                raise NerfError(f"{path}: {name} is listed for training and for {split}.")
    placed = [(frame, split_of.get(frame.image)) for frame in frames if frame.image]
    if not any(split == "train" for _, split in placed):
        raise NerfError(f"{path}: none of the train_filenames names a frame.")
    return [Frame(**{**vars(f), "split": split}) for f, split in placed if split is not None]

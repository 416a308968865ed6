"""Collect the frames of a source: images found, intrinsics scaled to them, faults named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.cameras.lenses import Lens
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.images import ensure_complete, image_header
from nerfcli.scenes.readers.folders import resized_note, size_ratio
from nerfcli.scenes.readers.frame_faults import FrameFaults
from nerfcli.scenes.readers.pictures import (
    Pictures,
    image_files,
    image_folders,
    is_hidden,
    relative_name,
)
from nerfcli.scenes.source import (
    OPENGL_COLUMNS,
    Frame,
    NoFrames,
    Source,
    abbreviate,
    check_focal,
    check_pose,
    check_principal,
    natural_key,
    number,
    stored_size,
)

MOST_SKEW = 1.0  # pixels at the image's edge; more would be visible, and we have no such camera
MAX_SIDE = 2**20  # pixels; a file that states more is damaged
MOST_FOLDERS = 50  # of a scene that are looked into for images
# folders whose files have the names of photos and are none
NO_PHOTOS = re.compile(
    r"(?<![a-z])(masks?|depths?|normals?|confidences?|alphas?|segmentations?|semantics?|labels?"
    r"|disparity|disparities|thumbs?|thumbnails?)(maps?)?(?![a-z])",
    re.IGNORECASE,
)
FAR_OFF = 1000.0  # times the cameras' spread from the origin
LEAST_SKEW = 0.05  # pixels; less is not worth a line


@dataclass(frozen=True)
class Pinhole:
    """Intrinsics in pixels of the stated size, or of the stored image if none is stated.

    Attributes:
        principal: None: the middle.
        skew: entry (0, 1) of the intrinsic matrix, in pixels.
    """

    focal: tuple[float, float]
    principal: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    lens: Lens = Lens()
    skew: float = 0.0

    @staticmethod
    def of(matrix: np.ndarray, where: str, size: tuple[int, int] | None = None) -> Pinhole:
        """Take the intrinsics of an upper triangular matrix [3 or 4, 3 or 4].

        Raises:
            NerfError: it is not one.
        """
        k = matrix[:3, :3]
        off = np.abs([k[1, 0], k[2, 0], k[2, 1], k[2, 2] - 1]).max()
        if off > 1e-3:
            raise NerfError(
                f"{where}: the intrinsic matrix must be fx, skew, cx; 0, fy, cy; 0, 0, 1."
            )
        fx, fy, cx, cy = (float(k[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
        return Pinhole((fx, fy), (cx, cy), size, skew=float(k[0, 1]))


@dataclass
class Collector:
    """Collect the frames of one source, and notes about them.

    Attributes:
        file: that states the cameras, for messages.
        wanted: says where the images are, and whether bad frames are left out.
        looked: where images were looked for, for a message.
        pictures: that the file's names were looked up with, if they were.
    """

    root: Path
    file: Path
    wanted: SceneConfig
    looked: str = ""
    pictures: Pictures | None = None
    frames: list[Frame] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resized: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    most_skew: float = 0.0

    def __post_init__(self) -> None:
        self.faults = FrameFaults(skip=self.wanted.skip_bad_frames)
        self._headers: dict[Path, tuple[int, int, bool, bool]] = {}

    def header(self, image: Path) -> tuple[int, int, bool, bool]:
        """Read an image's header as `image_header` does, once."""
        if image not in self._headers:
            self._headers[image] = image_header(image)
        return self._headers[image]

    def add(
        self,
        stated: str,
        image: Path | None,
        matrix: Any,
        camera: Pinhole,
        where: str,
        *,
        key: str = "the pose",
        opengl: bool = False,
        **more: Any,
    ) -> str | None:
        """Add a frame.

        Args:
            stated: the image as the file names it. image: the file found; None: it is missing.
            matrix: camera to world, 3x4 or 4x4. key: its name, for messages.
            opengl: the axes of the camera; else OpenCV's.
            more: further attributes of `Frame`.

        Returns:
            The name of the frame; None if its image is missing.

        Raises:
            NerfError: a fault in the pose, the intrinsics or the image; names `where`.
        """
        c2w, scale = check_pose(matrix, where, key)
        if image is None:
            self.missing.append(stated)
            return None
        if self.wanted.skip_bad_frames:
            ensure_complete(image)
        width, height, has_alpha = stored_size(self.header(image), camera.size)
        real = (width, height)
        size = camera.size or real
        sx, sy = size_ratio(real, size, where)
        cx, cy = camera.principal or (size[0] / 2, size[1] / 2)
        if camera.lens.model != "equirectangular":
            check_focal(camera.focal, size, camera.lens, where)
            check_principal((cx, cy), size, where)
            self._check_skew(camera, size, where)
        if real != size:
            self.resized.append((real, size))
        self.scales.append(scale)
        name = self._name(stated, image)
        self.frames.append(
            Frame(
                name=name,
                c2w=c2w * OPENGL_COLUMNS if opengl else c2w,
                focal=(camera.focal[0] * sx, camera.focal[1] * sy),
                principal=(cx * sx, cy * sy),
                size=real,
                lens=camera.lens,
                image=image,
                has_alpha=has_alpha or more.get("alpha") is not None,
                **more,
            )
        )
        return name

    def _name(self, stated: str, image: Path) -> str:
        if self.pictures is not None:
            return self.pictures.name_of(stated, image)
        # the same wherever a folder that the user gave lies
        given = self.wanted.images is not None
        return f"images/{image.name}" if given else relative_name(image, self.root)

    def _check_skew(self, camera: Pinhole, size: tuple[int, int], where: str) -> None:
        effect = abs(camera.skew) * size[1] / 2 / camera.focal[1]
        if not effect <= MOST_SKEW:
            raise NerfError(
                f"{where}: the pixels are skewed by {effect:.3g} pixels at the image's edge, "
                "which no camera here has; undistort the images in the program that calibrated "
                "them."
            )
        self.most_skew = max(self.most_skew, effect)

    def finish(self, kind: str, *, near_origin: bool = False, **more: Any) -> Source:
        """Make the source; its frames are in the natural order of their names.

        Args:
            near_origin: move geographic coordinates to where float32 holds them.
            more: further attributes of `Source`.

        Raises:
            NerfError: no frame has an image, or frames are faulty and not to be left out.
        """
        self.frames = self.faults.leave_out_repeated(self.frames, self.file)
        self.notes += self.faults.finish(len(self.frames))
        if not self.frames:
            if not self.missing:
                raise NoFrames(f"{self.file} states no camera that can be used.")
            looked = self.looked
            if self.pictures is not None:
                looked = ", ".join(
                    relative_name(place, self.root) for place in self.pictures.places
                )
            looked = f" Looked in: {looked}." if looked else ""
            raise NoFrames(
                f"{self.file}: none of the {quantity(len(self.missing), 'image')} exists, the "
                "first is "
                f"{self.missing[0]!r}.{looked} --images DIR says where they are."
            )
        if near_origin:
            more["applied_transform"] = self._move_near_origin()
        frames = sorted(self.frames, key=lambda frame: natural_key(frame.name))
        return Source(
            name=self.root.resolve().name,
            root=self.root,
            kind=kind,
            frames=tuple(frames),
            notes=(*self.notes, *self._own_notes()),
            **more,
        )

    def _move_near_origin(self) -> np.ndarray | None:
        """Move frames that are too far off; return a [3, 4] from the stated frame to the new."""
        positions = np.stack([frame.c2w[:, 3] for frame in self.frames])
        middle = np.median(positions, axis=0)
        spread = max(float(np.abs(positions - middle).max()), 1e-9)
        offset = np.round(middle)
        if np.abs(middle).max() < FAR_OFF * spread or not offset.any():
            return None
        self.frames = [
            replace(f, c2w=np.column_stack([f.c2w[:, :3], f.c2w[:, 3] - offset]))
            for f in self.frames
        ]
        shown = ", ".join(f"{value:.0f}" for value in offset)
        self.notes.append(
            f"the origin is moved to ({shown}), since float32 cannot hold so distant a scene"
        )
        return np.column_stack([np.eye(3), -offset])

    def _own_notes(self) -> list[str]:
        notes = [] if self.pictures is None else self.pictures.notes
        if self.missing:
            total = len(self.missing) + len(self.frames)
            notes.append(
                f"{len(self.missing)} of {total} images of {self.file.name} have no file and are "
                f"left out: {abbreviate(self.missing)}"
            )
        notes += resized_note(self.resized)
        scaled = [s for s in self.scales if abs(s - 1) > 1e-3]
        if scaled:
            notes.append(
                f"{len(scaled)} poses carry a scale (the first {scaled[0]:.4g}); it is divided "
                "out of the rotation, positions are kept"
            )
        if self.most_skew > LEAST_SKEW:
            notes.append(
                f"skew is not used: it moves pixels by up to {self.most_skew:.2g} at the edge"
            )
        return notes


def stated_size(
    data: Mapping[str, Any], keys: tuple[str, str], where: str
) -> tuple[int, int] | None:
    """Read width and height under these keys; None unless both are stated."""
    values = [data.get(key) for key in keys]
    if None in values:
        return None
    width, height = (number(v, f"{where}: {k}") for k, v in zip(keys, values, strict=True))
    return possible_size(width, height, where)


def possible_size(width: float, height: float, where: str) -> tuple[int, int]:
    """Round a size to whole pixels; NerfError if no image has it."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise NerfError(f"{where}: width {width:g} and height {height:g} cannot be a size.")
    return round(width), round(height)


def list_images(root: Path, folders: Sequence[str], wanted: SceneConfig) -> list[Path]:
    """List the images of the first of these folders that has any, or of the one that is given.

    Raises:
        NerfError: there is none.
    """
    places = [root / name for name in folders] if wanted.images is None else [Path(wanted.images)]
    found = (image_files(place) for place in places if place.is_dir())
    images = next(filter(None, found), None)
    if images is None:
        looked = ", ".join(relative_name(place, root) for place in places)
        raise NoFrames(
            f"{root} has no images. Looked in: {looked}. --images DIR says where they are."
        )
    return images


def find_images(root: Path, names: Iterable[str], wanted: SceneConfig) -> Pictures:
    """Find images by name in the usual folders, or in any other folder of photos in the scene."""
    names = list(names)
    usual = image_folders(root)
    others = sorted(f for f in root.iterdir() if f.is_dir() and not is_hidden(f.name))
    others = [f for f in others if f not in usual and not NO_PHOTOS.search(f.name)]
    pictures = Pictures(root, usual, others[:MOST_FOLDERS], given=wanted.images)
    pictures.prefer_exact(names)
    pictures.find_all(names)
    return pictures

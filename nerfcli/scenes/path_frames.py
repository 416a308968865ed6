"""The frames that the poses of path files are in, and how the scene's own frame follows from them.

nerfstudio keeps a path in its model space, x_model = scale * transform x_original, where original
is the frame before `applied_transform`; instant-ngp in that of its unit cube.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.ngp_box import NGP_OFFSET, NGP_SCALE, parse_box
from nerfcli.scenes.readers.transforms import parse_applied
from nerfcli.scenes.scene import Scene, Similarity
from nerfcli.scenes.source import check_pose, number, read_object

DATAPARSER = "dataparser_transforms.json"
TRANSFORMS = "transforms.json"
HOW = "--path-transform FILE names it"
CYCLE = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))  # instant-ngp: x, y, z from y, z, x


@dataclass(frozen=True)
class KnownFrames:
    """What is known of the frame of a scene's source.

    Attributes:
        applied_transform: [3, 4] and applied_scale: as the source states them; None: it does not.
        folder: of the source, if it is still there.
        given: the file that --path-transform names.
    """

    applied_transform: np.ndarray | None = None
    applied_scale: float = 1.0
    folder: Path | None = None
    given: Path | None = None

    @property
    def source_from_original(self) -> Similarity:
        """From the frame before `applied_transform` to the source's."""
        return _applied(self.applied_transform, self.applied_scale, "scene.json")

    def find(self, path: Path, *names: str) -> Path | None:
        """Look for a file that states frames: as given, beside the path, or in the source."""
        if self.given is not None:
            return self.given
        places = [path.parent, path.parent.parent]  # <data>/camera_paths/x.json
        places += [] if self.folder is None else [self.folder]
        files = (place / name for name in names for place in places)
        return next((file for file in files if file.is_file()), None)


def known_frames(
    scene_json: Mapping[str, Any], scene: Scene, folder: Path | None, given: Path | None
) -> KnownFrames:
    """Collect what a run knows of its source's frame; runs of before did not record it.

    Args:
        folder: the source, or a file of it, if it is still there. given: by --path-transform.
    """
    applied, scale = scene.applied_transform, scene.applied_scale
    if folder is not None and folder.is_file():
        folder = folder.parent
    if "applied_scale" not in scene_json and folder is not None:
        file = folder / TRANSFORMS
        if file.is_file():
            data = read_object(file)
            applied, scale = parse_applied(data, file), _applied_scale(data, file)
    return KnownFrames(applied, scale, folder, given)


def nerfstudio_frame(path: Path, known: KnownFrames) -> tuple[Similarity, str]:
    """Find source_from_model for a nerfstudio path, and a remark about it.

    Raises:
        NerfError: the file that states it is broken.
    """
    file = known.find(path, DATAPARSER, TRANSFORMS)
    if file is None:
        return Similarity(), (
            f"{path.name} is taken to be in the scene's own frame: no {DATAPARSER} is beside it or "
            f"in the source; {HOW}"
        )
    data = read_object(file)
    if "transform" in data:
        moved = _similarity(*check_pose(data["transform"], str(file), "transform"))
        scale = number(data.get("scale", 1.0), f"{file}: scale") / known.applied_scale
        if scale <= 0:
            raise NerfError(f"{file}: scale must be positive, got {scale:g}.")
        applied = _applied(known.applied_transform, 1.0, "scene.json")
        # the poses of the source were turned, moved, and then scaled; the file has that after
        # applied_transform
        turned = compose(moved, applied.inverse())
        return compose(Similarity(scale), turned).inverse(), f"frame of {path.name} by {file}"
    moved = _stated_transform(data, file)
    if moved is None:
        if known.given is not None:
            raise NerfError(
                f"{file} states no frame: neither transform and scale, as {DATAPARSER} does, nor "
                "applied_transform. Name a file that does."
            )
        return Similarity(), (
            f"{path.name} is taken to be in the scene's own frame: no {DATAPARSER} is beside it or "
            f"in the source; {HOW}"
        )
    return compose(known.source_from_original, moved.inverse()), (
        f"{path.name} is taken to be in the frame of {file}: no {DATAPARSER} was found; {HOW}"
    )


def transforms_frame(data: Mapping[str, Any], path: Path, known: KnownFrames) -> Similarity:
    """Find source_from_file for a transforms file; its own frame where it states none."""
    moved = _stated_transform(data, path)
    if moved is None:
        return Similarity()
    return compose(known.source_from_original, moved.inverse())


def ngp_frame(path: Path, known: KnownFrames) -> tuple[Similarity, str]:
    """Find source_from_ngp for an instant-ngp path, and a remark about it."""
    file = known.find(path, TRANSFORMS)
    scale, offset, source = NGP_SCALE, NGP_OFFSET, "instant-ngp's defaults"
    if file is not None:
        box, words = parse_box(read_object(file), str(file))
        if box is not None and words:
            scale = 0.5 / box.half_size
            offset = tuple(0.5 - scale * c for c in box.center)
            source = str(file)
    to_cube = Similarity(scale, translation=offset)
    shown = ", ".join(f"{value:g}" for value in offset)
    note = f"frame of {path.name}: scale {scale:g}, offset {shown} ({source})"
    note += "" if file is not None else f"; with others, a {TRANSFORMS} states them: {HOW}"
    return compose(Similarity(rotation=CYCLE), to_cube).inverse(), note


def compose(first: Similarity, then: Similarity) -> Similarity:
    """Return x -> first(then(x))."""
    rotation = np.array(first.rotation) @ np.array(then.rotation)
    moved = first.apply(torch.tensor(then.translation, dtype=torch.float64))
    rows = tuple(tuple(row) for row in rotation.tolist())
    return Similarity(first.scale * then.scale, rows, tuple(moved.tolist()))


def move_cameras(cameras: Cameras, similarity: Similarity) -> Cameras:
    """Move cameras to another frame; the distance of two eyes scales with it."""
    lenses = tuple(
        Lens(lens.model, (lens.eye_distance * similarity.scale,)) if lens.is_stereo else lens
        for lens in cameras.lenses
    )
    c2w = similarity.apply_c2w(cameras.c2w)
    return Cameras(c2w, cameras.focal, cameras.principal, cameras.size, lenses)


def _stated_transform(data: Mapping[str, Any], path: Path) -> Similarity | None:
    matrix = parse_applied(data, path)
    scale = _applied_scale(data, path)
    if matrix is None and scale == 1.0:
        return None
    return _applied(matrix, scale, f"{path}")


def _applied_scale(data: Mapping[str, Any], path: Path) -> float:
    return number(data.get("applied_scale") or 1.0, f"{path}: applied_scale")


def _applied(matrix: np.ndarray | None, scale: float, where: str) -> Similarity:
    """x -> scale * matrix x."""
    if scale <= 0:
        raise NerfError(f"{where}: applied_scale must be positive, got {scale:g}.")
    moved = (
        Similarity()
        if matrix is None
        else _similarity(*check_pose(matrix, where, "applied_transform"))
    )
    return compose(Similarity(scale), moved)


def _similarity(matrix: np.ndarray, scale: float) -> Similarity:
    rows = tuple(tuple(row) for row in matrix[:, :3].tolist())
    return Similarity(scale, rows, tuple(matrix[:, 3].tolist()))

"""Read the Blender layout of NeRF's synthetic scenes: transforms_{train,val,test}.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerfcli.cameras.boxes import Box
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.ngp_box import parse_box
from nerfcli.scenes.readers.transforms import TransformsFiles, read_frames, read_table
from nerfcli.scenes.source import NoFrames, Source, abbreviate

SPLITS = ("train", "val", "test")
HALF_SIZE = 1.5  # nerfstudio's box for these scenes
USUAL_DISTANCE = (3.0, 5.0)  # of the cameras from the origin, for which that box is about right
NEAR, FAR = 2.0, 6.0  # of the published scenes, whose cameras all have this distance:
PUBLISHED_DISTANCE, DISTANCE_SLACK = 4.03, 0.1


def blender_files(root: Path) -> dict[str, Path]:
    """Find the split files of a folder."""
    paths = {split: root / f"transforms_{split}.json" for split in SPLITS}
    return {split: path for split, path in paths.items() if path.is_file()}


def read_blender(root: Path, only: Path | None = None, wanted: SceneConfig | None = None) -> Source:
    """Read a folder in the Blender layout.

    Args:
        only: one of its files, whose frames are then split by the hold-out rule.

    Raises:
        NerfError: a fault in the files; names file, frame and key.
    """
    files = blender_files(root) if only is None else {None: only}
    frames, notes, masked_where = [], [], "nonzero"
    beside = [path.name for path in blender_files(root).values() if path != only]
    if only is not None and beside:
        notes.append(f"only {only.name} is read, not {abbreviate(beside)}; name the folder for all")
    box, box_source = None, ""
    pictures = TransformsFiles(root, wanted)
    without: list[NoFrames] = []
    for split, path in files.items():
        try:
            data, more = read_table(path)
        except NoFrames as error:  # a scene of several files is meant to be read
            raise (NerfError if len(files) > 1 else NoFrames)(str(error)) from error
        notes += more
        # a single file, or files without one for training, leave the choice to the hold-out rule
        stated = split if "train" in files else None
        try:
            read, more, _ = read_frames(path, data, pictures, stated)
        except NoFrames as error:
            if split in (None, "train"):
                raise
            if len(files) > 1 and not isinstance(data.get("frames"), list):
                raise NerfError(str(error)) from error
            without.append(error)
            n = len(data.get("frames", ()))
            what = f"names {n} images that do not exist: its cameras are" if n else "is empty, and"
            notes.append(f"{path.name} {what} left out")
            continue
        frames += read
        notes += more
        if any(frame.get("mask_path") for frame in data["frames"]):
            masked_where = "black"
        if box is None:
            box, box_source = parse_box(data, str(path))
    if not frames:
        raise without[0]
    tests = {frame.image for frame in frames if frame.split == "test"}
    frames = [frame for frame in frames if frame.split != "val" or frame.image not in tests]
    notes += pictures.notes
    bounds, keep_frame = None, False
    distances = np.array([np.linalg.norm(frame.c2w[:, 3]) for frame in frames])
    distance = float(np.median(distances))
    if box is None and USUAL_DISTANCE[0] <= distance <= USUAL_DISTANCE[1]:
        box, box_source = Box((0.0, 0.0, 0.0), HALF_SIZE), "as in the published Blender scenes"
        keep_frame = True
        if np.abs(distances - PUBLISHED_DISTANCE).max() < DISTANCE_SLACK:
            bounds = (NEAR, FAR)
    elif box is None:
        notes.append(
            f"the cameras are {distance:.3g} units from the origin instead of about 4, so box, "
            "near and far come from the cameras"
        )
    return Source(
        name=root.resolve().name,
        root=root,
        kind="blender",
        frames=tuple(frames),
        box=box,
        box_source=box_source,
        bounds=bounds,
        keep_frame=keep_frame,
        masked_where=masked_where,
        notes=tuple(notes),
    )

"""Write a corrected copy of a scene whose fault has a known cure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nerfcli.check.pose_conventions import FLIP
from nerfcli.check.scene_check import SceneCheck
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Update, ignore_update
from nerfcli.scenes.source import Frame, Source, abbreviate
from nerfcli.scenes.writers.convert import WriteOptions, write_scene


class NothingToCorrect(NerfError):
    """No fault with a known cure was found."""


def list_changes(check: SceneCheck) -> tuple[str, ...]:
    """List what `write_corrected` would change; nothing where no fault has a known cure."""
    changes = [check.hypothesis.description] if check.hypothesis.fault else []
    pose_of = dict(check.swapped)
    if pose_of:
        changes.append(f"{len(pose_of)} exchanged images have their own poses again")
    if dropped := [i for i in check.outliers if i not in pose_of]:
        changes.append(f"left out: {abbreviate([check.source.frames[i].name for i in dropped])}")
    return tuple(changes)


def correct_source(check: SceneCheck) -> tuple[Source, tuple[str, ...]]:
    """Correct what the files state; return the scene and the changes.

    Corrects the convention, focal length, image size and order, gives swapped images their own
    poses back, and drops views whose poses contradict the others.

    Raises:
        NothingToCorrect: no fault with a known cure.
    """
    source, hypothesis = check.source, check.hypothesis
    changes = list_changes(check)
    pose_of = dict(check.swapped)
    dropped = [i for i in check.outliers if i not in pose_of]
    if not changes:
        raise NothingToCorrect(
            f"nothing to correct in {check.report.scene}: no fault with a known cure was found."
        )
    # inverting poses that were read with OpenGL axes leaves their flip in front of the world
    is_flipped = hypothesis.convention.base == "inverted" and source.kind != "colmap"
    size = hypothesis.size_factor
    factor = hypothesis.focal_factor * size
    frames: list[Frame] = []
    for i, frame in enumerate(source.frames):
        if i in dropped:
            continue
        c2w = check.cameras.c2w[pose_of.get(i, i)].numpy()
        c2w = FLIP.numpy() @ c2w if is_flipped else c2w
        focal = (frame.focal[0] * factor, frame.focal[1] * factor)
        principal = (frame.principal[0] * size, frame.principal[1] * size)
        frames.append(replace(frame, c2w=c2w, focal=focal, principal=principal))
    # points that were triangulated with wrong poses are wrong as well
    points = None if hypothesis.fault else source.points
    return replace(source, frames=tuple(frames), points=points), changes


def write_corrected(
    check: SceneCheck, folder: Path, update: Update = ignore_update
) -> tuple[str, ...]:
    """Write the corrected scene as transforms.json with its images; return the changes.

    Raises:
        NerfError: nothing to correct, or the folder cannot be written.
    """
    source, changes = correct_source(check)
    write_scene(source, folder, WriteOptions("transforms"), update)
    return changes

"""A corrected copy of a scene whose fault has a known cure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nerfcli.check.pose_conventions import FLIP
from nerfcli.check.scene_check import Checked
from nerfcli.core.errors import NerfError
from nerfcli.scenes.source import Frame, Source, abbreviate
from nerfcli.scenes.writers.convert import WriteOptions, write_scene


class NothingToCorrect(NerfError):
    """No fault with a known cure was found."""


def corrected(checked: Checked) -> tuple[Source, tuple[str, ...]]:
    """The scene as it should have been stated, and what was changed.

    Convention, focal length, image size and order are put right, exchanged images change back,
    and views whose poses contradict the others are left out.

    Raises:
        NothingToCorrect: no fault with a known cure.
    """
    source, guess = checked.source, checked.hypothesis
    done = [guess.words] if guess.what else []
    pose_of = dict(checked.exchanged)
    lost = [i for i in checked.strays if i not in pose_of]
    if pose_of:
        done.append(f"{len(pose_of)} exchanged images have their own poses again")
    if lost:
        done.append(f"left out: {abbreviate([source.frames[i].name for i in lost])}")
    if not done:
        raise NothingToCorrect(
            f"nothing to correct in {checked.report.scene}: no fault with a known cure was found."
        )
    # inverting poses that were read with OpenGL axes leaves their flip in front of the world
    turned = guess.alternative.base == "inverted" and source.kind != "colmap"
    frames: list[Frame] = []
    for i, frame in enumerate(source.frames):
        if i in lost:
            continue
        c2w = checked.cameras.c2w[pose_of.get(i, i)].numpy()
        c2w = FLIP.numpy() @ c2w if turned else c2w
        factor = guess.focal * guess.size
        focal = (frame.focal[0] * factor, frame.focal[1] * factor)
        principal = (frame.principal[0] * guess.size, frame.principal[1] * guess.size)
        frames.append(replace(frame, c2w=c2w, focal=focal, principal=principal))
    # points and a box found with wrong poses would be wrong as well
    moved = bool(guess.what)
    points = None if moved else source.points
    return replace(source, frames=tuple(frames), points=points), tuple(done)


def write_corrected(checked: Checked, folder: Path, done: Callable[[int], None]) -> tuple[str, ...]:
    """Write the corrected scene as transforms.json with its images; returns what was changed.

    Raises:
        NerfError: nothing to correct, or the folder cannot be written.
    """
    source, changes = corrected(checked)
    write_scene(source, folder, WriteOptions("transforms"), done)
    return changes

"""Say which views each split names: programs elsewhere ask for all three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nerfcli.core.config import SceneConfig
from nerfcli.scenes.scene import holdout_split
from nerfcli.scenes.source import Frame


def split_lists(frames: Sequence[Frame]) -> dict[str, list[int]]:
    """List the frames of train, val and test; empty where the source holds out none, or all.

    nerfstudio and nerf-pytorch open all three. Where the source has no views for one of val and
    test, those of the other serve as both.
    """
    named = {
        split: [i for i, frame in enumerate(frames) if (frame.split or "train") == split]
        for split in ("train", "val", "test")
    }
    held_out = named["val"] or named["test"]
    if not held_out or not named["train"]:  # no reader knows what to do without training views
        return {}
    return {
        "train": named["train"],
        "val": named["val"] or held_out,
        "test": named["test"] or held_out,
    }


def hold_out(frames: Sequence[Frame]) -> list[Frame]:
    """Give every frame a split, for a format whose splits are files: every n-th is held out.

    Frames of which some, not all, are held out already, and a single one, stay as they are.
    """
    if len(frames) < 2 or split_lists(frames):
        return list(frames)
    test = holdout_split(len(frames), SceneConfig().holdout)["test"]
    return [replace(f, split="test" if i in test else "train") for i, f in enumerate(frames)]

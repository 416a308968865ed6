"""Photos or a video to a scene, by structure from motion."""

from __future__ import annotations

from nerfcli.prepare.options import LENSES, RECORD, WORK, Wish, clear, ensure_same
from nerfcli.prepare.pipeline import prepare_scene
from nerfcli.prepare.sfm import Stopped

__all__ = [
    "LENSES",
    "RECORD",
    "WORK",
    "Stopped",
    "Wish",
    "clear",
    "ensure_same",
    "prepare_scene",
]

"""Photos or a video to a scene, by structure from motion."""

from __future__ import annotations

from nerfcli.prepare.capture import prepare_scene
from nerfcli.prepare.motion import Stopped
from nerfcli.prepare.wish import LENSES, RECORD, WORK, Wish, clear, ensure_same

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

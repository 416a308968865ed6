"""Photos or a video to a scene, by structure from motion."""

from __future__ import annotations

from nerfcli.prepare.capture import LENSES, RECORD, WORK, Wish, prepare_scene
from nerfcli.prepare.motion import Stopped

__all__ = ["LENSES", "RECORD", "WORK", "Stopped", "Wish", "prepare_scene"]

"""Make a scene of photos or a video, by structure from motion."""

from __future__ import annotations

from nerfcli.prepare.options import (
    LENSES,
    RECORD,
    WORK,
    PrepareOptions,
    clear_scene,
    ensure_same_request,
    repeat_command,
)
from nerfcli.prepare.pipeline import prepare_scene
from nerfcli.prepare.sfm import Stopped

__all__ = [
    "LENSES",
    "RECORD",
    "WORK",
    "PrepareOptions",
    "Stopped",
    "clear_scene",
    "ensure_same_request",
    "prepare_scene",
    "repeat_command",
]

"""Check whether a scene is fit to train on: test what its files state against the images."""

from __future__ import annotations

from nerfcli.check.correct import NothingToCorrect, list_changes, write_corrected
from nerfcli.check.picture import draw_check
from nerfcli.check.quick import check_few_views
from nerfcli.check.report import Finding, Report
from nerfcli.check.scene_check import SceneCheck, check_source

__all__ = [
    "Finding",
    "NothingToCorrect",
    "Report",
    "SceneCheck",
    "check_few_views",
    "check_source",
    "draw_check",
    "list_changes",
    "write_corrected",
]

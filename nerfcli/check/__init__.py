"""Is a scene fit to train on? What a person would not see, tested against the images themselves."""

from __future__ import annotations

from nerfcli.check.correct import NothingToCorrect, write_corrected
from nerfcli.check.picture import draw
from nerfcli.check.quick import quick_warnings
from nerfcli.check.report import Finding, Report
from nerfcli.check.scene_check import Checked, check_source

__all__ = [
    "Checked",
    "Finding",
    "NothingToCorrect",
    "Report",
    "check_source",
    "draw",
    "quick_warnings",
    "write_corrected",
]

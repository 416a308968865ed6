"""Findings of a check, as text for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nerfcli.core.text import quantity

LEVELS = ("fault", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that the user should know.

    Attributes:
        level: "fault" (training on this gives a wrong result), "warning" or "note".
        what: a stable key for programs, such as "focal" or "swapped".
        text: for people: what is wrong, where, what to do.
        views: names of the images concerned.
    """

    level: str
    what: str
    text: str
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """Measurements of one view; None where nothing could be measured.

    Attributes:
        matches: number of matches with other views.
        residual: median distance of matches to their epipolar lines, pixels at working size.
        agreeing: share of matches that agree with the poses.
    """

    name: str
    matches: int
    residual: float | None
    agreeing: float | None


@dataclass(frozen=True)
class Report:
    """The results of a check.

    Attributes:
        findings: worst first.
        views: the views whose images were analysed.
        measures: values by name, in the order of the table; the table leaves out names with an
            underscore.
    """

    scene: str
    findings: tuple[Finding, ...]
    views: tuple[View, ...]
    measures: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level == "fault")

    def to_json(self) -> dict[str, Any]:
        return {
            "scene": self.scene,
            "sound": not self.faults,
            "measures": self.measures,
            "findings": [vars(f) | {"views": list(f.views)} for f in self.findings],
            "views": [vars(view) for view in self.views],
        }

    def to_text(self) -> str:
        """Format the table, the worst views and the findings."""
        table = {key: value for key, value in self.measures.items() if "_" not in key}
        width = max((len(key) for key in table), default=0)
        lines = [f"{key:<{width}}  {_format(value)}" for key, value in table.items()]
        worst = self.worst_views()
        if worst:
            lines += ["", "views that fit worst    residual  agreeing  matches"]
            lines += [
                f"  {v.name:<22}{v.residual:>6.2f} px {v.agreeing:>8.0%} {v.matches:>8}"
                for v in worst
            ]
        lines.append("")
        for finding in self.findings:
            lines.append(f"{finding.level.upper():<8} {finding.what}: {finding.text}")
        n = len(self.faults)
        lines.append(f"{quantity(n, 'fault')} found" if n else "no faults found")
        return "\n".join(lines)

    def worst_views(self, n: int = 5) -> list[View]:
        """Return the n views that fit their poses worst, worst first."""
        measured = [view for view in self.views if view.residual is not None]
        return sorted(measured, key=lambda v: (v.agreeing or 0.0, -(v.residual or 0.0)))[:n]


def sort_by_level(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort findings, worst first."""
    return tuple(sorted(findings, key=lambda f: LEVELS.index(f.level)))


def _format(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

"""What a check found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LEVELS = ("fault", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that the user should know.

    Attributes:
        level: "fault" (training on this gives a wrong result), "warning" or "note".
        what: a stable word for programs, such as "focal" or "swapped".
        text: for people: what is wrong, where, what to do.
        views: names of the images concerned.
    """

    level: str
    what: str
    text: str
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """What was measured on one view; None where there was nothing to measure."""

    name: str
    matches: int
    residual: float | None
    agreeing: float | None


@dataclass(frozen=True)
class Report:
    """All that a check found out about a scene.

    Attributes:
        findings: worst first.
        views: per view that was looked at.
        measures: named numbers and words, in the order of the table, which leaves out names
            with an underscore.
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

    def text(self) -> str:
        """The table, the worst views, and what was found."""
        table = {key: value for key, value in self.measures.items() if "_" not in key}
        width = max((len(key) for key in table), default=0)
        lines = [f"{key:<{width}}  {_shown(value)}" for key, value in table.items()]
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
        lines.append("no faults found" if not n else f"{counted(n, 'fault')} found")
        return "\n".join(lines)

    def worst_views(self, n: int = 5) -> list[View]:
        seen = [view for view in self.views if view.residual is not None]
        return sorted(seen, key=lambda v: (v.agreeing or 0.0, -(v.residual or 0.0)))[:n]


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def by_level(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: LEVELS.index(f.level)))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

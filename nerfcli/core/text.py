"""Numbers as people write them."""

from __future__ import annotations


def quantity(n: int, noun: str) -> str:
    """Format a count with its noun: 1 view, 2 views."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def clock(seconds: float) -> str:
    """Format seconds as 0:45, 3:07 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """Format seconds as 45 s, 3:07 or 1:02:03."""
    return f"{seconds:.3g} s" if seconds < 60 else clock(seconds)


def roughly(seconds: float) -> str:
    """Format an estimate: about 4 s, about 8 min, about 1.5 h."""
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"about {seconds:.0f} s" if seconds < 10 else f"about {5 * round(seconds / 5)} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"

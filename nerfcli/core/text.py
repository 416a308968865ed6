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


def rough_duration(seconds: float) -> str:
    """Format an estimate as 40 seconds, 8 minutes, 3.5 hours or 2.1 days."""
    for size, noun in ((86400.0, "day"), (3600.0, "hour")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {noun}s"
    return quantity(round(seconds / 60), "minute") if seconds >= 90 else f"{seconds:.0f} seconds"


def roughly(seconds: float) -> str:
    """Format an estimate as a clause: about 40 seconds."""
    return "less than a second" if seconds < 1 else f"about {rough_duration(seconds)}"

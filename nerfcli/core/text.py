"""Numbers, commands and names as people write them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

NEAR = 0.75  # likeness of a name that is suggested, as difflib measures it


def quantity(n: float, noun: str) -> str:
    """Format a count with its noun: 1 view, 2 views, 2.5 minutes."""
    count = f"{n:g}" if isinstance(n, float) else n
    return f"{count} {noun}" if n == 1 else f"{count} {noun}s"


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
            count = seconds / size
            return f"{count:.2g} {noun}s" if count < 10 else f"{count:.0f} {noun}s"
    if seconds >= 90:
        return quantity(round(seconds / 60), "minute")
    return quantity(round(seconds), "second")


def roughly(seconds: float) -> str:
    """Format an estimate as a clause: about 40 seconds."""
    return "less than a second" if seconds < 1 else f"about {rough_duration(seconds)}"


def number(value: float) -> str:
    """Format a number by three digits, and never by a power of ten: 0.25, 12.3, 1,230."""
    return f"{value:.3g}" if value < 999.5 else f"{float(f'{value:.3g}'):,.0f}"


def command(*words: object) -> str:
    """Write a command as a shell takes it.

    Args:
        words: paths, which are quoted where they need it, and text that stands as it is.
    """
    return " ".join(word if isinstance(word, str) else _quoted(word) for word in words)


def _quoted(word: object) -> str:
    text = str(word)  # a name like -x would be read as a flag
    return shlex.quote(f"./{text}" if isinstance(word, Path) and text.startswith("-") else text)


def most_like(word: str, known: Iterable[str], likeness: float = NEAR) -> str | None:
    """Return the known name that is most like a word; None where none is like it."""
    close = get_close_matches(word, known, n=1, cutoff=likeness)
    return close[0] if close else None


def choose_from(word: str, known: Iterable[str]) -> str:
    """A clause that lists the known names, after the one that a word most likely means."""
    names = list(known)
    near = most_like(word.lower(), names, 0.6)
    return (f"did you mean {near}? Known: " if near else "known: ") + ", ".join(names)

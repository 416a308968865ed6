"""How much memory there is for images."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SHARE = (
    0.5  # of the available memory; the rest is for the field, its optimiser and the system
)
CGROUPS = (  # limit and use of a container, in both versions of the interface
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def image_budget() -> int:
    """Bytes that images may take in memory: a share of what is available now."""
    return int(IMAGE_SHARE * available_memory())


def available_memory() -> int:
    """Bytes that can be had without swapping, container limits included."""
    free = _meminfo() or _installed()
    for limit, used in CGROUPS:
        bounds = _number(limit), _number(used)
        if bounds[0] is not None and bounds[1] is not None:
            free = min(free, max(bounds[0] - bounds[1], 0))
    return free


def _meminfo() -> int:
    """Linux's own estimate; 0 elsewhere."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _installed() -> int:
    """Physical memory; where not even that is known, 4 GB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None

"""How much memory there is for images."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SHARE = (
    0.5  # of the available memory; the rest is for the field, its optimiser and the system
)
CGROUPS = (  # limit and use of a container and its details, in both versions of the interface
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
# pages of files that were read: the use counts them, the kernel gives them back on demand
CACHED = ("active_file", "inactive_file"), ("total_active_file", "total_inactive_file")


def image_budget() -> int:
    """Bytes that images may take in memory: a share of what is available now."""
    return int(IMAGE_SHARE * available_memory())


def available_memory() -> int:
    """Bytes that can be had without swapping, container limits included."""
    free = _meminfo() or _installed()
    for (limit, used, details), names in zip(CGROUPS, CACHED, strict=True):
        bounds = _number(limit), _number(used)
        if bounds[0] is not None and bounds[1] is not None:
            held = max(bounds[1] - _cached(details, names), 0)
            free = min(free, max(bounds[0] - held, 0))
    return free


def _cached(path: str, names: tuple[str, ...]) -> int:
    """The sum of some lines of a memory.stat; 0 where there is none."""
    try:
        rows = dict(line.split() for line in Path(path).read_text().splitlines())
        return sum(int(rows.get(name, 0)) for name in names)
    except (OSError, ValueError):
        return 0


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

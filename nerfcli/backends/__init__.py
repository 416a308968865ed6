"""Backends: which exist, which can run here, and which one is taken."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from nerfcli.backends import selfcheck_cache as verdicts
from nerfcli.backends.ops import Ops
from nerfcli.core.errors import BackendUnavailable, NerfError

# fastest first; a module ops_<name> offers unavailable(device) and load()
ORDER = {"cuda": ("triton", "tcnn", "torch"), "cpu": ("cpu", "torch")}


@dataclass(frozen=True)
class Choice:
    """The backend taken, and a line that says so and why not a faster one."""

    ops: Ops
    line: str


def names() -> tuple[str, ...]:
    return tuple(sorted({name for order in ORDER.values() for name in order}))


def unavailable(name: str, device: str) -> str | None:
    """Why backend `name` cannot run on `device` ("cpu" or "cuda"), in words; None if it can."""
    if name not in names():
        raise NerfError(f"unknown backend {name!r}; known: {', '.join(names())}.")
    if name not in ORDER[device]:
        places = [place for place, order in ORDER.items() if name in order]
        return f"it runs on {' and '.join(places)} only"
    return importlib.import_module(f"nerfcli.backends.ops_{name}").unavailable(device)


def select(name: str, device: str, note: Callable[[str], None] | None = None) -> Choice:
    """`auto` takes the fastest usable backend; an explicit name never falls back.

    Args:
        device: "cpu" or "cuda".
        note: told when a backend is checked because it has not been used here before.

    Raises:
        BackendUnavailable: the named backend cannot run here.
    """
    if name != "auto":
        if reason := unavailable(name, device):
            raise BackendUnavailable(f"backend {name!r} cannot run on {device}: {reason}.")
        return Choice(_load(name), f"backend {name} on {device}, as asked")
    passed_over = []
    for candidate in ORDER[device]:
        reason = unavailable(candidate, device)
        if reason is None and device == "cuda" and candidate != "torch":
            # drivers, compilers and GPUs are many: not trusted before the first look
            reason = verdicts.verdict(candidate, device, note)
        if reason is None:
            why = "".join(f"; not {n}: {r}" for n, r in passed_over)
            return Choice(_load(candidate), f"backend {candidate} on {device}{why}")
        passed_over.append((candidate, reason))
    raise NerfError(f"no backend can run on {device}.")


def _load(name: str) -> Ops:
    return importlib.import_module(f"nerfcli.backends.ops_{name}").load()

"""Backends: which exist, which can run here, and which one is taken."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from nerfcli.backends import selfcheck_cache
from nerfcli.backends.base import Backend
from nerfcli.core.devices import KNOWN
from nerfcli.core.errors import BackendUnavailable, NerfError
from nerfcli.core.progress import Note
from nerfcli.core.text import choose_from

# fastest first
ORDER = {"cuda": ("triton", "tcnn", "torch"), "cpu": ("cpu", "torch")}
CLASSES = {  # imported at first use
    "torch": ("nerfcli.backends.base", "Backend"),
    "cpu": ("nerfcli.backends.cpu.backend", "CpuBackend"),
    "triton": ("nerfcli.backends.triton.backend", "TritonBackend"),
    "tcnn": ("nerfcli.backends.tcnn", "TcnnBackend"),
}


@dataclass(frozen=True)
class Choice:
    """The backend taken, and a line that says so and why not a faster one."""

    backend: Backend
    line: str


def names() -> tuple[str, ...]:
    return tuple(sorted({name for order in ORDER.values() for name in order}))


def backend_class(name: str) -> type[Backend]:
    """The class of a backend by name."""
    module, attribute = CLASSES[name]
    return getattr(importlib.import_module(module), attribute)


def why_unavailable(name: str, device: str) -> str | None:
    """The reason why backend `name` cannot run on `device` ("cpu" or "cuda"), or None."""
    if name not in names():
        hint = f" It is a device: --device {name}." if KNOWN.fullmatch(name) else ""
        raise NerfError(f"unknown backend {name!r}; {choose_from(name, names())}.{hint}")
    if name not in ORDER[device]:
        places = [place for place, order in ORDER.items() if name in order]
        return f"it runs on {' and '.join(places)} only"
    return backend_class(name).why_unavailable(device)


def ensure_available(name: str, device: str) -> None:
    """Raise BackendUnavailable where backend `name` cannot run on `device` ("cpu" or "cuda")."""
    if reason := why_unavailable(name, device):
        raise BackendUnavailable(f"backend {name!r} cannot run on {device}: {reason}.")


def select(name: str, device: str, note: Note | None = None) -> Choice:
    """Take the fastest usable backend for `auto`; an explicit name never falls back.

    Args:
        device: "cpu" or "cuda".
        note: called when a backend is checked because it has not been used here before.

    Raises:
        BackendUnavailable: the named backend cannot run here.
    """
    if name != "auto":
        ensure_available(name, device)
        return Choice(backend_class(name)(), f"backend {name} on {device}, as asked")
    passed_over = []
    for candidate in ORDER[device]:
        reason = why_unavailable(candidate, device)
        if reason is None and device == "cuda" and candidate != "torch":
            # drivers, compilers and GPUs are many: not trusted before the first look
            reason = selfcheck_cache.verdict(candidate, device, note)
        if reason is None:
            why = "".join(f"; not {n}: {r}" for n, r in passed_over)
            return Choice(backend_class(candidate)(), f"backend {candidate} on {device}{why}")
        passed_over.append((candidate, reason))
    raise NerfError(f"no backend can run on {device}.")

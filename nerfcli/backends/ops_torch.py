"""The reference backend: the mathematics of floor 2, as it stands."""

from __future__ import annotations

from nerfcli.backends.ops import Ops, reference


def unavailable(device: str) -> str | None:
    """torch runs everywhere."""
    return None


def load() -> Ops:
    return reference()

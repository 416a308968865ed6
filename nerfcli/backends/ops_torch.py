"""The reference backend: the mathematics of floor 2, as it stands."""

from __future__ import annotations

from nerfcli.backends.ops import Ops, reference
from nerfcli.core.devices import cuda_missing


def unavailable(device: str) -> str | None:
    """torch runs everywhere, on a GPU with a build that has CUDA."""
    return cuda_missing() if device == "cuda" else None


def load() -> Ops:
    return reference()

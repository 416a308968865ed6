"""A backend on a GPU for callers whose tensors are on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from nerfcli.backends.ops import Ops

RAYS = 2**17  # at once: the CPU has as much to do with them, and memory is not asked for


def hosted(ops: Ops, device: str) -> Ops:
    """`ops` with arguments brought to `device` and results to the CPU.

    What is there already is not copied, so parameters should be. Not for training: nothing that is
    written in place comes back. A call is given RAYS at most.
    """
    reading = ("spherical_harmonics", "hash_grid", "mlp", "density", "radiance", "march")
    reading += ("composite", "render_rays")
    calls = {name: _hosted(getattr(ops, name), device) for name in reading}
    return replace(ops, **calls, rays_per_chunk=min(ops.rays_per_chunk, RAYS))


def _hosted(op: Callable[..., Any], device: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        there = {name: _moved(value, device) for name, value in options.items()}
        return _moved(op(*_moved(args, device), **there), "cpu")

    return call


def _moved(value: Any, device: str) -> Any:
    """The same value with all tensors in it, also those of structs, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        if any(isinstance(part, Tensor) for part in parts.values()):
            return replace(value, **{name: _moved(part, device) for name, part in parts.items()})
    return value

"""A backend on a GPU for callers whose tensors are on the CPU."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.reference.samples import Pixels, Samples

RAYS = 2**17  # at once: the CPU has as much to do with them, and memory is not asked for


class CpuBridge(Backend):
    """Another backend, with arguments brought to its device and results to the CPU.

    What is there already is not copied, so parameters should be. Not for training: nothing that is
    written in place comes back. `render_rays` is given RAYS at most.
    """

    def __init__(self, inner: Backend, device: str) -> None:
        self.inner, self.device = inner, device
        self.name = inner.name  # pyright: ignore[reportAttributeAccessIssue]
        self.rays_per_chunk = min(inner.rays_per_chunk, RAYS)

    def _call(self, op: str, *args: Any, **options: Any) -> Any:
        there = {name: move(value, self.device) for name, value in options.items()}
        return move(getattr(self.inner, op)(*move(args, self.device), **there), "cpu")

    def spherical_harmonics(self, directions: Tensor) -> Tensor:
        return self._call("spherical_harmonics", directions)

    def hash_grid(self, *args: Any) -> Tensor:
        return self._call("hash_grid", *args)

    def mlp(self, x: Tensor, weights: Tensor, widths: tuple[int, ...]) -> Tensor:
        return self._call("mlp", x, weights, widths)

    def density(self, *args: Any) -> Tensor:
        return self._call("density", *args)

    def radiance(self, *args: Any) -> tuple[Tensor, Tensor]:
        return self._call("radiance", *args)

    def march(self, *args: Any) -> Samples:
        return self._call("march", *args)

    def propose(self, *args: Any) -> Samples:
        return self._call("propose", *args)

    def composite(
        self, sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor
    ) -> Pixels:
        return self._call("composite", sigmas, rgbs, samples, background)

    def render_rays(self, *args: Any, **options: Any) -> Pixels:
        return self._call("render_rays", *args, **options)


def move(value: Any, device: str) -> Any:
    """The same value with all tensors in it, also those of structs, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = (move(part, device) for part in value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        before = {f.name: getattr(value, f.name) for f in fields(value)}
        after = {name: move(part, device) for name, part in before.items()}
        if any(after[name] is not part for name, part in before.items()):
            return replace(value, **after)
    return value

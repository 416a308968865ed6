"""Checks of tensor shapes, with messages for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nerfcli.core.errors import NerfError

if TYPE_CHECKING:
    from torch import Tensor


def ensure_shape(name: str, value: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise NerfError unless `value` has `shape`; None in `shape` stands for any length."""
    fits = value.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, value.shape, strict=True)
    )
    if not fits:
        want = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise NerfError(f"{name} must have shape {want}, got {tuple(value.shape)}.")


def ensure_same_shapes(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Raise NerfError unless a checkpoint's tensors have the names and shapes of `want`."""
    for name, tensor in want.items():
        shape = tuple(got[name].shape) if name in got else None
        if shape != tuple(tensor.shape):
            raise NerfError(
                f"the checkpoint does not fit its config.toml: {name} should have shape "
                f"{tuple(tensor.shape)}, {'is missing' if shape is None else f'has {shape}'}. "
                "Take an intact copy of the run."
            )

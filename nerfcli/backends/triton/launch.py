"""What every launch needs: counts on the device, grid sizes, the precision of the kernels."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def blocks(n: int, block: int) -> int:
    """Programs that cover n rows; one at least, since a grid of none is an error."""
    return max(1, -(-n // block))


def count(n: int, device: torch.device) -> Tensor:
    """n as a tensor [1] on the device, without a copy from the host."""
    return torch.full((1,), n, dtype=torch.int64, device=device)


def scalar(value: float, device: torch.device) -> Tensor:
    """value as a float32 tensor [1] on the device, without a copy from the host."""
    return torch.full((1,), value, device=device)


@functools.cache
def persistent_programs(device: torch.device, resident: int) -> int:
    """Programs of a kernel that walks over all tiles by itself: `resident` a multiprocessor."""
    if device.type != "cuda":
        return 2  # the interpreter runs them one after another
    return resident * torch.cuda.get_device_properties(device).multi_processor_count


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that holds n; tensor cores want 16 at least."""
    return max(least, 1 << (n - 1).bit_length())


def unit_scale(grads: Tensor) -> Tensor:
    """Largest magnitude of `grads`, to divide by before they are rounded to half precision.

    A scalar on the device; 1 where all are zero.
    """
    if not grads.numel():
        return grads.new_ones(())
    largest = grads.abs().amax()
    return torch.where(largest > 0, largest, torch.ones_like(largest))

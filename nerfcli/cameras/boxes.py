"""The region a field lives in: nested cubes around one centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """Nested cubes around one centre, the cascades: each is twice as wide as the one before.

    Cascade 0 is the detail cube, cascade c the cube of half size half_size * 2**c. The field
    lives in the largest one.
    """

    center: tuple[float, float, float]
    half_size: float
    n_cascades: int = 1

    @property
    def outer_half_size(self) -> float:
        return self.half_size * 2 ** (self.n_cascades - 1)

    @property
    def side(self) -> float:
        """Side length of the outer cube, the unit of the hash grid's positions."""
        return 2 * self.outer_half_size

    def center_like(self, values: Tensor) -> Tensor:
        """The centre, [3], where `values` are; copied there once, since a copy waits for a GPU."""
        return _center(self.center, values.device, values.dtype)

    def to_unit(self, positions: Tensor) -> Tensor:
        """Scene positions [..., 3] -> [0, 1]**3 over the outer cube, clamped."""
        low = self.center_like(positions) - self.outer_half_size
        return ((positions - low) / self.side).clamp(0.0, 1.0)

    def from_unit(self, unit: Tensor) -> Tensor:
        low = self.center_like(unit) - self.outer_half_size
        return unit * self.side + low


@lru_cache(maxsize=64)
def _center(center: tuple[float, float, float], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(center, device=device, dtype=dtype)

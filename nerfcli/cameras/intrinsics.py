"""A camera without its pose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerfcli.cameras.lenses import Lens


@dataclass(frozen=True)
class Intrinsics:
    """In pixels of an image of width x height."""

    size: tuple[int, int]
    focal: tuple[float, float]
    principal: tuple[float, float]
    lens: Lens

    def project(self, points: Tensor) -> Tensor:
        """Where points of the camera frame are seen, nan if nowhere. [..., 3] -> [..., 2]."""
        return self.lens.project(points) * _row(self.focal) + _row(self.principal)

    def directions(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `project`. [..., 2] -> unit vectors [..., 3], valid [...] bool."""
        return self.lens.directions((pixels - _row(self.principal)) / _row(self.focal))


def pixel_grid(size: tuple[int, int], n: int) -> Tensor:
    """Spread up to n x n points from the first to the last pixel centre, [m, 2]."""
    sides = (torch.linspace(0.5, s - 0.5, min(n, s), dtype=torch.float64) for s in size)
    return torch.cartesian_prod(*sides)


def _row(pair: tuple[float, float]) -> Tensor:
    return torch.tensor(pair, dtype=torch.float64)

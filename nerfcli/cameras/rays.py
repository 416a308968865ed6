"""Rays in scene space: one origin and one direction of unit length each, so t is a distance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rays:
    """Rays in scene space.

    Attributes:
        origins: [n_rays, 3] float32.
        directions: [n_rays, 3] float32, unit length.
        z_scale: [n_rays] float32 or None; cosine between the ray and its camera's optical axis,
            so that z_depth = t * z_scale.
    """

    origins: Tensor
    directions: Tensor
    z_scale: Tensor | None = None

    def __len__(self) -> int:
        return self.origins.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Rays:
        z_scale = None if self.z_scale is None else self.z_scale[index]
        return Rays(self.origins[index], self.directions[index], z_scale)

    def at(self, t: Tensor) -> Tensor:
        """Positions at distance t. t [n_rays, n] -> [n_rays, n, 3]."""
        return self.origins[:, None] + t[..., None] * self.directions[:, None]

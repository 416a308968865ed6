"""Rays in scene space: one origin and one direction of unit length each, so t is a distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Rays:
    """Rays in scene space.

    Attributes:
        origins: [n_rays, 3] float32.
        directions: [n_rays, 3] float32, unit length.
        z_scale: [n_rays] float32 or None; cosine between the ray and its camera's optical axis,
            so that z_depth = t * z_scale.
        cameras: [n_rays] int32 or None; index of the ray's camera in the scene.
        radii: [n_rays] float32 or None; radius of the pixel's cone per unit of distance. Where it
            is there, hash-grid fields leave out what the cone is too wide for.
    """

    origins: Tensor
    directions: Tensor
    z_scale: Tensor | None = None
    cameras: Tensor | None = None
    radii: Tensor | None = None

    def __len__(self) -> int:
        return self.origins.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Rays:
        z_scale = None if self.z_scale is None else self.z_scale[index]
        cameras = None if self.cameras is None else self.cameras[index]
        radii = None if self.radii is None else self.radii[index]
        return Rays(self.origins[index], self.directions[index], z_scale, cameras, radii)

    def at(self, t: Tensor) -> Tensor:
        """Positions at distance t. t [n_rays, n] -> [n_rays, n, 3]."""
        return self.origins[:, None] + t[..., None] * self.directions[:, None]


class Bounds(NamedTuple):
    """Distances between which rays are sampled, each [n_rays]; t_max <= t_min: not at all."""

    t_min: Tensor
    t_max: Tensor


class ColorMap(NamedTuple):
    """How a ray's photo shows a colour c: gain * c + offset, each [n_rays, 3]."""

    gain: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Batch:
    """Rays of a training step and what they should show.

    Attributes:
        rays: n_rays rays.
        rgb: [n_rays, 3], composited over `background`.
        background: [n_rays, 3].
        depth: [n_rays] distance along the ray in scene units, 0 where it is not known; or None.
        weight: [n_rays], of the ray in every loss term; None: 1.
        color: applied to what is rendered before it is compared with rgb; None: the identity.
    """

    rays: Rays
    rgb: Tensor
    background: Tensor
    depth: Tensor | None = None
    weight: Tensor | None = None
    color: ColorMap | None = None

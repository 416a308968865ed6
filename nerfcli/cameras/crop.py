"""The box that a render or an export is cut to: any size, any rotation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays

LEAST = 1e-12  # of a direction's component: a zero would give 0 * inf for an origin on a face


@dataclass(frozen=True)
class Crop:
    """An oriented box: what lies outside counts as empty.

    Attributes:
        center: its middle. rotation: its axes as columns, the matrix row after row.
        half: half of its length along each of its axes.
    """

    center: tuple[float, float, float]
    half: tuple[float, float, float]
    rotation: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def axes(self, like: Tensor) -> Tensor:
        """Its axes as the columns of [3, 3], on the device of `like`."""
        return like.new_tensor(self.rotation).view(3, 3)

    def to_local(self, points: Tensor) -> Tensor:
        """Points [..., 3] in the box's own axes: it reaches from -1 to 1."""
        local = (points - points.new_tensor(self.center)) @ self.axes(points)
        return local / points.new_tensor(self.half)

    def contains(self, points: Tensor) -> Tensor:
        """Whether points [..., 3] lie in the box: bool [...]."""
        return self.to_local(points).abs().amax(-1) <= 1.0

    def nearest(self, points: Tensor) -> Tensor:
        """The places in the box that are nearest to points [..., 3]."""
        local = self.to_local(points).clamp(-1.0, 1.0) * points.new_tensor(self.half)
        return local @ self.axes(points).T + points.new_tensor(self.center)

    def corners(self) -> Tensor:
        """[8, 3] float64."""
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
        return (signs * signs.new_tensor(self.half)) @ self.axes(signs).T + signs.new_tensor(
            self.center
        )

    def cut(self, rays: Rays, bounds: Bounds) -> Bounds:
        """The parts of `bounds` in the box; t_max = t_min where there is none."""
        origins = self.to_local(rays.origins)
        directions = rays.directions @ self.axes(rays.directions)
        directions = directions / directions.new_tensor(self.half)
        tiny = directions.abs() < LEAST
        directions = torch.where(tiny, torch.full_like(directions, LEAST), directions)
        a, b = (-1.0 - origins) / directions, (1.0 - origins) / directions
        t_min = torch.maximum(torch.minimum(a, b).amax(-1), bounds.t_min)
        t_max = torch.minimum(torch.maximum(a, b).amin(-1), bounds.t_max)
        missed = ~(t_max > t_min)
        return Bounds(
            torch.where(missed, bounds.t_min, t_min), torch.where(missed, bounds.t_min, t_max)
        )

    def cube(self) -> Box:
        """The cube about the same centre, along the axes of space, that holds it."""
        center = torch.tensor(self.center, dtype=torch.float64)
        return Box(self.center, float((self.corners() - center).abs().max()))

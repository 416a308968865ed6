"""Spaces: maps from scene space into the unit cube that the hash grid spans.

x: positions in scene space, [..., 3]. u: positions in [0, 1]**3. J = du/dx.

A field's density belongs to scene space: it is sigma per scene unit, whatever the map does to
lengths, so no Jacobian enters it. Rays stay straight lines with unit directions in scene space
under every map, so distances, depths and view directions keep their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.sampling import intersect_box

FARTHEST = 1e-6  # of a contracted distance from the cube's faces, where the inverse still exists


class Space(Protocol):
    """A map from scene space into the unit cube.

    Attributes:
        kind: "box", "contraction" or "perspective".
        unit_length: scene length that the field's raw density is per.
    """

    kind: ClassVar[str]

    @property
    def box(self) -> Box: ...

    @property
    def near(self) -> float: ...

    @property
    def far(self) -> float: ...

    @property
    def unit_length(self) -> float: ...

    def to_unit(self, x: Tensor) -> Tensor:
        """Map x [..., 3] to u [..., 3] in [0, 1]."""
        ...

    def from_unit(self, u: Tensor) -> Tensor:
        """Map u [..., 3] back to x [..., 3]."""
        ...

    def pull_back(self, x: Tensor, d_u: Tensor) -> Tensor:
        """Turn a cotangent of u into one of x: J(x)^T d_u, both [..., 3]."""
        ...

    def stretch(self, x: Tensor) -> Tensor:
        """How much longer a small step becomes at x [..., 3], in the mean: |det J|^(1/3), [...]."""
        ...

    def bounds(self, rays: Rays) -> Bounds:
        """Distances between which each ray is sampled; t_max <= t_min where it misses."""
        ...


@dataclass(frozen=True)
class BoxSpace:
    """The outer cube of `box`, scaled to the unit cube; what lies outside is clamped to it."""

    box: Box
    near: float = 0.0
    far: float = float("inf")
    kind: ClassVar[str] = "box"

    @property
    def unit_length(self) -> float:
        return self.box.side

    def to_unit(self, x: Tensor) -> Tensor:
        return self.box.to_unit(x)

    def from_unit(self, u: Tensor) -> Tensor:
        return self.box.from_unit(u)

    def pull_back(self, x: Tensor, d_u: Tensor) -> Tensor:
        offset = (x - self.box.center_like(x)).abs()
        return torch.where(offset <= self.box.outer_half_size, d_u / self.box.side, 0.0)

    def stretch(self, x: Tensor) -> Tensor:
        return torch.full_like(x[..., 0], 1.0 / self.box.side)

    def bounds(self, rays: Rays) -> Bounds:
        return intersect_box(rays, self.box, self.near, self.far)


@dataclass(frozen=True)
class ContractedSpace:
    """All of space: the detail cube fills the middle half, the rest is drawn in around it.

    With y = (x - center) / half_size and m = max |y_i|, y stays as it is where m <= 1, and becomes
    (2 - 1/m) y / m beyond; u = (y + 2) / 4. mip-NeRF 360 (2022), eq. 10, with the maximum norm,
    as the grid is a cube.
    """

    box: Box
    near: float = 0.0
    far: float = float("inf")
    kind: ClassVar[str] = "contraction"

    @property
    def unit_length(self) -> float:
        return 2 * self.box.half_size

    def to_unit(self, x: Tensor) -> Tensor:
        y = (x - self.box.center_like(x)) / self.box.half_size
        m = y.abs().amax(-1, keepdim=True).clamp(min=1.0)
        return (((2.0 - 1.0 / m) / m * y + 2.0) * 0.25).clamp(0.0, 1.0)

    def from_unit(self, u: Tensor) -> Tensor:
        z = u * 4.0 - 2.0
        m = z.abs().amax(-1, keepdim=True).clamp(1.0, 2.0 - FARTHEST)
        return z / (m * (2.0 - m)) * self.box.half_size + self.box.center_like(u)

    def pull_back(self, x: Tensor, d_u: Tensor) -> Tensor:
        y = (x - self.box.center_like(x)) / self.box.half_size
        size, axis = y.abs().max(-1, keepdim=True)
        m = size.clamp(min=1.0)
        factor = (2.0 - 1.0 / m) / m  # of y; its slope in m is (2 / m - 2) / m^2
        slope = (2.0 / m - 2.0) / m.square() * (d_u * y).sum(-1, keepdim=True)
        sign = torch.where(y.gather(-1, axis) < 0, -1.0, 1.0)
        along = torch.zeros_like(y).scatter(-1, axis, slope * sign)
        return (factor * d_u + along) * (0.25 / self.box.half_size)

    def stretch(self, x: Tensor) -> Tensor:
        # beyond the cube 1 / m^2 along the largest axis, and (2 m - 1) / m^2 along the other two
        y = (x - self.box.center_like(x)) / self.box.half_size
        m = y.abs().amax(-1).clamp(min=1.0)
        return (2.0 * m - 1.0).pow(2 / 3) / m.square() * (0.25 / self.box.half_size)

    def bounds(self, rays: Rays) -> Bounds:
        near = torch.full_like(rays.origins[:, 0], self.near)
        return Bounds(near, torch.full_like(near, self.far))


@dataclass(frozen=True)
class PerspectiveSpace:
    """What a forward-facing capture sees: the cone in front of one mean camera.

    With c = R^T (x - origin) in the mean camera's frame (+z forwards) and z = max(c_z, z_near):
    u = (c_x / (2 tan_x z) + 1/2, c_y / (2 tan_y z) + 1/2, 1 - z_near / z), clamped to [0, 1].
    These are NeRF's normalised device coordinates (2020, appendix C) as a map of positions; rays
    stay in scene space.

    Attributes:
        rotation: R by rows, camera to scene.
        origin: of the mean camera.
        z_near: depth of the nearest content, scene units.
        tan: of half the cone's opening, along x and y.
    """

    box: Box
    rotation: tuple[float, ...]
    origin: tuple[float, float, float]
    z_near: float
    tan: tuple[float, float]
    near: float = 0.0
    far: float = float("inf")
    kind: ClassVar[str] = "perspective"

    @property
    def unit_length(self) -> float:
        return 2 * self.box.half_size

    def to_unit(self, x: Tensor) -> Tensor:
        c, z, tan = self._camera(x)
        across = c[..., :2] / (2.0 * tan * z) + 0.5
        return torch.cat([across, 1.0 - self.z_near / z], dim=-1).clamp(0.0, 1.0)

    def from_unit(self, u: Tensor) -> Tensor:
        _, _, tan = self._camera(u)
        z = self.z_near / (1.0 - u[..., 2:]).clamp(min=FARTHEST)
        c = torch.cat([(u[..., :2] - 0.5) * 2.0 * tan * z, z], dim=-1)
        return c @ self._rotation(u).T + u.new_tensor(self.origin)

    def pull_back(self, x: Tensor, d_u: Tensor) -> Tensor:
        c, z, tan = self._camera(x)
        across = c[..., :2] / (2.0 * tan * z)
        d_across = torch.where(across.abs() <= 0.5, d_u[..., :2], 0.0)  # none where it is clamped
        d_c = d_across / (2.0 * tan * z)
        d_z = (d_u[..., 2:] * self.z_near / z - (d_across * across).sum(-1, keepdim=True)) / z
        d_z = torch.where(c[..., 2:] >= self.z_near, d_z, 0.0)
        return torch.cat([d_c, d_z], dim=-1) @ self._rotation(x).T

    def stretch(self, x: Tensor) -> Tensor:
        # 1 / (2 tan z) across, and z_near / z^2 in depth
        z = self._camera(x)[1][..., 0]
        constant = (self.z_near / (4.0 * self.tan[0] * self.tan[1])) ** (1 / 3)
        return constant * z.pow(-4 / 3)

    def bounds(self, rays: Rays) -> Bounds:
        near = torch.full_like(rays.origins[:, 0], self.near)
        return Bounds(near, torch.full_like(near, self.far))

    def _rotation(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.rotation).view(3, 3)

    def _camera(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c [..., 3], z [..., 1] and tan [2]."""
        c = (x - x.new_tensor(self.origin)) @ self._rotation(x)
        return c, c[..., 2:].clamp(min=self.z_near), x.new_tensor(self.tan)

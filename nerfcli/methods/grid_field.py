"""What fields of a hash grid and two small MLPs share (Instant NGP 2022)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.backends.cpu_bridge import CpuBridge
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.core.config import HashGridConfig, UnboundedConfig, known
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods.base import Sampler
from nerfcli.methods.cropped import CroppedGrid
from nerfcli.reference import fused
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, PerspectiveSpace
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import SampleGrid
from nerfcli.reference.mlp import init_mlp
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Pixels

TABLE_INIT = 1e-4  # Instant NGP (2022), section 4: U(-1e-4, 1e-4)
# What lies behind less light than this moves a rendered pixel by a quarter of an 8-bit step at
# most; in the fog of a capture that was trained for minutes it takes an eighth of the samples.
RENDER_MIN_TRANSMITTANCE = 1e-3

S = TypeVar("S", bound=Sampler)


@dataclass
class GridField(ABC, Generic[S]):
    """A hash grid and two MLPs in a space, and the sampler that says where rays look."""

    space: BoxSpace | ContractedSpace | PerspectiveSpace
    net: NetSpec
    params: NetParams
    sampler: S
    ops: Backend
    min_transmittance: float = 1e-4  # a ray ends where less light comes through
    needs_radii: bool = False  # it is trained with the cones of pixels
    crop: Crop | None = None  # nothing is outside of it

    def to(self, device: str) -> Self:
        params = NetParams.of(self.params.named().map(lambda p: p.to(device)))
        return replace(self, params=params, sampler=self.sampler.to(device))

    def for_cpu_callers(self, device: str) -> Self:
        """The parameters stay on `device`; what the sampler knows is on the CPU."""
        bridge = CpuBridge(self.ops, device)
        return replace(self, ops=bridge, sampler=self.sampler.to("cpu").by(bridge))

    @property
    def rays_per_chunk(self) -> int:
        return self.ops.rays_per_chunk

    def between(self, near: float, far: float) -> Self:
        return replace(self, space=replace(self.space, near=near, far=far))

    def within(self, crop: Crop) -> Self:
        return replace(self, crop=crop)

    def ending_at(self, min_transmittance: float) -> Self:
        return replace(self, min_transmittance=min_transmittance)

    def density(self, positions: Tensor) -> Tensor:
        """positions [n, 3] in scene space -> sigmas [n] per scene unit, without gradients."""
        with torch.no_grad():
            return self._kept(positions, self.ops.density(self.network, positions))

    def radiance(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """positions, directions [n, 3] -> sigmas [n] per scene unit, rgbs [n, 3]."""
        inputs = self.ops.spherical_harmonics(directions)
        sigmas, rgbs = self.ops.radiance(self.network, positions, inputs)
        return self._kept(positions, sigmas), rgbs

    def _kept(self, positions: Tensor, sigmas: Tensor) -> Tensor:
        """The densities, 0 outside of the crop."""
        if self.crop is None:
            return sigmas
        return torch.where(self.crop.contains(positions), sigmas, 0.0)

    @property
    def box(self) -> Box:
        return self.space.box

    @property
    def near(self) -> float:
        return self.space.near

    @property
    def far(self) -> float:
        return self.space.far

    @property
    def network(self) -> Network:
        """The field as the ops take it."""
        return Network(self.net, self.params, self.space)

    def bounds(self, rays: Rays) -> Bounds:
        """Distances within box and crop; t_max <= t_min where a ray misses them."""
        bounds = self.space.bounds(rays)
        return bounds if self.crop is None else self.crop.cut(rays, bounds)

    @property
    @abstractmethod
    def whole_grid(self) -> SampleGrid:
        """What its rays are sampled by when they are rendered, without a crop."""

    @property
    def sample_grid(self) -> SampleGrid:
        """What its rays are sampled by when they are rendered."""
        return self.whole_grid if self.crop is None else CroppedGrid(self.whole_grid, self.crop)

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        """Pixels of rays, without gradients. background [3]."""
        bounds = self.bounds(rays)
        jitter = torch.full_like(bounds.t_min, 0.5)
        least = max(self.min_transmittance, RENDER_MIN_TRANSMITTANCE)
        where = (self.network, rays, bounds, jitter, self.sample_grid, background)
        if self.crop is not None:  # the kernels that render at once know only whole grids
            return fused.render_rays(self.ops, *where, min_transmittance=least)
        return self.ops.render_rays(*where, min_transmittance=least)

    def state(self) -> dict[str, Tensor]:
        return self.params.named().state() | self.sampler.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of a checkpoint; the occupied cells follow from the densities.

        Raises:
            NerfError: they are not those of a field of this shape.
        """
        ensure_same_shapes(state, self.state())
        self.params = NetParams.of(state)
        self.sampler.load_state(state)


def init_params(net: NetSpec, generator: torch.Generator) -> NetParams:
    """Fresh parameters: the table almost zero."""
    table = torch.rand(net.grid.n_params, generator=generator)
    return NetParams(
        (table * 2 - 1) * TABLE_INIT,
        init_mlp(net.density_widths, generator),
        init_mlp(net.color_widths, generator),
    )


def net_spec(own: HashGridConfig | UnboundedConfig) -> NetSpec:
    """The networks that a resolved table asks for."""
    grid = GridSpec(
        own.n_levels,
        own.n_features,
        known(own.log2_table_size),
        own.base_resolution,
        known(own.max_resolution),
    )
    return NetSpec(grid, own.width)

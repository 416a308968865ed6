"""The field of method hashgrid: a hash grid and two small MLPs (Instant NGP 2022), in a box."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.backends.cpu_bridge import CpuBridge
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.core.config import Config, known
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods.occupancy import OccupancyGrid, OccupancySampler
from nerfcli.reference.contraction import BoxSpace
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.mlp import init_mlp
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Pixels
from nerfcli.reference.sampling import Steps

TABLE_INIT = 1e-4  # Instant NGP (2022), section 4: U(-1e-4, 1e-4)
# What lies behind less light than this moves a rendered pixel by a quarter of an 8-bit step at
# most; in the fog of a capture that was trained for minutes it takes an eighth of the samples.
RENDER_MIN_TRANSMITTANCE = 1e-3


@dataclass
class HashField:
    """Hash grid + MLPs in a box, with the occupancy grid that rays march through."""

    space: BoxSpace
    net: NetSpec
    params: NetParams
    sampler: OccupancySampler
    ops: Backend
    min_transmittance: float = 1e-4  # a ray ends where less light comes through

    @staticmethod
    def create(
        config: Config, box: Box, near: float, far: float, ops: Backend, generator: torch.Generator
    ) -> HashField:
        net = net_from_config(config)
        table = torch.rand(net.grid.n_params, generator=generator)
        params = NetParams(
            (table * 2 - 1) * TABLE_INIT,
            init_mlp(net.density_widths, generator),
            init_mlp(net.color_widths, generator),
        )
        own = config.hashgrid
        sampler = OccupancySampler(
            OccupancyGrid.create(box, own.occupancy_resolution),
            steps_from_config(config, box),
            ops,
            known(own.occupancy_cells),
            own.occupancy_decay,
            own.occupancy_threshold,
        )
        space = BoxSpace(box, near, far)
        return HashField(space, net, params, sampler, ops, own.min_transmittance)

    def to(self, device: str) -> HashField:
        params = NetParams.of(self.params.named().map(lambda p: p.to(device)))
        sampler = replace(self.sampler, grid=self.sampler.grid.to(device))
        return replace(self, params=params, sampler=sampler)

    def for_cpu_callers(self, device: str) -> HashField:
        """The parameters stay on `device`; the occupancy grid is on the CPU."""
        bridge = CpuBridge(self.ops, device)
        sampler = replace(self.sampler, grid=self.sampler.grid.to("cpu"), ops=bridge)
        return replace(self, ops=bridge, sampler=sampler)

    @property
    def rays_per_chunk(self) -> int:
        return self.ops.rays_per_chunk

    def between(self, near: float, far: float) -> HashField:
        return replace(self, space=replace(self.space, near=near, far=far))

    def ending_at(self, min_transmittance: float) -> HashField:
        return replace(self, min_transmittance=min_transmittance)

    def density(self, positions: Tensor) -> Tensor:
        """positions [n, 3] in scene space -> sigmas [n] per scene unit, without gradients."""
        with torch.no_grad():
            return self.ops.density(self.network, positions)

    def radiance(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """positions, directions [n, 3] -> sigmas [n] per scene unit, rgbs [n, 3]."""
        return self.ops.radiance(self.network, positions, self.ops.spherical_harmonics(directions))

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
    def steps(self) -> Steps:
        return self.sampler.steps

    @property
    def occupancy(self) -> OccupancyGrid:
        return self.sampler.grid

    @property
    def network(self) -> Network:
        """The field as the ops take it."""
        return Network(self.net, self.params, self.space)

    def bounds(self, rays: Rays) -> Bounds:
        """Distances within the box; t_max <= t_min where a ray misses it."""
        return self.space.bounds(rays)

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        """Pixels of rays, without gradients. background [3]."""
        bounds = self.bounds(rays)
        return self.ops.render_rays(
            self.network,
            rays,
            bounds,
            torch.full_like(bounds.t_min, 0.5),
            self.sampler.marching_grid,
            background,
            min_transmittance=max(self.min_transmittance, RENDER_MIN_TRANSMITTANCE),
        )

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


def net_from_config(config: Config) -> NetSpec:
    own = config.hashgrid
    grid = GridSpec(
        own.n_levels,
        own.n_features,
        known(own.log2_table_size),
        own.base_resolution,
        known(own.max_resolution),
    )
    return NetSpec(grid, own.width)


def steps_from_config(config: Config, box: Box) -> Steps:
    """Equal steps in a single cube; growing with distance where there are cascades."""
    diagonal = 2 * box.half_size * 3**0.5
    cone = config.hashgrid.cone if box.n_cascades > 1 else 0.0
    return Steps(diagonal / known(config.hashgrid.steps_per_box), cone)

"""The field of method hashgrid: a hash grid and two small MLPs (Instant NGP 2022), in a box."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.core.config import Config, known
from nerfcli.methods.grid_field import (
    GridField,
    init_params,
    net_spec,
)
from nerfcli.methods.occupancy import OccupancyGrid, OccupancySampler
from nerfcli.reference.contraction import BoxSpace
from nerfcli.reference.sampling import MarchingGrid, Steps
from nerfcli.scenes import Scene


@dataclass
class HashField(GridField[OccupancySampler]):
    """Hash grid + MLPs in a box, with the occupancy grid that rays march through."""

    @staticmethod
    def create(config: Config, scene: Scene, ops: Backend, generator: torch.Generator) -> HashField:
        own = config.hashgrid
        net = net_spec(own)
        params = init_params(net, generator)
        sampler = OccupancySampler(
            OccupancyGrid.create(scene.box, own.occupancy_resolution),
            steps_from_config(config, scene.box),
            ops,
            known(own.occupancy_cells),
            own.occupancy_decay,
            own.occupancy_threshold,
        )
        space = BoxSpace(scene.box, scene.near, scene.far)
        return HashField(space, net, params, sampler, ops, own.min_transmittance, own.anti_aliasing)

    @property
    def steps(self) -> Steps:
        return self.sampler.steps

    @property
    def occupancy(self) -> OccupancyGrid:
        return self.sampler.grid

    @property
    def whole_grid(self) -> MarchingGrid:
        return self.sampler.marching_grid


def steps_from_config(config: Config, box: Box) -> Steps:
    """Equal steps in a single cube; growing with distance where there are cascades."""
    diagonal = 2 * box.half_size * 3**0.5
    cone = config.hashgrid.cone if box.n_cascades > 1 else 0.0
    return Steps(diagonal / known(config.hashgrid.steps_per_box), cone)

"""What is learned: the hash-grid field; with `classic.py`, the two kinds of field there are.

Both answer the same questions: `density` and `radiance` at positions in scene space, and
`render_rays`. A field is built from a resolved config and a box; its tensors travel as a flat
dict, which is what a checkpoint holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.core.config import Config
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods.classic import ClassicField
from nerfcli.methods.occupancy import OccupancyGrid
from nerfcli.reference.contraction import BoxSpace
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.mlp import init_mlp
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import MarchingGrid, Steps

TABLE_INIT = 1e-4  # Instant NGP (2022), section 4: U(-1e-4, 1e-4)
# What lies behind less light than this moves a rendered pixel by a quarter of an 8-bit step at
# most; in the fog of a capture that was trained for minutes it takes an eighth of the samples.
RENDER_MIN_TRANSMITTANCE = 1e-3


@dataclass
class HashField:
    """Hash grid + MLPs in a box, with the occupancy grid that rays march through."""

    box: Box
    near: float
    far: float
    net: NetSpec
    steps: Steps
    min_transmittance: float
    params: NetParams
    occupancy: OccupancyGrid
    ops: Backend

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
        occupancy = OccupancyGrid.create(box, config.occupancy.resolution)
        steps = steps_from_config(config, box)
        limit = config.sampling.min_transmittance
        return HashField(box, near, far, net, steps, limit, params, occupancy, ops)

    def to(self, device: str) -> HashField:
        params = NetParams(*(p.to(device) for p in self.params.tensors()))
        return replace(self, params=params, occupancy=self.occupancy.to(device))

    def density(self, positions: Tensor) -> Tensor:
        """positions [n, 3] in scene space -> sigmas [n] per scene unit, without gradients."""
        with torch.no_grad():
            return self.ops.density(self.network, positions)

    def radiance(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """positions, directions [n, 3] -> sigmas [n] per scene unit, rgbs [n, 3]."""
        return self.ops.radiance(self.network, positions, self.ops.spherical_harmonics(directions))

    @property
    def space(self) -> BoxSpace:
        return BoxSpace(self.box, self.near, self.far)

    @property
    def network(self) -> Network:
        """The field as the ops take it."""
        return Network(self.net, self.params, self.space)

    @property
    def grid(self) -> MarchingGrid:
        """What rays march through."""
        return MarchingGrid(self.occupancy.occupied, self.box, self.steps)

    def bounds(self, rays: Rays) -> Bounds:
        """Distances within the box; t_max <= t_min where a ray misses it."""
        return self.space.bounds(rays)

    def march(self, rays: Rays, jitter: Tensor) -> Samples:
        """Samples in occupied cells. jitter [n_rays] in [0, 1)."""
        return self.ops.march(rays, self.bounds(rays), jitter, self.grid)

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        """Pixels of rays, without gradients. background [3]."""
        bounds = self.bounds(rays)
        return self.ops.render_rays(
            self.network,
            rays,
            bounds,
            torch.full_like(bounds.t_min, 0.5),
            self.grid,
            background,
            min_transmittance=max(self.min_transmittance, RENDER_MIN_TRANSMITTANCE),
        )

    def state(self) -> dict[str, Tensor]:
        names = ("grid.table", "density.weights", "color.weights")
        return dict(zip(names, self.params.tensors(), strict=True)) | self.occupancy.state()

    def load_state(self, state: dict[str, Tensor], threshold: float) -> None:
        """Take the tensors of a checkpoint; the occupied cells follow from the densities.

        Raises:
            NerfError: they are not those of a field of this shape.
        """
        ensure_same_shapes(state, self.state())
        self.params = NetParams(
            state["grid.table"], state["density.weights"], state["color.weights"]
        )
        densities, possible = state["occupancy.densities"], state["occupancy.possible"].bool()
        grid = OccupancyGrid(self.box, densities, possible, possible)
        grid.refresh(threshold, self.steps.size)
        self.occupancy = grid


def net_from_config(config: Config) -> NetSpec:
    model = config.model
    grid = GridSpec(
        model.n_levels,
        model.n_features,
        model.log2_table_size,
        model.base_resolution,
        model.max_resolution,
    )
    return NetSpec(grid, model.width)


def steps_from_config(config: Config, box: Box) -> Steps:
    """Equal steps in a single cube; growing with distance where there are cascades."""
    diagonal = 2 * box.half_size * 3**0.5
    cone = config.sampling.cone if box.n_cascades > 1 else 0.0
    return Steps(diagonal / config.sampling.steps_per_box, cone)


AnyField = HashField | ClassicField


def create_field(
    config: Config, box: Box, near: float, far: float, ops: Backend, generator: torch.Generator
) -> AnyField:
    """The field that a resolved config names, freshly initialised."""
    if config.model.method == "classic":
        return ClassicField.create(config, box, near, far, generator)
    return HashField.create(config, box, near, far, ops, generator)

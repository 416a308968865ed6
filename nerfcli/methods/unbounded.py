"""The field of method unbounded: a hash grid that holds all of space, sampled by proposals.

Space is contracted around the scene's detail cube (mip-NeRF 360, 2022), or, for a forward-facing
capture, is what the cameras' common cone sees. Samples go where earlier ones met density.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.rays import Rays
from nerfcli.core.config import Config
from nerfcli.methods.grid_field import (
    RENDER_MIN_TRANSMITTANCE,
    GridField,
    init_params,
    net_spec,
)
from nerfcli.methods.proposals import ProposalSampler, edges_by, fresh_grid
from nerfcli.reference.contraction import ContractedSpace
from nerfcli.reference.samples import Pixels
from nerfcli.reference.sampling import Piecewise, Steps
from nerfcli.scenes import Scene

PROPOSAL_RATE = 0.1  # at which remembered densities move towards those that a step meets
RENDER_PADDING = 0.05  # a field that is done needs no search
STEPS_PER_BOX = 512  # along the detail cube's diagonal, for those who march through the field


@dataclass
class UnboundedField(GridField[ProposalSampler]):
    """A hash grid and two MLPs in a contracted space, sampled by proposals."""

    occupancy: None = None
    n_rendered: int = 24  # samples of a ray that is rendered

    @staticmethod
    def create(
        config: Config, scene: Scene, ops: Backend, generator: torch.Generator
    ) -> UnboundedField:
        own, half = config.unbounded, scene.box.half_size
        far = config.scene.far or max(own.horizon * half, 2 * scene.near)
        space = ContractedSpace(scene.box, scene.near, far)
        net = net_spec(own)
        params = init_params(net, generator)
        grid = fresh_grid(
            space,
            edges_by(Piecewise(half), scene.near, far, own.n_bins),
            resolution=own.proposal_resolution,
            n_samples=own.n_samples,
            prior=1.0 / space.unit_length,
            padding=own.padding,
        )
        sampler = ProposalSampler(grid, ops, PROPOSAL_RATE)
        return UnboundedField(
            space,
            net,
            params,
            sampler,
            ops,
            own.min_transmittance,
            own.anti_aliasing,
            n_rendered=own.n_rendered,
        )

    @property
    def steps(self) -> Steps:
        return Steps(2 * self.box.half_size * 3**0.5 / STEPS_PER_BOX)

    def between(self, near: float, far: float) -> UnboundedField:
        moved = super().between(near, far)
        edges = edges_by(Piecewise(self.box.half_size), near, far, len(self.sampler.grid.edges) - 1)
        grid = replace(
            self.sampler.grid, space=moved.space, edges=edges.to(self.sampler.grid.edges)
        )
        return replace(moved, sampler=replace(self.sampler, grid=grid))

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        """Pixels of rays, without gradients. background [3]."""
        return self.ops.render_proposed(
            self.network,
            rays,
            torch.full_like(rays.origins[:, 0], 0.5),
            replace(self.sampler.grid, n_samples=self.n_rendered, padding=RENDER_PADDING),
            background,
            min_transmittance=max(self.min_transmittance, RENDER_MIN_TRANSMITTANCE),
        )

"""The field of method unbounded: a hash grid that holds all of space, sampled by proposals.

Space is contracted around the scene's detail cube (mip-NeRF 360, 2022), or, for a forward-facing
capture, is what the cameras' common cone sees. Samples go where earlier ones met density.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.crop import Crop
from nerfcli.core.config import Config, UnboundedConfig
from nerfcli.methods.cropped import crop_proposals
from nerfcli.methods.grid_field import (
    GridField,
    init_params,
    net_spec,
)
from nerfcli.methods.proposals import ProposalSampler, edges_by, fresh_grid
from nerfcli.reference.contraction import ContractedSpace, PerspectiveSpace
from nerfcli.reference.proposals import ProposalGrid
from nerfcli.reference.sampling import LINEAR, Disparity, Piecewise, Spacing, Steps
from nerfcli.scenes import Scene

PROPOSAL_RATE = 0.1  # at which remembered densities move towards those that a step meets
RENDER_PADDING = 0.05  # share of a rendered ray's samples that is spread evenly: nothing to find
WIDEST = 4.0  # tangent of half a cone that a perspective space may have
STEPS_PER_BOX = 512  # along the detail cube's diagonal, for those who march through the field


@dataclass
class UnboundedField(GridField[ProposalSampler]):
    """A hash grid and two MLPs in a contracted space, sampled by proposals."""

    occupancy: None = None
    spacing: Spacing = LINEAR  # of the bins along a ray
    n_rendered: int = 32  # samples of a ray that is rendered

    @staticmethod
    def create(
        config: Config, scene: Scene, ops: Backend, generator: torch.Generator
    ) -> UnboundedField:
        own, half = config.unbounded, scene.box.half_size
        far = config.scene.far or max(own.horizon * half, 2 * scene.near)
        space, spacing = space_of(own, scene, far)
        net = net_spec(own)
        params = init_params(net, generator)
        grid = fresh_grid(
            space,
            edges_by(spacing, scene.near, far, own.n_bins),
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
            spacing=spacing,
            n_rendered=own.n_rendered,
        )

    @property
    def steps(self) -> Steps:
        return Steps(2 * self.box.half_size * 3**0.5 / STEPS_PER_BOX)

    def between(self, near: float, far: float) -> UnboundedField:
        moved = super().between(near, far)
        old = self.sampler.grid
        spacing = self.spacing if near else Piecewise(self.box.half_size)  # disparity takes no zero
        edges = edges_by(spacing, near, far, len(old.edges) - 1)
        grid = replace(old, space=moved.space, edges=edges.to(old.edges))
        return replace(moved, sampler=replace(self.sampler, grid=grid))

    def within(self, crop: Crop) -> UnboundedField:
        grid = crop_proposals(self.sampler.grid, crop)
        return replace(super().within(crop), sampler=replace(self.sampler, grid=grid))

    @property
    def whole_grid(self) -> ProposalGrid:
        grid = self.sampler.grid
        padding = min(grid.padding, RENDER_PADDING)
        return replace(grid, n_samples=self.n_rendered, padding=padding)


def space_of(
    own: UnboundedConfig, scene: Scene, far: float
) -> tuple[ContractedSpace | PerspectiveSpace, Spacing]:
    """The space that a resolved table asks for, and how rays are cut in it."""
    if own.space == "perspective":
        space = perspective_space(scene.cameras, scene.box, scene.near, far)
        if space is not None:
            return space, Disparity()
    return ContractedSpace(scene.box, scene.near, far), Piecewise(scene.box.half_size)


def perspective_space(
    cameras: Cameras, box: Box, near: float, far: float
) -> PerspectiveSpace | None:
    """The cone that holds all frames from `near` on, seen from the cameras' mean pose.

    None where a frame reaches to the side of that pose or behind it.
    """
    axes = cameras.c2w[:, :, :3].mean(0)
    forward = axes[:, 2] / axes[:, 2].norm()
    right = axes[:, 0] - (axes[:, 0] @ forward) * forward
    right = right / right.norm()
    rows = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    origin = cameras.positions.mean(0)
    z_near, tan = float("inf"), torch.zeros(2, dtype=torch.float64)
    for i in range(len(cameras)):
        x, y = (torch.linspace(0, side - 1, 9).long() for side in cameras.size[i].tolist())
        pixels = torch.cartesian_prod(torch.tensor([i]), x, y)
        rays = cameras.rays(pixels)
        for t in (near, far):
            local = (rays.origins.double() + t * rays.directions.double() - origin) @ rows
            z_near = min(z_near, float(local[:, 2].amin()))
            tan = torch.maximum(tan, (local[:, :2] / local[:, 2:]).abs().amax(0))
    # nan where the axes of the cameras cancel
    if not (z_near > 0 and float(tan.amax()) <= WIDEST):
        return None
    start = (float(origin[0]), float(origin[1]), float(origin[2]))
    wide, high = (1.01 * tan).tolist()  # with the outer halves of the border's pixels
    rotation = tuple(rows.reshape(-1).tolist())
    return PerspectiveSpace(box, rotation, start, z_near, (wide, high), near, far)

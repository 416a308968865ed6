"""How a field is sampled within a crop: intervals end exactly at the faces of the box.

No kernel knows of it. What a grid places along a ray is cut to the part of the ray in the box, and
the samples go through the parts of the backend that take packed samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.fused import Parts, SampleGrid
from nerfcli.reference.proposals import ProposalGrid, cells_at
from nerfcli.reference.samples import Samples

SLACK = 0.25  # of a cell: a contracted one is no box in scene space


@dataclass(frozen=True)
class CroppedGrid:
    """A SampleGrid whose samples are cut to a crop."""

    grid: SampleGrid
    crop: Crop

    def sample(self, ops: Parts, rays: Rays, bounds: Bounds, jitter: Tensor) -> Samples:
        bounds = self.crop.cut(rays, bounds)
        samples = self.grid.sample(ops, rays, bounds, jitter)
        ray = samples.ray_indices()
        t_min, t_max = bounds.t_min[ray], bounds.t_max[ray]
        cut = replace(
            samples,
            t_starts=torch.minimum(torch.maximum(samples.t_starts, t_min), t_max),
            t_ends=torch.minimum(torch.maximum(samples.t_ends, t_min), t_max),
        )
        # padding of a packed buffer belongs to no ray
        live = torch.arange(samples.capacity, device=ray.device) < samples.ray_offsets[-1]
        return cut.select((cut.t_ends > cut.t_starts) & live)


def crop_proposals(grid: ProposalGrid, crop: Crop) -> ProposalGrid:
    """Remember nothing outside of the crop, so that a ray's samples all go to what is inside."""
    n, device = grid.resolution, grid.fine.device
    corner = torch.arange(n + 1, device=device) / n
    fine = grid.fine.clone()
    middle = (corner[:-1] + corner[1:]) / 2.0
    # layer after layer of cells: all corners at once take a gigabyte
    for k in range(n):
        corners = torch.cartesian_prod(corner[k : k + 2], corner, corner)
        local = crop.to_local(grid.space.from_unit(corners)).view(2, n + 1, n + 1, 3)
        low, high = _ends(local)
        outside = ((low > 1.0) | (high < -1.0)).any(-1).view(-1)
        cells = torch.cartesian_prod(middle[k : k + 1], middle, middle)[outside]
        fine[cells_at(cells, n)] = 0.0
    return replace(grid, fine=fine)  # the coarse cells stand in only where a fine one is unknown


def _ends(local: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest coordinates of the cells with these corners, each [n, n, 3]."""
    parts = [
        local[i, y : y + local.shape[1] - 1, z : z + local.shape[2] - 1]
        for i in (0, 1)
        for y in (0, 1)
        for z in (0, 1)
    ]
    corners = torch.stack(parts)
    low, high = corners.amin(0), corners.amax(0)
    slack = SLACK * (high - low)
    return low - slack, high + slack

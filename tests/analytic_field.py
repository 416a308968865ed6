"""Fields of closed form: density and colour by formula, behind the same seams as a learned one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from conftest import sphere_c2w
from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.engine.render import Model
from nerfcli.methods.hashgrid import HashField
from nerfcli.methods.occupancy import OccupancyGrid, OccupancySampler
from nerfcli.reference.contraction import BoxSpace
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.sampling import Steps
from nerfcli.scenes.scene import Scene, Similarity

Sdf = Callable[[Tensor], Tensor]
STEP = 0.02
FALL = 0.004  # distance over which the density falls by e in front of a surface
LEVEL = math.log(2.0) / STEP  # the density on the surface: a sample of it stops half of its light
DENSEST = 60.0  # times LEVEL, inside


def ball(points: Tensor, radius: float = 0.5) -> Tensor:
    return points.norm(dim=-1) - radius


def density_of(distance: Tensor) -> Tensor:
    """LEVEL where the signed distance is 0, growing inwards."""
    return LEVEL * torch.exp(-distance / FALL).clamp(max=DENSEST)


class AnalyticBackend(Backend):
    """The reference, with a density by formula and colours by the direction from the centre."""

    def __init__(self, sigma: Callable[[Tensor], Tensor]) -> None:
        self.sigma = sigma

    def density(self, network: Network, positions: Tensor, scales: Tensor | None = None) -> Tensor:
        return self.sigma(positions)

    def radiance(
        self,
        network: Network,
        positions: Tensor,
        ray_inputs: Tensor,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        distance = positions.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        return self.sigma(positions), 0.5 + 0.5 * positions / distance


def analytic_model(
    sigma: Callable[[Tensor], Tensor],
    *,
    similarity: Similarity | None = None,
    cameras: Cameras | None = None,
    n_views: int = 16,
) -> Model:
    """A model whose field has the density sigma(points [n, 3]) in the cube [-1, 1]**3."""
    box = Box((0.0, 0.0, 0.0), 1.0)
    empty = torch.zeros(0)
    backend = AnalyticBackend(sigma)
    field = HashField(
        BoxSpace(box, 1.0, 8.0),
        NetSpec(GridSpec(1, 2, 4, 2, 2), 16),
        NetParams(empty, empty, empty),
        OccupancySampler(_occupancy(sigma, box), Steps(STEP), backend, n_cells=0),
        backend,
    )
    cameras = sphere_cameras(n_views) if cameras is None else cameras
    scene = scene_of(cameras, box, similarity or Similarity())
    return Model(field, scene, "analytic")


def sphere_cameras(n: int, size: int = 48, distance: float = 4.0) -> Cameras:
    c2w = np.stack([sphere_c2w(i, n)[:3] for i in range(n)])
    c2w[:, :, 1:3] *= -1.0  # OpenGL to ours
    c2w[:, :, 3] *= distance / 4.0
    return Cameras(
        torch.from_numpy(c2w),
        torch.full((n, 2), 1.4 * size, dtype=torch.float64),
        torch.full((n, 2), size / 2.0, dtype=torch.float64),
        torch.full((n, 2), size, dtype=torch.int64),
        (Lens(),) * n,
    )


def scene_of(cameras: Cameras, box: Box, similarity: Similarity) -> Scene:
    n = len(cameras)
    return Scene(
        name="analytic",
        path=None,
        kind="blender",
        names=tuple(f"train/r_{i}.png" for i in range(n)),
        cameras=cameras,
        image_paths=(None,) * n,
        mask_paths=(None,) * n,
        alpha_paths=(None,) * n,
        masked_where="black",
        splits={"train": tuple(range(n)), "test": ()},
        box=box,
        near=1.0,
        far=8.0,
        background="black",
        has_alpha=True,
        scene_from_source=similarity,
        box_source="stated",
    )


def _occupancy(sigma: Callable[[Tensor], Tensor], box: Box, resolution: int = 64) -> OccupancyGrid:
    grid = OccupancyGrid.create(box, resolution)
    cells = torch.arange(resolution**3)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    found = torch.stack([sigma(grid.cell_centers(cells, corner)) for corner in corners]).amax(0)
    grid.occupied = (found * STEP > 0.01).reshape(grid.occupied.shape)
    return grid

"""Sampling by a grid of remembered densities: what method unbounded knows of where things are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.contraction import Space
from nerfcli.reference.proposals import BRICK, COARSER, LONE, UNKNOWN, ProposalGrid, cells_at
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Spacing
from nerfcli.scenes import Scene


@dataclass
class ProposalSampler:
    """Equally many samples of each ray, placed by a ProposalGrid: a methods.base.Sampler.

    Attributes:
        grid: changed in place as it learns.
        rate: at which it takes what a step's samples meet.
        annealing: how far samples follow it, 0 to 1.
    """

    grid: ProposalGrid
    ops: Backend
    rate: float
    annealing: float = 1.0

    def sample(self, rays: Rays, bounds: Bounds, jitter: Tensor) -> Samples:
        return self.ops.propose(rays, jitter, self.grid, self.annealing)

    def mark_lone(self, scene: Scene) -> None:
        """Mark the coarse cells that no two training cameras see, nor one beside them."""
        grid = self.grid
        n = grid.resolution // COARSER
        middle = (torch.arange(n) + 0.5) / n
        unit = torch.cartesian_prod(middle, middle, middle)
        counts = count_views(scene.cameras[list(scene.splits["train"])], grid.space.from_unit(unit))
        shared = (counts >= 2).float().view(1, 1, n, n, n)
        lone = torch.nn.functional.max_pool3d(shared, 3, 1, 1).view(-1) == 0
        cells = cells_at(unit[lone], n).to(grid.coarse.device)
        grid.coarse[cells] = LONE

    def learn(self, rays: Rays, samples: Samples, weights: Tensor) -> None:
        """Remember the densities that a step's samples met. weights [capacity]."""
        self.ops.learn_densities(rays, samples, weights, self.grid, self.rate)

    def update(
        self, density: Callable[[Tensor], Tensor], generator: torch.Generator, *, wait: bool = True
    ) -> None:
        """Nothing: it learns from the samples of the steps."""

    def to(self, device: str) -> ProposalSampler:
        grid = self.grid
        moved = {name: getattr(grid, name).to(device) for name in ("fine", "coarse", "edges")}
        return replace(self, grid=replace(grid, **moved))

    def by(self, ops: Backend) -> ProposalSampler:
        return replace(self, ops=ops)

    def state(self) -> dict[str, Tensor]:
        return {"proposals.fine": self.grid.fine, "proposals.coarse": self.grid.coarse}

    def load_state(self, state: dict[str, Tensor]) -> None:
        names = {name: state[f"proposals.{name}"].clone() for name in ("fine", "coarse")}
        edges = self.grid.edges.to(names["fine"].device)
        self.grid = replace(self.grid, edges=edges, **names)


def fresh_grid(
    space: Space, edges: Tensor, *, resolution: int, n_samples: int, prior: float, padding: float
) -> ProposalGrid:
    """A grid that remembers nothing yet."""
    resolution = -(-resolution // (BRICK * COARSER)) * BRICK * COARSER
    fine, coarse = (
        torch.full((r**3,), UNKNOWN, dtype=torch.bfloat16)
        for r in (resolution, resolution // COARSER)
    )
    return ProposalGrid(fine, coarse, resolution, space, edges, n_samples, prior, padding)


def count_views(cameras: Cameras, points: Tensor) -> Tensor:
    """In how many cameras' frames scene points [n, 3] lie: [n] int64."""
    counts = torch.zeros(len(points), dtype=torch.int64)
    for i in range(len(cameras)):
        xy, depth = cameras.project(i, points)
        within = ((xy >= 0) & (xy <= cameras.size[i])).all(-1)  # false where xy is nan
        counts += within & ((depth > 0) | cameras.lenses[i].is_wide)
    return counts


def edges_by(spacing: Spacing, near: float, far: float, n_bins: int) -> Tensor:
    """Distances from near to far, even in s: [n_bins + 1] float32."""
    ends = spacing.s_from_t(torch.tensor([near, far], dtype=torch.float64))
    share = torch.linspace(0.0, 1.0, n_bins + 1, dtype=torch.float64)
    edges = spacing.t_from_s(ends[0] + (ends[1] - ends[0]) * share)
    edges[0], edges[-1] = near, far
    return edges.float()

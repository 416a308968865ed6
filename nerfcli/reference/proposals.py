"""Proposals: where along a ray a large scene is worth sampling, from densities seen before.

A grid over the unit cube of a space remembers the mean density that samples met in each cell. A
ray's weights through that grid say where its samples go: few in empty space, most at surfaces. It
takes the place of the proposal networks of mip-NeRF 360 (2022, section 3): a look-up in place of a
small network, and it learns from the samples of the field itself, so that it needs no loss.

edges: distances t that cut every ray into bins, near the camera finer than far away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.contraction import Space
from nerfcli.reference.samples import Samples

BRICK = 4  # cells along a brick of those that lie together in memory
COARSER = 4  # cells of the fine grid along a cell of the coarse one
LONE = -2.0  # what a coarse cell holds that no two training cameras see
UNKNOWN = -1.0  # what a cell holds that no sample has met
DENSEST = 1.0  # optical depth of a bin: beside an edge, light passes a cell that is half full
OPAQUE = 10.0  # optical depth behind which no light is left
LIT = 1e-3  # transmittance below which a sample's weight says nothing of its density


class Proposing(Protocol):
    """A backend that places samples by remembered densities."""

    def propose(
        self, rays: Rays, jitter: Tensor, grid: ProposalGrid, annealing: float = 1.0
    ) -> Samples: ...


@dataclass(frozen=True)
class ProposalGrid:
    """Mean densities per scene unit, bfloat16, UNKNOWN where no sample was.

    Attributes:
        fine: [R**3] over the unit cube of `space`, in the order of `cells_at`.
        coarse: [(R / 4)**3]: stands in where the fine cell is unknown.
        resolution: R, a multiple of 16.
        space: maps positions into the unit cube.
        edges: [n_bins + 1] float32 distances, ascending: of all rays alike.
        n_samples: of a ray.
        prior: density where both are unknown.
        padding: share of the samples that is spread over all bins evenly.
    """

    fine: Tensor
    coarse: Tensor
    resolution: int
    space: Space
    edges: Tensor
    n_samples: int
    prior: float
    padding: float

    def sample(self, ops: Proposing, rays: Rays, bounds: Bounds, jitter: Tensor) -> Samples:
        """The samples of rays; its edges bound them all."""
        return ops.propose(rays, jitter, self)

    def densities(self, positions: Tensor) -> Tensor:
        """positions [..., 3] in scene space -> sigmas [...] per scene unit."""
        unit = self.space.to_unit(positions)
        fine = self.fine[cells_at(unit, self.resolution)].float()
        coarse = self.coarse[cells_at(unit, self.resolution // COARSER)].float()
        known = torch.where(coarse >= 0, coarse, self.prior)
        return torch.where(fine >= 0, fine, known)

    def first_shared(self, positions: Tensor) -> Tensor:
        """The first of a ray's places whose coarse cell is not LONE, 0 if there is none.

        positions [n_rays, n, 3] -> [n_rays] int64.
        """
        unit = self.space.to_unit(positions)
        lone = self.coarse[cells_at(unit, self.resolution // COARSER)] == LONE
        begin = lone.long().cumprod(-1).sum(-1)
        return torch.where(begin < lone.shape[1], begin, 0)


def cells_at(unit: Tensor, resolution: int) -> Tensor:
    """Where the cells of unit positions [..., 3] lie in a flat grid: [...] int64.

    Bricks of 4 x 4 x 4 cells lie together, so that a ray finds several of its cells in one line of
    the cache; bricks, and the cells in each, are in the order [z, y, x].
    """
    cell = (unit * resolution).long().clamp(0, resolution - 1)
    flat = torch.zeros_like(cell[..., 0])
    for part, n in ((cell // BRICK, resolution // BRICK), (cell % BRICK, BRICK)):
        for axis in (2, 1, 0):
            flat = flat * n + part[..., axis]
    return flat


def propose(rays: Rays, jitter: Tensor, grid: ProposalGrid, annealing: float = 1.0) -> Samples:
    """Place each ray's samples by the weights that the grid gives its bins.

    The bins' weights are volume rendering weights of the remembered densities; what light is left
    behind the last bin belongs to it. Each is then raised to that of its greater neighbour, so
    that a surface may lie beside where it was met, and to the power `annealing`. The samples cut
    the ray, from the first edge to the last, into parts of equal weight. A ray begins where more
    than one training camera sees: what only one sees could stand at any distance, and would stand
    right in front of it.

    Args:
        jitter: [n_rays] in [0, 1), of the places where bins are looked up and of the cuts.
        annealing: 0: evenly over the bins; 1: by the weights. mip-NeRF 360 (2022), eq. 18.

    Returns:
        Samples with grid.n_samples of each ray.
    """
    edges, n_bins = grid.edges, len(grid.edges) - 1
    lengths = edges.diff()
    places = edges[:-1] + jitter[:, None] * lengths
    positions = rays.at(places)
    begin = grid.first_shared(positions)
    ahead = torch.arange(n_bins, device=edges.device) >= begin[:, None]
    depths = torch.where(ahead, grid.densities(positions), 0.0) * lengths
    depths = depths.clamp(max=DENSEST).cumsum(-1)
    behind = torch.where(depths < OPAQUE, torch.exp(-depths), 0.0)
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], dim=-1)
    weights = before - behind
    weights[:, -1] += behind[:, -1]
    weights = torch.nn.functional.max_pool1d(weights[:, None], 3, 1, 1)[:, 0]
    if annealing != 1.0:
        weights = weights**annealing
    weights = torch.where(ahead, weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    even = grid.padding / (n_bins - begin[:, None])
    weights = torch.where(ahead, (1.0 - grid.padding) * weights + even, 0.0)
    cdf = weights.cumsum(-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf / cdf[:, -1:]], dim=-1)
    n = grid.n_samples
    cuts = (torch.arange(n - 1, device=edges.device) + jitter[:, None]) / (n - 1)
    right = torch.searchsorted(cdf, cuts.contiguous(), right=True).clamp(1, n_bins)
    low, high = cdf.gather(1, right - 1), cdf.gather(1, right)
    fraction = ((cuts - low) / (high - low).clamp(min=1e-12)).clamp(0.0, 1.0)
    inner = edges[right - 1] + fraction * (edges[right] - edges[right - 1])
    last = edges[-1].expand(len(rays), 1)
    return Samples.from_edges(torch.cat([edges[begin][:, None], inner, last], dim=-1))


def learn_densities(
    rays: Rays, samples: Samples, weights: Tensor, grid: ProposalGrid, rate: float
) -> None:
    """Move the cells of the samples that light reached towards the densities met there, in place.

    A cell takes the mean of a step's densities in it, for `rate` of what it holds. A sample's
    density follows from its weight: sigma = -log(1 - w / T) / length.

    Args:
        samples: equally many of each ray. weights: [capacity], of volume rendering.
    """
    w = samples.dense(weights)
    before = 1.0 - (w.cumsum(-1) - w)
    lengths = samples.t_ends - samples.t_starts
    share = (w / before.clamp(min=1e-6)).clamp(0.0, 1.0 - 1e-6)
    sigmas = (-torch.log1p(-share)).view(-1) / lengths.clamp(min=1e-12)
    lit = (before > LIT).view(-1) & (lengths > 0)
    unit = grid.space.to_unit(samples.positions(rays)[lit])
    for flat, resolution in (
        (grid.fine, grid.resolution),
        (grid.coarse, grid.resolution // COARSER),
    ):
        met, index = cells_at(unit, resolution).unique(return_inverse=True)
        mean = torch.zeros(len(met), device=flat.device, dtype=torch.float64)
        mean.index_add_(0, index, sigmas[lit].double())
        mean = (mean / index.bincount(minlength=len(met))).float()
        old = flat[met].float()
        new = torch.where(old < 0, mean, old + rate * (mean - old))
        flat[met] = torch.where(old == LONE, old, new).to(flat.dtype)

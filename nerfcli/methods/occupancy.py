"""The occupancy grid: where density may be, so that marching skips the rest.

A cell keeps the running maximum of the densities seen in it; it counts as occupied when one
marching step through it would have an optical depth above a threshold. Cascade c covers the
cube of half size box.half_size * 2**c; only cells that a training camera sees and that silhouettes
do not rule out are `possible` (scenes/coverage.py, scenes/hull.py), and only these are evaluated.
Instant NGP (2022), appendix E.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, Steps


@dataclass
class OccupancyGrid:
    """Cells [n_cascades, R, R, R], indexed [cascade, z, y, x].

    Attributes:
        densities: float32, per scene unit; infinite where never evaluated.
        possible: bool.
        occupied: bool, what marching reads.
    """

    box: Box
    densities: Tensor
    possible: Tensor
    occupied: Tensor
    cursor: int = 0  # next possible cell of the round

    @staticmethod
    def create(box: Box, resolution: int, possible: Tensor | None = None) -> OccupancyGrid:
        shape = (box.n_cascades, resolution, resolution, resolution)
        if possible is None:
            possible = torch.ones(shape, dtype=torch.bool)
            possible &= ~covered_by_finer(box.n_cascades, resolution)
        densities = torch.where(possible, torch.inf, 0.0)
        return OccupancyGrid(box, densities, possible, possible.clone())

    def to(self, device: str) -> OccupancyGrid:
        return replace(
            self,
            densities=self.densities.to(device),
            possible=self.possible.to(device),
            occupied=self.occupied.to(device),
        )

    @property
    def resolution(self) -> int:
        return self.possible.shape[1]

    def cell_centers(self, cells: Tensor, offsets: Tensor | float = 0.5) -> Tensor:
        """Scene positions [n, 3] in flat cells [n]; offsets in [0, 1) within the cell."""
        r = self.resolution
        xyz = torch.stack([cells % r, cells // r % r, cells // r**2 % r], dim=1)
        half = self.box.half_size * torch.exp2((cells // r**3).float())[:, None]
        unit = (xyz + offsets) * (2.0 / r) - 1.0
        return unit * half + self.box.center_like(unit)

    def update(
        self,
        density: Callable[[Tensor], Tensor],
        *,
        n_cells: int,
        decay: float,
        threshold: float,
        step_size: float,
        generator: torch.Generator,
        wait: bool = True,
    ) -> int:
        """Evaluate some cells and decide anew which are occupied.

        Half of the cells go round the possible ones in turn, half are drawn from the occupied.

        Args:
            density: scene positions [n, 3] -> sigmas [n] per scene unit.
            n_cells: how many to evaluate.
            decay: of the old maximum in an evaluated cell.
            threshold: optical depth of one step of length step_size.
            generator: on the device of the grid.
            wait: false: nothing waits for the device, the occupied cells are drawn with
                replacement, and `occupied` keeps its place in memory.

        Returns:
            The number of cells evaluated.
        """
        cells = self._choose(n_cells, generator, wait)
        if not len(cells):
            return 0
        jitter = torch.rand(len(cells), 3, generator=generator, device=cells.device)
        sigmas = density(self.cell_centers(cells, jitter))
        flat = self.densities.view(-1)
        old = flat[cells]
        old = torch.where(old.isinf(), 0.0, old * decay)
        if wait:
            flat[cells] = torch.maximum(old, sigmas)
            self.refresh(threshold, step_size)
        else:
            flat[cells] = old  # the same for a cell that was drawn twice
            flat.scatter_reduce_(0, cells, sigmas, "amax")
            self._refresh_in_place(threshold, step_size)
        return len(cells)

    def refresh(self, threshold: float, step_size: float) -> None:
        """occupied = density above min(mean of the known, threshold / step_size)."""
        known = self.densities.view(-1)[self._possible_in_order()]
        finite = known.isfinite()
        if not finite.all():  # choosing by a mask takes three times as long as all the rest
            known = known[finite]
        # float64: in float32 the mean depends on the number of threads
        mean = float(known.mean(dtype=torch.float64)) if len(known) else 0.0  # sync
        limit = min(mean, threshold / step_size)
        self.occupied = self.possible & (self.densities > limit)

    def _refresh_in_place(self, threshold: float, step_size: float) -> None:
        """`refresh`, where every number stays on the device."""
        known = self.possible & self.densities.isfinite()
        total = torch.where(known, self.densities, 0.0).sum(dtype=torch.float64)
        mean = total / known.sum().clamp(min=1)
        limit = mean.clamp(max=threshold / step_size).float()
        torch.logical_and(self.possible, self.densities > limit, out=self.occupied)

    def _choose(self, n_cells: int, generator: torch.Generator, wait: bool) -> Tensor:
        possible = self._possible_cells()
        n_round = min(n_cells // 2, len(possible))
        turn = torch.arange(n_round, device=possible.device) + self.cursor
        self.cursor = (self.cursor + n_round) % max(len(possible), 1)
        chosen = [possible[turn % max(len(possible), 1)]]
        if not wait:
            return torch.cat([*chosen, self._draw_occupied(n_cells - n_round, generator)])
        occupied = self.occupied.view(-1).nonzero().squeeze(1)
        if len(occupied) <= n_cells - n_round:
            chosen.append(occupied)
        else:
            size = (n_cells - n_round,)
            drawn = torch.randint(len(occupied), size, generator=generator, device=occupied.device)
            chosen.append(occupied[drawn])
        return torch.cat(chosen).unique()

    def _draw_occupied(self, n: int, generator: torch.Generator) -> Tensor:
        """n occupied cells, with replacement; the last cell where none is occupied."""
        ends = self.occupied.view(-1).cumsum(0)
        u = torch.rand(n, dtype=torch.float64, generator=generator, device=ends.device)
        ranks = (u * ends[-1]).long() + 1
        return torch.searchsorted(ends, ranks).clamp_(max=len(ends) - 1)

    def _possible_in_order(self) -> Tensor:
        """Flat indices of the possible cells, rising."""
        if not hasattr(self, "_in_order"):
            self._in_order = self.possible.view(-1).nonzero().squeeze(1)
        return self._in_order

    def _possible_cells(self) -> Tensor:
        """Flat indices of the possible cells in a fixed shuffled order, so that a part of a
        round is spread over the box."""
        if not hasattr(self, "_shuffled"):
            cells = self._possible_in_order()
            generator = torch.Generator("cpu").manual_seed(0)
            order = torch.randperm(len(cells), generator=generator, device="cpu")
            self._shuffled = cells[order.to(cells.device)]
        return self._shuffled

    def state(self) -> dict[str, Tensor]:
        return {"occupancy.densities": self.densities, "occupancy.possible": self.possible}


@dataclass
class OccupancySampler:
    """Marching through an occupancy grid: a methods.base.Sampler.

    Attributes:
        grid: replaced by another one where more is known of the scene.
        steps: lengths of the marching steps.
        n_cells, decay, threshold: of an update; see OccupancyGrid.update.
    """

    grid: OccupancyGrid
    steps: Steps
    ops: Backend
    n_cells: int
    decay: float = 0.95
    threshold: float = 0.01

    @property
    def marching_grid(self) -> MarchingGrid:
        """What the ops march through."""
        return MarchingGrid(self.grid.occupied, self.grid.box, self.steps)

    def sample(self, rays: Rays, bounds: Bounds, jitter: Tensor) -> Samples:
        return self.ops.march(rays, bounds, jitter, self.marching_grid)

    def sample_within(
        self, rays: Rays, bounds: Bounds, jitter: Tensor, capacity: int
    ) -> tuple[Samples, Tensor]:
        """`sample` into a fixed capacity, and how many rays fit, an int64 scalar."""
        return self.ops.march_within(rays, bounds, jitter, self.marching_grid, capacity)

    def update(
        self, density: Callable[[Tensor], Tensor], generator: torch.Generator, *, wait: bool = True
    ) -> None:
        self.grid.update(
            density,
            n_cells=self.n_cells,
            decay=self.decay,
            threshold=self.threshold,
            step_size=self.steps.size,
            generator=generator,
            wait=wait,
        )

    def to(self, device: str) -> OccupancySampler:
        return replace(self, grid=self.grid.to(device))

    def by(self, ops: Backend) -> OccupancySampler:
        return replace(self, ops=ops)

    def restrict(self, possible: Tensor) -> None:
        """Begin anew with the cells that can hold anything, like grid.possible."""
        grid = self.grid
        possible = grid.possible & possible.to(grid.possible.device)
        self.grid = OccupancyGrid.create(grid.box, grid.resolution, possible)

    def state(self) -> dict[str, Tensor]:
        return self.grid.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take a checkpoint; the occupied cells follow from the densities."""
        densities, possible = state["occupancy.densities"], state["occupancy.possible"].bool()
        self.grid = OccupancyGrid(self.grid.box, densities, possible, possible)
        self.grid.refresh(self.threshold, self.steps.size)


def covered_by_finer(n_cascades: int, resolution: int) -> Tensor:
    """Cells of a cascade that lie wholly in the next finer cube, which no look-up reaches."""
    covered = torch.zeros((n_cascades, *(resolution,) * 3), dtype=torch.bool)
    low, high = -(-resolution // 4), 3 * resolution // 4
    covered[1:, low:high, low:high, low:high] = True
    return covered

"""Turn the field into a solid on a grid, slab by slab.

The surface is the zero level of max(log(density / threshold), depth behind the last light): a
point is inside where the field is dense enough, or where no light arrives (visibility.py). The
logarithm is nearly linear within a cell, where density falls by orders of magnitude. The grid is
evaluated in slabs along x. Two neighbours share one layer of samples, bit for bit, so a surface
through it has no seam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_dilation, label, map_coordinates
from torch import Tensor
from torch.nn.functional import max_pool3d

from nerfcli.core.errors import EmptyField
from nerfcli.core.progress import Progress
from nerfcli.extraction.source_field import SourceField
from nerfcli.extraction.visibility import Visibility
from nerfcli.reference.sampling import occupancy_lookup
from nerfcli.shapes.types import RegularGrid, all_indices

REACH = 4.0  # values are cut to [-REACH, REACH]: marching cubes needs no more
LEAST = 1e-3  # |value| stays above it: no vertex falls onto a sample, no face loses its area
SURFACE_SHARE = 0.9  # of the places where training rays end: so many lie inside
SLAB = 16_000_000  # samples held at a time
HIDDEN_SIDE = 192  # samples a side of the hidden space: images show no finer detail
LATTICE_SIDE = 160  # samples a side of the lattice that finds the empty parts of the grid
RIM_CELLS = 2.5  # from a face of the detail cube, in cells of what is hidden
HIDDEN_MARGIN = 0.5  # cells: filled space stays this far behind the dense shell


@dataclass(frozen=True, eq=False)
class Solid:
    """The field as a solid on a grid.

    threshold: density per source unit. hidden: depth behind the last light in source units on
    `hidden_grid`, or None where hollows are left as they are.
    """

    source: SourceField
    grid: RegularGrid
    threshold: float
    hidden: np.ndarray | None
    hidden_grid: RegularGrid

    def slabs(self, progress: Progress) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first index along x and values [n, ny, nz] in [-REACH, REACH], positive inside.

        Neighbouring slabs share a layer. The outermost samples of the grid are outside.
        """
        nx, ny, nz = self.grid.shape
        rows = max(2, SLAB // (ny * nz))
        active, step = self._active_lattice()
        last = None
        for start in range(0, nx - 1, rows - 1):
            end = min(start + rows, nx)
            values = np.full((end - start, ny, nz), -REACH, dtype=np.float32)
            known = 0 if last is None else 1
            if last is not None:
                values[0] = last
            self._fill(values, start, known, _rows_of(active, step, start, self.grid.shape, end))
            _clear_border(values, start == 0, end == nx)
            last = values[-1].copy()
            progress.update(end, total=nx)
            yield start, values

    def log_ratio(self, points: np.ndarray) -> np.ndarray:
        """log(density / threshold) [n] at source points [n, 3], cut to [-REACH, REACH]."""
        return _cut_log(self.source.density(points), self.threshold)

    def behind(self, points: np.ndarray) -> np.ndarray:
        """Depth behind the last light in cells [n], less a margin; negative where not filled."""
        if self.hidden is None:
            return np.full(len(points), -REACH, dtype=np.float32)
        index = (points - self.hidden_grid.origin) / self.hidden_grid.spacing
        depth = map_coordinates(self.hidden, index.T, order=1, mode="nearest")
        margin = HIDDEN_MARGIN * self.hidden_grid.spacing
        return np.clip((depth - margin) / self.grid.spacing, -REACH, REACH)

    def _fill(self, values: np.ndarray, start: int, known: int, active: np.ndarray) -> None:
        """Evaluate field and visibility at the active samples of a slab, after `known` rows."""
        index = np.argwhere(active[known:]) + [known, 0, 0]
        for first in range(0, len(index), 4_000_000):
            some = index[first : first + 4_000_000]
            points = self.grid.points(some + [start, 0, 0])
            found = np.maximum(self.log_ratio(points), self.behind(points))
            small = np.abs(found) < LEAST
            found[small] = np.where(found[small] < 0, -LEAST, LEAST)
            values[tuple(some.T)] = found

    def _active_lattice(self) -> tuple[np.ndarray, int]:
        """Find where values can differ from -REACH: bool on every step-th sample, with a margin."""
        step = max(1, -(-max(self.grid.shape) // LATTICE_SIDE))
        size = [-(-n // step) for n in self.grid.shape]
        points = self.grid.points(all_indices(size) * step)
        active = np.empty(len(points), dtype=bool)
        occupied = self._lattice_look_up(step)
        for first in range(0, len(points), 1_000_000):
            some = points[first : first + 1_000_000]
            dense = occupied(self.source.to_scene(some)).numpy()
            active[first : first + 1_000_000] = dense | (self.behind(some) > -1.0)
        return binary_dilation(active.reshape(size), np.ones((3, 3, 3), bool)), step

    def _lattice_look_up(self, step: int) -> Callable[[Tensor], Tensor]:
        """Return the test of lattice points, scene points [n, 3] -> bool [n].

        Where the lattice is wider than a cell, a point stands for all cells that its samples
        lie in, or a thin wall would be lost between two points.
        """
        cells, box = self.source.cells, self.source.cells_box
        turn = np.abs(np.array(self.source.model.scene.scene_from_source.rotation)).sum(1).max()
        apart = step * self.grid.spacing * self.source.scale * float(turn)
        cell = 2.0 * box.half_size / cells.shape[1]
        if step == 1 or apart <= cell:
            return self.source.occupied
        reach = math.ceil(0.5 * apart / cell)
        dense = cells.float()[:, None]
        pooled = max_pool3d(dense, 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
        center, limit = torch.tensor(box.center), box.half_size * (1.0 - 1e-6)

        def look_up(points: Tensor) -> Tensor:
            # samples of a point just outside of the detail cube may lie within
            inner = (points - center).clamp(-limit, limit) + center
            found = occupancy_lookup(points, pooled, box)
            return found | occupancy_lookup(inner, pooled, box)

        return look_up


def solid_of(
    source: SourceField,
    visibility: Visibility,
    resolution: int,
    threshold: float | None,
    fill: bool,
) -> Solid:
    """Make the solid of a field on a grid of cubes over its content.

    resolution: cells along the longest side. threshold: per source unit; None chooses it.

    Raises:
        NerfError: the field is empty, or the resolution or threshold cannot be used.
    """
    box = content_box(source)
    if threshold is None:
        threshold = choose_threshold(source, visibility)
    grid = RegularGrid.over(box, resolution)
    coarse = RegularGrid.over(box, min(resolution, HIDDEN_SIDE))
    hidden = _hidden(source, visibility, coarse, box) if fill else None
    return Solid(source, grid, threshold, hidden, coarse)


def choose_threshold(source: SourceField, visibility: Visibility) -> float:
    """Choose the density of the surface, per source unit, from where training rays end.

    It is the density at which one sample stops half of its light, for samples of the length found
    where rays pass half of their opacity. Rendering cannot tell where within a sample a surface
    lies, and training places it where a sample is as likely full as empty. In a field that is
    still soft, most places where rays end are thinner. The result is therefore at most what
    SURFACE_SHARE of these places reach.

    Raises:
        NerfError: no training ray reaches half opacity.
    """
    if not math.isfinite(visibility.sample_length):
        raise EmptyField(
            "the field is empty: no ray of the training views reaches half opacity, so there is "
            "no surface to extract. Train longer, or look at it with nerf render."
        )
    opaque = math.log(2.0) / visibility.sample_length
    reached = float(np.quantile(visibility.densities.numpy(), 1.0 - SURFACE_SHARE))
    return max(min(opaque, reached), LEAST) * source.scale


def content_box(source: SourceField) -> np.ndarray:
    """Find the box [2, 3], source frame, around the occupied cells of the detail cube.

    Raises:
        NerfError: no cell is occupied.
    """
    cells = source.cells[0].nonzero().flip(1).double()  # to x, y, z
    if not len(cells):
        raise EmptyField(
            "the field is empty: its occupancy grid has no occupied cell. Train longer."
        )
    box, side = source.cells_box, 2.0 * source.cells_box.half_size / source.cells.shape[1]
    low = torch.tensor(box.center).double() - box.half_size
    ends = torch.stack([low + cells.amin(0) * side, low + (cells.amax(0) + 1.0) * side])
    corners = torch.cartesian_prod(*ends.T)
    points = source.to_source(corners)
    return np.stack([points.min(axis=0), points.max(axis=0)])


def _hidden(
    source: SourceField, visibility: Visibility, grid: RegularGrid, box: np.ndarray
) -> np.ndarray:
    """Compute the depth behind the last light on a grid, source units, cut to two cells.

    Every second sample comes first. Where neighbours agree on deep inside or far outside, the
    samples between them take that value.
    """
    rough = RegularGrid.over(box, max(1, round((max(grid.shape) - 3) / 2)))
    index = all_indices(rough.shape)
    reach = 2.0 * rough.spacing

    def depth(points: np.ndarray) -> np.ndarray:
        found = visibility.depth_inside(source.to_scene(points), reach * source.scale)
        return found.numpy() / np.float32(source.scale)

    first = depth(rough.points(index)).reshape(rough.shape)
    points = grid.points(all_indices(grid.shape))
    between = (points - rough.origin) / rough.spacing
    out = map_coordinates(first, between.T, order=1, mode="nearest")
    near = np.flatnonzero(np.abs(out) < 0.99 * reach)
    out[near] = depth(points[near])
    places = source.to_scene(points)
    out[~source.is_seen(places).numpy()] = -reach  # unknown, not the inside of anything
    offset = places - torch.tensor(source.box.center)
    room = (source.box.half_size - offset.abs().amax(dim=-1)).numpy() / source.scale
    rim = (room < RIM_CELLS * grid.spacing).reshape(grid.shape)
    return _find_enclosed(out.reshape(grid.shape), rim, reach)


def _find_enclosed(hidden: np.ndarray, rim: np.ndarray, reach: float) -> np.ndarray:
    """Remove the hidden parts that reach the rim of the detail cube.

    Nothing closes them in: they are unknown space (behind a wall, in fog that no photo shows), not
    the inside of anything.
    """
    found: Any = label(hidden > 0)
    labels, n = found
    open_ = np.zeros(n + 1, dtype=bool)
    open_[np.unique(labels[rim])] = True
    open_[0] = False
    return np.where(open_[labels], -np.float32(reach), hidden)


def _cut_log(density: np.ndarray, threshold: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.clip(np.log(density / np.float32(threshold)), -REACH, REACH)


def _clear_border(values: np.ndarray, first: bool, last: bool) -> None:
    """Put the grid's outermost samples outside, so that the surface closes."""
    for side in (0, -1):
        values[:, side, :] = values[:, :, side] = -REACH
    if first:
        values[0] = -REACH
    if last:
        values[-1] = -REACH


def _rows_of(
    active: np.ndarray, step: int, start: int, shape: tuple[int, int, int], end: int
) -> np.ndarray:
    """The lattice's flags at the samples of a slab: each stands for the samples nearest to it."""
    places = [np.minimum((np.arange(n) + step // 2) // step, active.shape[i] - 1)
              for i, n in enumerate(shape)]  # fmt: skip
    return active[np.ix_(places[0][start:end], places[1], places[2])]

"""Query a run's field in the source's frame and units, as shapes need it.

Rays stay in scene space, where the field lives. `to_scene` and `to_source` convert points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.crop import Crop
from nerfcli.engine.render import Model
from nerfcli.methods import Field
from nerfcli.reference.sampling import Steps, occupancy_lookup
from nerfcli.scenes.coverage import seen_cells

CHUNK = 1 << 19  # points evaluated at a time
LATTICE = 96  # points a side at which a field without an occupancy grid is sampled first
LATTICE_SHARE = 0.02  # of a step's light: cells that stop less count as empty


@dataclass(frozen=True, eq=False)
class SourceField:
    """The field of a model, in the frame of the files that its scene was read from.

    Attributes:
        steps: of the marched rays.
        cells: [cascades, R, R, R] bool, indexed [cascade, z, y, x]: where rays sample.
        seen: like cells: where a frame of the training cameras reaches. Nothing is elsewhere.
        cells_box: the box of the cells, scene space.
    """

    model: Model
    steps: Steps
    cells: Tensor
    seen: Tensor
    cells_box: Box

    @staticmethod
    def of(model: Model) -> SourceField:
        """Let a model stand for a shape. Its occupancy grid loses the cells that no camera sees."""
        field, scene, grid = model.field, model.scene, model.field.occupancy
        seen = forget_unseen(model)
        if model.crop is not None:
            return _within(model, model.crop)
        if grid is not None and seen is not None:
            return SourceField(model, field.steps, grid.occupied, seen, grid.box)
        box = Box(field.box.center, field.box.outer_half_size)
        seen = seen_cells(scene, box, LATTICE, masked=False)
        cells = _lattice_cells(field, box, field.steps.size)[None] & seen
        return SourceField(model, field.steps, cells, seen, box)

    @property
    def scale(self) -> float:
        """Scene units per source unit."""
        return self.model.scene.scene_from_source.scale

    @property
    def box(self) -> Box:
        """The detail cube, in scene space."""
        return self.model.scene.box

    @property
    def step(self) -> float:
        """Length of a sample near the surface, in scene units."""
        return self.steps.size

    def to_scene(self, points: np.ndarray) -> Tensor:
        """Convert source points [n, 3] to scene points, float32."""
        return self.model.scene.scene_from_source.apply(torch.from_numpy(points)).float()

    def to_source(self, points: Tensor) -> np.ndarray:
        """Convert scene points [n, 3] to source points, float64."""
        return self.model.scene.scene_from_source.inverse().apply(points.double()).numpy()

    def directions_to_scene(self, directions: np.ndarray) -> Tensor:
        """Rotate unit vectors [n, 3] from the source's frame to the scene's; float32."""
        rotation = np.array(self.model.scene.scene_from_source.rotation)
        return torch.from_numpy(directions @ rotation.T).float()

    def density(self, points: np.ndarray) -> np.ndarray:
        """Evaluate the density [n] per source unit at source points [n, 3]; 0 in empty cells."""
        parts = [
            self._density(self.to_scene(points[start : start + CHUNK]))
            for start in range(0, len(points), CHUNK)
        ]
        return torch.cat([torch.zeros(0), *parts]).numpy() * np.float32(self.scale)

    def occupied(self, points: Tensor) -> Tensor:
        """Whether rays sample at scene points [n, 3]: bool [n]."""
        return occupancy_lookup(points, self.cells, self.cells_box)

    def is_seen(self, points: Tensor) -> Tensor:
        """Whether a training camera's frame reaches scene points [n, 3]: bool [n]."""
        return occupancy_lookup(points, self.seen, self.cells_box)

    def remoteness(self, points: Tensor) -> Tensor:
        """Distance of scene points [n, 3] in sizes of the detail cube, [n]; 1 within it."""
        away = (points - points.new_tensor(self.box.center)).abs().amax(dim=-1)
        return (away / self.box.half_size).clamp(min=1.0)

    def reaching(self, length: float) -> Field:
        """Return the field for rays that start anywhere and end after `length` scene units."""
        return self.model.field.between(0.0, length)

    @property
    def from_inside(self) -> Field:
        """The field for rays that start in or on the detail cube and end when they are through."""
        return self.reaching(2.0 * 3.0**0.5 * self.box.half_size)

    def _density(self, points: Tensor) -> Tensor:
        sigmas = torch.zeros(len(points))
        inside = self.occupied(points).nonzero()[:, 0]
        if len(inside):
            sigmas[inside] = self.model.field.density(points[inside])
        return sigmas


def forget_unseen(model: Model) -> Tensor | None:
    """Empty the cells of an occupancy grid that no training camera sees; return those it sees.

    A run of an earlier version may have such cells. Masks do not count here: their files are not in
    a run. None where the field has no grid.
    """
    grid = model.field.occupancy
    if grid is None:
        return None
    seen = seen_cells(model.scene, grid.box, grid.resolution, masked=False)
    grid.occupied &= seen.to(grid.occupied.device)
    return seen


def _within(model: Model, crop: Crop) -> SourceField:
    """Let what is in a crop stand for a shape, wherever it lies; the cells are of its cube."""
    field, box = model.field, crop.cube()
    seen = seen_cells(model.scene, box, LATTICE, masked=False)
    if field.occupancy is None:
        cells = _lattice_cells(field, box, field.steps.size)
    else:
        points = _lattice(box, 2 * LATTICE)
        some = [
            occupancy_lookup(part, field.occupancy.occupied, field.occupancy.box)
            for part in points.split(1 << 20)
        ]
        cells = torch.cat(some).float().reshape(1, 1, *(2 * LATTICE,) * 3)
        cells = torch.nn.functional.max_pool3d(cells, 2)
        cells = torch.nn.functional.max_pool3d(cells, 3, stride=1, padding=1)[0, 0] > 0
    reach = 3.0**0.5 * box.half_size / LATTICE / min(crop.half)
    near = crop.to_local(_lattice(box, LATTICE)).abs().amax(-1) <= 1.0 + reach
    return SourceField(
        model, field.steps, (cells & near.reshape(cells.shape))[None] & seen, seen, box
    )


def _lattice(box: Box, n: int) -> Tensor:
    """The middles of the cells of a cube, [n**3, 3], z slowest."""
    axis = (torch.arange(n) + 0.5) * (2.0 * box.half_size / n) - box.half_size
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3) + torch.tensor(box.center)


def _lattice_cells(field: Field, box: Box, step: float) -> Tensor:
    """Cells [R, R, R] of a field without a grid of its own: those near a dense lattice point."""
    sigmas = torch.cat([field.density(part) for part in _lattice(box, LATTICE).split(1 << 16)])
    dense = (sigmas * step > LATTICE_SHARE).float().reshape(1, 1, LATTICE, LATTICE, LATTICE)
    return torch.nn.functional.max_pool3d(dense, 3, stride=1, padding=1)[0, 0] > 0

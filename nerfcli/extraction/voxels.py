"""Export a field as voxels."""

from __future__ import annotations

import numpy as np

from nerfcli.core.progress import Progress
from nerfcli.extraction.solid import REACH, Solid
from nerfcli.shapes.grids import surface_colors
from nerfcli.shapes.types import Mesh, VoxelGrid


def field_voxels(solid: Solid, surface: Mesh, progress: Progress) -> VoxelGrid:
    """Make voxels of density on the solid's grid, with colours of its surface inside.

    Values are densities per source unit, 0 below threshold / e**REACH and cut at threshold *
    e**REACH; where the solid is filled they are above the threshold. Every voxel inside takes the
    colour of the surface's nearest vertex.
    """
    values = np.empty(solid.grid.shape, dtype=np.float32)
    for start, slab in solid.slabs(progress):
        values[start : start + len(slab)] = slab
    inside = values > 0
    density = np.where(values > -REACH, solid.threshold * np.exp(values), 0.0)
    return VoxelGrid(
        density.astype(np.float32),
        solid.grid.origin,
        np.full(3, solid.grid.spacing),
        solid.threshold,
        surface_colors(surface, inside, solid.grid),
    )

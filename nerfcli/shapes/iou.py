"""Compute the intersection over union of closed shapes on a common grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from nerfcli.core.errors import NerfError
from nerfcli.shapes.inside import closedness, inside_blocks, slab_rows
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, Shape, VoxelGrid, bounds


@dataclass(frozen=True)
class VolumeOverlap:
    """Volumes in cubed units of the source, counted on a grid of cubes of side `spacing`."""

    iou: float
    volume_a: float
    volume_b: float
    intersection: float
    spacing: float
    resolution: tuple[int, int, int]


def ensure_volume(name: str, shape: Shape) -> None:
    """Check that a shape has an inside.

    Raises:
        NerfError: a point cloud, or a mesh with boundary edges.
    """
    if isinstance(shape, PointCloud):
        raise NerfError(f"{name} is a point cloud, which has no volume; use --voxels 0.")
    if not isinstance(shape, Mesh):
        return
    n_boundary = closedness(shape).n_boundary
    if n_boundary:
        raise NerfError(
            f"{name} is not watertight: {n_boundary} boundary edges. A volume needs a closed "
            "surface: fill the holes, or compare surfaces only with --voxels 0."
        )


def volumetric_iou(a: Shape, b: Shape, n_voxels: int, names: tuple[str, str]) -> VolumeOverlap:
    """Compute |A and B| / |A or B| on a grid, n_voxels along the common box's longest side.

    A grid point stands for the cube around it. Shapes that share no cube give 0.

    Raises:
        NerfError: a shape without inside, or two shapes so thin that no grid point is inside.
    """
    for name, shape in zip(names, (a, b), strict=True):
        ensure_volume(name, shape)
    boxes = np.stack([bounds(a), bounds(b)])
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    spacing = float((high - low).max()) / n_voxels
    nx, ny, nz = (max(1, int(n)) for n in np.ceil((high - low) / spacing - 1e-9))
    origin = low + 0.5 * spacing
    n_a = n_b = n_both = 0
    slabs = zip(
        _inside_slabs(a, origin, spacing, (nx, ny, nz)),
        _inside_slabs(b, origin, spacing, (nx, ny, nz)),
        strict=True,
    )
    for in_a, in_b in slabs:
        n_a, n_b = n_a + int(in_a.sum()), n_b + int(in_b.sum())
        n_both += int((in_a & in_b).sum())
    if n_a + n_b == 0:
        raise NerfError(
            f"{names[0]} and {names[1]} enclose no point of a grid of {nx} x {ny} x {nz}: they are "
            "too thin for it. Give a larger --voxels, or --voxels 0."
        )
    cell = spacing**3
    overlap = n_both / (n_a + n_b - n_both)
    return VolumeOverlap(overlap, n_a * cell, n_b * cell, n_both * cell, spacing, (nx, ny, nz))


def _inside_slabs(
    shape: Shape, origin: np.ndarray, spacing: float, size: tuple[int, int, int]
) -> Iterator[np.ndarray]:
    if isinstance(shape, Mesh):
        blocks = inside_blocks(shape, origin, np.full(3, spacing), size)
        yield from (block for _, block in blocks)
    elif isinstance(shape, VoxelGrid | SdfGrid):
        rows = slab_rows(size)
        for start in range(0, size[0], rows):
            index = np.meshgrid(
                np.arange(start, min(start + rows, size[0])),
                np.arange(size[1]),
                np.arange(size[2]),
                indexing="ij",
                sparse=True,
            )
            yield _inside_samples(shape, [origin[i] + spacing * index[i] for i in range(3)])


def _inside_samples(grid: VoxelGrid | SdfGrid, axes: list[np.ndarray]) -> np.ndarray:
    """Sample a grid: voxels are constant in their cube, distances linear between samples."""
    index = [(axes[i] - grid.origin[i]) / grid.spacing[i] for i in range(3)]
    if isinstance(grid, SdfGrid):
        where = np.stack(np.broadcast_arrays(*index))
        return map_coordinates(grid.values, where, order=1, mode="constant", cval=np.inf) < 0
    cells = [np.floor(values + 0.5).astype(np.int64) for values in index]
    size = grid.values.shape
    known = np.ones((1, 1, 1), dtype=bool)
    for i, cell in enumerate(cells):
        known = known & (cell >= 0) & (cell < size[i])
    found = grid.values[tuple(np.clip(cell, 0, size[i] - 1) for i, cell in enumerate(cells))]
    return known & (found >= grid.threshold)

"""Make voxels and signed distances of a shape."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.shapes.distance import Surface
from nerfcli.shapes.inside import closedness, inside_blocks, inside_grid
from nerfcli.shapes.surface import surface_of
from nerfcli.shapes.types import (
    Mesh,
    PointCloud,
    RegularGrid,
    SdfGrid,
    Shape,
    VoxelGrid,
    all_indices,
    bounds,
)

MAX_RESOLUTION = 512  # of a grid in one file
PADDING = 2  # cells between a shape and the border of its distance grid


def voxels_of(name: str, shape: Shape, resolution: int) -> VoxelGrid:
    """Mark cubes as full (1) or empty (0), `resolution` along the longest side.

    A cube is full if it holds a point of a cloud, or if its centre lies inside any other shape.

    Raises:
        NerfError: a mesh that is not closed, or a shape too thin for any centre to lie inside.
    """
    if isinstance(shape, PointCloud):
        return _cubes_with_points(shape, resolution)
    mesh = closed_surface(name, shape)
    grid = RegularGrid.over(bounds(mesh), resolution)
    inside = inside_grid(mesh, grid.origin, np.full(3, grid.spacing), grid.shape)
    if not inside.any():
        raise NerfError(
            f"{name} encloses no voxel centre at --resolution {resolution}: it is too thin. "
            "Give a larger --resolution."
        )
    colors = surface_colors(mesh, inside, grid)
    values = inside.astype(np.float32)
    return VoxelGrid(values, grid.origin, np.full(3, grid.spacing), 0.5, colors)


def sdf_of(name: str, shape: Shape, resolution: int, progress: Progress) -> SdfGrid:
    """Compute exact distances to the surface at grid points, negative inside (winding number).

    Raises:
        NerfError: a point cloud, or a mesh that is not closed: they have no inside.
    """
    mesh = closed_surface(name, shape)
    box = bounds(mesh)
    spacing = float((box[1] - box[0]).max()) / max(1, resolution - 2 * PADDING)
    margin = (PADDING - 1) * spacing  # Grid.over adds another cell
    grid = RegularGrid.over(np.stack([box[0] - margin, box[1] + margin]), max(1, resolution - 2))
    surface, values = Surface(mesh), np.empty(grid.shape, dtype=np.float32)
    plane = all_indices(grid.shape[1:])
    rows = max(1, 500_000 // len(plane))
    for start in range(0, grid.shape[0], rows):
        n = min(rows, grid.shape[0] - start)
        x = np.repeat(np.arange(start, start + n), len(plane))
        points = grid.points(np.column_stack([x, np.tile(plane, (n, 1))]))
        values[start : start + n] = surface.closest(points)[0].reshape(n, *grid.shape[1:])
        progress.update(start + n, total=grid.shape[0])
    for start, inside in inside_blocks(mesh, grid.origin, np.full(3, grid.spacing), grid.shape):
        values[start : start + len(inside)][inside] *= -1.0
    return SdfGrid(values, grid.origin, np.full(3, grid.spacing))


def closed_surface(name: str, shape: Shape) -> Mesh:
    """Return the surface of a shape that has an inside.

    Raises:
        NerfError: a point cloud, a mesh with boundary edges, or an empty grid.
    """
    surface = surface_of(name, shape)
    if isinstance(surface, PointCloud):
        raise NerfError(
            f"{name} is a point cloud, which has no inside; from points there are points and "
            "voxels, and with normals a mesh by --to mesh --fit."
        )
    n_boundary = closedness(surface).n_boundary
    if n_boundary:
        raise NerfError(
            f"{name} is not watertight: {n_boundary} boundary edges, so nothing says what is "
            "inside. Fill its holes, or export it --to points."
        )
    return surface


def ensure_resolution(resolution: int, most: int) -> None:
    if not 2 <= resolution <= most:
        raise NerfError(f"--resolution {resolution}: must lie between 2 and {most} here.")


def _cubes_with_points(cloud: PointCloud, resolution: int) -> VoxelGrid:
    grid = RegularGrid.over(bounds(cloud), resolution)
    index = np.rint((cloud.points - grid.origin) / grid.spacing).astype(np.int64)
    flat = np.ravel_multi_index(tuple(index.T), grid.shape)
    n = int(np.prod(grid.shape))
    counts = np.bincount(flat, minlength=n)
    colors = None
    if cloud.colors is not None:
        sums = [np.bincount(flat, weights=cloud.colors[:, c], minlength=n) for c in range(3)]
        colors = np.stack(sums, axis=-1) / np.maximum(counts, 1)[:, None]
        colors = colors.astype(np.float32).reshape(*grid.shape, 3)
    values = (counts > 0).astype(np.float32).reshape(grid.shape)
    return VoxelGrid(values, grid.origin, np.full(3, grid.spacing), 0.5, colors)


def surface_colors(surface: Mesh, inside: np.ndarray, grid: RegularGrid) -> np.ndarray | None:
    """Give each sample inside the colour of the nearest vertex, uint8-exact float32; or None."""
    if surface.vertex_colors is None:
        return None
    index = np.argwhere(inside)
    _, nearest = KDTree(surface.vertices).query(grid.points(index), workers=-1)
    colors = np.zeros((*inside.shape, 3), dtype=np.float32)
    colors[tuple(index.T)] = np.round(surface.vertex_colors[nearest] * 255.0) / 255.0
    return colors

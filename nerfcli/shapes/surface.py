"""Turn a grid into a closed mesh, so that it can be sampled and measured."""

from __future__ import annotations

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, Shape, VoxelGrid


def surface_of(name: str, shape: Shape) -> Mesh | PointCloud:
    """Return meshes and point clouds as they are, and the level set of a grid (marching cubes).

    Voxels meet the outside at their threshold, distances at 0. The grid is taken to be empty
    beyond its border, so the mesh is closed.

    Raises:
        NerfError: nothing inside the grid, nothing to sample in the mesh, a cloud of no points,
            coordinates that are not finite.
    """
    if isinstance(shape, Mesh | PointCloud):
        ensure_points(name, shape)
        return shape
    if isinstance(shape, VoxelGrid):
        return _level_set(name, shape, shape.values - np.float32(shape.threshold))
    return _level_set(name, shape, -shape.values)


def ensure_points(name: str, shape: Mesh | PointCloud) -> None:
    """Check that there is something to sample.

    Raises:
        NerfError: no points, no faces, no area, coordinates that are not finite.
    """
    points = shape.vertices if isinstance(shape, Mesh) else shape.points
    if not np.all(np.isfinite(points)):
        raise NerfError(f"{name}: a coordinate is NaN or infinite. Repair the shape.")
    if not len(points) or (isinstance(shape, Mesh) and not len(shape.faces)):
        raise NerfError(f"{name} is empty: it has no points to measure.")
    if isinstance(shape, Mesh) and not shape.area > 0:
        raise NerfError(f"{name} is degenerate: its {len(shape.faces)} faces have no area.")


def _level_set(name: str, grid: VoxelGrid | SdfGrid, values: np.ndarray) -> Mesh:
    """Extract the zero level of values that are positive inside."""
    from skimage.measure import marching_cubes  # slow to import

    if not values.max() > 0:
        raise NerfError(f"{name} is empty: no sample of the grid lies inside the shape.")
    outside = -float(np.abs(values).max())  # so a full voxel ends half a voxel further out
    padded = np.pad(values, 1, constant_values=outside)
    # flat pieces at exactly 0 would give faces without area: 0 counts as inside
    padded[padded == 0] = np.finfo(np.float32).tiny
    vertices, faces, _, _ = marching_cubes(padded, level=0.0, allow_degenerate=True)
    vertices = (vertices.astype(np.float64) - 1.0) * grid.spacing + grid.origin
    mesh = Mesh(vertices, faces.astype(np.int64))
    return mesh if mesh.volume > 0 else Mesh(vertices, mesh.faces[:, ::-1])

"""The structs that hold a shape: mesh, point cloud, voxel grid, signed distance grid.

v vertices, f faces, n points; a grid's value [i, j, k] belongs to the point
origin + spacing * (i, j, k): a sample at a point, and for voxels the centre of the voxel.
Colours are sRGB in [0, 1]. A face is counter-clockwise seen from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles over shared vertices.

    vertices: [v, 3] float64.
    faces: [f, 3] int64, indices into vertices.
    vertex_colors: [v, 3] float32 or None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    vertex_colors: np.ndarray | None = None

    @cached_property
    def triangles(self) -> np.ndarray:
        """Corner positions [f, 3 corners, 3]."""
        return self.vertices[self.faces]

    @cached_property
    def area_vectors(self) -> np.ndarray:
        """Normal times area of each face [f, 3]."""
        a, b, c = self.triangles.transpose(1, 0, 2)
        return 0.5 * np.cross(b - a, c - a)

    @cached_property
    def face_areas(self) -> np.ndarray:
        return np.linalg.norm(self.area_vectors, axis=1)

    @cached_property
    def face_normals(self) -> np.ndarray:
        """Unit normals [f, 3]; zero where a face has no area."""
        return unit(self.area_vectors)

    @cached_property
    def vertex_normals(self) -> np.ndarray:
        """Unit normals [v, 3], the mean of the faces around by area; zero where undefined."""
        sums = np.zeros_like(self.vertices)
        for corner in range(3):
            np.add.at(sums, self.faces[:, corner], self.area_vectors)
        return unit(sums)

    @property
    def area(self) -> float:
        return float(self.face_areas.sum())

    @property
    def volume(self) -> float:
        """Signed volume: positive for a closed mesh whose faces are oriented outwards."""
        center = self.vertices.mean(axis=0)  # near the origin, fewer digits cancel
        a, b, c = (self.triangles - center).transpose(1, 0, 2)
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0)


@dataclass(frozen=True, eq=False)
class PointCloud:
    """points [n, 3] float64; normals [n, 3] of unit length or None; colors [n, 3] or None."""

    points: np.ndarray
    normals: np.ndarray | None = None
    colors: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """Occupancy or density on a regular grid; inside is where the value reaches the threshold.

    values: [nx, ny, nz] float32 (or bool, read as 0 and 1).
    origin: [3], the centre of voxel [0, 0, 0].
    spacing: [3], the voxel's size along each axis, in the source's unit.
    colors: [nx, ny, nz, 3] or None.
    """

    values: np.ndarray
    origin: np.ndarray
    spacing: np.ndarray
    threshold: float = 0.5
    colors: np.ndarray | None = None
    frame: str = "source"
    unit: str = "unknown"


@dataclass(frozen=True, eq=False)
class SdfGrid:
    """Signed distance to a surface on a regular grid, negative inside; fields as in VoxelGrid."""

    values: np.ndarray
    origin: np.ndarray
    spacing: np.ndarray
    frame: str = "source"
    unit: str = "unknown"


Shape = Mesh | PointCloud | VoxelGrid | SdfGrid


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors [..., 3] to length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def bounds(shape: Shape) -> np.ndarray:
    """Compute the axis-aligned bounding box [2, 3], low and high.

    Of a mesh the vertices that faces use; of a grid the samples, with half a voxel around voxels.
    """
    if isinstance(shape, Mesh):
        points = shape.vertices[np.unique(shape.faces)]
        return np.stack([points.min(axis=0), points.max(axis=0)])
    if isinstance(shape, PointCloud):
        return np.stack([shape.points.min(axis=0), shape.points.max(axis=0)])
    margin = 0.5 * shape.spacing if isinstance(shape, VoxelGrid) else 0.0
    last = np.array(shape.values.shape) - 1
    return np.stack([shape.origin - margin, shape.origin + shape.spacing * last + margin])


def diagonal(box: np.ndarray) -> float:
    """Compute the diagonal of a box [2, 3]."""
    return float(np.linalg.norm(box[1] - box[0]))


def transform_mesh(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """Transform a mesh by a similarity matrix [3, 4] or [4, 4] without reflection."""
    return replace(mesh, vertices=mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3])


def merge_vertices(mesh: Mesh) -> tuple[Mesh, int]:
    """Merge vertices at bit-equal positions, keeping the first's colour; count the dropped."""
    view = np.ascontiguousarray(mesh.vertices + 0.0)  # -0.0 becomes 0.0
    rows = view.view([("", view.dtype)] * 3).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return mesh, 0
    order = np.argsort(first)  # vertices keep the order of their first appearance
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    keep = first[order]
    colors = None if mesh.vertex_colors is None else mesh.vertex_colors[keep]
    merged = Mesh(mesh.vertices[keep], rank[inverse.ravel()][mesh.faces], colors)
    return merged, len(rows) - len(keep)


@dataclass(frozen=True, eq=False)
class RegularGrid:
    """Sample [i, j, k] lies at origin + spacing * (i, j, k), in the source's frame."""

    origin: np.ndarray
    spacing: float
    shape: tuple[int, int, int]

    def points(self, index: np.ndarray) -> np.ndarray:
        """Compute positions [n, 3] of (fractional) indices [n, 3]."""
        return self.origin + self.spacing * index

    @staticmethod
    def over(box: np.ndarray, resolution: int) -> RegularGrid:
        """Cubic cells, `resolution` along the longest side of a box [2, 3]; one more around it."""
        spacing = float((box[1] - box[0]).max()) / resolution
        cells = np.maximum(np.ceil((box[1] - box[0]) / spacing - 1e-9), 1).astype(int) + 2
        origin = box.mean(axis=0) - 0.5 * spacing * cells
        return RegularGrid(
            origin, spacing, (int(cells[0]) + 1, int(cells[1]) + 1, int(cells[2]) + 1)
        )


def all_indices(shape: Sequence[int]) -> np.ndarray:
    """List the indices of all samples of a grid [n, k], the last axis fastest."""
    return np.moveaxis(np.indices(tuple(shape)), 0, -1).reshape(-1, len(shape))

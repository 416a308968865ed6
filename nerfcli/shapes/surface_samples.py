"""Sample points on surfaces, uniform by area, with their normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.shapes.types import Mesh, PointCloud


@dataclass(frozen=True, eq=False)
class SurfaceSamples:
    """points [n, 3]; unit normals [n, 3] or None where the shape has none."""

    points: np.ndarray
    normals: np.ndarray | None


def barycentric(uniforms: np.ndarray) -> np.ndarray:
    """Map uniform numbers [n, 2] in [0, 1) to uniform barycentric weights [n, 3].

    Source: Osada et al. (2002), Shape Distributions, eq. 1.
    """
    root = np.sqrt(uniforms[:, 0])
    return np.stack([1.0 - root, root * (1.0 - uniforms[:, 1]), root * uniforms[:, 1]], axis=1)


def sample_faces(areas: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n face indices [n], ascending, in proportion to the areas."""
    ends = np.cumsum(areas)
    # ascending, so that neighbours in the list are neighbours in space: trees answer faster
    draws = np.sort(rng.random(n)) * ends[-1]
    return np.minimum(np.searchsorted(ends, draws, side="right"), np.flatnonzero(areas)[-1])


def sample_surface(mesh: Mesh, n: int, rng: np.random.Generator) -> SurfaceSamples:
    """Draw n points uniform by area, with the normals of their faces.

    Raises:
        NerfError: the mesh has no area.
    """
    if not mesh.area > 0:
        raise NerfError("a mesh without area (every face is degenerate) cannot be sampled.")
    faces = sample_faces(mesh.face_areas, n, rng)
    weights = barycentric(rng.random((n, 2)))
    points = np.einsum("nk,nkd->nd", weights, mesh.triangles[faces])
    return SurfaceSamples(points, mesh.face_normals[faces])


def sample_shape(shape: Mesh | PointCloud, n: int, rng: np.random.Generator) -> SurfaceSamples:
    """Draw n points of a mesh's surface, or at most n of a cloud's own points."""
    if isinstance(shape, Mesh):
        return sample_surface(shape, n, rng)
    if len(shape.points) <= n:
        return SurfaceSamples(shape.points, shape.normals)
    chosen = np.sort(rng.choice(len(shape.points), n, replace=False))
    normals = None if shape.normals is None else shape.normals[chosen]
    return SurfaceSamples(shape.points[chosen], normals)

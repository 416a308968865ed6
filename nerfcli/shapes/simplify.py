"""Simplify meshes by quadric edge collapse (Garland and Heckbert 1997), from a library."""

from __future__ import annotations

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.extras import missing
from nerfcli.shapes.inside import closedness
from nerfcli.shapes.manifold import split_nonmanifold_edges
from nerfcli.shapes.types import Mesh

_ROUNDS = 3  # each asks for a little more than the last, where the result was not closed


def simplify_mesh(mesh: Mesh, n_faces: int) -> Mesh:
    """Reduce a mesh to about n_faces faces, if it has more. Colours are dropped.

    A closed mesh stays closed, with two faces at each edge.

    Raises:
        NerfError: the package fast-simplification is missing, or a closed mesh cannot be thinned
            that far without being torn.
    """
    if len(mesh.faces) <= n_faces:
        return mesh
    try:
        import fast_simplification  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing("fast_simplification", "--faces") from error
    closed = closedness(mesh).closed
    center = mesh.vertices.mean(axis=0)  # the library works in float32
    target = n_faces
    for _ in range(_ROUNDS):
        points, faces, *_ = fast_simplification.simplify(
            (mesh.vertices - center).astype(np.float32),
            mesh.faces.astype(np.int32),
            target_count=target,
            agg=5.0,
        )
        thin = Mesh(points.astype(np.float64) + center, faces.astype(np.int64))
        if not closed or closedness(thin).closed:
            return split_nonmanifold_edges(thin)
        target = int(1.25 * target)
    raise NerfError(
        f"--faces {n_faces}: the surface cannot be thinned that far and stay closed. Ask for more."
    )

"""Run marching cubes over the slabs of a solid and weld the vertices that slabs share."""

from __future__ import annotations

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.extraction.solid import Solid
from nerfcli.shapes.types import Mesh


def marching_cubes(solid: Solid, progress: Progress) -> Mesh:
    """Extract the zero level of a solid as one mesh, oriented outwards, in the source's frame.

    Raises:
        NerfError: nothing lies inside, so the threshold is above every density.
    """
    from skimage import measure  # slow to import

    parts: list[tuple[np.ndarray, np.ndarray]] = []
    seam = (np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    n_vertices = 0
    for start, values in solid.slabs(progress):
        if values.max() < 0:
            seam = (np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
            continue
        local, faces, _, _ = measure.marching_cubes(values, 0.0, allow_degenerate=True)
        index = local.astype(np.float64) + [start, 0, 0]
        number, fresh = _weld(index, seam, start, n_vertices)
        parts.append((index[fresh], number[faces.astype(np.int64)]))
        n_vertices += int(fresh.sum())
        on_seam = index[:, 0] == start + len(values) - 1
        seam = (index[on_seam], number[on_seam])
    if not parts:
        raise NerfError(
            f"nothing is inside at --threshold {solid.threshold:.4g}: the density stays below it "
            "everywhere. Give a lower --threshold."
        )
    vertices = solid.grid.points(np.concatenate([index for index, _ in parts]))
    # skimage winds faces towards higher values, which are inside here
    return Mesh(vertices, np.concatenate([faces for _, faces in parts])[:, ::-1])


def _weld(
    index: np.ndarray, seam: tuple[np.ndarray, np.ndarray], start: int, n_vertices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number a slab's vertices in the whole mesh [v], and tell which of them are new."""
    known, numbers = seam
    fresh = np.ones(len(index), dtype=bool)
    number = np.empty(len(index), dtype=np.int64)
    if len(known):
        mine = np.flatnonzero(index[:, 0] == start)
        both = np.concatenate([known[:, 1:], index[mine, 1:]])
        _, inverse = np.unique(both, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        place = np.full(int(inverse.max()) + 1, -1, dtype=np.int64)
        place[inverse[: len(known)]] = numbers
        old = place[inverse[len(known) :]]
        fresh[mine[old >= 0]] = False
        number[mine[old >= 0]] = old[old >= 0]
    number[fresh] = n_vertices + np.arange(int(fresh.sum()))
    return number, fresh

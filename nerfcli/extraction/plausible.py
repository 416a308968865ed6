"""Tell when an extracted mesh is no surface of the scene: a block around it, or specks of it."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial import KDTree

from nerfcli.extraction.solid import Solid, choose_threshold
from nerfcli.extraction.visibility import Visibility
from nerfcli.shapes.types import Mesh

ENDS = 20_000  # places where training rays end, of all views together
FEW_ENDS = 100  # in the grid, below which they say nothing
NEAR = 0.01  # of the grid's longest side: a ray that ends so near ends at the surface
NEAR_CELLS = 1.5  # at least: a coarse grid places no vertex better
LEAST_SHARE = 0.5  # of the rays: good surfaces have 0.95 of them, at the threshold chosen for them


def list_doubts(mesh: Mesh, solid: Solid, visibility: Visibility, is_given: bool) -> list[str]:
    """Describe why a mesh is not what the training views show, and what to do.

    Most rays of the training views have to pass half of their opacity at the surface.

    is_given: the user gave the threshold.
    """
    ends = _ray_ends(solid, visibility)
    if len(ends) < FEW_ENDS:
        return []
    grid = solid.grid
    near = max(NEAR * (max(grid.shape) - 1), NEAR_CELLS) * grid.spacing
    distance, _ = KDTree(mesh.vertices).query(ends, distance_upper_bound=near, workers=-1)
    far = ~np.isfinite(distance)
    share = 1.0 - float(far.mean())
    if share >= LEAST_SHARE:
        return []
    is_block = float((solid.log_ratio(ends[far]) > 0).mean()) > 0.5
    what, change = ("a block around it", "raise") if is_block else ("specks of it", "lower")
    advice = f"train longer, or {change} --threshold"
    if is_given and math.isfinite(visibility.sample_length):
        usual = choose_threshold(solid.source, visibility)
        advice = f"without --threshold it would be {usual:.4g}"
    return [
        f"at density {solid.threshold:.4g} the surface is {what}: only {share:.0%} of the training "
        f"rays end there; {advice}"
    ]


def _ray_ends(solid: Solid, visibility: Visibility) -> np.ndarray:
    """Find where training rays pass half of their opacity within the grid, source frame [n, 3]."""
    most, places = max(1, ENDS // len(visibility.training)), [torch.zeros(0, 3)]
    for found in visibility.training:
        hit = found.half_t.isfinite().nonzero()[:, 0]
        hit = hit[:: max(1, len(hit) // most)]
        rays = found.view.rays()[hit]
        places.append(rays.origins + found.half_t[hit, None] * rays.directions)
    ends = solid.source.to_source(torch.cat(places))
    index = (ends - solid.grid.origin) / solid.grid.spacing
    return ends[((index >= 0) & (index <= np.array(solid.grid.shape) - 1)).all(axis=1)]

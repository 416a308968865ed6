"""Find single views whose poses contradict the others, and images that swapped places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nerfcli.check.epipolar import MatchedRays
from nerfcli.check.poses import MAJORITY, Fit, fit_poses

# A wrong pose contradicts all its neighbours. A right one contradicts hardly any, or up to half
# where things repeat (two sides of a label, tiles) and one side is matched with the other.
OUTLIER, DOUBTFUL = 0.75, 0.25


def compute_contradictions(
    pairs: Tensor, weights: Tensor, fit: Fit, n_cameras: int, limit: float
) -> Tensor:
    """Compute the share of each view's matches in pairs that contradict the poses.

    Args:
        pairs: [p, 2] cameras, in the order of fit.residuals. weights: [p] matches of each.
        limit: residual in pixels from which a pair contradicts.

    Returns:
        [n_cameras], 0 to 1.
    """
    bad = ~(fit.residuals < limit)
    total = _sum_by_view(pairs, weights, n_cameras)
    return _sum_by_view(pairs, weights * bad, n_cameras) / total.clamp(min=1)


def find_outlier_views(pairs: Tensor, weights: Tensor, fit: Fit, n_cameras: int) -> list[int]:
    """Find views whose poses contradict nearly all others, by removing the worst one repeatedly.

    Args:
        pairs, weights, fit, n_cameras: see `compute_contradictions`.
    """
    alive = weights.double()
    outliers: list[int] = []
    while True:
        share = compute_contradictions(pairs, alive, fit, n_cameras, fit.single_view_limit)
        # of two views that only contradict each other, take the one with more matches first
        score = share + 1e-9 * _sum_by_view(pairs, alive, n_cameras)
        worst = int(score.argmax())
        if share[worst] <= OUTLIER:
            return sorted(outliers)
        outliers.append(worst)
        alive = alive * (pairs != worst).all(-1)


def _sum_by_view(pairs: Tensor, weights: Tensor, n: int) -> Tensor:
    total = torch.zeros(n, dtype=torch.float64)
    for side in (0, 1):
        total.index_add_(0, pairs[:, side], weights.double())
    return total


def find_swapped_images(
    rays: MatchedRays, pairs: Tensor, c2w: Tensor, outliers: Sequence[int], tolerance: float
) -> list[tuple[int, int]]:
    """Find outlier images that fit the pose of another outlier: pairs (image, pose)."""
    trusted = torch.ones(len(c2w), dtype=torch.bool)
    trusted[list(outliers)] = False
    swaps = []
    for image in outliers:
        rows = (pairs[rays.pair] == image).any(-1) & trusted[pairs[rays.pair]].any(-1)
        if not rows.any():
            continue
        selected = rays.select(rows)
        for pose in outliers:
            moved = c2w.clone()
            moved[image] = c2w[pose]
            if pose != image and fit_poses(selected, moved, tolerance).agreeing > MAJORITY:
                swaps.append((image, pose))
                break
    return swaps

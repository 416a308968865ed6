"""Find single views whose poses contradict the others, and images that swapped places.

Matches on what repeats (stairs, railings) contradict a right pose, too. They are told from a wrong
pose by what they agree on: the matches of a wrongly posed view all fit one other pose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from nerfcli.check.epipolar import MatchedRays
from nerfcli.check.poses import MAJORITY, Fit, fit_poses

# A wrong pose contradicts all its neighbours. A right one contradicts hardly any, or up to half
# where things repeat (two sides of a label, tiles) and one side is matched with the other.
OUTLIER, DOUBTFUL = 0.75, 0.25
# A wrongly posed view has about as many matches as any other; chance and repetition give few.
LEAST_PROOF, PROOF_SHARE = 60, 0.2  # matches, and of the median of all views
FITTED, STARTS = 200, 3  # matches that a pose is fitted to, and neighbours that it starts from


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


def find_wrong_poses(
    rays: MatchedRays,
    pairs: Tensor,
    c2w: Tensor,
    views: Sequence[int],
    outliers: Sequence[int],
    tolerance: float,
) -> list[int]:
    """Find the views that are surely posed wrongly: many matches agree on another pose.

    Args:
        pairs: [p, 2] cameras. c2w: [n, 3, 4].
        views: outliers to look at. outliers: that are not trusted meanwhile.
    """
    counts = torch.bincount(rays.cameras.reshape(-1), minlength=len(c2w))
    least = max(LEAST_PROOF, PROOF_SHARE * float(counts[counts > 0].double().median()))
    wrong = []
    for view in views:
        rows = _rows_with_trusted(rays, pairs, view, outliers)
        selected = rays.select(rows)
        if len(selected.pair) >= least and len(selected.pair.unique()) >= 2:
            poses = _fit_other_poses(selected, view, c2w)
            fits = [fit_poses(selected, moved, tolerance) for moved in poses]
            if any(fit.agreeing > MAJORITY for fit in fits):
                wrong.append(view)
    return wrong


def _rows_with_trusted(
    rays: MatchedRays, pairs: Tensor, view: int, outliers: Sequence[int]
) -> Tensor:
    """Select a view's matches with trusted views, or all if there are none. -> [m] bool"""
    own = (pairs[rays.pair] == view).any(-1)
    others = torch.tensor([i for i in outliers if i != view], dtype=torch.int64)
    trusted = own & ~torch.isin(pairs[rays.pair], others).any(-1)
    return trusted if bool(trusted.any()) else own


def _fit_other_poses(rays: MatchedRays, view: int, c2w: Tensor) -> list[Tensor]:
    """Fit a view's pose to its matches, beginning at the neighbours with most; other poses stay.

    Returns:
        Sets of poses, [n, 3, 4] each.
    """
    chosen = np.linspace(0, len(rays.pair) - 1, min(FITTED, len(rays.pair)), dtype=int)
    thinned = rays.select(torch.from_numpy(chosen))
    side = (thinned.cameras[:, 1] == view).long()
    row = torch.arange(len(side))
    neighbours = thinned.cameras[row, 1 - side]
    theirs = c2w[neighbours]
    away = (theirs[:, :, :3] @ thinned.directions[row, 1 - side, :, None])[..., 0].numpy()
    own, origins = thinned.directions[row, side].numpy(), theirs[:, :, 3].numpy()
    focal = thinned.focal.mean(-1).numpy()
    middle = origins.mean(0)
    unit = max(float(np.linalg.norm(origins - middle, axis=-1).mean()), 1e-9)
    found = []
    for start in torch.bincount(neighbours).argsort(descending=True)[:STARTS].tolist():
        turn = Rotation.from_matrix(c2w[start, :, :3].numpy())
        # not at the neighbour itself, where any direction fits its matches
        center = 0.7 * c2w[start, :, 3].numpy() + 0.3 * middle

        def misses(x: np.ndarray, turn: Rotation = turn, center: np.ndarray = center) -> np.ndarray:
            """Signed distances to the epipolar lines, pixels."""
            directions = (turn * Rotation.from_rotvec(x[:3])).apply(own)
            baseline = center + unit * x[3:] - origins
            normal_a, normal_b = np.cross(baseline, away), np.cross(baseline, directions)
            lengths = [np.linalg.norm(n, axis=-1).clip(1e-12 * unit) for n in (normal_a, normal_b)]
            volume = (normal_a * directions).sum(-1)
            return volume * focal * (1 / lengths[0] + 1 / lengths[1]) / 2

        x = np.zeros(6)
        for loss in ("soft_l1", "cauchy"):
            x = least_squares(misses, x, loss=loss, f_scale=2.0, max_nfev=50).x
        moved = c2w.clone()
        moved[view, :, :3] = torch.from_numpy((turn * Rotation.from_rotvec(x[:3])).as_matrix())
        moved[view, :, 3] = torch.from_numpy(center + unit * x[3:])
        found.append(moved)
    return found


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

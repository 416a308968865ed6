"""Single views whose poses contradict the others, and images that changed places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nerfcli.check.epipolar import Evidence
from nerfcli.check.poses import MAJORITY, Fit, fit

# A wrong pose contradicts all its neighbours. A right one contradicts hardly any, or up to half
# where things repeat (two sides of a label, tiles) and one side is matched with the other.
STRAY, DOUBTFUL = 0.75, 0.25


def contradicted(pairs: Tensor, weights: Tensor, fits: Fit, n_cameras: int, limit: float) -> Tensor:
    """Share of each view's matches that lie in pairs which contradict the poses. [n_cameras]

    Args:
        pairs: [p, 2] cameras, in the order of fits.pairs. weights: [p] matches of each.
        limit: residual from which on a pair contradicts, pixels.
    """
    bad = ~(fits.pairs < limit)
    total = _counted(pairs, weights, n_cameras)
    return _counted(pairs, weights * bad, n_cameras) / total.clamp(min=1)


def stray_views(pairs: Tensor, weights: Tensor, fits: Fit, n_cameras: int) -> list[int]:
    """Views whose poses contradict nearly all others: taken out worst first, until none is left.

    Args: as of `contradicted`; the limit is `fits.single`.
    """
    alive = weights.double()
    strays: list[int] = []
    while True:
        share = contradicted(pairs, alive, fits, n_cameras, fits.single)
        # of two views that only contradict each other, the one with more matches is named first
        score = share + 1e-9 * _counted(pairs, alive, n_cameras)
        worst = int(score.argmax())
        if share[worst] <= STRAY:
            return sorted(strays)
        strays.append(worst)
        alive = alive * (pairs != worst).all(-1)


def _counted(pairs: Tensor, weights: Tensor, n: int) -> Tensor:
    total = torch.zeros(n, dtype=torch.float64)
    for side in (0, 1):
        total.index_add_(0, pairs[:, side], weights.double())
    return total


def exchanged(
    seen: Evidence, pairs: Tensor, c2w: Tensor, strays: Sequence[int], tolerance: float
) -> list[tuple[int, int]]:
    """Which stray image fits which stray pose: (image, pose), never its own."""
    good = torch.ones(len(c2w), dtype=torch.bool)
    good[list(strays)] = False
    found = []
    for image in strays:
        mine = (pairs[seen.pair] == image).any(-1)
        mine &= good[pairs[seen.pair]].any(-1)
        if not mine.any():
            continue
        part = seen.subset(mine)
        for pose in strays:
            moved = c2w.clone()
            moved[image] = c2w[pose]
            if pose != image and fit(part, moved, tolerance).agreeing > MAJORITY:
                found.append((image, pose))
                break
    return found

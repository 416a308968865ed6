"""Judge poses and intrinsics by matches, which are found without them.

All errors are distances of matches to their epipolar lines. Features are found to about half a
pixel, and poses from structure from motion are good to about one; a wrong pose puts the line
anywhere, a tenth of the image away on average. TOLERANCE lies between the two. Pairs of views are
judged by the majority of their matches, so neither a few bad matches nor the exact value decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.check.epipolar import MatchedRays, compute_residuals, is_behind, trace_matches
from nerfcli.check.pose_conventions import (
    STATED,
    PoseConvention,
    generate_all_conventions,
    list_usual_conventions,
)
from nerfcli.matching.matching import Matches

TOLERANCE, TOLERANCE_SHARE = 2.0, 0.0025  # pixels, and of the image's diagonal
SAMPLE = (100, 24)  # pairs, and matches of each, that test a hypothesis: medians need no more
COARSE_SAMPLE = (30, 12)  # for the thousands of far-fetched ones
# A hypothesis must bring the residual below this share of the stated one's. Views around an object
# let a wrong focal length pass for a smaller object: residuals grow, but not as with wrong axes.
BETTER, BETTER_FOCAL = 0.5, 0.8
MAJORITY = 0.5
CONVINCED = 0.75  # share of pairs that must fit a hypothesis better than the stated poses
FOCALS = [1.05**i for i in range(-32, 33)]  # from a fifth to five times the stated one
FOCAL_SLACK = 1.1  # smaller errors of the focal length hardly change the residuals: no fault
SIZES = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)
CHUNK = 64  # conventions that are tested at once


@dataclass(frozen=True)
class Fit:
    """How well poses fit the matches.

    Attributes:
        residuals: [p] median of each pair, pixels; infinite where most lie behind a camera.
        tolerance: largest residual of poses good enough to train on, pixels.
    """

    residuals: Tensor
    tolerance: float

    @property
    def median(self) -> float:
        """Median residual of the pairs, pixels."""
        return float(self.residuals.median()) if len(self.residuals) else float("inf")

    @property
    def agreeing(self) -> float:
        """Share of pairs in which most matches agree."""
        if not len(self.residuals):
            return 0.0
        return float((self.residuals < self.tolerance).double().mean())

    @property
    def single_view_limit(self) -> float:
        """Largest residual that a pair of one view may have, pixels.

        Where the scene as a whole fits well, a single view that is several pixels off is wrong,
        even if an error along its epipolar lines hides most of it.
        """
        return min(max(4 * self.median, self.tolerance / 2), self.tolerance)

    def improves_on(self, stated: Fit, better: float) -> bool:
        """Test whether this fit explains matches that the stated poses do not.

        Args:
            better: share of the stated residual that this one must stay below.
        """
        return (
            self.median < better * stated.median
            and self.median < self.tolerance
            and self.agreeing >= max(MAJORITY, stated.agreeing)
            and float((self.residuals < stated.residuals).double().mean()) >= CONVINCED
        )


@dataclass(frozen=True)
class Hypothesis:
    """A reading of the scene under which the matches may fit.

    Attributes:
        fault: "" for the scene as stated, else the key of the finding.
        description: what is wrong with the files, for people.
        convention: of the poses. focal_factor, size_factor: see `trace_matches`.
        order: image i belongs to pose order[i]; None: to its own.
    """

    fault: str = ""
    description: str = ""
    convention: PoseConvention = STATED
    focal_factor: float = 1.0
    size_factor: float = 1.0
    order: tuple[int, ...] | None = None

    def correct_poses(self, c2w: Tensor) -> Tensor:
        """Convert stated poses [n, 3, 4] of the source's frame to correct ones."""
        c2w = self.convention.apply(c2w)
        return c2w if self.order is None else c2w[list(self.order)]

    def correct_cameras(self, cameras: Cameras) -> Cameras:
        """Convert stated cameras to correct ones; poses in the source's frame."""
        return replace(
            cameras,
            c2w=self.correct_poses(cameras.c2w),
            focal=cameras.focal * self.focal_factor * self.size_factor,
            principal=cameras.principal * self.size_factor,
        )


def compute_tolerance(sizes: Sequence[tuple[int, int]]) -> float:
    """Compute the largest residual, in pixels, of poses that are good enough to train on.

    Args:
        sizes: width and height of each image as analysed.
    """
    diagonals = torch.tensor(list(sizes), dtype=torch.float64).norm(dim=-1)
    return TOLERANCE + TOLERANCE_SHARE * float(diagonals.median())


def fit_poses(rays: MatchedRays, c2w: Tensor, tolerance: float) -> Fit:
    """Measure the fit of one set of poses [n, 3, 4]."""
    return Fit(_median_residuals(rays, c2w, tolerance), tolerance)


def _median_residuals(rays: MatchedRays, c2w: Tensor, tolerance: float) -> Tensor:
    """Take each pair's median residual under poses [..., n, 3, 4]. -> [..., p]"""
    residuals = compute_residuals(rays, c2w)
    behind = is_behind(rays, residuals, tolerance)
    return _medians_by_pair(torch.where(behind, torch.inf, residuals.pixels), rays)


def _medians_by_pair(values: Tensor, rays: MatchedRays) -> Tensor:
    """Take the median of each pair that has matches; values [..., m] -> [..., p]."""
    order = rays.pair.argsort(stable=True)
    counts = torch.bincount(rays.pair, minlength=rays.n_pairs)
    counts = counts[counts > 0]
    starts = counts.cumsum(0) - counts
    width = int(counts.max()) if len(counts) else 0
    grid = starts[:, None] + torch.arange(width)
    inside = torch.arange(width) < counts[:, None]
    table = values[..., order[grid.clamp(max=len(order) - 1)]] if width else values[..., None]
    table = torch.where(inside, table, torch.inf).sort(dim=-1).values
    middle = ((counts - 1) // 2)[:, None].expand(*table.shape[:-1], 1)
    return table.gather(-1, middle)[..., 0]


def thin(matches: Matches, n_pairs: int, n_matches: int) -> Matches:
    """Keep at most so many pairs, and so many matches of each, evenly chosen."""
    chosen = torch.linspace(0, len(matches.pairs) - 1, min(n_pairs, len(matches.pairs)))
    order = matches.pair.argsort(stable=True)
    counts = torch.bincount(matches.pair, minlength=len(matches.pairs))
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[matches.pair[order]]
    stride = (counts[matches.pair[order]] / n_matches).ceil().clamp(min=1).long()
    kept = order[rank % stride == 0]
    number = torch.full((len(matches.pairs),), -1)
    number[chosen.round().long()] = torch.arange(len(chosen))
    kept = kept[number[matches.pair[kept]] >= 0]
    pairs = matches.pairs[chosen.round().long()]
    return Matches(pairs, number[matches.pair[kept]], matches.xy[kept])


def find_hypothesis(
    matches: Matches,
    cameras: Cameras,
    working_scale: Tensor,
    tolerance: float,
    orders: Sequence[tuple[str, tuple[int, ...]]] = (),
    *,
    thorough: bool = True,
) -> tuple[Hypothesis, Fit, Fit]:
    """Find the likeliest reading: as stated, unless another fits clearly better.

    Args:
        cameras: poses in the source's frame.
        working_scale: [n_cameras] pixels at working size per pixel of the camera.
        orders: other assignments of images to poses, each with its description.
        thorough: if nothing usual fits, also try every exchange of axes.

    Returns:
        The hypothesis, the fit as stated, and the hypothesis's fit.
    """
    sample = thin(matches, *SAMPLE)
    rays = trace_matches(sample, cameras, working_scale)
    stated = fit_poses(rays, cameras.c2w, tolerance)
    tried = _try_conventions(rays, cameras.c2w, tolerance, list_usual_conventions())
    tried += _try_intrinsics(sample, cameras, working_scale, tolerance)
    for description, order in orders:
        candidate = Hypothesis("order", description, order=order)
        fit = fit_poses(rays, candidate.correct_poses(cameras.c2w), tolerance)
        tried.append((candidate, fit))
    best = _choose_simplest(tried, stated)
    if best is None and thorough and stated.agreeing < MAJORITY:
        coarse = trace_matches(thin(sample, *COARSE_SAMPLE), cameras, working_scale)
        tried = _try_conventions(coarse, cameras.c2w, tolerance, generate_all_conventions())
        best = _choose_simplest(tried, fit_poses(coarse, cameras.c2w, tolerance))
    stated = fit_poses(trace_matches(matches, cameras, working_scale), cameras.c2w, tolerance)
    if best is None:
        return Hypothesis(), stated, stated
    rays = trace_matches(matches, cameras, working_scale, best.focal_factor, best.size_factor)
    return best, stated, fit_poses(rays, best.correct_poses(cameras.c2w), tolerance)


def _choose_simplest(tried: Sequence[tuple[Hypothesis, Fit]], stated: Fit) -> Hypothesis | None:
    """Choose the first hypothesis, in order of cost, that fits about as well as the best."""
    good = [
        (hypothesis, fit)
        for hypothesis, fit in tried
        if fit.improves_on(stated, BETTER_FOCAL if hypothesis.fault == "focal" else BETTER)
    ]
    if not good:
        return None
    least = min(fit.median for _, fit in good)
    return next(hypothesis for hypothesis, fit in good if fit.median <= 1.1 * least)


def _try_intrinsics(
    matches: Matches, cameras: Cameras, working_scale: Tensor, tolerance: float
) -> list[tuple[Hypothesis, Fit]]:
    """Find the best focal length, and the best size that the intrinsics may be stated for."""

    def fit(focal: float, size: float) -> Fit:
        rays = trace_matches(matches, cameras, working_scale, focal, size)
        return fit_poses(rays, cameras.c2w, tolerance)

    focal_fits = {factor: fit(factor, 1.0) for factor in FOCALS}
    size_fits = {factor: fit(1.0, factor) for factor in SIZES}
    focal = min(focal_fits, key=lambda factor: focal_fits[factor].median)
    size = min(size_fits, key=lambda factor: size_fits[factor].median)
    tried = []
    if not 1 / FOCAL_SLACK < focal < FOCAL_SLACK:
        candidate = Hypothesis("focal", _describe_focal(focal), focal_factor=focal)
        tried.append((candidate, focal_fits[focal]))
    candidate = Hypothesis("image-size", _describe_size(size), size_factor=size)
    return [*tried, (candidate, size_fits[size])]


def _try_conventions(
    rays: MatchedRays, c2w: Tensor, tolerance: float, conventions: Iterable[PoseConvention]
) -> list[tuple[Hypothesis, Fit]]:
    """Measure the fit of each convention but the stated one, CHUNK at a time."""
    others = [convention for convention in conventions if not convention.is_stated]
    tried = []
    for start in range(0, len(others), CHUNK):
        chunk = others[start : start + CHUNK]
        poses = torch.stack([convention.apply(c2w) for convention in chunk])
        medians = _median_residuals(rays, poses, tolerance)
        for convention, residuals in zip(chunk, medians, strict=True):
            hypothesis = Hypothesis("convention", convention.describe(), convention)
            tried.append((hypothesis, Fit(residuals, tolerance)))
    return tried


def _describe_focal(factor: float) -> str:
    wrong = 1 / factor
    error = f"{wrong:.2g} times too long" if wrong > 1 else f"{factor:.2g} times too short"
    return f"the focal length is about {error}"


def _describe_size(factor: float) -> str:
    ratio = f"{1 / factor:g} times larger" if factor < 1 else f"{factor:g} times smaller"
    return f"focal length and principal point are stated for images that are {ratio}"

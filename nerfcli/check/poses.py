"""The verdict on poses and intrinsics, from matches that know nothing of them.

The unit of everything is the distance of a match to its epipolar line. Features are found to about
half a pixel, and poses from structure from motion are good to about one; a wrong pose puts the
line anywhere, a tenth of the image away on average. TOLERANCE lies between the two, and pairs of
views are judged by the majority of their matches, so neither a few bad matches nor the exact
value decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.check.epipolar import Evidence, behind, evidence, residuals
from nerfcli.check.pose_conventions import STATED, Alternative, all_alternatives, usual_alternatives
from nerfcli.matching.matching import Matches

TOLERANCE, TOLERANCE_SHARE = 2.0, 0.0025  # pixels, and of the image's diagonal
SAMPLE = (100, 24)  # pairs, and matches of each, that test a hypothesis: medians need no more
COARSE_SAMPLE = (30, 12)  # for the thousands of far-fetched ones
# A hypothesis must bring the residual below this share of the stated one's. Views around an object
# let a wrong focal length pass for a smaller object: residuals grow, but not as with wrong axes.
BETTER, BETTER_FOCAL = 0.5, 0.8
MAJORITY = 0.5
CONVINCED = 0.75  # of the pairs must fit a hypothesis better than what is stated
FOCALS = [1.05**i for i in range(-32, 33)]  # from a fifth to five times the stated one
FOCAL_SLACK = 1.1  # small enough to be worth no fault: residuals hardly see it
SIZES = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)
CHUNK = 64


@dataclass(frozen=True)
class Fit:
    """How poses fit the matches.

    Attributes:
        pairs: [p] median residual of each pair, pixels; infinite where most lie behind a camera.
    """

    pairs: Tensor
    tolerance: float

    @property
    def typical(self) -> float:
        return float(self.pairs.median()) if len(self.pairs) else float("inf")

    @property
    def agreeing(self) -> float:
        """Share of pairs in which most matches agree."""
        return float((self.pairs < self.tolerance).double().mean()) if len(self.pairs) else 0.0

    @property
    def single(self) -> float:
        """Largest residual that a pair of one view may have, pixels.

        Where the scene as a whole fits well, a single view that is several pixels off is wrong,
        also if an error along its epipolar lines hides most of it.
        """
        return min(max(4 * self.typical, self.tolerance / 2), self.tolerance)

    def improves(self, stated: Fit, better: float) -> bool:
        """Whether it explains what the stated does not; `better` is a share of its residual."""
        return (
            self.typical < better * stated.typical
            and self.typical < self.tolerance
            and self.agreeing >= max(MAJORITY, stated.agreeing)
            and float((self.pairs < stated.pairs).double().mean()) >= CONVINCED
        )


@dataclass(frozen=True)
class Hypothesis:
    """A reading of the scene under which the matches fit.

    Attributes:
        what: "" as stated, else the word of the finding.
        words: what is wrong with the files.
        alternative: to the poses. focal, size: factors, see `evidence`.
        order: image i belongs to pose order[i]; None: to its own.
    """

    what: str = ""
    words: str = ""
    alternative: Alternative = STATED
    focal: float = 1.0
    size: float = 1.0
    order: tuple[int, ...] | None = None

    def poses(self, c2w: Tensor) -> Tensor:
        c2w = self.alternative.apply(c2w)
        return c2w if self.order is None else c2w[list(self.order)]

    def cameras(self, cameras: Cameras) -> Cameras:
        """The cameras as they should have been stated; poses in the source's frame."""
        return replace(
            cameras,
            c2w=self.poses(cameras.c2w),
            focal=cameras.focal * self.focal * self.size,
            principal=cameras.principal * self.size,
        )


def tolerance_for(working: Sequence[tuple[int, int]]) -> float:
    """Largest residual, in pixels, that poses good enough to train on leave."""
    sizes = torch.tensor(list(working), dtype=torch.float64)
    return TOLERANCE + TOLERANCE_SHARE * float(sizes.norm(dim=-1).median())


def fit(seen: Evidence, c2w: Tensor, tolerance: float) -> Fit:
    """Median residual of each pair of views under one set of poses [n, 3, 4]."""
    found = residuals(seen, c2w)
    limit = torch.full_like(found.pixels, tolerance)
    pixels = torch.where(behind(seen, found, limit), torch.inf, found.pixels)
    return Fit(_medians(pixels, seen), tolerance)


def _medians(values: Tensor, seen: Evidence) -> Tensor:
    """Median of each pair that has matches; values [..., m] -> [..., p]."""
    order = seen.pair.argsort(stable=True)
    counts = torch.bincount(seen.pair, minlength=seen.n_pairs)
    counts = counts[counts > 0]
    starts = counts.cumsum(0) - counts
    width = int(counts.max()) if len(counts) else 0
    grid = starts[:, None] + torch.arange(width)
    inside = torch.arange(width) < counts[:, None]
    table = values[..., order[grid.clamp(max=len(order) - 1)]] if width else values[..., None]
    table = torch.where(inside, table, torch.inf).sort(dim=-1).values
    middle = ((counts - 1) // 2)[:, None].expand(*table.shape[:-1], 1)
    return table.gather(-1, middle)[..., 0]


def thinned(matches: Matches, n_pairs: int, n_matches: int) -> Matches:
    """At most so many pairs, and matches of each, evenly chosen."""
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


def explain(
    matches: Matches,
    cameras: Cameras,
    working: Tensor,
    tolerance: float,
    orders: Sequence[tuple[str, tuple[int, ...]]] = (),
    *,
    thorough: bool = True,
) -> tuple[Hypothesis, Fit, Fit]:
    """The likeliest reading: as stated, unless another fits clearly better.

    Args:
        cameras: poses in the source's frame.
        working: [n_cameras] pixels at working size per pixel of the camera.
        orders: other assignments of images to poses, each with its words.
        thorough: also try every exchange of axes where nothing usual fits.

    Returns:
        The hypothesis, the fit as stated, and the hypothesis's fit.
    """
    few = thinned(matches, *SAMPLE)
    seen = evidence(few, cameras, working)
    stated = fit(seen, cameras.c2w, tolerance)
    tried = _conventions(seen, cameras.c2w, tolerance, usual_alternatives())
    tried += _intrinsics(few, cameras, working, tolerance)
    for words, order in orders:
        guess = Hypothesis("order", words, order=order)
        tried.append((guess, fit(seen, guess.poses(cameras.c2w), tolerance)))
    best = _simplest(tried, stated)
    if best is None and thorough and stated.agreeing < MAJORITY:
        coarse = evidence(thinned(few, *COARSE_SAMPLE), cameras, working)
        there = fit(coarse, cameras.c2w, tolerance)
        best = _simplest(_conventions(coarse, cameras.c2w, tolerance, all_alternatives()), there)
    whole = evidence(matches, cameras, working)
    stated = fit(whole, cameras.c2w, tolerance)
    if best is None:
        return Hypothesis(), stated, stated
    guess = best[0]
    whole = evidence(matches, cameras, working, focal=guess.focal, size=guess.size)
    return guess, stated, fit(whole, guess.poses(cameras.c2w), tolerance)


def _simplest(tried: list[tuple[Hypothesis, Fit]], stated: Fit) -> tuple[Hypothesis, Fit] | None:
    """The first in order of cost that fits about as well as the best."""
    good = [
        (guess, found)
        for guess, found in tried
        if found.improves(stated, BETTER_FOCAL if guess.what == "focal" else BETTER)
    ]
    if not good:
        return None
    least = min(found.typical for _, found in good)
    return next(g for g in good if g[1].typical <= 1.1 * least)


def _intrinsics(
    matches: Matches, cameras: Cameras, working: Tensor, tolerance: float
) -> list[tuple[Hypothesis, Fit]]:
    """The best of the focal lengths, and of the sizes that intrinsics may have been stated for."""
    c2w, tried = cameras.c2w, []
    for what, factors in (("focal", FOCALS), ("size", SIZES)):
        fits = {
            factor: fit(evidence(matches, cameras, working, **{what: factor}), c2w, tolerance)
            for factor in factors
        }
        best = min(fits, key=lambda factor: fits[factor].typical)
        if what == "size":
            guess = Hypothesis("image-size", _size_words(best), size=best)
        elif 1 / FOCAL_SLACK < best < FOCAL_SLACK:
            continue
        else:
            guess = Hypothesis("focal", _focal_words(best), focal=best)
        tried.append((guess, fits[best]))
    return tried


def _conventions(
    seen: Evidence, c2w: Tensor, tolerance: float, alternatives
) -> list[tuple[Hypothesis, Fit]]:
    found, waiting = [], []

    def flush() -> None:
        poses = torch.stack([a.apply(c2w) for a in waiting])
        result = residuals(seen, poses)
        limit = torch.full_like(result.pixels, tolerance)
        pixels = torch.where(behind(seen, result, limit), torch.inf, result.pixels)
        for alternative, pairs in zip(waiting, _medians(pixels, seen), strict=True):
            guess = Hypothesis("convention", alternative.words(), alternative)
            found.append((guess, Fit(pairs, tolerance)))
        waiting.clear()

    for alternative in alternatives:
        if not alternative.is_stated:
            waiting.append(alternative)
        if len(waiting) == CHUNK:
            flush()
    if waiting:
        flush()
    return found


def _focal_words(factor: float) -> str:
    wrong = 1 / factor
    much = f"{wrong:.2g} times too long" if wrong > 1 else f"{factor:.2g} times too short"
    return f"the focal length is about {much}"


def _size_words(factor: float) -> str:
    ratio = f"{1 / factor:g} times larger" if factor < 1 else f"{factor:g} times smaller"
    return f"focal length and principal point are stated for images that are {ratio}"

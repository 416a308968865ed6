"""Judge poses: find the reading that fits, and the views that contradict the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.check.epipolar import MatchedRays, trace_matches
from nerfcli.check.outliers import (
    DOUBTFUL,
    compute_contradictions,
    find_outlier_views,
    find_swapped_images,
    find_wrong_poses,
)
from nerfcli.check.poses import Fit, Hypothesis, find_hypothesis
from nerfcli.check.report import Finding
from nerfcli.core.text import quantity
from nerfcli.matching.matching import Matches
from nerfcli.scenes.source import abbreviate

IMPRECISE = 1.5  # pixels: median residual above which blur hides detail of a pixel or two
SHUFFLED = 0.3  # mean similarity rank above which images and poses do not belong together


@dataclass(frozen=True)
class PoseJudgement:
    """Findings about poses and intrinsics.

    Attributes:
        stated: fit of the scene as stated. fit: fit of the hypothesis.
        rays: the matches as rays of the corrected cameras.
        outliers: cameras whose poses contradict the others.
        swapped: (image, pose) among the outliers.
        convincing: whether the corrected poses explain most pairs.
    """

    findings: list[Finding]
    hypothesis: Hypothesis
    stated: Fit
    fit: Fit
    rays: MatchedRays
    outliers: tuple[int, ...] = ()
    swapped: tuple[tuple[int, int], ...] = ()
    convincing: bool = False


def judge_poses(
    names: Sequence[str],
    matches: Matches,
    cameras: Cameras,
    working_scale: Tensor,
    tolerance: float,
    similarity_rank: float,
) -> PoseJudgement:
    """Judge convention, focal length, order, and single views.

    Args:
        cameras: poses in the source's frame.
        working_scale: [n_cameras] pixels at working size per pixel of the camera.
        tolerance: largest residual of good poses, pixels.
        similarity_rank: see `measure_similarity_rank`.
    """
    hypothesis, stated, fit = find_hypothesis(
        matches, cameras, working_scale, tolerance, _list_orders(names)
    )
    rays = trace_matches(
        matches, cameras, working_scale, hypothesis.focal_factor, hypothesis.size_factor
    )
    findings: list[Finding] = []
    if len(matches.pairs) < 3:
        text = "the images share too few features: nothing can be said about the poses"
        findings.append(Finding("warning", "texture", text))
        return PoseJudgement(findings, hypothesis, stated, fit, rays)
    if hypothesis.fault:
        text = (
            f"{hypothesis.description}: then matches lie {fit.median:.2g} px from where the poses "
            f"put them, as stated {format_pixels(stated.median)}"
        )
        findings.append(Finding("fault", hypothesis.fault, text))
    weights = torch.bincount(matches.pair, minlength=len(matches.pairs))
    outliers = find_outlier_views(matches.pairs, weights, fit, len(cameras))
    n_judged = len(set(matches.pairs.reshape(-1).tolist()))
    if len(outliers) > 0.5 * n_judged or fit.agreeing < 0.5:
        findings.append(_report_failure(fit, similarity_rank))
        return PoseJudgement(findings, hypothesis, stated, fit, rays, tuple(outliers))
    swaps: list[tuple[int, int]] = []
    wrong: list[int] = []
    if outliers:
        poses = hypothesis.correct_poses(cameras.c2w)
        swaps = find_swapped_images(rays, matches.pairs, poses, outliers, tolerance)
        single = [i for i in outliers if i not in {image for image, _ in swaps}]
        wrong = find_wrong_poses(rays, matches.pairs, poses, single, outliers, tolerance)
        findings += _report_swaps(names, swaps)
        findings += _report_wrong(names, wrong, matches.pairs, fit)
        unproven = [i for i in single if i not in wrong]
        findings += _report_unproven(names, unproven, matches.pairs, weights)
    findings += _report_doubtful(names, outliers, matches.pairs, weights, fit)
    if fit.median > IMPRECISE:
        text = (
            f"matches lie {fit.median:.2g} px from where the poses put them; finer detail "
            "than about twice that will blur"
        )
        findings.append(Finding("warning", "imprecise", text))
    outliers = sorted({*wrong, *(image for image, _ in swaps)})
    return PoseJudgement(
        findings, hypothesis, stated, fit, rays, tuple(outliers), tuple(swaps), True
    )


def _report_failure(fit: Fit, similarity_rank: float) -> Finding:
    fits = f"only {fit.agreeing:.0%} of the pairs of views fit, in any usual convention"
    if similarity_rank > SHUFFLED:
        text = (
            "images and poses do not belong together: views that look alike are not near each "
            f"other ({fits}). Shuffled file names, or another capture's poses"
        )
        return Finding("fault", "shuffled", text)
    return Finding("fault", "poses", f"the poses do not explain the images: {fits}")


def _report_swaps(names: Sequence[str], swaps: Sequence[tuple[int, int]]) -> list[Finding]:
    if not swaps:
        return []
    parts = [f"{names[image]} has the pose of {names[pose]}" for image, pose in swaps]
    text = f"images are exchanged: {abbreviate(parts, 6)}"
    return [Finding("fault", "swapped", text, tuple(names[i] for i, _ in swaps))]


def _report_wrong(
    names: Sequence[str], wrong: Sequence[int], pairs: Tensor, fit: Fit
) -> list[Finding]:
    if not wrong:
        return []
    parts = []
    for i in wrong:
        residuals = fit.residuals[(pairs == i).any(-1)]
        parts.append(f"{names[i]} ({format_pixels(float(residuals.median()))})")
    text = f"{quantity(len(wrong), 'pose')} at odds with the other views: {abbreviate(parts, 6)}"
    return [Finding("fault", "pose", text, tuple(names[i] for i in wrong))]


def _report_unproven(
    names: Sequence[str], views: Sequence[int], pairs: Tensor, weights: Tensor
) -> list[Finding]:
    """Report views whose matches contradict their pose and do not show another one."""
    if not views:
        return []
    counts = [int(weights[(pairs == i).any(-1)].sum()) for i in views]
    parts = [f"{names[i]} ({n} matches)" for i, n in zip(views, counts, strict=True)]
    text = (
        f"the matches of {quantity(len(views), 'view')} contradict the pose, but are few or agree "
        f"on no other pose: {abbreviate(parts, 6)}. Something may repeat there, such as stairs"
    )
    return [Finding("warning", "pose", text, tuple(names[i] for i in views))]


def _report_doubtful(
    names: Sequence[str], outliers: Sequence[int], pairs: Tensor, weights: Tensor, fit: Fit
) -> list[Finding]:
    """Report views that agree with some neighbours and contradict others.

    Either something in the scene repeats, or the capture joins two groups of views wrongly.
    """
    keep = ~torch.isin(pairs, torch.tensor(list(outliers), dtype=torch.int64)).any(-1)
    share = compute_contradictions(pairs, weights * keep, fit, len(names), fit.tolerance)
    bad = keep & ~(fit.residuals < fit.tolerance)
    several = torch.bincount(pairs[bad].reshape(-1), minlength=len(names)) >= 2
    doubtful = ((share > DOUBTFUL) & several).nonzero()[:, 0]
    wrong = bad & torch.isin(pairs, doubtful).any(-1)
    if not wrong.any():
        return []
    order = wrong.nonzero()[:, 0][weights[wrong].argsort(descending=True)]
    listed = abbreviate([f"{names[a]} and {names[b]}" for a, b in pairs[order].tolist()])
    text = (
        f"{quantity(len(doubtful), 'view')} at odds with some neighbours and in agreement with "
        f"others: {listed}. Either "
        "something repeats there, or the capture joins views of two sides as if they were one"
    )
    views = tuple(str(names[i]) for i in doubtful.tolist())
    return [Finding("warning", "contradictory", text, views)]


def format_pixels(value: float) -> str:
    """Format a residual; an infinite one means that matches lie behind the cameras."""
    return f"{value:.2g} px" if np.isfinite(value) else "behind the cameras"


def _list_orders(names: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """List assignments of images to poses that come from sorting mistakes, with descriptions.

    Cameras are in natural order of their names. Image i then belongs to pose order[i].
    """
    n = len(names)
    by_text = sorted(range(n), key=lambda i: names[i])
    inverse = [0] * n
    for position, i in enumerate(by_text):
        inverse[i] = position
    orders = [
        ("the poses are in alphabetical order (1, 10, 2), the images in that of numbers", inverse),
        ("the poses are in the order of numbers, the images in alphabetical order", by_text),
        ("the poses are in reverse order", [n - 1 - i for i in range(n)]),
        ("the poses are late by one image", [(i + 1) % n for i in range(n)]),
        ("the poses are early by one image", [(i - 1) % n for i in range(n)]),
    ]
    return [(text, tuple(order)) for text, order in orders if order != list(range(n))]


def measure_similarity_rank(shared: Tensor, distances: Tensor) -> float:
    """Rank each view's most similar view among its neighbours by pose; return the mean rank.

    Args:
        shared: [n, n] number of shared features. distances: [n, n] of poses.

    Returns:
        0 where the most similar view is the nearest, 0.5 on average for poses in random order.
    """
    n = len(shared)
    if n < 4:
        return 0.0
    ranks = distances.argsort(dim=1).argsort(dim=1).double() / (n - 2)
    best = shared.argmax(dim=1)
    strong = shared.amax(dim=1) >= 8
    return float(ranks[torch.arange(n), best][strong].mean()) if bool(strong.any()) else 0.0

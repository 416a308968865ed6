"""The verdict on poses in words: which reading fits, and which views contradict the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.check.epipolar import Evidence, evidence
from nerfcli.check.outliers import DOUBTFUL, contradicted, exchanged, stray_views
from nerfcli.check.poses import Fit, Hypothesis, explain
from nerfcli.check.report import Finding, counted
from nerfcli.matching.matching import Matches
from nerfcli.scenes.source import abbreviate

LOOSE = 1.5  # pixels: typical residual above which detail of a pixel or two is lost to blur
SHUFFLED = 0.3  # mean rank of the views that look alike among those near by; 0.5 is chance


@dataclass(frozen=True)
class Judged:
    """The verdict on poses and intrinsics.

    Attributes:
        seen: the matches as rays of the corrected cameras.
        convincing: whether the corrected poses explain most pairs.
    """

    findings: list[Finding]
    hypothesis: Hypothesis
    stated: Fit
    found: Fit
    seen: Evidence
    strays: tuple[int, ...]
    exchanged: tuple[tuple[int, int], ...]
    convincing: bool


def judge_poses(
    names: Sequence[str],
    matches: Matches,
    cameras: Cameras,
    working: Tensor,
    tolerance: float,
    mixed: float,
) -> Judged:
    """Convention, focal length, order, and single views."""
    orders = _orders(names)
    guess, stated, found = explain(matches, cameras, working, tolerance, orders)
    seen = evidence(matches, cameras, working, focal=guess.focal, size=guess.size)
    findings: list[Finding] = []
    if len(matches.pairs) < 3:
        text = "the images share too few features: nothing can be said about the poses"
        findings.append(Finding("warning", "texture", text))
        return Judged(findings, guess, stated, found, seen, (), (), False)
    if guess.what:
        text = (
            f"{guess.words}: then matches lie {found.typical:.2g} px from where the poses put "
            f"them, as stated {pixels_text(stated.typical)}"
        )
        findings.append(Finding("fault", guess.what, text))
    poses = guess.poses(cameras.c2w)
    weights = torch.bincount(matches.pair, minlength=len(matches.pairs))
    strays = stray_views(matches.pairs, weights, found, len(cameras))
    n_judged = len(set(matches.pairs.reshape(-1).tolist()))
    swaps: list[tuple[int, int]] = []
    if len(strays) > 0.5 * n_judged or found.agreeing < 0.5:
        findings.append(_hopeless(found, mixed))
        return Judged(findings, guess, stated, found, seen, tuple(strays), (), False)
    if strays:
        swaps = exchanged(seen, matches.pairs, poses, strays, tolerance)
        findings += _strays(names, strays, swaps, matches.pairs, found)
    findings += _doubtful(names, strays, matches.pairs, weights, found)
    if found.typical > LOOSE:
        text = (
            f"matches lie {found.typical:.2g} px from where the poses put them; finer detail "
            "than about twice that will blur"
        )
        findings.append(Finding("warning", "imprecise", text))
    return Judged(findings, guess, stated, found, seen, tuple(strays), tuple(swaps), True)


def _hopeless(found: Fit, mixed: float) -> Finding:
    fits = f"only {found.agreeing:.0%} of the pairs of views fit, in any usual convention"
    if mixed > SHUFFLED:
        text = (
            "images and poses do not belong together: views that look alike are not near each "
            f"other ({fits}). Shuffled file names, or another capture's poses"
        )
        return Finding("fault", "shuffled", text)
    return Finding("fault", "poses", f"the poses do not explain the images: {fits}")


def _strays(
    names: Sequence[str],
    strays: Sequence[int],
    swaps: Sequence[tuple[int, int]],
    pairs: Tensor,
    found: Fit,
) -> list[Finding]:
    findings = []
    if swaps:
        words = [f"{names[image]} has the pose of {names[pose]}" for image, pose in swaps]
        text = f"images are exchanged: {abbreviate(words, 6)}"
        findings.append(Finding("fault", "swapped", text, tuple(names[i] for i, _ in swaps)))
    single = [i for i in strays if i not in {image for image, _ in swaps}]
    if single:
        words = []
        for i in single:
            mine = found.pairs[(pairs == i).any(-1)]
            words.append(f"{names[i]} ({pixels_text(float(mine.median()))})")
        text = (
            f"{counted(len(single), 'pose')} at odds with the other views: {abbreviate(words, 6)}"
        )
        findings.append(Finding("fault", "pose", text, tuple(names[i] for i in single)))
    return findings


def _doubtful(
    names: Sequence[str], strays: Sequence[int], pairs: Tensor, weights: Tensor, found: Fit
) -> list[Finding]:
    """Views that agree with some and contradict others: repetition, or groups joined wrongly."""
    keep = ~torch.isin(pairs, torch.tensor(list(strays), dtype=torch.int64)).any(-1)
    share = contradicted(pairs, weights * keep, found, len(names), found.tolerance)
    bad = keep & ~(found.pairs < found.tolerance)
    several = torch.bincount(pairs[bad].reshape(-1), minlength=len(names)) >= 2
    doubtful = ((share > DOUBTFUL) & several).nonzero()[:, 0]
    wrong = bad & torch.isin(pairs, doubtful).any(-1)
    if not wrong.any():
        return []
    order = wrong.nonzero()[:, 0][weights[wrong].argsort(descending=True)]
    words = abbreviate([f"{names[a]} and {names[b]}" for a, b in pairs[order].tolist()])
    text = (
        f"{counted(len(doubtful), 'view')} at odds with some neighbours and at one with others: "
        f"{words}. Either "
        "something repeats there, or the capture joins views of two sides as if they were one"
    )
    return [
        Finding("warning", "contradictory", text, tuple(str(names[i]) for i in doubtful.tolist()))
    ]


def pixels_text(value: float) -> str:
    return f"{value:.2g} px" if np.isfinite(value) else "behind the cameras"


def _orders(names: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Assignments of images to poses that sorting mistakes lead to.

    Cameras are in natural order of their names; image i then belongs to pose order[i].
    """
    n = len(names)
    by_text = sorted(range(n), key=lambda i: names[i])
    place = [0] * n
    for position, i in enumerate(by_text):
        place[i] = position
    found = [
        ("the poses are in alphabetical order (1, 10, 2), the images in that of numbers", place),
        ("the poses are in the order of numbers, the images in alphabetical order", by_text),
        ("the poses are in reverse order", [n - 1 - i for i in range(n)]),
        ("the poses are late by one image", [(i + 1) % n for i in range(n)]),
        ("the poses are early by one image", [(i - 1) % n for i in range(n)]),
    ]
    return [(words, tuple(order)) for words, order in found if order != list(range(n))]


def mixed_rank(shared: Tensor, apart: Tensor) -> float:
    """Where the view most like each view stands among those near it: 0 the nearest, 0.5 chance."""
    n = len(shared)
    if n < 4:
        return 0.0
    ranks = apart.argsort(dim=1).argsort(dim=1).double() / (n - 2)
    best = shared.argmax(dim=1)
    strong = shared.amax(dim=1) >= 8
    return float(ranks[torch.arange(n), best][strong].mean()) if bool(strong.any()) else 0.0

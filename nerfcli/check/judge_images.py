"""What is wrong with images as images: duplicates, blur, exposure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nerfcli.check.report import Finding, counted
from nerfcli.matching.matching import Look, Matches
from nerfcli.scenes.source import abbreviate

EQUAL = 1.5 / 255  # largest difference of thumbnails of one photo saved twice; a step of rounding
BLUR = 0.4  # of the detail that neighbours show
STOPS = 0.5  # of exposure: 17 % of a pixel's value, which keeps a view below about 20 dB
GAMMA = 2.2
LEAST_CONTRAST = 0.02  # standard deviation of grey below which an image shows nothing


def judge_photos(
    names: Sequence[str], looks: dict[int, Look], matches: Matches, moved: Tensor
) -> list[Finding]:
    """Findings about the images.

    Args:
        moved: [n, n] whether two views' poses differ visibly.
    """
    return [
        *_duplicates(names, looks, moved),
        *_blurred(names, looks, matches),
        *_exposure(names, looks, matches),
        *_blank(names, looks),
    ]


def _duplicates(names: Sequence[str], looks: dict[int, Look], moved: Tensor) -> list[Finding]:
    cameras = [i for i, look in looks.items() if look.contrast > LEAST_CONTRAST]
    if len(cameras) < 2:
        return []
    thumbnails = torch.stack([looks[i].thumbnail.reshape(-1) for i in cameras])
    apart = torch.cdist(thumbnails, thumbnails, p=float("inf"))
    same = [
        (cameras[a], cameras[b])
        for a, b in (apart < EQUAL).triu(1).nonzero().tolist()
        if _same_features(looks[cameras[a]], looks[cameras[b]])
    ]
    findings = []
    for level, differ in (("fault", True), ("warning", False)):
        pairs = [pair for pair in same if bool(moved[pair]) is differ]
        if pairs:
            words = abbreviate([f"{names[a]} = {names[b]}" for a, b in pairs])
            how = "under different poses" if differ else "at the same pose"
            text = f"one picture twice {how}: {words}"
            views = tuple(dict.fromkeys(str(names[i]) for pair in pairs for i in pair))
            findings.append(Finding(level, "duplicate", text, views))
    return findings


def _same_features(a: Look, b: Look) -> bool:
    """Whether features lie at the same places: of video frames only thumbnails are that alike."""
    if len(a.features) < 8 or len(b.features) < 8:
        return len(a.features) == len(b.features)
    nearest = torch.cdist(a.features.xy, b.features.xy).amin(1)
    # saving again moves features by hundredths of a pixel, the hand that holds a camera by more
    return float(nearest.median()) < 0.05


def _neighbours(n: int, matches: Matches) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(n)]
    for a, b in matches.pairs.tolist():
        found[a].append(b)
        found[b].append(a)
    return found


def _blurred(names: Sequence[str], looks: dict[int, Look], matches: Matches) -> list[Finding]:
    blurred = []
    for i, others in enumerate(_neighbours(len(names), matches)):
        # an image too blurred to match has no neighbours; then all views stand in for them
        around = [looks[j].sharpness for j in (others if len(others) >= 2 else looks)]
        if i in looks and looks[i].sharpness < BLUR * float(torch.tensor(around).median()):
            blurred.append(names[i])
    if not blurred:
        return []
    text = f"{counted(len(blurred), 'image')} much less sharp than others: {abbreviate(blurred)}"
    return [Finding("warning", "blurred", text, tuple(blurred))]


def _exposure(names: Sequence[str], looks: dict[int, Look], matches: Matches) -> list[Finding]:
    """Each view's gain from what matched points look like in it and in its neighbours."""
    if not len(matches.pairs):
        return []
    n = len(names)
    ratio = torch.full((len(matches.pairs),), torch.nan, dtype=torch.float64)
    for p, (a, b) in enumerate(matches.pairs.tolist()):
        mine = matches.xy[matches.pair == p]
        light = [looks[c].brightness(mine[:, side]) for side, c in enumerate((a, b))]
        # neither black nor burnt: there the exposure does not show
        fair = (light[0].minimum(light[1]) > 0.05) & (light[0].maximum(light[1]) < 0.95)
        if int(fair.sum()) >= 8:
            ratio[p] = GAMMA * torch.log2(light[1][fair] / light[0][fair]).median()
    known = ratio.isfinite()
    pairs, ratio = matches.pairs[known], ratio[known]
    stops, weight = torch.zeros(n, dtype=torch.float64), torch.ones(len(ratio), dtype=torch.float64)
    rows = torch.arange(len(pairs))
    system = torch.zeros(len(pairs), n, dtype=torch.float64)
    system[rows, pairs[:, 0]], system[rows, pairs[:, 1]] = -1.0, 1.0
    for _ in range(5):  # reweighted: one odd pair must not bend its views
        scaled = system * weight[:, None]
        left = scaled.T @ system + 1e-3 * torch.eye(n, dtype=torch.float64)
        stops = torch.linalg.solve(left, scaled.T @ ratio)
        weight = 1 / (0.1 + (ratio - system @ stops).abs())
    seen = torch.bincount(pairs.reshape(-1), minlength=n) > 0
    stops = stops - (stops[seen].median() if bool(seen.any()) else 0)
    odd = [i for i in range(n) if seen[i] and abs(float(stops[i])) > STOPS]
    if not odd:
        return []
    odd.sort(key=lambda i: -abs(float(stops[i])))
    words = abbreviate([f"{names[i]} ({float(stops[i]):+.1f} stops)" for i in odd])
    text = f"{counted(len(odd), 'image')} lighter or darker than the others: {words}"
    return [Finding("warning", "exposure", text, tuple(names[i] for i in odd))]


def _blank(names: Sequence[str], looks: dict[int, Look]) -> list[Finding]:
    blank = [names[i] for i, look in looks.items() if look.contrast <= LEAST_CONTRAST]
    if not blank:
        return []
    text = f"{counted(len(blank), 'image')} with nothing but one tone: {abbreviate(blank)}"
    return [Finding("warning", "blank", text, tuple(blank))]


def visibly_moved(c2w: Tensor, focal: Tensor) -> Tensor:
    """Whether two poses differ so that the picture moves: turned by a pixel or two, or shifted."""
    rotation = c2w[:, :, :3]
    trace = torch.einsum("aij,bij->ab", rotation, rotation)
    angle = torch.acos(((trace - 1) / 2).clamp(-1, 1))
    distance = torch.cdist(c2w[:, :, 3], c2w[:, :, 3])
    extent = float(distance.max())
    return (angle * focal.mean() > 2.0 + 1e-6) | (distance > 1e-3 * extent + math.ulp(1.0))

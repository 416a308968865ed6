"""Judge images as images: find duplicates, blur, odd exposure and blank ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nerfcli.check.report import Finding
from nerfcli.core.text import quantity
from nerfcli.matching.matching import ImageAnalysis, Matches
from nerfcli.scenes.source import abbreviate

EQUAL = 1.5 / 255  # largest difference of thumbnails of one photo saved twice; a step of rounding
BLUR = 0.4  # share of the neighbours' sharpness below which an image is blurred
STOPS = 0.5  # of exposure: 17 % of a pixel's value, which keeps a view below about 20 dB
ALIKE = 0.3  # stops: largest median deviation of a pair's points that still tells the exposure
LEAST_POINTS = 8  # of a pair
GAMMA = 2.2
LEAST_CONTRAST = 0.02  # standard deviation of grey below which an image shows nothing


def judge_images(
    names: Sequence[str], images: dict[int, ImageAnalysis], matches: Matches, moved: Tensor
) -> list[Finding]:
    """Find duplicate, blurred, odd and blank images.

    Args:
        moved: [n, n] whether two views' poses differ visibly.
    """
    return [
        *_find_duplicates(names, images, moved),
        *_find_blurred(names, images, matches),
        *_find_odd_exposures(names, images, matches),
        *_find_blank(names, images),
    ]


def _find_duplicates(
    names: Sequence[str], images: dict[int, ImageAnalysis], moved: Tensor
) -> list[Finding]:
    cameras = [i for i, image in images.items() if image.contrast > LEAST_CONTRAST]
    if len(cameras) < 2:
        return []
    thumbnails = torch.stack([images[i].thumbnail.reshape(-1) for i in cameras])
    distances = torch.cdist(thumbnails, thumbnails, p=float("inf"))
    same = [
        (cameras[a], cameras[b])
        for a, b in (distances < EQUAL).triu(1).nonzero().tolist()
        if _has_same_features(images[cameras[a]], images[cameras[b]])
    ]
    findings = []
    for level, differ in (("fault", True), ("warning", False)):
        pairs = [pair for pair in same if bool(moved[pair]) is differ]
        if pairs:
            listed = abbreviate([f"{names[a]} = {names[b]}" for a, b in pairs])
            how = "under different poses" if differ else "at the same pose"
            text = f"one picture twice {how}: {listed}"
            views = tuple(dict.fromkeys(str(names[i]) for pair in pairs for i in pair))
            findings.append(Finding(level, "duplicate", text, views))
    return findings


def _has_same_features(a: ImageAnalysis, b: ImageAnalysis) -> bool:
    """Test whether features lie at the same places; neighbouring video frames fail this test."""
    if len(a.features) < 8 or len(b.features) < 8:
        return len(a.features) == len(b.features)
    nearest = torch.cdist(a.features.xy, b.features.xy).amin(1)
    # saving again moves features by hundredths of a pixel, the hand that holds a camera by more
    return float(nearest.median()) < 0.05


def _list_neighbours(n: int, matches: Matches) -> list[list[int]]:
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for a, b in matches.pairs.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    return neighbours


def _find_blurred(
    names: Sequence[str], images: dict[int, ImageAnalysis], matches: Matches
) -> list[Finding]:
    blurred = []
    for i, neighbours in enumerate(_list_neighbours(len(names), matches)):
        # an image too blurred to match has no neighbours; then compare it with all views
        others = neighbours if len(neighbours) >= 2 else images
        around = torch.tensor([images[j].sharpness for j in others])
        if i in images and images[i].sharpness < BLUR * float(around.median()):
            blurred.append(names[i])
    if not blurred:
        return []
    text = f"{quantity(len(blurred), 'image')} much less sharp than others: {abbreviate(blurred)}"
    return [Finding("warning", "blurred", text, tuple(blurred))]


def _find_odd_exposures(
    names: Sequence[str], images: dict[int, ImageAnalysis], matches: Matches
) -> list[Finding]:
    """Estimate each view's gain from the brightness of matched points; report the odd ones."""
    if not len(matches.pairs):
        return []
    n = len(names)
    ratio = torch.full((len(matches.pairs),), torch.nan, dtype=torch.float64)
    for p, (a, b) in enumerate(matches.pairs.tolist()):
        xy = matches.xy[matches.pair == p]
        grey = [images[c].sample_brightness(xy[:, side]) for side, c in enumerate((a, b))]
        # neither black nor burnt: there the exposure does not show
        usable = (grey[0].minimum(grey[1]) > 0.05) & (grey[0].maximum(grey[1]) < 0.95)
        if int(usable.sum()) < LEAST_POINTS:
            continue
        stops = GAMMA * torch.log2(grey[1][usable] / grey[0][usable])
        # the exposure moves all points alike, while gloss and wrong matches move each by its own
        if float((stops - stops.median()).abs().median()) <= ALIKE:
            ratio[p] = stops.median()
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
    measured = torch.bincount(pairs.reshape(-1), minlength=n) > 0
    stops = stops - (stops[measured].median() if bool(measured.any()) else 0)
    odd = [i for i in range(n) if measured[i] and abs(float(stops[i])) > STOPS]
    if not odd:
        return []
    odd.sort(key=lambda i: -abs(float(stops[i])))
    listed = abbreviate([f"{names[i]} ({float(stops[i]):+.1f} stops)" for i in odd])
    text = f"{quantity(len(odd), 'image')} lighter or darker than the others: {listed}"
    return [Finding("warning", "exposure", text, tuple(names[i] for i in odd))]


def _find_blank(names: Sequence[str], images: dict[int, ImageAnalysis]) -> list[Finding]:
    blank = [names[i] for i, image in images.items() if image.contrast <= LEAST_CONTRAST]
    if not blank:
        return []
    text = f"{quantity(len(blank), 'image')} with nothing but one tone: {abbreviate(blank)}"
    return [Finding("warning", "blank", text, tuple(blank))]


def is_visibly_moved(c2w: Tensor, focal: Tensor) -> Tensor:
    """Test whether two poses differ enough to change the picture. -> [n, n] bool

    Args:
        c2w: [n, 3, 4].
        focal: [n] pixels at working size. A rotation by more than two pixels counts.
    """
    rotation = c2w[:, :, :3]
    trace = torch.einsum("aij,bij->ab", rotation, rotation)
    angle = torch.acos(((trace - 1) / 2).clamp(-1, 1))
    distance = torch.cdist(c2w[:, :, 3], c2w[:, :, 3])
    extent = float(distance.max())
    return (angle * focal.mean() > 2.0 + 1e-6) | (distance > 1e-3 * extent + math.ulp(1.0))

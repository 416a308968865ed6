"""Measure how differently photos of one capture are exposed, by what neighbouring views share.

Small patches of a view are looked for in its neighbours, along the line where the poses put them,
by normalised cross-correlation: that does not see brightness. The ratio of what was found tells the
gain between the two photos, and least squares over all pairs the gain of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nerfcli.matching.matching import measure_pose_distances
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.views import Views

MAX_VIEWS = 200  # larger captures are thinned evenly
LONGEST = 128  # pixels of a reduced photo's longer side
NEIGHBOURS = (0, 1, 2, 4)  # ranks, by pose, of those that a view is compared with
PATCH = 7  # pixels of a patch's side
PATCHES = 200  # of a view, those with the most texture
SHIFTS = 40  # pixels that a patch is followed along its line
TEXTURE = 0.02  # least standard deviation of a patch, of 1
ALIKE = 0.92  # least correlation of patches that show the same
ALONE, AWAY = 0.05, 3  # by how much it is above those so many pixels away along the line
CONTRAST = 0.4  # log2: by how much their contrasts may differ, which exposure hardly changes
MOST = 1.5  # stops: neighbours that seem to differ by more are a wrong match
AGREEING = 0.3  # stops: largest median deviation within a pair
DARK, BRIGHT = 0.08, 0.97  # outside, 8-bit values over 255 do not tell the exposure
LEAST_PATCHES = 24  # of a pair
SPREAD = 0.1  # stops: photos whose gains have this standard deviation differ
EXPLAINED = 0.6  # least share of the pairs' ratios that gains explain, or they are noise
GAMMA = 2.2  # between linear light and 8-bit values


@dataclass(frozen=True)
class Exposures:
    """Exposures of the photos of a capture.

    Attributes:
        stops: [n_cameras] log2 gains in linear light against their mean; 0 where unknown.
        spread: standard deviation of the photos' gains.
        extent: stops from the darkest to the brightest photo.
        explained: share of the pairs' squared ratios that the gains explain.
    """

    stops: Tensor
    spread: float
    extent: float
    explained: float

    @property
    def differ(self) -> bool:
        """Whether the photos need a gain each."""
        return self.spread > SPREAD and self.explained > EXPLAINED

    @property
    def log_gains(self) -> Tensor:
        """The same as natural logs of factors of 8-bit values, [n_cameras]."""
        return self.stops * (math.log(2.0) / GAMMA)


@dataclass(frozen=True)
class _Thumbnail:
    """A reduced photo.

    Attributes:
        reduction: pixels of the photo along one of these. width, height: of these.
        patches: [height * width, PATCH**2] of luma, without mean, of unit length.
        light: [height * width, 3] mean linear light of each patch.
        contrast: [height * width] log2 of deviation over mean.
        tells: [height * width] whether a patch tells the exposure.
        chosen: places of the patches that are looked for.
    """

    reduction: int
    width: int
    height: int
    patches: Tensor
    light: Tensor
    contrast: Tensor
    tells: Tensor
    chosen: Tensor


def measure_exposures(scene: Scene, views: Views) -> Exposures | None:
    """Measure the exposures of photos in memory; None where they cannot be compared.

    Photos with alpha are not compared: they show objects that were rendered or cut out.
    """
    step = -(-len(views) // MAX_VIEWS)
    rows = list(range(0, len(views), step))
    if views.has_alpha or len(rows) < 3:
        return None
    cameras = views.cameras[rows].tolist()
    photos = [_reduce(views, i) for i in rows]
    pairs = _pairs(scene, cameras)
    kept = []
    for a, b in pairs:
        # both ways: what is too dark or too bright in one of them then weighs on neither side
        there, back = (_ratios(scene, cameras, photos, *pair) for pair in ((a, b), (b, a)))
        ratios = torch.cat([there, -back])
        middle = ratios.median(0).values if len(ratios) >= LEAST_PATCHES else None
        if middle is None or float(middle.abs().max()) > MOST:
            continue
        if float(_deviation(ratios, middle)) <= AGREEING:
            kept.append((a, b, middle, len(ratios)))
    if not kept:
        return None
    ends = torch.tensor([(a, b) for a, b, *_ in kept])
    counts = torch.tensor([[n] for *_, n in kept], dtype=torch.float64)
    gains, explained = _solve(ends, torch.stack([r for _, _, r, _ in kept]), counts, len(rows))
    gains = gains.mean(1)
    known = gains[ends.unique()]
    stops = torch.zeros(len(scene.cameras))
    stops[torch.tensor(cameras)] = gains.float()
    return Exposures(stops, float(known.std()), float(known.max() - known.min()), explained)


def _pairs(scene: Scene, cameras: Sequence[int]) -> list[tuple[int, int]]:
    """Pair each view with near ones, as rows of `cameras`."""
    nearest = measure_pose_distances(scene, cameras).argsort(dim=1, stable=True)
    pairs = set()
    for a, row in enumerate(nearest.tolist()):
        for rank in NEIGHBOURS:
            if rank < len(cameras) - 1:
                pairs.add((min(a, row[rank]), max(a, row[rank])))
    return sorted(pairs)


def _reduce(views: Views, i: int) -> _Thumbnail:
    pixels, usable = views.image(i), views.usable_of(i)
    height, width = pixels.shape[:2]
    n = max(1, min(round(max(height, width) / LONGEST), height, width))
    h, w = height // n, width // n
    image = pixels[: h * n :, : w * n].float().view(h, n, w, n, 3).mean((1, 3)) / 255
    good = (image.amin(-1) > DARK) & (image.amax(-1) < BRIGHT)
    if usable is not None:
        blocks = usable.view(height, width)[: h * n, : w * n].view(h, n, w, n)
        good &= blocks.all(3).all(1)
    luma = image @ image.new_tensor([0.299, 0.587, 0.114])
    patches = _windows(luma).T
    mean = patches.mean(1, keepdim=True)
    patches = patches - mean
    length = patches.norm(dim=1)
    contrast = (length / mean[:, 0].clamp(min=1e-3)).clamp(min=1e-6).log2()
    tells = (_windows(good.float()).amin(0) > 0) & (length > TEXTURE * PATCH)
    light = functional.avg_pool2d((image**GAMMA).permute(2, 0, 1)[None], PATCH, 1, PATCH // 2)
    chosen = (length * tells).topk(min(PATCHES, h * w)).indices
    return _Thumbnail(
        n, w, h, patches / length[:, None].clamp(min=1e-6), light[0].flatten(1).T, contrast, tells,
        chosen[tells[chosen]],
    )  # fmt: skip


def _windows(image: Tensor) -> Tensor:
    """The patch around each pixel of [h, w], zero outside: [PATCH**2, h * w]."""
    return functional.unfold(image[None, None], PATCH, padding=PATCH // 2)[0]


def _ratios(
    scene: Scene, cameras: Sequence[int], photos: Sequence[_Thumbnail], a: int, b: int
) -> Tensor:
    """log2 of how much brighter b shows the patches of a that are found there, [n, 3]."""
    one, other = photos[a], photos[b]
    n = len(one.chosen)
    if n < LEAST_PATCHES:
        return torch.zeros(0, 3)
    camera = torch.full((n,), cameras[a])
    y, x = one.chosen // one.width, one.chosen % one.width
    middle = one.reduction // 2
    pixels = torch.stack([camera, x * one.reduction + middle, y * one.reduction + middle], dim=-1)
    rays = scene.cameras.rays(pixels)
    positions = scene.cameras.positions[[cameras[a], cameras[b]]]
    apart = float((positions[1] - positions[0]).norm())
    focal = float(scene.cameras.focal[cameras[b]].mean()) / other.reduction
    # a pixel after the other along the line, from the horizon towards the camera
    depths = apart * focal / torch.arange(1, SHIFTS).clamp(min=1)
    horizon = 1e3 * max(apart, 1e-3 * scene.far, 1e-9) * focal
    depths = torch.cat([depths.new_tensor([horizon]), depths[depths > scene.near]])
    points = rays.at(depths.expand(n, -1)).reshape(-1, 3)
    xy, depth = scene.cameras.project(cameras[b], points.double())
    place = (xy / other.reduction).nan_to_num(-1.0).floor().clamp(-1, 1e6).long()
    u, v = place.unbind(-1)
    inside = (u >= 0) & (v >= 0) & (u < other.width) & (v < other.height) & (depth > 0)
    flat = torch.where(inside, v * other.width + u, 0)
    inside &= other.tells[flat]
    likeness: Tensor = (
        other.patches[flat].view(n, -1, PATCH**2) * one.patches[one.chosen, None]
    ).sum(-1)
    likeness = torch.where(inside.view(n, -1), likeness, -1.0)
    best, where = likeness.max(1)
    elsewhere = (torch.arange(likeness.shape[1]) - where[:, None]).abs() >= AWAY
    alike = (best > ALIKE) & (torch.where(elsewhere, likeness, -1.0).amax(1) < best - ALONE)
    there = flat.view(n, -1).gather(1, where[:, None])[:, 0]
    alike &= (other.contrast[there] - one.contrast[one.chosen]).abs() < CONTRAST
    there = there[alike]
    return (other.light[there] / one.light[one.chosen[alike]]).log2()


def _deviation(ratios: Tensor, middle: Tensor) -> Tensor:
    """The median deviation of ratios [n, 3], of the channel where it is largest."""
    return (ratios - middle).abs().median(0).values.max()


def _solve(ends: Tensor, ratios: Tensor, counts: Tensor, n: int) -> tuple[Tensor, float]:
    """Find gains of n views whose differences are nearest to the pairs' ratios.

    Nearest by squares, and then by about absolute values, so that a wrong pair does no harm.

    Args:
        ends: [pairs, 2]. ratios: [pairs, 3]. counts: [pairs, 1] weights.

    Returns:
        Gains [n, 3], and what share of the squared ratios they explain.
    """
    rows = torch.zeros(len(ends), n, dtype=torch.float64)
    rows.scatter_(1, ends[:, :1], -1.0)
    rows.scatter_(1, ends[:, 1:], 1.0)
    ratios = ratios.double()
    weights = counts
    gains = torch.zeros(n, 3, dtype=torch.float64)
    for _ in range(5):
        normal = rows.T @ (weights * rows) + 1e-6 * torch.eye(n, dtype=torch.float64)
        gains = torch.linalg.solve(normal, rows.T @ (weights * ratios))
        away = (ratios - rows @ gains).norm(dim=1, keepdim=True)
        weights = counts / away.clamp(min=0.05)
    left = (weights * (ratios - rows @ gains).square()).sum()
    return gains, 1.0 - float(left / (weights * ratios.square()).sum().clamp(min=1e-12))

"""Find and match local features of images: SIFT (Lowe 2004) in batched torch.

Keypoints are extrema of differences of Gaussians, refined by one step of Newton's method. Their
descriptors are gradient histograms in the keypoint's own scale and orientation, compared as square
roots (Arandjelovic and Zisserman 2012). No camera enters, so the matches are independent evidence
about poses and intrinsics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

N_SCALES = 3  # differences of Gaussians per octave that are searched for extrema
SIGMA, CAMERA_SIGMA = 1.6, 0.5  # blur of an octave's first image; of a photo, by Lowe's assumption
CONTRAST = 0.004  # of an extremum, images in [0, 1]; low, since matching rejects the weak ones
EDGE = 10.0  # largest ratio of principal curvatures: beyond it the point slides along an edge
BORDER = 5
BLOCK = 64
CELLS, BINS, SPACING = 4, 8, 3.0  # descriptor: 4 x 4 cells of 3 sigma, 8 directions
PER_CELL = 4  # samples along a cell's side
RATIO = 0.85  # distance to the best match over that to the second
UPSAMPLED_BELOW = 640  # pixels of the longer side: smaller images start at twice their size


@dataclass(frozen=True)
class Features:
    """Features of one image.

    Attributes:
        xy: [n, 2] float64 pixels, pixel centres at +0.5.
        scale: [n] float64 pixels, the sigma of the blob.
        angle: [n] float64 radians, from +x towards +y.
        descriptors: [n, 128] float32, unit length.
    """

    xy: Tensor
    scale: Tensor
    angle: Tensor
    descriptors: Tensor

    def __len__(self) -> int:
        return len(self.xy)


def find_features(grey: Tensor, limit: int = 1200) -> Features:
    """Find the strongest features of an image, spread over all its regions.

    Args:
        grey: [height, width] float32 in [0, 1].
        limit: largest number of features.
    """
    zoom = 2.0 if max(grey.shape) < UPSAMPLED_BELOW else 1.0
    image = grey
    if zoom > 1:
        image = functional.interpolate(
            grey[None, None], scale_factor=zoom, mode="bilinear", align_corners=False
        )[0, 0]
    blur = math.sqrt(max(SIGMA**2 - (zoom * CAMERA_SIGMA) ** 2, 0.01))
    image, step = _blur(image, blur), 1.0 / zoom
    octaves, points = [], []
    while min(image.shape) >= 16:
        stack = _build_octave(image)
        extrema = _find_extrema(stack)
        extrema[:, 5] = len(octaves)
        octaves.append((stack, step))
        points.append(extrema)
        image, step = stack[N_SCALES, ::2, ::2].contiguous(), step * 2
    chosen = _spread(torch.cat(points), octaves, limit) if points else torch.zeros(0, 6)
    parts = [
        _describe(stack, step, chosen[chosen[:, 5] == o]) for o, (stack, step) in enumerate(octaves)
    ]
    if not parts:
        empty = torch.zeros(0, dtype=torch.float64)
        return Features(empty.reshape(0, 2), empty, empty, torch.zeros(0, CELLS**2 * BINS))
    xy, scale, angle, descriptors = (torch.cat(columns) for columns in zip(*parts, strict=True))
    # pixel 0 of every octave lies on pixel 0 of the first, whose centre is at 0.5 / zoom
    return Features(xy.double() + 0.5 / zoom, scale.double(), angle.double(), descriptors)


def match_features(a: Features, b: Features) -> Tensor:
    """Match features that are mutual nearest neighbours and pass the ratio test. -> [m, 2] int64"""
    if len(a) < 2 or len(b) < 2:
        return torch.zeros(0, 2, dtype=torch.int64)
    similarity = a.descriptors @ b.descriptors.T
    best, where = similarity.topk(2, dim=1)
    back = similarity.argmax(dim=0)
    rows = torch.arange(len(a))
    near, second = (2.0 - 2.0 * best.clamp(max=1.0)).sqrt().unbind(-1)
    keep = (back[where[:, 0]] == rows) & (near < RATIO * second)
    pairs = torch.stack([rows[keep], where[keep, 0]], dim=-1)
    # a point with two orientations may match twice, but must count once
    places = torch.cat([a.xy[pairs[:, 0]], b.xy[pairs[:, 1]]], dim=-1).round()
    _, inverse = torch.unique(places, dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1 if len(inverse) else 0,), len(pairs))
    first.scatter_reduce_(0, inverse, torch.arange(len(pairs)), "amin")
    return pairs[first]


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Blur an image [h, w] with a Gaussian; edges are repeated."""
    reach = max(math.ceil(3.5 * sigma), 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    # blocks of a row times a band matrix: torch convolves one channel ten times slower
    band = torch.zeros(BLOCK + 2 * reach, BLOCK)
    for i in range(BLOCK):
        band[i : i + 2 * reach + 1, i] = kernel
    return _convolve_rows(_convolve_rows(image, band, reach).T, band, reach).T.contiguous()


def _convolve_rows(image: Tensor, band: Tensor, reach: int) -> Tensor:
    width = image.shape[1]
    n_blocks = -(-width // BLOCK)
    pad = (reach, reach + n_blocks * BLOCK - width)
    padded = functional.pad(image[None], pad, mode="replicate")[0]
    blocks = padded.unfold(1, BLOCK + 2 * reach, BLOCK)
    return (blocks @ band).reshape(len(image), -1)[:, :width]


def _build_octave(first: Tensor) -> Tensor:
    """Build an octave [N_SCALES + 3, h, w]; image s has blur SIGMA * 2**(s / N_SCALES)."""
    images, factor = [first], 2.0 ** (1.0 / N_SCALES)
    for s in range(1, N_SCALES + 3):
        before = SIGMA * factor ** (s - 1)
        images.append(_blur(images[-1], before * math.sqrt(factor**2 - 1)))
    return torch.stack(images)


def _largest_around(dog: Tensor) -> Tensor:
    """Take the maximum of each inner voxel and its 26 neighbours. -> [s - 2, h - 2, w - 2]"""
    for axis in (2, 1, 0):
        n = dog.shape[axis] - 2
        parts = [dog.narrow(axis, start, n) for start in range(3)]
        dog = torch.maximum(torch.maximum(parts[0], parts[1]), parts[2])
    return dog


def _find_extrema(stack: Tensor) -> Tensor:
    """Find and refine an octave's extrema: [n, 6] x, y, s, strength, 0, 0 in its own pixels."""
    dog = stack[1:] - stack[:-1]
    core = dog[1:-1, 1:-1, 1:-1]
    peak = (core == _largest_around(dog)) | (core == -_largest_around(-dog))
    peak &= core.abs() > 0.5 * CONTRAST
    edge = BORDER - 1
    peak[:, :edge] = peak[:, -edge:] = False
    peak[:, :, :edge] = peak[:, :, -edge:] = False
    s, y, x = (peak.nonzero() + 1).unbind(-1)
    if len(s) == 0:
        return torch.zeros(0, 6)

    def at(ds: int, dy: int, dx: int) -> Tensor:
        return dog[s + ds, y + dy, x + dx].double()

    middle = at(0, 0, 0)
    units = torch.eye(3, dtype=torch.int64).tolist()
    forward = [at(*u) for u in units]
    backward = [at(*(-c for c in u)) for u in units]
    gradient = torch.stack([(f - b) / 2 for f, b in zip(forward, backward, strict=True)], -1)
    hessian = torch.zeros(len(s), 3, 3, dtype=torch.float64)
    for i in range(3):
        hessian[:, i, i] = forward[i] + backward[i] - 2 * middle
        for j in range(i):
            plus = [p + q for p, q in zip(units[i], units[j], strict=True)]
            minus = [p - q for p, q in zip(units[i], units[j], strict=True)]
            mixed = at(*plus) + at(*(-c for c in plus)) - at(*minus) - at(*(-c for c in minus))
            hessian[:, i, j] = hessian[:, j, i] = mixed / 4
    determinant = torch.linalg.det(hessian)
    solvable = determinant.abs() > 1e-20
    hessian[~solvable] = torch.eye(3, dtype=torch.float64)
    offset = -torch.linalg.solve(hessian, gradient)
    value = (middle + 0.5 * (gradient * offset).sum(-1)).abs()
    trace = hessian[:, 1, 1] + hessian[:, 2, 2]
    flat = hessian[:, 1, 1] * hessian[:, 2, 2] - hessian[:, 1, 2] ** 2
    keep = solvable & (offset.abs().amax(-1) < 1.0) & (value > CONTRAST)
    keep &= (flat > 0) & (trace**2 * EDGE < flat * (EDGE + 1) ** 2)
    place = torch.stack([x, y, s], dim=-1) + offset.flip(-1)
    zero = torch.zeros_like(value)
    return torch.cat([place, torch.stack([value, zero, zero], -1)], dim=-1)[keep].float()


def _spread(points: Tensor, octaves: list[tuple[Tensor, float]], limit: int) -> Tensor:
    """Keep at most `limit` points, the strongest of each cell of an 8 x 8 grid first."""
    if len(points) <= limit:
        return points
    steps = torch.tensor([step for _, step in octaves])[points[:, 5].long()]
    xy = points[:, :2] * steps[:, None]
    cell = (xy / (xy.amax(0) + 1e-6) * 8).long().clamp(max=7)
    cell = cell[:, 1] * 8 + cell[:, 0]
    by_strength = points[:, 3].argsort(descending=True)
    order = by_strength[cell[by_strength].argsort(stable=True)]
    counts = torch.bincount(cell, minlength=64)
    start = counts.cumsum(0) - counts
    rank = torch.arange(len(points)) - start[cell[order]]
    return points[order[rank.argsort(stable=True)[:limit]]]


def _sample_gradients(stack: Tensor, level: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Sample gradients [n, k] at positions xy [n, k, 2] of the images `level` [n], bilinearly."""
    _, height, width = stack.shape
    flat = stack.reshape(-1)
    base = (level * (height * width))[:, None]
    x, y = xy[..., 0].clamp(1, width - 2.001), xy[..., 1].clamp(1, height - 2.001)

    def value(dx: float, dy: float) -> Tensor:
        u, v = (x + dx).clamp(0, width - 1.001), (y + dy).clamp(0, height - 1.001)
        i, j = u.long(), v.long()
        a, b = u - i, v - j
        k = base + j * width + i
        top = flat[k] * (1 - a) + flat[k + 1] * a
        low = flat[k + width] * (1 - a) + flat[k + width + 1] * a
        return top * (1 - b) + low * b

    return value(1, 0) - value(-1, 0), value(0, 1) - value(0, -1)


def _describe(stack: Tensor, step: float, points: Tensor) -> tuple[Tensor, ...]:
    """Compute xy, scale, angle and descriptors of an octave's points, once per orientation."""
    sigma = SIGMA * 2.0 ** (points[:, 2] / N_SCALES)
    level = points[:, 2].round().long().clamp(0, len(stack) - 1)
    which, angle = _find_orientations(stack, level, points[:, :2], sigma)
    points, sigma, level = points[which], sigma[which], level[which]
    n, side = len(points), CELLS * PER_CELL
    axis = (torch.arange(side) + 0.5) / PER_CELL - CELLS / 2  # in cells
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    u, v = u.reshape(-1), v.reshape(-1)
    cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    reach = (SPACING * sigma)[:, None]
    x = points[:, :1] + reach * (cos * u - sin * v)
    y = points[:, 1:2] + reach * (sin * u + cos * v)
    gx, gy = _sample_gradients(stack, level, torch.stack([x, y], dim=-1))
    strength = torch.hypot(gx, gy) * torch.exp(-(u**2 + v**2) / (2 * (CELLS / 2) ** 2))
    bins = ((torch.atan2(gy, gx) - angle[:, None]) / (2 * math.pi) * BINS) % BINS
    low = bins.floor()
    share = bins - low
    # weight of a sample in each cell: bilinear in the distance to the cell centres
    middles = torch.arange(CELLS) + 0.5 - CELLS / 2
    row = (1 - (v[:, None] - middles).abs()).clamp(min=0)
    column = (1 - (u[:, None] - middles).abs()).clamp(min=0)
    weight = (row[:, :, None] * column[:, None, :]).reshape(-1, CELLS**2)  # [k, cells]
    directed = torch.zeros(n, len(u), BINS)
    directed.scatter_(2, (low.long() % BINS)[..., None], (strength * (1 - share))[..., None])
    directed.scatter_add_(2, ((low.long() + 1) % BINS)[..., None], (strength * share)[..., None])
    histogram = torch.einsum("nkb,kc->ncb", directed, weight).reshape(n, CELLS**2 * BINS)
    histogram = functional.normalize(histogram, dim=-1).clamp(max=0.2)
    descriptors = (histogram / histogram.sum(-1, keepdim=True).clamp(min=1e-12)).sqrt()
    return points[:, :2] * step, sigma * step, angle, descriptors


def _find_orientations(
    stack: Tensor, level: Tensor, xy: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Find dominant gradient directions, close seconds included: point indices and angles."""
    axis = torch.linspace(-3.0, 3.0, 13)  # in units of 1.5 sigma
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = u**2 + v**2 <= 9.01
    u, v = u[inside], v[inside]
    reach = 1.5 * sigma[:, None]
    at = torch.stack([xy[:, :1] + reach * u, xy[:, 1:2] + reach * v], dim=-1)
    gx, gy = _sample_gradients(stack, level, at)
    strength = torch.hypot(gx, gy) * torch.exp(-0.5 * (u**2 + v**2))
    n_bins = 36
    index = (torch.atan2(gy, gx) / (2 * math.pi) * n_bins).floor().long() % n_bins
    histogram = torch.zeros(len(xy), n_bins).scatter_add_(1, index, strength)
    for _ in range(4):
        histogram = (histogram.roll(1, 1) + histogram + histogram.roll(-1, 1)) / 3
    before, after = histogram.roll(1, 1), histogram.roll(-1, 1)
    peak = (histogram > before) & (histogram >= after)
    peak &= histogram >= 0.8 * histogram.amax(1, keepdim=True)
    curvature = (before - 2 * histogram + after).clamp(max=-1e-12)
    offset = 0.5 * (before - after) / curvature
    which, bin_ = peak.nonzero().unbind(-1)
    angle = (bin_ + 0.5 + offset[which, bin_]) / n_bins * 2 * math.pi
    return which, angle

"""Render Gaussian splats on the CPU, with gradients of their shapes, opacities and colours.

The image of a Gaussian is the Gaussian of its linearised projection (EWA splatting, Zwicker et al.
2001), 0.3 square pixels wider, as viewers of 3D Gaussian splatting draw it. A window of pixels is
rendered at a time, from near to far: the splats are cut into slabs, and those over pixels that are
full already are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.reference.encoding import spherical_harmonics
from nerfcli.shapes.splat_files import Splats

WIDER = 0.3  # square pixels, added to the variances of each image
LEAST_ALPHA = 1.0 / 255.0
MOST_ALPHA = 0.99
LEAST_LIGHT = 1e-4  # the splat that would leave less is not drawn, nor what is behind it
MARGIN = 0.3  # of width and height: splats with centres farther outside are not drawn
WINDOW = 1 << 16  # pixels rendered at a time: their numbers fit 16 bits, which sort fast
PAIRS = 1 << 19  # of a splat and a pixel, evaluated at a time
DIFFERENCE = 1e-4  # of a splat's distance, for the derivatives of a lens


class Window(NamedTuple):
    """A rectangle of pixels; x1 and y1 lie outside."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def n_pixels(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def pixels(self, camera: int) -> Tensor:
        """List the pixels [n, 3]: camera, x, y."""
        y, x = torch.meshgrid(
            torch.arange(self.y0, self.y1), torch.arange(self.x0, self.x1), indexing="ij"
        )
        return torch.stack([torch.full_like(x, camera), x, y], dim=-1).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Splats as tensors, in the frame of the cameras that show them.

    positions: [n, 3] float64. rotations: [n, 3, 3], axes as columns. log_scales: [n, 3].
    logits: [n]. harmonics: [n, 16, 3]. The last three may require gradients.
    """

    positions: Tensor
    rotations: Tensor
    log_scales: Tensor
    logits: Tensor
    harmonics: Tensor

    @staticmethod
    def of(splats: Splats) -> Gaussians:
        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(values, dtype=np.float32))

        return Gaussians(
            torch.from_numpy(splats.positions),
            tensor(splats.rotations),
            tensor(splats.log_scales),
            tensor(splats.logits),
            tensor(splats.harmonics),
        )


def render_splats(
    gaussians: Gaussians, cameras: Cameras, index: int, background: Tensor, near: float
) -> Tensor:
    """Render one camera's view [height * width, 3], row-major, without gradients.

    near: splats nearer than this to the camera are not drawn.
    """
    width, height = cameras.size[index].tolist()
    wide = min(width, WINDOW)
    high = max(1, WINDOW // wide)
    image = torch.empty(height, width, 3, dtype=gaussians.logits.dtype)
    with torch.no_grad():
        for y in range(0, height, high):
            for x in range(0, width, wide):
                window = Window(x, y, min(x + wide, width), min(y + high, height))
                part = render_window(gaussians, cameras, index, window, background, near)
                shape = (window.y1 - y, window.x1 - x, 3)
                image[y : window.y1, x : window.x1] = part.reshape(shape)
    return image.reshape(-1, 3)


def render_window(
    gaussians: Gaussians,
    cameras: Cameras,
    index: int,
    window: Window,
    background: Tensor,
    near: float,
) -> Tensor:
    """Render a window of at most WINDOW pixels of a view [n_pixels, 3], clamped to [0, 1].

    background: [3]. near: as for `render_splats`.
    """
    dtype = gaussians.logits.dtype
    rows, xy, plane = _project(gaussians, cameras, index, near)
    # plane: [m, 2, 3], how the image moves along the axes of a splat
    spread = plane * gaussians.log_scales[rows].exp()[:, None, :]
    xx = spread[:, 0].square().sum(-1) + WIDER
    yy = spread[:, 1].square().sum(-1) + WIDER
    cross = (spread[:, 0] * spread[:, 1]).sum(-1)
    conic = torch.stack([yy, -cross, xx], dim=-1) / (xx * yy - cross.square())[:, None]
    opacity = torch.sigmoid(gaussians.logits[rows])
    directions = gaussians.positions[rows] - cameras.positions[index].double()
    directions = (directions / directions.norm(dim=-1, keepdim=True)).to(dtype)
    basis = spherical_harmonics(directions)
    colors = (torch.einsum("nk,nkc->nc", basis, gaussians.harmonics[rows]) + 0.5).clamp(min=0.0)
    with torch.no_grad():
        reach = (2.0 * (opacity / LEAST_ALPHA).log().clamp(min=0.0)).sqrt()[:, None]
        half = reach * torch.stack([xx, yy], dim=-1).sqrt()
        turn = int(cameras.size[index, 0]) if cameras.lenses[index].is_panorama else 0
        pairs = _find_pairs(xy, half, conic, opacity, window, turn)
    background = background.to(dtype)
    image = _Composite.apply(conic, opacity, colors, pairs, background, window.n_pixels)
    return image.clamp(0.0, 1.0)


def _project(
    gaussians: Gaussians, cameras: Cameras, index: int, near: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Find which splats the image shows [m], near to far, where [m, 2], and how they spread.

    Returns:
        rows [m], xy [m, 2] in pixels, and the derivatives [m, 2, 3] of xy along a splat's axes.
    """
    lens, c2w = cameras.lenses[index], cameras.c2w[index].double()
    local = (gaussians.positions - c2w[:, 3]) @ c2w[:, :3]
    depth = local.norm(dim=-1) if lens.is_wide else local[:, 2]
    rows = (depth > near).nonzero()[:, 0]
    size = cameras.size[index].double()
    focal, principal = cameras.focal[index].double(), cameras.principal[index].double()
    plane = lens.project(local[rows])
    xy = plane * focal + principal
    is_near = ((xy > -MARGIN * size) & (xy < (1.0 + MARGIN) * size)).all(dim=-1)  # not of nan
    rows, xy = rows[is_near], xy[is_near]
    order = depth[rows].argsort()
    rows, xy = rows[order], xy[order]
    slope = _lens_slope(lens, local[rows])
    is_known = slope.isfinite().all(dim=-1).all(dim=-1)
    rows, xy, slope = rows[is_known], xy[is_known], slope[is_known]
    along = (slope * focal[:, None]) @ c2w[:, :3].T
    dtype = gaussians.logits.dtype
    return rows, xy.to(dtype), along.to(dtype) @ gaussians.rotations[rows]


def _lens_slope(lens: Lens, local: Tensor) -> Tensor:
    """Differentiate a lens's projection at camera-frame points [m, 3]: [m, 2, 3]."""
    x, y, z = local.unbind(-1)
    if lens.is_pinhole:
        zero = torch.zeros_like(z)
        across = torch.stack([1.0 / z, zero, -x / z.square()], dim=-1)
        return torch.stack([across, torch.stack([zero, 1.0 / z, -y / z.square()], dim=-1)], dim=1)
    length = DIFFERENCE * local.norm(dim=-1)
    columns = []
    for axis in torch.eye(3, dtype=local.dtype):
        step = length[:, None] * axis
        change = lens.project(local + step) - lens.project(local - step)
        if lens.is_panorama:  # both sides of its seam
            change = torch.remainder(change + torch.pi, 2.0 * torch.pi) - torch.pi
        columns.append(change / (2.0 * length[:, None]))
    return torch.stack(columns, dim=-1)


class Pairs(NamedTuple):
    """Splats over pixels, pixel after pixel, near to far.

    splat, pixel: [k] int64, into the drawn splats and the window. dx, dy: [k], from the splat's
    centre to the pixel's. light: [k], what is left of the pixel's light in front of the splat.
    """

    splat: Tensor
    pixel: Tensor
    dx: Tensor
    dy: Tensor
    alpha: Tensor
    light: Tensor


def _find_pairs(
    xy: Tensor, half: Tensor, conic: Tensor, opacity: Tensor, window: Window, turn: int
) -> Pairs:
    """Pair the splats, sorted near to far, with the pixels that they change.

    half: [m, 2], how far from its centre a splat reaches.
    turn: width of a panorama, whose columns go on at the other side; 0: of another image.
    """
    wide, high = window.x1 - window.x0, window.y1 - window.y0
    corner = xy.new_tensor([window.x0 + 0.5, window.y0 + 0.5])
    low, top = (xy - half - corner).ceil().long(), (xy + half - corner).floor().long()
    if turn:
        top[:, 0] = torch.minimum(top[:, 0], low[:, 0] + turn - 1)
    else:
        low[:, 0], top[:, 0] = low[:, 0].clamp(min=0), top[:, 0].clamp(max=wide - 1)
    low[:, 1], top[:, 1] = low[:, 1].clamp(min=0), top[:, 1].clamp(max=high - 1)
    columns, rows = (top - low + 1).clamp(min=0).unbind(-1)
    light = torch.ones(wide * high, dtype=torch.float64)
    parts: list[Pairs] = []
    left = (columns * rows).nonzero()[:, 0]
    while len(left):
        if parts and not turn:  # drop those whose pixels are all full
            is_open = torch.zeros(high + 1, wide + 1, dtype=torch.int64)
            is_open[1:, 1:] = (light > LEAST_LIGHT).reshape(high, wide).cumsum(0).cumsum(1)
            x0, y0, x1, y1 = *low[left].unbind(-1), *(top[left] + 1).unbind(-1)
            n_open = is_open[y1, x1] - is_open[y0, x1] - is_open[y1, x0] + is_open[y0, x0]
            left = left[n_open > 0]
        ends = (columns * rows)[left].cumsum(0)
        n = max(1, int(torch.searchsorted(ends, PAIRS)))
        slab, left = left[:n], left[n:]
        if len(slab):
            found = _pair_slab(slab, xy, conic, opacity, low, columns, rows, window, turn, light)
            parts.append(found)
    if not parts:
        none = torch.zeros(0, dtype=torch.int64)
        return Pairs(none, none, *(opacity.new_zeros(0),) * 4)
    joined = [torch.cat(values) for values in zip(*parts, strict=True)]
    order = _stable_order(joined[1])
    return Pairs(*(values[order] for values in joined))


def _pair_slab(
    slab: Tensor,
    xy: Tensor,
    conic: Tensor,
    opacity: Tensor,
    low: Tensor,
    columns: Tensor,
    rows: Tensor,
    window: Window,
    turn: int,
    light: Tensor,
) -> Pairs:
    """Pair the splats of a slab; `light` [n_pixels] loses what they stop."""
    counts = (columns * rows)[slab]
    which = torch.repeat_interleave(torch.arange(len(slab)), counts)
    splat = slab[which]
    inner = torch.arange(len(splat)) - (counts.cumsum(0) - counts)[which]
    wide = columns[splat]
    down = torch.div(inner, wide, rounding_mode="floor")
    x, y = low[splat, 0] + inner - down * wide, low[splat, 1] + down
    dx = (x + (window.x0 + 0.5)).to(xy.dtype) - xy[splat, 0]
    dy = (y + (window.y0 + 0.5)).to(xy.dtype) - xy[splat, 1]
    if turn:
        x = torch.remainder(x + window.x0, turn) - window.x0
        inside = (x >= 0) & (x < window.x1 - window.x0)
        splat, x, y, dx, dy = (values[inside] for values in (splat, x, y, dx, dy))
    pixel = y * (window.x1 - window.x0) + x
    chosen = conic[splat]
    alpha = _alphas(chosen, opacity[splat], dx, dy)
    keep = ((alpha >= LEAST_ALPHA) & (light > LEAST_LIGHT)[pixel]).nonzero()[:, 0]
    keep = keep[_stable_order(pixel[keep])]
    splat, pixel, dx, dy, alpha = (v[keep] for v in (splat, pixel, dx, dy, alpha))
    logs = torch.log1p(-alpha.double())
    before = logs.cumsum(0) - logs
    first = _firsts(pixel)
    arriving = light[pixel] * (before - before[first]).exp()
    leaving = arriving * (1.0 - alpha.double())
    drawn = leaving >= LEAST_LIGHT
    # what follows the first splat that is not drawn is not drawn either, as light only falls
    last = torch.ones(len(pixel), dtype=torch.bool)
    last[:-1] = pixel[1:] != pixel[:-1]
    light[pixel[last]] = torch.where(drawn[last], leaving[last], 0.0)
    values = (splat, pixel, dx, dy, alpha, arriving.to(alpha.dtype))
    return Pairs(*(value[drawn] for value in values))


def _alphas(conic: Tensor, opacity: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    power = -0.5 * (conic[:, 0] * dx * dx + conic[:, 2] * dy * dy) - conic[:, 1] * dx * dy
    return (opacity * power.exp()).clamp(max=MOST_ALPHA)


def _stable_order(pixel: Tensor) -> Tensor:
    """Sort by pixel, those of a pixel as they come: a radix sort of 16 bits."""
    return torch.from_numpy(np.argsort(pixel.numpy().astype(np.uint16), kind="stable"))


def _firsts(pixel: Tensor) -> Tensor:
    """Where the run of equal pixels begins that each entry of a sorted list belongs to."""
    starts = torch.ones(len(pixel), dtype=torch.bool)
    starts[1:] = pixel[1:] != pixel[:-1]
    return starts.nonzero()[:, 0][starts.long().cumsum(0) - 1]


class _Composite(torch.autograd.Function):
    """Sum the colours of the pairs, each with its share of the light, over the background."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        conic: Tensor,
        opacity: Tensor,
        colors: Tensor,
        pairs: Pairs,
        background: Tensor,
        n_pixels: int,
    ) -> Tensor:
        splat, pixel, _, _, alpha, light = pairs
        weight = alpha * light
        shown = weight[:, None] * colors[splat]
        total = torch.zeros(n_pixels, dtype=weight.dtype).index_add_(0, pixel, weight)
        image = colors.new_zeros(n_pixels, 3).index_add_(0, pixel, shown)
        ctx.save_for_backward(conic, opacity, colors, background, total)
        ctx.pairs = pairs
        return image + (1.0 - total)[:, None] * background

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        conic, opacity, colors, background, total = ctx.saved_tensors
        splat, pixel, dx, dy, alpha, light = ctx.pairs
        weight = alpha * light
        arriving = grad[pixel]
        value = (colors[splat] * arriving).sum(-1)
        shown = (weight * value).double()
        behind = _sum_of_followers(shown, pixel) + ((1.0 - total) * (grad @ background))[pixel]
        of_alpha = light * value - (behind / (1.0 - alpha)).to(grad.dtype)
        of_alpha = torch.where(alpha < MOST_ALPHA, of_alpha * alpha, 0.0)  # times alpha
        parts = torch.stack(
            [-0.5 * of_alpha * dx * dx, -of_alpha * dx * dy, -0.5 * of_alpha * dy * dy, of_alpha],
            dim=-1,
        )
        rows = torch.cat([parts, weight[:, None] * arriving], dim=-1)
        sums = rows.new_zeros(len(opacity), 7).index_add_(0, splat, rows)
        return sums[:, :3], sums[:, 3] / opacity, sums[:, 4:], None, None, None


def _sum_of_followers(values: Tensor, pixel: Tensor) -> Tensor:
    """Add what follows each entry within its run of equal pixels."""
    ends = values.cumsum(0)
    last = torch.ones(len(pixel), dtype=torch.bool)
    last[:-1] = pixel[1:] != pixel[:-1]
    starts = torch.ones(len(pixel), dtype=torch.bool)
    starts[1:] = last[:-1]
    return ends[last][starts.long().cumsum(0) - 1] - ends

"""Volume rendering in Triton: the twin of volume.py, and the loss on top of it.

A program walks a few rays, a few samples of each at a time: loads are contiguous along a ray, and
prefix sums stand for the walk from sample to sample.
tau: optical depth of a sample, sigma * delta. light: transmittance in front of a sample.
Going back, from the last sample to the first:
    dL/dw_i = q_i,  dL/dtau_i = q_i T_{i+1} - sum_{j>i} q_j w_j.
The kernels read either densities and colours, or (RAW) what the networks gave: the logarithm of
the density and the colour before its sigmoid; gradients are with respect to what was read.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton.launch import blocks
from nerfcli.reference import volume
from nerfcli.reference.radiance import MAX_LOG_DENSITY
from nerfcli.reference.samples import Pixels, Samples

RAYS = 16  # of a program, which is one warp: they wait for the longest of them
AHEAD = 8  # samples of each ray that are looked at together
MAX_TAU = tl.constexpr(volume.MAX_OPTICAL_DEPTH)
# of a sample in a prefix sum, from which its own share is taken again: a larger one would cost
# the others their digits, and behind this one there is no light in float32 anyway
OPAQUE = tl.constexpr(25.0)
MAX_LOG = tl.constexpr(MAX_LOG_DENSITY)


@triton.jit
def _alpha(tau):
    """1 - exp(-tau), by its series where the difference would lose digits."""
    series = tau * (1.0 - tau / 2 * (1.0 - tau / 3 * (1.0 - tau / 4 * (1.0 - tau / 5))))
    return tl.where(tau < 0.1, series, 1.0 - tl.exp(-tau))


@triton.jit
def sigma_of(sigmas, i, live, stride, inverse_unit, RAW: tl.constexpr):
    sigma = tl.load(sigmas + i * stride, live, 0.0).to(tl.float32)
    if RAW:
        sigma = tl.where(live, tl.exp(tl.minimum(sigma, MAX_LOG)) * inverse_unit, 0.0)
    return sigma


@triton.jit
def _color(rgbs, i, live, CHANNEL: tl.constexpr, RAW: tl.constexpr):
    color = tl.load(rgbs + i * 3 + CHANNEL, live, 0.0).to(tl.float32)
    if RAW:
        color = tl.where(live, 1.0 / (1.0 + tl.exp(-color)), 0.0)
    return color


@triton.jit
def delta_of(t_starts, t_ends, i, live):
    return tl.load(t_ends + i, live, 0.0) - tl.load(t_starts + i, live, 0.0)


@triton.jit
def in_front(tau):
    """Optical depth in front of each sample of a row, of those of the row. tau [rays, samples]."""
    return tl.cumsum(tau, 1) - tau


@triton.jit
def walk_forward(
    sigmas, rgbs, t_starts, t_ends, light_out, weights_out, sources, first, last, stride,
    inverse_unit, RAW: tl.constexpr, KEEP: tl.constexpr, WEIGHTS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Sums over each ray: red, green, blue, weights, weights times t. KEEP: note the light.
    WEIGHTS: and the weights, where the samples come from."""
    depth = tl.zeros_like(first).to(tl.float32)
    red, green, blue, opacity, expected = depth, depth, depth, depth, depth
    # the rows of i are made in the loop: Triton 3.5 fails over a tile that is carried through it
    begin, left = first, tl.max(last - first)
    while left > 0:
        i = begin[:, None] + tl.arange(0, AHEAD)[None, :]
        live = i < last[:, None]
        start = tl.load(t_starts + i, live, 0.0)
        delta = tl.load(t_ends + i, live, 0.0) - start
        sigma = sigma_of(sigmas, i, live, stride, inverse_unit, RAW)
        tau = tl.minimum(sigma * delta, OPAQUE)
        light = tl.exp(-(depth[:, None] + in_front(tau)))
        weight = light * _alpha(tau)
        red += tl.sum(weight * _color(rgbs, i, live, 0, RAW), 1)
        green += tl.sum(weight * _color(rgbs, i, live, 1, RAW), 1)
        blue += tl.sum(weight * _color(rgbs, i, live, 2, RAW), 1)
        opacity += tl.sum(weight, 1)
        expected += tl.sum(weight * (start + 0.5 * delta), 1)
        if KEEP:
            tl.store(light_out + i, light, live)
        if WEIGHTS:
            tl.store(weights_out + tl.load(sources + i, live, 0), weight, live)
        depth += tl.sum(tau, 1)
        begin += AHEAD
        left -= AHEAD
    return red, green, blue, opacity, expected


@triton.jit
def walk_back(
    sigmas, rgbs, t_starts, t_ends, light_in, d_sigmas, d_rgbs, first, last, stride, inverse_unit,
    d_red, d_green, d_blue, d_opacity, d_expected, d_distortion, opacity, mean_t,
    RAW: tl.constexpr, DISTORTION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of the samples of each ray from those of its five sums, and of its distortion.

    Every further loss is a summand of q. Returns the distortion, in scene units. With m_i the
    middles, taken from mean_t since only their differences count, and W, M the sums of w and w m,
        dL/dw_i = 2 (m_i (W_front - W_behind) - (M_front - M_behind)) + 2/3 w_i delta_i,
    and the distortion is half of the sum of w_i dL/dw_i.
    """
    behind = tl.zeros_like(d_red)  # sum of q_j w_j behind the samples
    w_behind, m_behind, distortion = behind, behind, behind
    end, left = last, tl.max(last - first)
    while left > 0:
        i = end[:, None] - 1 - tl.arange(0, AHEAD)[None, :]  # from the last sample to the first
        live = i >= first[:, None]
        start = tl.load(t_starts + i, live, 0.0)
        delta = tl.load(t_ends + i, live, 0.0) - start
        sigma = sigma_of(sigmas, i, live, stride, inverse_unit, RAW)
        tau = tl.minimum(sigma * delta, OPAQUE)
        light = tl.load(light_in + i, live, 0.0)
        red = _color(rgbs, i, live, 0, RAW)
        green = _color(rgbs, i, live, 1, RAW)
        blue = _color(rgbs, i, live, 2, RAW)
        q = d_red[:, None] * red + d_green[:, None] * green + d_blue[:, None] * blue
        q += d_opacity[:, None] + d_expected[:, None] * (start + 0.5 * delta)
        weight = light * _alpha(tau)
        if DISTORTION:
            m = start + 0.5 * delta - mean_t[:, None]
            w_back = w_behind[:, None] + in_front(weight)
            m_back = m_behind[:, None] + in_front(weight * m)
            slope = m * (opacity[:, None] - weight - 2.0 * w_back) + weight * m + 2.0 * m_back
            slope = 2.0 * slope + (2.0 / 3.0) * weight * delta
            q += d_distortion[:, None] * slope
            distortion += 0.5 * tl.sum(weight * slope, 1)
            w_behind += tl.sum(weight, 1)
            m_behind += tl.sum(weight * m, 1)
        share = q * weight
        d_tau = q * light * tl.exp(-tau) - behind[:, None] - in_front(share)
        behind += tl.sum(share, 1)
        d_sigma = tl.where(sigma * delta <= MAX_TAU, d_tau * delta, 0.0)
        if RAW:
            d_sigma *= sigma
            red, green, blue = red * (1.0 - red), green * (1.0 - green), blue * (1.0 - blue)
        else:
            red, green, blue = 1.0, 1.0, 1.0
        tl.store(d_rgbs + i * 3, weight * d_red[:, None] * red, live)
        tl.store(d_rgbs + i * 3 + 1, weight * d_green[:, None] * green, live)
        tl.store(d_rgbs + i * 3 + 2, weight * d_blue[:, None] * blue, live)
        tl.store(d_sigmas + i, d_sigma, live)
        end -= AHEAD
        left -= AHEAD
    return distortion


@triton.jit
def ray_block(offsets, n_rays, RAYS: tl.constexpr):
    """Rays of this program, which of them exist, and where their samples begin and end."""
    rays = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    inside = rays < n_rays
    first, last = tl.load(offsets + rays, inside, 0), tl.load(offsets + rays + 1, inside, 0)
    return rays, inside, first, last


@triton.jit(do_not_specialize=["n_rays"])
def _composite(
    sigmas, rgbs, t_starts, t_ends, offsets, background, rgb, opacity, depth, median, n_rays,
    RAYS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    rays, inside, first, last = ray_block(offsets, n_rays, RAYS)
    red, green, blue, total, expected = walk_forward(
        sigmas, rgbs, t_starts, t_ends, sigmas, sigmas, offsets, first, last, 1, 1.0, False, False,
        False, AHEAD,
    )  # fmt: skip
    shine = 1.0 - total
    tl.store(rgb + rays * 3, red + shine * tl.load(background + rays * 3, inside, 0.0), inside)
    back = tl.load(background + rays * 3 + 1, inside, 0.0)
    tl.store(rgb + rays * 3 + 1, green + shine * back, inside)
    back = tl.load(background + rays * 3 + 2, inside, 0.0)
    tl.store(rgb + rays * 3 + 2, blue + shine * back, inside)
    hit = total > 1e-10
    tl.store(opacity + rays, total, inside)
    tl.store(depth + rays, tl.where(hit, expected / tl.maximum(total, 1e-10), 0.0), inside)
    tau_sum, reached, found = total * 0.0, total * 0.0, total * 0.0
    while tl.max(((first < last) & (reached < 0.5 * total)).to(tl.int32)) > 0:
        i = first[:, None] + tl.arange(0, AHEAD)[None, :]
        live = i < last[:, None]
        start = tl.load(t_starts + i, live, 0.0)
        delta = tl.load(t_ends + i, live, 0.0) - start
        tau = tl.minimum(tl.load(sigmas + i, live, 0.0) * delta, OPAQUE)
        weight = tl.exp(-(tau_sum[:, None] + in_front(tau))) * _alpha(tau)
        so_far = reached[:, None] + in_front(weight)
        middle = tl.where(live & (so_far < 0.5 * total[:, None]), start + 0.5 * delta, 0.0)
        found = tl.maximum(found, tl.max(middle, 1))  # t rises along a ray
        reached += tl.sum(weight, 1)
        tau_sum += tl.sum(tau, 1)
        first += AHEAD
    tl.store(median + rays, tl.where(hit, found, 0.0), inside)


@triton.jit(do_not_specialize=["n_rays"])
def _composite_backward(
    sigmas, rgbs, t_starts, t_ends, offsets, background, d_rgb, d_opacity, d_depth,
    light, d_sigmas, d_rgbs, n_rays, RAYS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    rays, inside, first, last = ray_block(offsets, n_rays, RAYS)
    red, green, blue, total, expected = walk_forward(
        sigmas, rgbs, t_starts, t_ends, light, light, offsets, first, last, 1, 1.0, False, True,
        False, AHEAD,
    )  # fmt: skip
    tl.debug_barrier()  # the light is read by other threads than wrote it
    d_red = tl.load(d_rgb + rays * 3, inside, 0.0)
    d_green = tl.load(d_rgb + rays * 3 + 1, inside, 0.0)
    d_blue = tl.load(d_rgb + rays * 3 + 2, inside, 0.0)
    d_total = tl.load(d_opacity + rays, inside, 0.0)
    d_total -= d_red * tl.load(background + rays * 3, inside, 0.0)
    d_total -= d_green * tl.load(background + rays * 3 + 1, inside, 0.0)
    d_total -= d_blue * tl.load(background + rays * 3 + 2, inside, 0.0)
    safe = tl.maximum(total, 1e-10)
    d_expected = tl.where(total > 1e-10, tl.load(d_depth + rays, inside, 0.0) / safe, 0.0)
    d_total -= d_expected * (expected / safe)
    walk_back(
        sigmas, rgbs, t_starts, t_ends, light, d_sigmas, d_rgbs, first, last, 1, 1.0,
        d_red, d_green, d_blue, d_total, d_expected, total, total, total, False, False, AHEAD,
    )  # fmt: skip


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor):
        n_rays, device = samples.n_rays, sigmas.device
        packed = (sigmas, rgbs, samples.t_starts, samples.t_ends, samples.ray_offsets, background)
        ctx.save_for_backward(*packed)
        rgb = torch.empty(n_rays, 3, device=device)
        opacity, depth, median = (torch.empty(n_rays, device=device) for _ in range(3))
        _composite[(blocks(n_rays, RAYS),)](
            *packed, rgb, opacity, depth, median, n_rays, RAYS, AHEAD, num_warps=1
        )
        ctx.mark_non_differentiable(median)
        return rgb, opacity, depth, median

    @staticmethod
    def backward(ctx, d_rgb: Tensor, d_opacity: Tensor, d_depth: Tensor, _median: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        packed = ctx.saved_tensors
        sigmas, rgbs, offsets = packed[0], packed[1], packed[4]
        n_rays = offsets.shape[0] - 1
        d_sigmas, d_rgbs = torch.zeros_like(sigmas), torch.zeros_like(rgbs)  # padding too
        light = torch.empty(sigmas.shape, device=sigmas.device)
        cotangents = (d.contiguous() for d in (d_rgb, d_opacity, d_depth))
        _composite_backward[(blocks(n_rays, RAYS),)](
            *packed, *cotangents, light, d_sigmas, d_rgbs, n_rays, RAYS, AHEAD, num_warps=1
        )
        return d_sigmas, d_rgbs, None, None


def composite(sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor) -> Pixels:
    """volume.composite, with gradients for sigmas and rgbs alone."""
    background = background.expand(samples.n_rays, 3).contiguous()
    return Pixels(*_Composite.apply(sigmas.contiguous(), rgbs.contiguous(), samples, background))  # pyright: ignore

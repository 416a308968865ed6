"""The losses of a step in Triton, from what the networks gave to the gradients of it.

The twin of losses.py and of what fused.py does around it, in one walk along each ray and back.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton.launch import blocks
from nerfcli.backends.triton.triton_volume import AHEAD, RAYS, ray_block, walk_back, walk_forward
from nerfcli.cameras.rays import Batch
from nerfcli.reference import losses
from nerfcli.reference.fused import Objective
from nerfcli.reference.samples import Samples

HUBER_DELTA = tl.constexpr(losses.HUBER_DELTA)
TERMS = ("opacity", "depth", "distortion")  # in the order of the kernel
LEAST_OPACITY = tl.constexpr(1e-6)  # as losses.opacity_loss
SCALE = tl.constexpr(128.0)  # of gradients that travel in half precision


@triton.jit
def _term(value, target, inside, HUBER: tl.constexpr):
    """Loss and squared error of one channel, and the gradient of the loss."""
    error = tl.where(inside, value - target, 0.0)
    square = error * error
    term, slope = square, 2.0 * error
    if HUBER:
        size = tl.abs(error)
        term = tl.where(size <= HUBER_DELTA, square, HUBER_DELTA * (2.0 * size - HUBER_DELTA))
        slope = 2.0 * tl.minimum(tl.maximum(error, -HUBER_DELTA), HUBER_DELTA)
    return term, square, slope


@triton.jit
def _objective(
    logs, raw_colors, t_starts, t_ends, offsets, sources, background, target, depth, ray_weight,
    light, weights, d_logs, d_colors, terms, n_live, stride, inverse_unit, opacity_by, depth_by,
    distortion_by, HUBER: tl.constexpr, OPACITY: tl.constexpr, DEPTH: tl.constexpr,
    DISTORTION: tl.constexpr, WEIGHTED: tl.constexpr, WEIGHTS: tl.constexpr, RAYS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Composite, compare, and go back to what the networks gave; the means of the terms.

    Terms beside the photometric one add to the cotangents of a ray's sums, or to those of its
    weights in `walk_back`. They are means over rays alone, so they count three times as much.
    """
    n = tl.load(n_live)
    mean = 1.0 / (3.0 * tl.maximum(n, 1).to(tl.float32))
    if tl.program_id(0) == 0:
        tl.store(terms + 2, mean / SCALE)
    if tl.program_id(0) * RAYS >= n:
        return
    rays, inside, first, last = ray_block(offsets, n, RAYS)
    red, green, blue, total, expected = walk_forward(
        logs, raw_colors, t_starts, t_ends, light, weights, sources, first, last, stride,
        inverse_unit, True, True, WEIGHTS, AHEAD,
    )  # fmt: skip
    tl.debug_barrier()  # the light is read by other threads than wrote it
    back_red = tl.load(background + rays * 3, inside, 0.0)
    back_green = tl.load(background + rays * 3 + 1, inside, 0.0)
    back_blue = tl.load(background + rays * 3 + 2, inside, 0.0)
    shine = 1.0 - total
    goal = tl.load(target + rays * 3, inside, 0.0)
    term, square, d_red = _term(red + shine * back_red, goal, inside, HUBER)
    loss, squares = term, square
    goal = tl.load(target + rays * 3 + 1, inside, 0.0)
    term, square, d_green = _term(green + shine * back_green, goal, inside, HUBER)
    loss, squares = loss + term, squares + square
    goal = tl.load(target + rays * 3 + 2, inside, 0.0)
    term, square, d_blue = _term(blue + shine * back_blue, goal, inside, HUBER)
    loss, squares = loss + term, squares + square
    by = tl.where(inside, 1.0, 0.0)
    if WEIGHTED:
        by = tl.load(ray_weight + rays, inside, 0.0)
        loss *= by
    tl.atomic_add(terms, tl.sum(loss) * mean, sem="relaxed")
    tl.atomic_add(terms + 1, tl.sum(squares) * mean, sem="relaxed")
    scale = by * SCALE
    d_red, d_green, d_blue = d_red * scale, d_green * scale, d_blue * scale
    d_total = -(d_red * back_red + d_green * back_green + d_blue * back_blue)
    d_expected, d_distortion, mean_t = total * 0.0, total * 0.0, total * 0.0
    if OPACITY:
        some = tl.maximum(total, LEAST_OPACITY)
        tl.atomic_add(terms + 3, tl.sum(-some * tl.log(some) * by) * mean * 3.0, sem="relaxed")
        slope = tl.where(total >= LEAST_OPACITY, -tl.log(some) - 1.0, 0.0)
        d_total += slope * (3.0 * opacity_by) * scale
    if DEPTH:
        there = tl.load(depth + rays, inside, 0.0)
        away = tl.where(there > 0.0, expected - there * total, 0.0)
        tl.atomic_add(terms + 4, tl.sum(tl.abs(away) * by) * mean * 3.0, sem="relaxed")
        slope = tl.where(away > 0.0, 1.0, tl.where(away < 0.0, -1.0, 0.0))
        slope *= (3.0 * depth_by) * scale
        d_expected += slope
        d_total -= slope * there
    if DISTORTION:
        mean_t = expected / tl.maximum(total, 1e-10)
        d_distortion += (3.0 * distortion_by * inverse_unit) * scale
    distortion = walk_back(
        logs, raw_colors, t_starts, t_ends, light, d_logs, d_colors, first, last, stride,
        inverse_unit, d_red, d_green, d_blue, d_total, d_expected, d_distortion, total, mean_t,
        True, DISTORTION, AHEAD,
    )  # fmt: skip
    if DISTORTION:
        spread = tl.sum(distortion * by) * inverse_unit * mean * 3.0
        tl.atomic_add(terms + 5, spread, sem="relaxed")


@dataclass(frozen=True)
class Losses:
    """What the loss kernel gives.

    Gradients are those of SCALE times a sum over rays and channels, in the precision of the
    network's values.
    """

    d_logs: Tensor  # [capacity], of the log densities
    d_colors: Tensor  # [capacity, 3], before the sigmoid
    terms: dict[str, Tensor]  # means, before their weights
    mse: Tensor
    factor: Tensor  # [1], makes gradients of the objective of those above


def losses_and_gradients(
    inputs: Tensor, colors: Tensor, samples: Samples, sources: Tensor, batch: Batch,
    n_live: Tensor, unit_length: float, objective: Objective, weights: Tensor | None,
) -> Losses:  # fmt: skip
    """The terms of the objective and their gradients.

    Args:
        inputs: [capacity, n_inputs]; the first column holds the log densities.
        colors: [capacity, 3] before the sigmoid.
        sources: [capacity] int64, where the samples come from.
        n_live: how many rays count, an int64 scalar on the device.
        unit_length: of the space.
        weights: where to write the volume-rendering weights, at the samples' sources; None: nowhere.
    """
    capacity, n_inputs = inputs.shape
    device = batch.rgb.device
    d_logs = torch.empty(capacity, dtype=colors.dtype, device=device)
    d_colors = torch.empty(capacity, 3, dtype=colors.dtype, device=device)
    light = torch.empty(capacity, device=device)
    terms = torch.zeros(6, device=device)
    by = objective.weights()
    if batch.depth is None:
        by.pop("depth", None)
    nothing = light
    _objective[(blocks(samples.n_rays, RAYS),)](
        inputs, colors, samples.t_starts, samples.t_ends, samples.ray_offsets, sources,
        batch.background.contiguous(), batch.rgb.contiguous(),
        batch.depth.contiguous() if "depth" in by and batch.depth is not None else nothing,
        nothing if batch.weight is None else batch.weight.contiguous(), light,
        nothing if weights is None else weights, d_logs, d_colors, terms, n_live, n_inputs,
        1.0 / unit_length, *(float(by.get(name, 0.0)) for name in TERMS),
        objective.photometric == "huber", *(name in by for name in TERMS),
        batch.weight is not None, weights is not None, RAYS, AHEAD, num_warps=1,
    )  # fmt: skip
    named = {name: terms[3 + i] for i, name in enumerate(TERMS) if name in by}
    return Losses(d_logs, d_colors, {"photometric": terms[0]} | named, terms[1], terms[2:3])

"""The photometric loss in Triton, from what the networks gave to the gradients of it.

The twin of losses.py and of what step.py does around it, in one walk along each ray and back.
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
from nerfcli.backends.triton.triton_volume import AHEAD, RAYS, ray_block, walk_back, walk_forward
from nerfcli.reference import losses
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Box

HUBER_DELTA = tl.constexpr(losses.HUBER_DELTA)
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
def _photometric(
    logs, raw_colors, t_starts, t_ends, offsets, background, target, light, d_logs, d_colors,
    terms, n_live, stride, inverse_side, HUBER: tl.constexpr, RAYS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Composite, compare, and go back to what the networks gave; the means of the terms."""
    n = tl.load(n_live)
    mean = 1.0 / (3.0 * tl.maximum(n, 1).to(tl.float32))
    if tl.program_id(0) == 0:
        tl.store(terms + 2, mean / SCALE)
    if tl.program_id(0) * RAYS >= n:
        return
    rays, inside, first, last = ray_block(offsets, n, RAYS)
    red, green, blue, total, _ = walk_forward(
        logs, raw_colors, t_starts, t_ends, light, first, last, stride, inverse_side,
        True, True, AHEAD,
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
    tl.atomic_add(terms, tl.sum(loss) * mean, sem="relaxed")
    tl.atomic_add(terms + 1, tl.sum(squares) * mean, sem="relaxed")
    d_red, d_green, d_blue = d_red * SCALE, d_green * SCALE, d_blue * SCALE
    d_total = -(d_red * back_red + d_green * back_green + d_blue * back_blue)
    walk_back(
        logs, raw_colors, t_starts, t_ends, light, d_logs, d_colors, first, last, stride,
        inverse_side, d_red, d_green, d_blue, d_total, total * 0.0, True, AHEAD,
    )  # fmt: skip


def photometric(
    inputs: Tensor, colors: Tensor, samples: Samples, target: Tensor, background: Tensor,
    n_live: Tensor, box: Box, loss: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A loss of losses.LOSSES, and its gradients as if it were SCALE times a sum.

    Args:
        inputs: [capacity, n_inputs]; the first column holds the log densities.
        colors: [capacity, 3] before the sigmoid.
        n_live: how many rays count, an int64 scalar on the device.

    Returns:
        d log densities [capacity], d colors, both in the precision of `colors`; and [3]: the
        loss and the squared error, means over rays and channels, and the factor that makes
        gradients of the loss of those returned.
    """
    capacity, n_inputs = inputs.shape
    device = target.device
    d_logs = torch.empty(capacity, dtype=colors.dtype, device=device)
    d_colors = torch.empty(capacity, 3, dtype=colors.dtype, device=device)
    light = torch.empty(capacity, device=device)
    terms = torch.zeros(3, device=device)
    packed = (samples.t_starts, samples.t_ends, samples.ray_offsets)
    _photometric[(blocks(samples.n_rays, RAYS),)](
        inputs, colors, *packed, background.contiguous(), target.contiguous(), light, d_logs,
        d_colors, terms, n_live, n_inputs, 1.0 / box.side, loss == "huber", RAYS, AHEAD,
        num_warps=1,
    )  # fmt: skip
    return d_logs, d_colors, terms

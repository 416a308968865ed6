"""Spaces in Triton: the twin of contraction.py, shared by the kernels that make positions.

Numbers of a space lie in one tensor on the device: those that its map takes from MAP on.
KIND: 0 box, 1 contraction, 2 perspective.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton.launch import blocks
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, PerspectiveSpace, Space

BLOCK = 256
KINDS = {"box": 0, "contraction": 1, "perspective": 2}
# in front of the map's numbers: the box's centre, its outer half size, near and far, for `draw`
MAP = tl.constexpr(6)


@functools.cache
def space_numbers(space: Space, device: torch.device) -> Tensor:
    """The numbers that the kernels read of a space, float32; made once, as a copy waits."""
    box = space.box
    numbers = [*box.center, box.outer_half_size, space.near, space.far]
    if isinstance(space, BoxSpace):
        numbers += [*(c - box.outer_half_size for c in box.center), box.side]
    elif isinstance(space, ContractedSpace):
        numbers += [*box.center, box.half_size]
    elif isinstance(space, PerspectiveSpace):
        numbers += [*space.origin, space.z_near, *space.tan, *space.rotation]
    return torch.tensor(numbers, dtype=torch.float32, device=device)


@triton.jit
def _contract(space, x, y, z):
    """Position relative to the detail cube, its size there (1 at least) and the factor of it."""
    half = tl.load(space + MAP + 3)
    x = (x - tl.load(space + MAP)) / half
    y = (y - tl.load(space + MAP + 1)) / half
    z = (z - tl.load(space + MAP + 2)) / half
    m = tl.maximum(tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z)), 1.0)
    return x, y, z, m, (2.0 - 1.0 / m) / m


@triton.jit
def _turn(space, x, y, z, AXIS: tl.constexpr):
    """Position along an axis of the mean camera."""
    c = (x - tl.load(space + MAP)) * tl.load(space + MAP + 6 + AXIS)
    c += (y - tl.load(space + MAP + 1)) * tl.load(space + MAP + 9 + AXIS)
    return c + (z - tl.load(space + MAP + 2)) * tl.load(space + MAP + 12 + AXIS)


@triton.jit
def _clamp(u):
    return tl.minimum(tl.maximum(u, 0.0), 1.0)


@triton.jit
def to_unit(space, x, y, z, KIND: tl.constexpr):
    """Space.to_unit."""
    if KIND == 0:
        side = tl.load(space + MAP + 3)
        x = (x - tl.load(space + MAP)) / side
        y = (y - tl.load(space + MAP + 1)) / side
        z = (z - tl.load(space + MAP + 2)) / side
    elif KIND == 1:
        x, y, z, _, factor = _contract(space, x, y, z)
        x = (factor * x + 2.0) * 0.25
        y = (factor * y + 2.0) * 0.25
        z = (factor * z + 2.0) * 0.25
    else:
        z_near = tl.load(space + MAP + 3)
        across, down = _turn(space, x, y, z, 0), _turn(space, x, y, z, 1)
        ahead = tl.maximum(_turn(space, x, y, z, 2), z_near)
        x = across / (2.0 * tl.load(space + MAP + 4) * ahead) + 0.5
        y = down / (2.0 * tl.load(space + MAP + 5) * ahead) + 0.5
        z = 1.0 - z_near / ahead
    return _clamp(x), _clamp(y), _clamp(z)


@triton.jit
def pull_back(space, x, y, z, a, b, c, KIND: tl.constexpr):
    """Space.pull_back of the cotangent (a, b, c) at (x, y, z)."""
    if KIND == 0:
        half, side = tl.load(space + 3), tl.load(space + MAP + 3)
        a = tl.where(tl.abs(x - tl.load(space)) <= half, a / side, 0.0)
        b = tl.where(tl.abs(y - tl.load(space + 1)) <= half, b / side, 0.0)
        c = tl.where(tl.abs(z - tl.load(space + 2)) <= half, c / side, 0.0)
    elif KIND == 1:
        x, y, z, m, factor = _contract(space, x, y, z)
        slope = (2.0 / m - 2.0) / (m * m) * (a * x + b * y + c * z)
        first = tl.abs(x) >= m  # of the axes that are farthest, one bears the slope of m
        second = (tl.abs(y) >= m) & (first == 0)
        third = (first == 0) & (second == 0)
        scale = 0.25 / tl.load(space + MAP + 3)
        a = (factor * a + tl.where(first, tl.where(x < 0, -slope, slope), 0.0)) * scale
        b = (factor * b + tl.where(second, tl.where(y < 0, -slope, slope), 0.0)) * scale
        c = (factor * c + tl.where(third, tl.where(z < 0, -slope, slope), 0.0)) * scale
    else:
        z_near, ahead = tl.load(space + MAP + 3), _turn(space, x, y, z, 2)
        depth = tl.maximum(ahead, z_near)
        wide, high = 2.0 * tl.load(space + MAP + 4) * depth, 2.0 * tl.load(space + MAP + 5) * depth
        u, v = _turn(space, x, y, z, 0) / wide, _turn(space, x, y, z, 1) / high
        a = tl.where(tl.abs(u) <= 0.5, a, 0.0)  # none where it is clamped
        b = tl.where(tl.abs(v) <= 0.5, b, 0.0)
        d_ahead = (c * z_near / depth - (a * u + b * v)) / depth
        d_ahead = tl.where(ahead >= z_near, d_ahead, 0.0)
        d_across, d_down, turn = a / wide, b / high, space + MAP + 6
        a = _back(turn, d_across, d_down, d_ahead)
        b = _back(turn + 3, d_across, d_down, d_ahead)
        c = _back(turn + 6, d_across, d_down, d_ahead)
    return a, b, c


@triton.jit
def _back(row, a, b, c):
    """Along an axis of the scene: a row of the rotation times (a, b, c)."""
    return tl.load(row) * a + tl.load(row + 1) * b + tl.load(row + 2) * c


@triton.jit
def load_point(points, rows, live):
    x = tl.load(points + rows * 3, live, 0.0)
    y = tl.load(points + rows * 3 + 1, live, 0.0)
    return x, y, tl.load(points + rows * 3 + 2, live, 0.0)


@triton.jit
def store_point(points, rows, x, y, z, live):
    tl.store(points + rows * 3, x, live)
    tl.store(points + rows * 3 + 1, y, live)
    tl.store(points + rows * 3 + 2, z, live)


@triton.jit(do_not_specialize=["n"])
def _to_unit(x, space, out, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a, b, c = load_point(x, rows, rows < n)
    a, b, c = to_unit(space, a, b, c, KIND)
    store_point(out, rows, a, b, c, rows < n)


@triton.jit(do_not_specialize=["n"])
def _pull_back(x, d_u, space, out, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    px, py, pz = load_point(x, rows, rows < n)
    a, b, c = load_point(d_u, rows, rows < n)
    a, b, c = pull_back(space, px, py, pz, a, b, c, KIND)
    store_point(out, rows, a, b, c, rows < n)


class _ToUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, space: Space) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.space = space
        n, out = x.shape[0], torch.empty_like(x)
        numbers = space_numbers(space, x.device)
        _to_unit[(blocks(n, BLOCK),)](x, numbers, out, n, KINDS[space.kind], BLOCK)
        return out

    @staticmethod
    def backward(ctx, d_u: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        n, out, space = x.shape[0], torch.empty_like(x), ctx.space
        numbers, d_u = space_numbers(space, x.device), d_u.contiguous()
        _pull_back[(blocks(n, BLOCK),)](x, d_u, numbers, out, n, KINDS[space.kind], BLOCK)
        return out, None


def map_to_unit(positions: Tensor, space: Space) -> Tensor:
    """Space.to_unit of positions [n, 3], differentiable."""
    return _ToUnit.apply(positions, space)  # pyright: ignore[reportReturnType]

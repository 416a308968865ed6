"""Bias-free multilayer perceptrons in Triton, one launch each way: the twin of mlp.py.

One or two hidden layers of one width. A program walks over tiles of rows with the weights at
hand and the hidden values in registers; the way back computes these again rather than read them
from memory, and sums the gradients of the weights over its tiles before adding them once.
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

from nerfcli.backends.triton.launch import (
    blocks,
    count,
    persistent_programs,
    power_of_two,
    unit_scale,
)

BLOCK = 128  # rows of a tile on the way forward, 4 warps
BACKWARD_BLOCK = 64  # and back, 4 warps again
# Programs that a multiprocessor of 65536 registers holds at once: by what ptxas reports for 9.0, a
# thread takes up to 136 forwards and 238 backwards. Two small programs rather than a large one: one
# works while the other waits at a barrier.
FORWARD_RESIDENT, BACKWARD_RESIDENT = 3, 2
MAX_WIDTH = 128  # wider layers do not fit the registers and shared memory of a program


@triton.jit
def _weights(pointer, ins, outs, N_IN: tl.constexpr, N_OUT: tl.constexpr):
    """Tile [in, out] of a row-major [out, in] matrix, zero beyond its edges."""
    inside = (ins[:, None] < N_IN) & (outs[None, :] < N_OUT)
    return tl.load(pointer + outs[None, :] * N_IN + ins[:, None], inside, 0.0)


@triton.jit
def _cells(pointer, rows, columns, n_rows, GROUP: tl.constexpr):
    """Pointers [rows, columns] into groups of columns, each [n_rows, GROUP]."""
    inner = (columns // GROUP).to(tl.int64) * n_rows * GROUP + columns % GROUP
    return pointer + rows[:, None] * GROUP + inner[None, :]


@triton.jit
def _narrow(values, dtype: tl.constexpr):
    """Round to `dtype`; what float16 does not hold becomes its largest number, not infinity.
    NaN stays, here and in `_relu`, so that it shows in the loss."""
    if dtype == tl.float16:
        values = tl.maximum(values, -65504.0, propagate_nan=tl.PropagateNan.ALL)
        values = tl.minimum(values, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return values.to(dtype)


@triton.jit
def _relu(values):
    return tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _dot(a, b):
    """a @ b with float32 sums; float32 factors are not rounded to TF32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit(do_not_specialize=["n_rows", "n_live"])
def _forward(
    x, weights, y, places, n_live, n_rows, SOME: tl.constexpr,
    GROUP: tl.constexpr, N_IN: tl.constexpr, WIDTH: tl.constexpr, N_OUT: tl.constexpr,
    N_HIDDEN: tl.constexpr, IN: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """SOME: only of the rows at `places`."""
    n = tl.load(n_live)
    ins, hidden, outs = tl.arange(0, IN), tl.arange(0, HIDDEN), tl.arange(0, OUT)
    dtype = x.dtype.element_ty
    last = WIDTH * (N_IN + WIDTH * (N_HIDDEN - 1))
    w_first = _weights(weights, ins, hidden, N_IN, WIDTH).to(dtype)
    w_last = _weights(weights + last, hidden, outs, WIDTH, N_OUT).to(dtype)
    if N_HIDDEN == 2:
        w_mid = _weights(weights + WIDTH * N_IN, hidden, hidden, WIDTH, WIDTH).to(dtype)
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        rows = tile * BLOCK + tl.arange(0, BLOCK)
        inside = (rows < n)[:, None]
        if SOME:
            rows = tl.load(places + rows, rows < n, 0)
        cells = _cells(x, rows, ins, n_rows, GROUP)
        h = tl.load(cells, inside & (ins < N_IN)[None, :], 0.0)
        h = _narrow(_relu(_dot(h, w_first)), dtype)
        if N_HIDDEN == 2:
            h = _narrow(_relu(_dot(h, w_mid)), dtype)
        out = _narrow(_dot(h, w_last), y.dtype.element_ty)
        tl.store(y + rows[:, None] * N_OUT + outs[None, :], out, inside & (outs < N_OUT)[None, :])


@triton.jit(do_not_specialize=["n_rows", "n_live"])
def _backward(
    x, weights, d_y, d_first_y, sources, d_x, grads, factor, n_live, n_rows, d_y_stride,
    MOVED: tl.constexpr, GROUP: tl.constexpr, N_IN: tl.constexpr, WIDTH: tl.constexpr,
    N_OUT: tl.constexpr, N_HIDDEN: tl.constexpr, IN: tl.constexpr, HIDDEN: tl.constexpr,
    OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """MOVED: rows of x lie at `sources`, and the first output has a gradient more."""
    n = tl.load(n_live)
    ins, hidden, outs = tl.arange(0, IN), tl.arange(0, HIDDEN), tl.arange(0, OUT)
    dtype = x.dtype.element_ty
    last = WIDTH * (N_IN + WIDTH * (N_HIDDEN - 1))
    w_first = _weights(weights, ins, hidden, N_IN, WIDTH).to(dtype)
    w_last = _weights(weights + last, hidden, outs, WIDTH, N_OUT).to(dtype)
    d_first = tl.zeros((IN, HIDDEN), tl.float32)
    d_last = tl.zeros((HIDDEN, OUT), tl.float32)
    if N_HIDDEN == 2:
        w_mid = _weights(weights + WIDTH * N_IN, hidden, hidden, WIDTH, WIDTH).to(dtype)
        d_mid = tl.zeros((HIDDEN, HIDDEN), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        rows = tile * BLOCK + tl.arange(0, BLOCK)
        inside = (rows < n)[:, None]
        filled = inside & (ins < N_IN)[None, :]
        places = tl.load(sources + rows, rows < n, 0) if MOVED else rows
        value = tl.load(_cells(x, places, ins, n_rows, GROUP), filled, 0.0)
        first = _narrow(_relu(_dot(value, w_first)), dtype)
        d_cells = d_y + rows[:, None] * d_y_stride + outs[None, :]
        d_out = tl.load(d_cells, inside & (outs < N_OUT)[None, :], 0.0).to(dtype)
        if MOVED:
            more = tl.load(d_first_y + rows, rows < n, 0.0)[:, None].to(tl.float32)
            d_out = _narrow(d_out.to(tl.float32) + tl.where(outs[None, :] == 0, more, 0.0), dtype)
        if N_HIDDEN == 2:
            second = _narrow(_relu(_dot(first, w_mid)), dtype)
            d_last += _dot(tl.trans(second), d_out)
            d_second = tl.where(second > 0.0, _dot(d_out, tl.trans(w_last)), 0.0)
            d_second = _narrow(d_second, dtype)
            d_mid += _dot(tl.trans(first), d_second)
            d_hidden = tl.where(first > 0.0, _dot(d_second, tl.trans(w_mid)), 0.0)
        else:
            d_last += _dot(tl.trans(first), d_out)
            d_hidden = tl.where(first > 0.0, _dot(d_out, tl.trans(w_last)), 0.0)
        d_hidden = _narrow(d_hidden, dtype)
        d_first += _dot(tl.trans(value), d_hidden)
        d_value = _narrow(_dot(d_hidden, tl.trans(w_first)), d_x.dtype.element_ty)
        tl.store(_cells(d_x, rows, ins, n_rows, GROUP), d_value, filled)
    scale = tl.load(factor)
    _add(grads, d_first * scale, ins, hidden, N_IN, WIDTH)
    _add(grads + last, d_last * scale, hidden, outs, WIDTH, N_OUT)
    if N_HIDDEN == 2:
        _add(grads + WIDTH * N_IN, d_mid * scale, hidden, hidden, WIDTH, WIDTH)


@triton.jit
def _add(pointer, tile, ins, outs, N_IN: tl.constexpr, N_OUT: tl.constexpr):
    """Add a tile [in, out] to a row-major [out, in] matrix that other programs add to."""
    inside = (ins[:, None] < N_IN) & (outs[None, :] < N_OUT)
    tl.atomic_add(pointer + outs[None, :] * N_IN + ins[:, None], tile, inside, sem="relaxed")


@dataclass(frozen=True)
class Rows:
    """Rows of network inputs, n of them, in groups of columns, each [n, group].

    Plain rows [n, width] are one group; features [n_levels, n, n_features] are n_levels.
    """

    values: Tensor
    n: int
    group: int

    @staticmethod
    def plain(values: Tensor) -> Rows:
        return Rows(values, *values.shape)

    @staticmethod
    def of_levels(features: Tensor) -> Rows:
        return Rows(features, *features.shape[1:])


def fits(widths: tuple[int, ...]) -> bool:
    """Whether the kernels cover a network of these widths."""
    return len(widths) in (3, 4) and len(set(widths[1:-1])) == 1 and max(widths) <= MAX_WIDTH


def _shape(widths: tuple[int, ...]) -> tuple[int, ...]:
    """The kernels' constants: N_IN, WIDTH, N_OUT, N_HIDDEN, IN, HIDDEN, OUT."""
    n_in, width, n_out = widths[0], widths[1], widths[-1]
    padded = (power_of_two(n) for n in (n_in, width, n_out))
    return (n_in, width, n_out, len(widths) - 2, *padded)


def forward(
    x: Rows, weights: Tensor, widths: tuple[int, ...], n_live: Tensor, y: Tensor,
    places: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y [n, widths[-1]], written and returned; the products are taken in the precision of x.

    Args:
        places: [n] int64, the n_live rows that are wanted; None: the first n_live.
    """
    some = places is not None
    programs = min(persistent_programs(y.device, FORWARD_RESIDENT), blocks(x.n, BLOCK))
    _forward[(programs,)](
        x.values, weights, y, places if some else x.values, n_live, x.n, some, x.group,
        *_shape(widths), BLOCK, num_warps=4,
    )  # fmt: skip
    return y


def backward(
    x: Rows, weights: Tensor, widths: tuple[int, ...], d_y: Tensor, n_live: Tensor, grads: Tensor,
    factor: Tensor, sources: Tensor | None = None, d_first: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """d x, laid out and rounded like x.values; grads [n_params] float32 += factor [1] * d weights.

    Args:
        d_y: [n, at least widths[-1]], row-major; rows may be longer.
        sources, d_first: both or none. [n] int64, the rows of x that those of d_y and d x belong
            to; and [n], added to the first column of d_y.
    """
    assert d_y.stride(1) == 1, "the kernel reads rows"
    device, moved = weights.device, sources is not None
    d_x = torch.empty(x.values.shape, dtype=x.values.dtype, device=device)
    programs = min(persistent_programs(device, BACKWARD_RESIDENT), blocks(x.n, BACKWARD_BLOCK))
    _backward[(programs,)](
        x.values, weights, d_y, d_first if moved else d_y, sources if moved else d_y, d_x,
        grads, factor, n_live, x.n, d_y.stride(0), moved, x.group, *_shape(widths),
        BACKWARD_BLOCK, num_warps=4,
    )  # fmt: skip
    return d_x


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, widths: tuple[int, ...], dtype: torch.dtype):
        rows = x.to(dtype).contiguous()
        ctx.save_for_backward(rows, weights)
        ctx.widths = widths
        n_live = count(x.shape[0], x.device)
        y = torch.empty(x.shape[0], widths[-1], device=x.device)
        return forward(Rows.plain(rows), weights, widths, n_live, y)

    @staticmethod
    def backward(ctx, d_y: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weights = ctx.saved_tensors
        scale = unit_scale(d_y)  # so that half precision neither over- nor underflows
        d_rows = (d_y / scale).to(rows.dtype).contiguous()
        n_live, d_weights = count(rows.shape[0], rows.device), torch.zeros_like(weights)
        d_x = backward(Rows.plain(rows), weights, ctx.widths, d_rows, n_live, d_weights, scale)
        return d_x.float() * scale, d_weights, None, None


def mlp(x: Tensor, weights: Tensor, widths: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """mlp.mlp with products in `dtype` and float32 sums, of widths that fit."""
    return _Mlp.apply(x, weights, widths, dtype)  # pyright: ignore[reportReturnType]

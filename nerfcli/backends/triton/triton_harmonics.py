"""Spherical harmonics in Triton: the twin of encoding.spherical_harmonics."""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton.launch import blocks
from nerfcli.backends.triton.triton_spaces import load_point, store_point

BLOCK = 256


@triton.jit(do_not_specialize=["n"])
def _harmonics(directions, out, n, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < n
    x, y, z = load_point(directions, rows, live)
    xy, xz, yz, x2, y2, z2 = x * y, x * z, y * z, x * x, y * y, z * z
    out += rows * 16
    tl.store(out, tl.full((BLOCK,), 0.28209479177387814, tl.float32), live)
    tl.store(out + 1, -0.48860251190291987 * y, live)
    tl.store(out + 2, 0.48860251190291987 * z, live)
    tl.store(out + 3, -0.48860251190291987 * x, live)
    tl.store(out + 4, 1.0925484305920792 * xy, live)
    tl.store(out + 5, -1.0925484305920792 * yz, live)
    tl.store(out + 6, 0.94617469575755997 * z2 - 0.31539156525251999, live)
    tl.store(out + 7, -1.0925484305920792 * xz, live)
    tl.store(out + 8, 0.54627421529603959 * (x2 - y2), live)
    tl.store(out + 9, 0.59004358992664352 * y * (-3.0 * x2 + y2), live)
    tl.store(out + 10, 2.8906114426405538 * xy * z, live)
    tl.store(out + 11, 0.45704579946446572 * y * (1.0 - 5.0 * z2), live)
    tl.store(out + 12, 0.3731763325901154 * z * (5.0 * z2 - 3.0), live)
    tl.store(out + 13, 0.45704579946446572 * x * (1.0 - 5.0 * z2), live)
    tl.store(out + 14, 1.4453057213202769 * z * (x2 - y2), live)
    tl.store(out + 15, 0.59004358992664352 * x * (-x2 + 3.0 * y2), live)


@triton.jit(do_not_specialize=["n"])
def _harmonics_backward(
    directions, d_out, d_directions, n, stride, ADD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Gradients in the directions. ADD: to what is there."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < n
    x, y, z = load_point(directions, rows, live)
    xy, xz, yz, x2, y2, z2 = x * y, x * z, y * z, x * x, y * y, z * z
    d_x, d_y, d_z = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    if ADD:
        d_x, d_y, d_z = load_point(d_directions, rows, live)
    d_out += rows * stride
    d_y += -0.48860251190291987 * tl.load(d_out + 1, live, 0.0)
    d_z += 0.48860251190291987 * tl.load(d_out + 2, live, 0.0)
    d_x += -0.48860251190291987 * tl.load(d_out + 3, live, 0.0)
    d = 1.0925484305920792 * tl.load(d_out + 4, live, 0.0)
    d_x += d * y
    d_y += d * x
    d = -1.0925484305920792 * tl.load(d_out + 5, live, 0.0)
    d_y += d * z
    d_z += d * y
    d_z += 2 * 0.94617469575755997 * z * tl.load(d_out + 6, live, 0.0)
    d = -1.0925484305920792 * tl.load(d_out + 7, live, 0.0)
    d_x += d * z
    d_z += d * x
    d = 2 * 0.54627421529603959 * tl.load(d_out + 8, live, 0.0)
    d_x += d * x
    d_y += -d * y
    d = 3 * 0.59004358992664352 * tl.load(d_out + 9, live, 0.0)
    d_x += -2 * d * xy
    d_y += d * (y2 - x2)
    d = 2.8906114426405538 * tl.load(d_out + 10, live, 0.0)
    d_x += d * yz
    d_y += d * xz
    d_z += d * xy
    d = 0.45704579946446572 * tl.load(d_out + 11, live, 0.0)
    d_y += d * (1.0 - 5.0 * z2)
    d_z += -10.0 * d * yz
    d_z += 0.3731763325901154 * (15.0 * z2 - 3.0) * tl.load(d_out + 12, live, 0.0)
    d = 0.45704579946446572 * tl.load(d_out + 13, live, 0.0)
    d_x += d * (1.0 - 5.0 * z2)
    d_z += -10.0 * d * xz
    d = 1.4453057213202769 * tl.load(d_out + 14, live, 0.0)
    d_x += 2 * d * xz
    d_y += -2 * d * yz
    d_z += d * (x2 - y2)
    d = 3 * 0.59004358992664352 * tl.load(d_out + 15, live, 0.0)
    d_x += d * (y2 - x2)
    d_y += 2 * d * xy
    store_point(d_directions, rows, d_x, d_y, d_z, live)


def harmonics(directions: Tensor, dtype: torch.dtype) -> Tensor:
    """encoding.spherical_harmonics, written in `dtype`, without gradients."""
    n = directions.shape[0]
    out = torch.empty(n, 16, dtype=dtype, device=directions.device)
    _harmonics[(blocks(n, BLOCK),)](directions.contiguous(), out, n, BLOCK)
    return out


def direction_gradients(directions: Tensor, d_out: Tensor, into: Tensor | None = None) -> Tensor:
    """d directions [n, 3].

    Args:
        d_out: [n, at least 16], row-major; rows may be longer.
        into: [n, 3] that the gradients are added to; None: a new tensor.
    """
    n, out = directions.shape[0], torch.empty_like(directions) if into is None else into
    _harmonics_backward[(blocks(n, BLOCK),)](
        directions, d_out, out, n, d_out.stride(0), into is not None, BLOCK
    )
    return out


class _Harmonics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, directions: Tensor) -> Tensor:
        directions = directions.contiguous()
        ctx.save_for_backward(directions)
        return harmonics(directions, torch.float32)

    @staticmethod
    def backward(ctx, d_out: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return direction_gradients(*ctx.saved_tensors, d_out.contiguous())


def spherical_harmonics(directions: Tensor) -> Tensor:
    """encoding.spherical_harmonics, differentiable."""
    return _Harmonics.apply(directions)  # pyright: ignore[reportReturnType]

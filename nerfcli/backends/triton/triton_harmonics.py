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
from nerfcli.reference import encoding

BLOCK = 256


@triton.jit(do_not_specialize=["n"])
def _harmonics(directions, out, n, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < n
    x = tl.load(directions + rows * 3, live, 0.0)
    y = tl.load(directions + rows * 3 + 1, live, 0.0)
    z = tl.load(directions + rows * 3 + 2, live, 0.0)
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


def spherical_harmonics(directions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """encoding.spherical_harmonics, written in `dtype`; gradients are left to torch."""
    if directions.requires_grad:
        return encoding.spherical_harmonics(directions)
    n = directions.shape[0]
    out = torch.empty(n, 16, dtype=dtype, device=directions.device)
    _harmonics[(blocks(n, BLOCK),)](directions.contiguous(), out, n, BLOCK)
    return out

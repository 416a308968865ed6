"""The hash grid in Triton: the twin of encoding.hash_grid.

Features lie level by level, [n_levels, n, n_features]. The programs of one level run side by
side, so that its part of the table stays in the cache, and what they write is contiguous.
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

from nerfcli.backends.triton.launch import blocks, count, scalar
from nerfcli.backends.triton.triton_spaces import store_point
from nerfcli.reference.encoding import PRIMES, GridSpec

BLOCK = 256
RUNS, RUN = 128, 4  # of `_scatter`: threads of a program, rows of each
POSITION_BLOCK = 128  # rows of a program of `_encode_backward`
PROGRAMS = 1024  # of a level at most: each takes one block of rows after another
PRIME_Y = tl.constexpr(PRIMES[1])
PRIME_Z = tl.constexpr(PRIMES[2])


@triton.jit
def _axis(positions, places, live, scale, AXIS: tl.constexpr):
    """Lower corner and fraction along one axis."""
    scaled = tl.load(positions + places * 3 + AXIS, mask=live, other=0.0) * scale + 0.5
    low = tl.floor(scaled)
    return low.to(tl.int32).to(tl.uint32), scaled - low


@triton.jit
def _entry(x, y, z, resolution, n_entries, hashed):
    """Entry of a corner within its level. A hashed level has a power of two of entries; in a
    dense one the index passes the end at most once."""
    if hashed:
        index = (x ^ (y * PRIME_Y) ^ (z * PRIME_Z)) & (n_entries - 1)
    else:
        index = x + resolution * (y + resolution * z)
        index = tl.where(index >= n_entries, index - n_entries, index)
    return index


@triton.jit
def _level(levels, level):
    """Resolution, offset, number of entries, and whether hashed."""
    resolution = tl.load(levels + level * 4).to(tl.uint32)
    n_entries = tl.load(levels + level * 4 + 2).to(tl.uint32)
    hashed = tl.load(levels + level * 4 + 3) != 0
    return resolution, tl.load(levels + level * 4 + 1), n_entries, hashed


@triton.jit
def _corner(x, y, z, resolution, offset, n_entries, hashed, CORNER: tl.constexpr):
    """Entry in the whole table (int64) of one of a cell's eight corners."""
    entry = _entry(
        x + (CORNER & 1), y + (CORNER >> 1 & 1), z + (CORNER >> 2), resolution, n_entries, hashed
    )
    return offset + entry.to(tl.int64)


@triton.jit
def _weight(fx, fy, fz, CORNER: tl.constexpr):
    """Trilinear weight of a corner, [rows, 1]."""
    weight = (
        (fx if CORNER & 1 else 1.0 - fx)
        * (fy if CORNER >> 1 & 1 else 1.0 - fy)
        * (fz if CORNER >> 2 else 1.0 - fz)
    )
    return weight[:, None]


@triton.jit(do_not_specialize=["n_rows", "places", "n_live"])
def _encode(
    positions, places, table, scales, levels, features, n_rows, n_live,
    SOME: tl.constexpr, N_FEATURES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SOME: only of the rows at `places`.

    Were these known to be aligned, a thread would read two of them at once, and every corner would
    go through shared memory from that layout to the one of the features; so in `_scatter` from
    compute capability 9.0 on, where an atomic add is as wide as an entry.
    """
    n = tl.load(n_live)
    level = tl.program_id(1).to(tl.int64)
    scale = tl.load(scales + level)
    resolution, offset, n_entries, hashed = _level(levels, level)
    columns = tl.arange(0, N_FEATURES)[None, :]
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        rows = tile * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        live = rows < n
        place = tl.load(places + rows, live, 0) if SOME else rows
        x, fx = _axis(positions, place, live, scale, 0)
        y, fy = _axis(positions, place, live, scale, 1)
        z, fz = _axis(positions, place, live, scale, 2)
        total = tl.zeros((BLOCK, N_FEATURES), tl.float32)
        for corner in tl.static_range(8):
            entry = _corner(x, y, z, resolution, offset, n_entries, hashed, corner)
            values = tl.load(table + entry[:, None] * N_FEATURES + columns, live[:, None], 0.0)
            total += _weight(fx, fy, fz, corner) * values.to(tl.float32)
        out = features + (level * n_rows + place)[:, None] * N_FEATURES + columns
        tl.store(out, total.to(features.dtype.element_ty), live[:, None])


@triton.jit
def _pour(
    grads, x, y, z, resolution, offset, n_entries, hashed, columns, wanted,
    a, b, c, d, e, f, g, h, N_FEATURES: tl.constexpr,
):  # fmt: skip
    """Add the sums a ... h [rows, N_FEATURES] to the gradients of the corners of their cells."""
    for corner in tl.static_range(8):
        total = a if corner == 0 else b if corner == 1 else c if corner == 2 else d
        if corner > 3:
            total = e if corner == 4 else f if corner == 5 else g if corner == 6 else h
        entry = _corner(x, y, z, resolution, offset, n_entries, hashed, corner)
        target = grads + entry[:, None] * N_FEATURES + columns
        tl.atomic_add(target, total, wanted[:, None], sem="relaxed")


@triton.jit(do_not_specialize=["n_rows", "sources", "n_live"])
def _scatter(
    positions, sources, d_features, grads, scales, levels, factor, n_rows, n_live,
    MOVED: tl.constexpr, N_FEATURES: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """MOVED: the position of a row lies at its source.

    A thread takes RUN rows, neighbours on a ray, one after another, and adds up what falls into one
    cell: on the six coarsest levels, where few entries get all the gradients, that leaves 37 to
    56 % of the atomic operations on a trained lego; on all sixteen, 73 %.
    """
    n, scale_by = tl.load(n_live), tl.load(factor)
    level = tl.program_id(1).to(tl.int64)
    scale = tl.load(scales + level)
    resolution, offset, n_entries, hashed = _level(levels, level)
    columns = tl.arange(0, N_FEATURES)[None, :]
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK * RUN), tl.num_programs(0)):
        first = (tile * BLOCK + tl.arange(0, BLOCK).to(tl.int64)) * RUN
        a = tl.zeros((BLOCK, N_FEATURES), tl.float32)
        b, c, d, e, f, g, h = a, a, a, a, a, a, a
        x, y, z = first.to(tl.uint32), first.to(tl.uint32), first.to(tl.uint32)
        wanted = first < 0
        for i in tl.static_range(RUN):
            rows = first + i
            live = rows < n
            place = tl.load(sources + rows, live, 0) if MOVED else rows
            next_x, fx = _axis(positions, place, live, scale, 0)
            next_y, fy = _axis(positions, place, live, scale, 1)
            next_z, fz = _axis(positions, place, live, scale, 2)
            d_out = d_features + (level * n_rows + rows)[:, None] * N_FEATURES + columns
            d_value = tl.load(d_out, live[:, None], 0.0).to(tl.float32) * scale_by
            moved = (next_x != x) | (next_y != y) | (next_z != z)
            if i > 0:
                _pour(
                    grads, x, y, z, resolution, offset, n_entries, hashed, columns, wanted & moved,
                    a, b, c, d, e, f, g, h, N_FEATURES,
                )  # fmt: skip
            new = moved[:, None]
            a = tl.where(new, 0.0, a) + _weight(fx, fy, fz, 0) * d_value
            b = tl.where(new, 0.0, b) + _weight(fx, fy, fz, 1) * d_value
            c = tl.where(new, 0.0, c) + _weight(fx, fy, fz, 2) * d_value
            d = tl.where(new, 0.0, d) + _weight(fx, fy, fz, 3) * d_value
            e = tl.where(new, 0.0, e) + _weight(fx, fy, fz, 4) * d_value
            f = tl.where(new, 0.0, f) + _weight(fx, fy, fz, 5) * d_value
            g = tl.where(new, 0.0, g) + _weight(fx, fy, fz, 6) * d_value
            h = tl.where(new, 0.0, h) + _weight(fx, fy, fz, 7) * d_value
            x, y, z = next_x, next_y, next_z
            wanted = live | (wanted & (moved == 0))
        _pour(
            grads, x, y, z, resolution, offset, n_entries, hashed, columns, wanted,
            a, b, c, d, e, f, g, h, N_FEATURES,
        )  # fmt: skip


@triton.jit
def _slope(fx, fy, fz, CORNER: tl.constexpr, AXIS: tl.constexpr):
    """Derivative of a corner's weight in the fraction along one axis, [rows]."""
    if AXIS == 0:
        slope = (fy if CORNER >> 1 & 1 else 1.0 - fy) * (fz if CORNER >> 2 else 1.0 - fz)
    elif AXIS == 1:
        slope = (fx if CORNER & 1 else 1.0 - fx) * (fz if CORNER >> 2 else 1.0 - fz)
    else:
        slope = (fx if CORNER & 1 else 1.0 - fx) * (fy if CORNER >> 1 & 1 else 1.0 - fy)
    return slope if CORNER >> AXIS & 1 else -slope


@triton.jit(do_not_specialize=["n_rows", "sources", "n_live"])
def _encode_backward(
    positions, sources, d_features, table, scales, levels, d_positions, n_rows, n_live, n_levels,
    MOVED: tl.constexpr, N_FEATURES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients in the positions. MOVED: the position of a row lies at its source.

    A program goes through all levels, so that each row is written once and in one order.
    """
    n = tl.load(n_live)
    columns = tl.arange(0, N_FEATURES)[None, :]
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        rows = tile * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        live = rows < n
        place = tl.load(sources + rows, live, 0) if MOVED else rows
        d_x = tl.zeros((BLOCK,), tl.float32)
        d_y, d_z = d_x, d_x
        for level in range(n_levels):
            scale = tl.load(scales + level)
            resolution, offset, n_entries, hashed = _level(levels, level)
            x, fx = _axis(positions, place, live, scale, 0)
            y, fy = _axis(positions, place, live, scale, 1)
            z, fz = _axis(positions, place, live, scale, 2)
            d_out = d_features + (level * n_rows + rows)[:, None] * N_FEATURES + columns
            d_value = tl.load(d_out, live[:, None], 0.0).to(tl.float32) * scale
            for corner in tl.static_range(8):
                entry = _corner(x, y, z, resolution, offset, n_entries, hashed, corner)
                values = tl.load(table + entry[:, None] * N_FEATURES + columns, live[:, None], 0.0)
                share = tl.sum(values.to(tl.float32) * d_value, 1)
                d_x += _slope(fx, fy, fz, corner, 0) * share
                d_y += _slope(fx, fy, fz, corner, 1) * share
                d_z += _slope(fx, fy, fz, corner, 2) * share
        store_point(d_positions, rows, d_x, d_y, d_z, live)


@functools.cache
def _level_tables(spec: GridSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """scales [L] float32 and levels [L, 4] int64: resolution, offset, entries, hashed."""
    scales = [level.scale for level in spec.levels]
    levels = [(v.resolution, v.offset, v.n_entries, int(v.hashed)) for v in spec.levels]
    return torch.tensor(scales, device=device), torch.tensor(levels, device=device)


def _grid(n: int, block: int, spec: GridSpec) -> tuple[int, int]:
    """Programs: of a level, levels. Those of one level run side by side."""
    return min(blocks(n, block), PROGRAMS), spec.n_levels


def new_features(n: int, spec: GridSpec, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[n_levels, n, n_features], not written yet."""
    return torch.empty(spec.n_levels, n, spec.n_features, dtype=dtype, device=device)


def encode(
    positions: Tensor, table: Tensor, spec: GridSpec, n_live: Tensor, features: Tensor,
    places: Tensor | None = None,
) -> None:  # fmt: skip
    """positions [n, 3], table of any precision -> features [n_levels, n, n_features], any too.

    Args:
        places: [n] int64, the n_live rows that are wanted; None: the first n_live.
    """
    n, some = positions.shape[0], places is not None
    scales, levels = _level_tables(spec, positions.device)
    _encode[_grid(n, BLOCK, spec)](
        positions, places if some else levels, table, scales, levels, features, n, n_live, some,
        spec.n_features, BLOCK,
    )  # fmt: skip


def scatter(
    positions: Tensor,
    d_features: Tensor,
    grads: Tensor,
    spec: GridSpec,
    n_live: Tensor,
    factor: Tensor,
    sources: Tensor | None = None,
) -> None:
    """grads [n_params] float32 += factor [1] * d features / d table; the way back of `encode`.

    Args:
        sources: [n] int64, the rows of `positions` that those of d_features belong to; None: the
            same.
    """
    n, moved = positions.shape[0], sources is not None
    scales, levels = _level_tables(spec, positions.device)
    _scatter[_grid(n, RUNS * RUN, spec)](
        positions, sources if moved else levels, d_features, grads, scales, levels, factor, n,
        n_live, moved, spec.n_features, RUN, RUNS,
    )  # fmt: skip


def position_gradients(
    positions: Tensor, d_features: Tensor, table: Tensor, spec: GridSpec, n_live: Tensor,
    sources: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """d positions [n, 3] float32 within their cells; arguments as of `encode` and `scatter`.

    Rows from n_live on are not written.
    """
    n, moved = positions.shape[0], sources is not None
    scales, levels = _level_tables(spec, positions.device)
    out = torch.empty(n, 3, device=positions.device)
    programs = min(blocks(n, POSITION_BLOCK), PROGRAMS * spec.n_levels)
    _encode_backward[(programs,)](
        positions, sources if moved else levels, d_features, table, scales, levels, out, n,
        n_live, spec.n_levels, moved, spec.n_features, POSITION_BLOCK,
    )  # fmt: skip
    return out


class _HashGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, copy: Tensor, positions: Tensor, spec: GridSpec) -> Tensor:
        n = positions.shape[0]
        ctx.save_for_backward(positions, copy)
        ctx.spec, ctx.n_params = spec, table.shape[0]
        n_live = count(n, positions.device)
        features = new_features(n, spec, torch.float32, positions.device)
        encode(positions, copy, spec, n_live, features)
        return features.permute(1, 0, 2).reshape(n, spec.n_outputs)

    @staticmethod
    def backward(ctx, d_out: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        positions, copy = ctx.saved_tensors
        spec, n, device = ctx.spec, positions.shape[0], positions.device
        d_features = d_out.reshape(n, spec.n_levels, spec.n_features).permute(1, 0, 2).contiguous()
        n_live, grads, d_positions = count(n, device), None, None
        if ctx.needs_input_grad[0]:
            grads = torch.zeros(ctx.n_params, device=device)
            scatter(positions, d_features, grads, spec, n_live, scalar(1.0, device))
        if ctx.needs_input_grad[2]:
            d_positions = position_gradients(positions, d_features, copy, spec, n_live)
        return grads, None, d_positions, None


def fits(spec: GridSpec) -> bool:
    """Whether the kernels cover a grid of this shape."""
    return spec.n_features in (1, 2, 4, 8)


def hash_grid(positions: Tensor, table: Tensor, copy: Tensor, spec: GridSpec) -> Tensor:
    """encoding.hash_grid with `copy` read in place of the table; float32 in, out and gradients."""
    return _HashGrid.apply(table, copy, positions.contiguous(), spec)  # pyright: ignore

"""Packed samples in Triton: which ray owns one, where it lies, how many there is room for."""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton.launch import blocks
from nerfcli.backends.triton.triton_spaces import (
    KINDS,
    load_point,
    space_numbers,
    store_point,
    to_unit,
)
from nerfcli.cameras.rays import Rays
from nerfcli.reference.contraction import Space
from nerfcli.reference.samples import Samples

POINT_BLOCK = 256
OFFSET_BLOCK = 1024


def halvings(n_rays: int) -> int:
    """Steps of a bisection that end at one of n_rays."""
    return max(n_rays - 1, 0).bit_length()


@triton.jit
def find_ray(offsets, n_rays, n_halvings, index):
    """The ray that owns sample `index`: the last one that starts at it or before."""
    low = tl.zeros_like(index)
    high = low + n_rays
    for _ in range(n_halvings):
        middle = (low + high) // 2
        right = tl.load(offsets + middle) <= index
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    return low


@triton.jit(do_not_specialize=["n_offsets", "n_halvings", "capacity"])
def _fit(offsets, fitting, n_fit, n_offsets, n_halvings, capacity, BLOCK: tl.constexpr):
    """Offsets of which those that pass the capacity are the last that does not."""
    slots = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = slots < n_offsets
    last = find_ray(offsets, n_offsets, n_halvings, slots * 0 + capacity)
    own = tl.load(offsets + slots, inside, 0)
    tl.store(fitting + slots, tl.minimum(own, tl.load(offsets + last)), inside)
    if tl.program_id(0) == 0:
        tl.store(n_fit, tl.max(last))


def cut(offsets: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Offsets [n + 1] without the rays from the first on that does not fit into `capacity`, and
    how many rays fit, an int64 scalar."""
    fitting, n_fit = torch.empty_like(offsets), torch.empty_like(offsets[0])
    n = len(offsets)
    _fit[(blocks(n, OFFSET_BLOCK),)](
        offsets, fitting, n_fit, n, halvings(n), capacity, OFFSET_BLOCK
    )
    return fitting, n_fit


@triton.jit(do_not_specialize=["n_rays", "n_halvings", "skip"])
def _points(
    origins, directions, ids, t_starts, t_ends, offsets, row_offsets, places, positions,
    space, n_rays, n_halvings, skip,
    KIND: tl.constexpr, FRESH: tl.constexpr, SOME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """FRESH: of all rays. SOME: only of the samples that row_offsets count, from `skip` on."""
    n = tl.load(row_offsets + n_rays)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if first >= n:
        return
    rows = first + tl.arange(0, BLOCK)
    live = rows < n
    slot = find_ray(row_offsets, n_rays, n_halvings, rows)
    place = rows
    if SOME:
        place = tl.load(offsets + slot) + skip + rows - tl.load(row_offsets + slot)
        tl.store(places + rows, place, live)
    ray = slot if FRESH else tl.load(ids + slot)
    middle = 0.5 * (tl.load(t_starts + place, live, 0.0) + tl.load(t_ends + place, live, 0.0))
    x, y, z = load_point(origins, ray, live)
    dx, dy, dz = load_point(directions, ray, live)
    x, y, z = to_unit(space, x + middle * dx, y + middle * dy, z + middle * dz, KIND)
    store_point(positions, place, x, y, z, live)


def points(
    rays: Rays, ids: Tensor | None, samples: Samples, space: Space, positions: Tensor,
    row_offsets: Tensor | None = None, skip: int = 0,
) -> Tensor | None:  # fmt: skip
    """Write the middles of samples in the unit cube to positions [capacity, 3].

    Args:
        ids: [n_rays] int64, the rays that the samples belong to; None: all in order.
        row_offsets: [n_rays + 1], where of each ray only some samples are wanted, from the one
            of rank `skip` on; None: all are.

    Returns:
        Where the wanted samples lie, [capacity] int64; None: row_offsets is.
    """
    n, offsets, some = samples.n_rays, samples.ray_offsets, row_offsets is not None
    places = torch.empty(samples.capacity if some else 1, dtype=torch.int64, device=offsets.device)
    _points[(blocks(samples.capacity, POINT_BLOCK),)](
        rays.origins.contiguous(), rays.directions.contiguous(), offsets if ids is None else ids,
        samples.t_starts, samples.t_ends, offsets, row_offsets if some else offsets, places,
        positions, space_numbers(space, offsets.device), n, halvings(n), skip, KINDS[space.kind],
        ids is None, some, POINT_BLOCK,
    )  # fmt: skip
    return places if some else None

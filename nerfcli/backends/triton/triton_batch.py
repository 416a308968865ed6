"""What a step on the device begins and ends with, a launch each: its rays, and how many are next.

The twins of trainers.HashGridTrainer._batch and _adapt.
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
from nerfcli.backends.triton.triton_packed import find_ray, halvings
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Rays
from nerfcli.scenes.views import Views

BLOCK = 128


@triton.jit
def _direction(
    camera, x, y, inside, kinds, plane, table, starts, widths, PINHOLE: tl.constexpr
):  # fmt: skip
    """Unit vector through a pixel in the camera's frame; cameras.RayTables.directions."""
    kind = tl.load(kinds + camera, inside, 0)
    if PINHOLE:
        u = x.to(tl.float32) * tl.load(plane + kind * 4) + tl.load(plane + kind * 4 + 2)
        v = y.to(tl.float32) * tl.load(plane + kind * 4 + 1) + tl.load(plane + kind * 4 + 3)
        ahead = tl.rsqrt(1.0 + u * u + v * v)
        right, down = u * ahead, v * ahead
    else:
        place = 3 * (tl.load(starts + kind) + y * tl.load(widths + kind) + x)
        right = tl.load(table + place, inside, 0.0)
        down = tl.load(table + place + 1, inside, 0.0)
        ahead = tl.load(table + place + 2, inside, 0.0)
    return right, down, ahead


@triton.jit
def _slab(origin, direction, center, half):
    """Distances at which a ray passes the two faces of the box along one axis, in order."""
    safe = tl.where(tl.abs(direction) < 1e-12, 1e-12, direction)
    a, b = (center - half - origin) / safe, (center + half - origin) / safe
    return tl.minimum(a, b), tl.maximum(a, b)


@triton.jit(do_not_specialize=["n_rays", "n_pixels", "n_views", "n_halvings"])
def _draw(
    u, pixels, usable, view_offsets, view_cameras, view_widths, axes, positions, kinds, plane,
    table, starts, widths, background, n_counted, origins, directions, target, t_min, t_max,
    n_rays, n_pixels, n_views, n_halvings, center_x, center_y, center_z, half, near, far,
    MASKED: tl.constexpr, PINHOLE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rays = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rays < n_rays
    flat = (tl.load(u + rays, inside, 0.0) * n_pixels).to(tl.int64)
    flat = tl.minimum(flat, n_pixels - 1)
    if MASKED:
        flat = tl.load(usable + flat).to(tl.int64)
    view = find_ray(view_offsets, n_views, n_halvings, flat)
    rest = (flat - tl.load(view_offsets + view)).to(tl.int32)
    width = tl.load(view_widths + view).to(tl.int32)
    y = rest // width
    x = rest - y * width
    camera = tl.load(view_cameras + view)
    right, down, ahead = _direction(
        camera, x, y, inside, kinds, plane, table, starts, widths, PINHOLE
    )
    enter, leave = tl.full((BLOCK,), near, tl.float32), tl.full((BLOCK,), far, tl.float32)
    for axis in tl.static_range(3):
        direction = tl.load(axes + camera * 9 + axis) * right
        direction += tl.load(axes + camera * 9 + 3 + axis) * down
        direction += tl.load(axes + camera * 9 + 6 + axis) * ahead
        origin = tl.load(positions + camera * 3 + axis)
        center = center_x if axis == 0 else (center_y if axis == 1 else center_z)
        a, b = _slab(origin, direction, center, half)
        enter, leave = tl.maximum(enter, a), tl.minimum(leave, b)
        tl.store(origins + rays * 3 + axis, origin, inside)
        tl.store(directions + rays * 3 + axis, direction, inside)
    tl.store(t_min + rays, enter, inside)
    # the rays that do not count miss the box
    tl.store(t_max + rays, tl.where(rays < tl.load(n_counted), leave, enter), inside)
    for channel in tl.static_range(3):
        color = tl.load(pixels + flat * CHANNELS + channel).to(tl.float32) * (1.0 / 255.0)
        if CHANNELS == 4:
            alpha = tl.load(pixels + flat * CHANNELS + 3).to(tl.float32) * (1.0 / 255.0)
            back = tl.load(background + rays * 3 + channel, inside, 0.0)
            color = color * alpha + (1.0 - alpha) * back
        tl.store(target + rays * 3 + channel, color, inside)


def draw(
    views: Views,
    cameras: Cameras,
    u: Tensor,
    background: Tensor,
    box: Box,
    near: float,
    far: float,
    n_counted: Tensor,
) -> tuple[Rays, Tensor, Tensor, Tensor]:
    """Rays through random pixels, with what they should show and their bounds in the box.

    Args:
        views: on the device of u.
        cameras: of the scene; cameras.rays_by_lookup of the device must be true.
        u: [n_rays] float64 in [0, 1), which pixel each ray goes through.
        background: [n_rays, 3], behind pixels that are not opaque.
        n_counted: how many rays count, an int64 scalar on the device.

    Returns:
        Rays (without z_scale), target [n_rays, 3], and t_min, t_max [n_rays] as
        sampling.intersect_box; t_max = t_min where a ray does not count.
    """
    tables, n, device = cameras.ray_tables(u.device), len(u), u.device
    origins, directions, target = torch.empty(3, n, 3, device=device)
    t_min, t_max = torch.empty(2, n, device=device)
    none = views.offsets
    looked_up = (none, none) if tables.table is None else (tables.table, tables.starts)
    _draw[(blocks(n, BLOCK),)](
        u, views.pixels, none if views.usable is None else views.usable, views.offsets,
        views.cameras, views.widths, tables.axes, tables.positions, tables.kind, tables.plane,
        *looked_up, tables.widths, background, n_counted, origins, directions, target, t_min,
        t_max, n, views.n_pixels, len(views), halvings(len(views)), *box.center,
        box.outer_half_size, near, far, views.usable is not None, tables.table is None,
        views.pixels.shape[1], BLOCK,
    )  # fmt: skip
    return Rays(origins, directions), target, t_min, t_max


@triton.jit
def _adapt(
    rate, wanted, n_rays, n_kept, n_samples, memory, n_least, n_most
):  # fmt: skip
    rays = tl.maximum(tl.load(n_rays), 1).to(tl.float32)
    now = tl.maximum(tl.load(n_kept).to(tl.float32) / rays, 1e-3)
    known = tl.load(rate)
    before = tl.where(known == 0.0, now, known)
    mean = tl.maximum(memory * before + (1.0 - memory) * now, 0.5 * now)
    tl.store(rate, mean)
    many = tl.minimum(tl.maximum(n_samples / mean, n_least), n_most)
    tl.store(wanted, many.to(tl.int64))


def adapt(
    rate: Tensor,
    wanted: Tensor,
    n_rays: Tensor,
    n_kept: Tensor,
    *,
    n_samples: int,
    memory: float,
    limits: tuple[int, int],
) -> None:
    """Set how many rays should fill the budget of a step, from what the last one took.

    Args:
        rate: float32 scalar, running mean of kept samples per ray (0: none yet); written in place.
        wanted: int64 scalar, how many rays are next; written in place.
        n_rays, n_kept: int64 scalars, what the step had.
        n_samples: the budget. memory: of the running mean.
        limits: least and largest number of rays.
    """
    least, most = limits
    _adapt[(1,)](
        rate, wanted, n_rays, n_kept, float(n_samples), memory, float(least), float(most),
        num_warps=1,
    )  # fmt: skip

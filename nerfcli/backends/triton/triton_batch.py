"""What a step on the device begins and ends with, a launch each: its rays, and how many are next.

The twins of Backend.draw and Backend.adapt.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton.launch import blocks
from nerfcli.backends.triton.triton_packed import find_ray, halvings
from nerfcli.backends.triton.triton_spaces import load_point, space_numbers
from nerfcli.cameras.cameras import Cameras, RayTables
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.reference.contraction import Space
from nerfcli.scenes.views import Views

BLOCK = 128


@triton.jit
def _direction(
    pose, camera, x, y, inside, table, places, PINHOLE: tl.constexpr
):  # fmt: skip
    """Unit vector through a pixel in the camera's frame; cameras.RayTables.directions."""
    if PINHOLE:
        u = x.to(tl.float32) * tl.load(pose + 12) + tl.load(pose + 14)
        v = y.to(tl.float32) * tl.load(pose + 13) + tl.load(pose + 15)
        ahead = tl.rsqrt(1.0 + u * u + v * v)
        right, down = u * ahead, v * ahead
    else:
        start, width = tl.load(places + camera * 2), tl.load(places + camera * 2 + 1)
        right, down, ahead = load_point(table, start + y * width + x, inside)
    return right, down, ahead


@triton.jit
def _slab(origin, direction, center, half):
    """Distances at which a ray passes the two faces of the box along one axis, in order."""
    safe = tl.where(tl.abs(direction) < 1e-12, 1e-12, direction)
    a, b = (center - half - origin) / safe, (center + half - origin) / safe
    return tl.minimum(a, b), tl.maximum(a, b)


@triton.jit(do_not_specialize=["n_rays", "n_pixels", "n_views", "n_halvings"])
def _draw(
    u, pixels, usable, view_offsets, view_cameras, view_widths, poses, table, places, background,
    n_counted, space, vectors, cameras, bounds, n_rays, n_pixels, n_views, n_halvings,
    BOXED: tl.constexpr, COUNTED: tl.constexpr, MASKED: tl.constexpr, PINHOLE: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BOXED: rays are cut where they leave the box. COUNTED: some rays do not count."""
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
    tl.store(cameras + rays, camera.to(tl.int32), inside)
    pose = poses + camera * 16
    right, down, ahead = _direction(pose, camera, x, y, inside, table, places, PINHOLE)
    enter = tl.full((BLOCK,), 0.0, tl.float32) + tl.load(space + 4)
    leave = tl.full((BLOCK,), 0.0, tl.float32) + tl.load(space + 5)
    origins, directions, target = vectors, vectors + n_rays * 3, vectors + n_rays * 6
    for axis in tl.static_range(3):
        direction = tl.load(pose + axis) * right
        direction += tl.load(pose + 3 + axis) * down
        direction += tl.load(pose + 6 + axis) * ahead
        origin = tl.load(pose + 9 + axis)
        if BOXED:
            a, b = _slab(origin, direction, tl.load(space + axis), tl.load(space + 3))
            enter, leave = tl.maximum(enter, a), tl.minimum(leave, b)
        tl.store(origins + rays * 3 + axis, origin, inside)
        tl.store(directions + rays * 3 + axis, direction, inside)
    tl.store(bounds + rays, enter, inside)
    if COUNTED:  # the others miss
        leave = tl.where(rays < tl.load(n_counted), leave, enter)
    tl.store(bounds + n_rays + rays, leave, inside)
    for channel in tl.static_range(3):
        color = tl.load(pixels + flat * CHANNELS + channel).to(tl.float32) * (1.0 / 255.0)
        if CHANNELS == 4:
            alpha = tl.load(pixels + flat * CHANNELS + 3).to(tl.float32) * (1.0 / 255.0)
            back = tl.load(background + rays * 3 + channel, inside, 0.0)
            color = color * alpha + (1.0 - alpha) * back
        tl.store(target + rays * 3 + channel, color, inside)


# of each camera, packed so that a ray reads one line of memory; as long as the tables live
_packed: WeakKeyDictionary[RayTables, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def _pack(tables: RayTables) -> tuple[Tensor, Tensor]:
    """Poses [n, 16]: axes, position, and what a pinhole multiplies and adds; places [n, 2] int64:
    where the table of directions begins, and its width."""
    if tables not in _packed:
        kinds = tables.kind
        poses = (tables.axes.flatten(1), tables.positions, tables.plane[kinds])
        starts = torch.zeros_like(tables.widths) if tables.table is None else tables.starts
        places = torch.stack([starts[kinds], tables.widths[kinds]], dim=1)
        _packed[tables] = torch.cat(poses, dim=1).contiguous(), places
    return _packed[tables]


def draw(
    views: Views,
    cameras: Cameras,
    u: Tensor,
    background: Tensor,
    space: Space,
    n_counted: Tensor | None = None,
) -> tuple[Batch, Bounds]:
    """Backend.draw, without z_scale, where cameras.rays_by_lookup of the device is true."""
    tables, n, device = cameras.ray_tables(u.device), len(u), u.device
    poses, places = _pack(tables)
    vectors, bounds = torch.empty(3, n, 3, device=device), torch.empty(2, n, device=device)
    which = torch.empty(n, dtype=torch.int32, device=device)
    none, background = views.offsets, background.contiguous()
    _draw[(blocks(n, BLOCK),)](
        u, views.pixels, none if views.usable is None else views.usable, views.offsets,
        views.cameras, views.widths, poses, poses if tables.table is None else tables.table,
        places, background, none if n_counted is None else n_counted,
        space_numbers(space, device), vectors, which, bounds, n, views.n_pixels, len(views),
        halvings(len(views)), space.kind == "box", n_counted is not None,
        views.usable is not None, tables.table is None, views.pixels.shape[1], BLOCK,
    )  # fmt: skip
    origins, directions, target = vectors
    batch = Batch(Rays(origins, directions, cameras=which), target, background)
    return batch, Bounds(bounds[0], bounds[1])


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
    n_samples: int,
    memory: float,
    limits: tuple[int, int],
) -> None:
    """Backend.adapt on the device."""
    least, most = limits
    _adapt[(1,)](
        rate, wanted, n_rays, n_kept, float(n_samples), memory, float(least), float(most),
        num_warps=1,
    )  # fmt: skip

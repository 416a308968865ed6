"""What a step of fixed shapes is made of, against plain Python: march_within, draw, adapt."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from step_cases import marched, some_rays

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rays import Rays
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, Space
from nerfcli.reference.sampling import march, march_within
from nerfcli.scenes.views import Views

OPS = Backend()

# march_within


@pytest.mark.parametrize("capacity", ["none", "one less", "exact", "one more", "double"])
def test_march_within_keeps_the_first_rays_that_fit(capacity: str) -> None:
    rays = some_rays()
    samples, args = marched(rays)
    n = samples.capacity
    assert n > 100 and (samples.ray_offsets.diff() == 0).any()
    sizes = {"none": 0, "one less": n - 1, "exact": n, "one more": n + 1, "double": 2 * n}
    check_march_within(rays, args, sizes[capacity])


@pytest.mark.parametrize("ray", [1, 2, 3, 6])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_march_within_ends_between_rays(ray: int, extra: int) -> None:
    rays = some_rays()
    samples, args = marched(rays)
    check_march_within(rays, args, int(samples.ray_offsets[ray]) + extra)


def check_march_within(rays: Rays, args: Any, capacity: int) -> None:
    bounds, jitter, grid = args
    whole = march(rays, bounds, jitter, grid)
    got, n_fit = march_within(rays, bounds, jitter, grid, capacity)
    expected, n = [0], 0  # rays one after another, until one has no room
    for i in range(len(rays)):
        end = int(whole.ray_offsets[i + 1])
        if end > capacity:
            break
        expected.append(end)
        n = i + 1
    expected += [expected[-1]] * (len(rays) - n)
    assert got.capacity == capacity and n_fit.dtype == torch.int64 and n_fit.ndim == 0
    assert int(n_fit) == n
    assert got.ray_offsets.tolist() == expected
    live = expected[-1]
    assert torch.equal(got.t_starts[:live], whole.t_starts[:live])
    assert torch.equal(got.t_ends[:live], whole.t_ends[:live])
    again, same = OPS.march_within(rays, bounds, jitter, grid, capacity)
    assert torch.equal(again.ray_offsets, got.ray_offsets) and same == n_fit


# draw

SIZES = [(4, 3), (2, 5), (3, 3)]  # width and height of three views, of cameras 2, 0 and 3
OF_VIEW = [2, 0, 3]


def cameras(same_size: bool) -> Cameras:
    """Four pinhole cameras on a circle, each with intrinsics of its own."""
    poses = []
    for i in range(4):
        a = 0.7 * i
        c, s = math.cos(a), math.sin(a)
        poses.append([[c, 0.0, s, -3 * s], [0.0, 1.0, 0.0, 0.2 * i], [-s, 0.0, c, -3 * c]])
    sizes = dict(zip(OF_VIEW, SIZES, strict=True)) | {1: (2, 2)}
    size = [(4, 3) if same_size else sizes[i] for i in range(4)]
    return Cameras(
        torch.tensor(poses, dtype=torch.float64),
        torch.tensor([[5.0 + i, 4.0 + i] for i in range(4)], dtype=torch.float64),
        torch.tensor([[w / 2 + 0.3, h / 2 - 0.2] for w, h in size], dtype=torch.float64),
        torch.tensor(size),
        (Lens(),) * 4,
    )


def views(same_size: bool, channels: int, masked: bool) -> Views:
    sizes = [(4, 3)] * 3 if same_size else SIZES
    areas = [w * h for w, h in sizes]
    total = sum(areas)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (total, channels), generator=generator, dtype=torch.uint8)
    usable = None
    if masked:
        usable = (torch.rand(total, generator=generator) < 0.6).nonzero().squeeze(1).int()
        assert 5 < len(usable) < total
    offsets = torch.tensor([0, *areas]).cumsum(0)
    widths = torch.tensor([w for w, _ in sizes])
    return Views(pixels, offsets, torch.tensor(OF_VIEW), widths, usable)


def plain_draw(data: Views, where: Cameras, u: float, background: list[float]):
    """One ray: the pixel that u names, pixel after pixel of view after view, and a pinhole."""
    table = [
        (int(data.cameras[v]), x, y)
        for v in range(len(data))
        for y in range(int(data.offsets[v + 1] - data.offsets[v]) // int(data.widths[v]))
        for x in range(int(data.widths[v]))
    ]
    allowed = range(len(table)) if data.usable is None else data.usable.tolist()
    flat = allowed[min(int(u * len(allowed)), len(allowed) - 1)]
    camera, x, y = table[flat]
    (fx, fy), (cx, cy) = where.focal[camera].tolist(), where.principal[camera].tolist()
    local = [(x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, 1.0]
    length = math.sqrt(sum(v * v for v in local))
    pose = where.c2w[camera].tolist()
    direction = [sum(row[k] * local[k] for k in range(3)) / length for row in pose]
    color = [v / 255 for v in data.pixels[flat].tolist()]
    if len(color) == 4:
        pairs = zip(color[:3], background, strict=True)
        color = [c * color[3] + b * (1 - color[3]) for c, b in pairs]
    return camera, [row[3] for row in pose], direction, 1 / length, color


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("same_size", [False, True])
@pytest.mark.parametrize("kind", [BoxSpace, ContractedSpace])
def test_draw_equals_plain_python(kind: Any, same_size: bool, channels: int, masked: bool) -> None:
    data, where = views(same_size, channels, masked), cameras(same_size)
    space: Space = kind(Box((0.1, 0.0, 0.2), 0.5), 0.3, 9.0)
    n = 40
    u = torch.rand(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    u[0], u[1] = 0.0, 1 - 2**-53  # the first pixel and the last
    background = torch.rand(n, 3, generator=torch.Generator().manual_seed(6))
    batch, bounds = OPS.draw(data, where, u, background, space)
    close = partial(pytest.approx, abs=1e-6)  # float32
    for i in range(n):
        plain = plain_draw(data, where, u[i].item(), background[i].tolist())
        camera, origin, direction, cosine, color = plain
        assert batch.rays.cameras is not None and batch.rays.z_scale is not None
        assert batch.rays.cameras[i] == camera
        assert batch.rays.origins[i].tolist() == close(origin)
        assert batch.rays.directions[i].tolist() == close(direction)
        assert batch.rays.z_scale[i].item() == close(cosine)
        assert batch.rgb[i].tolist() == close(color)
    assert torch.equal(batch.background, background)
    assert batch.depth is None and batch.weight is None
    expected = space.bounds(batch.rays)
    assert torch.equal(bounds.t_min, expected.t_min) and torch.equal(bounds.t_max, expected.t_max)
    assert (bounds.t_max > bounds.t_min).sum() > 5


@pytest.mark.parametrize("n_counted", [0, 7, 40])
def test_rays_beyond_those_that_count_have_empty_bounds(n_counted: int) -> None:
    data, where = views(False, 4, True), cameras(False)
    space = ContractedSpace(Box((0.1, 0.0, 0.2), 0.5), 0.3, 9.0)
    u = torch.rand(40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    args = (data, where, u, torch.ones(40, 3), space)
    whole, whole_bounds = OPS.draw(*args)
    batch, bounds = OPS.draw(*args, n_counted=torch.tensor(n_counted))
    assert torch.equal(batch.rgb, whole.rgb)
    assert torch.equal(batch.rays.directions, whole.rays.directions)
    assert torch.equal(bounds.t_max[:n_counted], whole_bounds.t_max[:n_counted])
    assert (bounds.t_max > bounds.t_min).tolist() == [i < n_counted for i in range(40)]


def test_every_usable_pixel_is_drawn_as_often() -> None:
    data = views(False, 4, True)
    assert data.usable is not None
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = torch.bincount(data.draw(u), minlength=len(data.pixels))
    share = 1000 / len(data.usable)
    usable = torch.zeros(len(data.pixels), dtype=torch.bool)
    usable[data.usable.long()] = True
    assert not counts[~usable].any()
    assert (counts[usable] - share).abs().max() < 1
    everything = replace(data, usable=None).draw(u)
    assert everything.unique().tolist() == list(range(len(data.pixels)))


# adapt


@pytest.mark.parametrize("n_samples", [100, 5000, 10**6])
@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_adapt_equals_plain_python(n_samples: int, memory: float) -> None:
    limits = (16, 3000)
    rate, wanted = torch.zeros(()), torch.tensor(200)
    plain_rate, plain_wanted = 0.0, 200
    taken = [(200, 900), (150, 0), (0, 0), (120, 4000), (60, 30), (700, 700), (9, 100000)]
    for n_rays, n_kept in taken:
        OPS.adapt(
            rate, wanted, torch.tensor(n_rays), torch.tensor(n_kept),
            n_samples=n_samples, memory=memory, limits=limits,
        )  # fmt: skip
        now = max(n_kept / max(n_rays, 1), 1e-3)
        before = now if plain_rate == 0.0 else plain_rate
        plain_rate = max(memory * before + (1 - memory) * now, now / 2)
        plain_wanted = int(min(max(n_samples / plain_rate, limits[0]), limits[1]))
        assert rate.item() == pytest.approx(plain_rate, rel=1e-5)  # float32, seven steps
        assert wanted.dtype == torch.int64 and abs(wanted.item() - plain_wanted) <= 1
    assert limits[0] <= wanted.item() <= limits[1]


def test_adapt_finds_the_number_of_rays_that_fills_the_budget() -> None:
    rate, wanted = torch.zeros(()), torch.tensor(10)
    for _ in range(60):
        n = wanted.clone()
        OPS.adapt(rate, wanted, n, n * 25, n_samples=10000, memory=0.9, limits=(1, 10**6))
    assert wanted.item() == pytest.approx(400, abs=1) and rate.item() == pytest.approx(25)

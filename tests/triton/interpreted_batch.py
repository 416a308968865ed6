"""The rays of a step, drawn by one kernel, against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import BOX, REFERENCE, SPACES, assert_near, normal, uniform

from nerfcli.backends.triton.backend import TritonBackend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.reference.contraction import BoxSpace
from nerfcli.scenes.views import Views

PINHOLE, BROWN = Lens(), Lens("brown", (0.06, -0.08, 0.0, 0.0, -0.001, 0.0002))
SIZES = ((7, 5), (4, 9), (7, 5))  # width, height
N = 200  # rays


def cameras_with(lenses: tuple[Lens, ...]) -> Cameras:
    """Three cameras around the box that look at it, of two kinds."""
    n = len(lenses)
    rotations = torch.linalg.qr(normal(1, n, 3, 3).double())[0]
    rotations[:, :, 0] *= torch.linalg.det(rotations)[:, None]
    centers = torch.tensor(BOX.center).double() - 3 * rotations[:, :, 2]
    c2w = torch.cat([rotations, centers[:, :, None]], dim=2)
    size = torch.tensor(SIZES)
    focal = torch.tensor([[9.0, 8.0], [6.0, 7.0], [9.0, 8.0]]).double()
    return Cameras(c2w, focal, size.double() / 2 + 0.3, size, lenses)


def views_of(channels: int, masked: bool) -> Views:
    """Two of the three cameras' images, not in order."""
    chosen = [2, 1]
    areas = torch.tensor([SIZES[i][0] * SIZES[i][1] for i in chosen])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), areas.cumsum(0)])
    n = int(offsets[-1])
    pixels = (uniform(2, n, channels) * 256).to(torch.uint8)
    usable = (uniform(3, n) < 0.5).nonzero().squeeze(1).int() if masked else None
    widths = torch.tensor([SIZES[i][0] for i in chosen])
    return Views(pixels, offsets, torch.tensor(chosen), widths, usable)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("lenses", [(PINHOLE,) * 3, (BROWN, PINHOLE, BROWN)], ids=["pin", "brown"])
@pytest.mark.parametrize(("channels", "masked"), [(3, False), (4, False), (4, True)])
def test_rays_of_a_step(lenses: tuple[Lens, ...], channels: int, masked: bool, kind: str) -> None:
    cameras, views = cameras_with(lenses), views_of(channels, masked)
    u, background = torch.rand(N, dtype=torch.float64), uniform(4, N, 3)
    u[0], u[1] = 0.0, 1.0 - 2**-53
    space = replace(SPACES[kind], near=0.1, far=3.5)  # pyright: ignore[reportArgumentType]
    n_counted = None if masked else torch.tensor(150)
    (got, mine), (want, right) = (
        ops.draw(views, cameras, u, background, space, n_counted)
        for ops in (TritonBackend(), REFERENCE)
    )
    assert torch.equal(got.rays.origins, want.rays.origins)
    assert got.rays.cameras is not None and want.rays.cameras is not None
    assert got.rays.cameras.dtype == torch.int32
    assert torch.equal(got.rays.cameras, want.rays.cameras)
    assert_near(got.rays.directions, want.rays.directions, 3e-7)  # products in another order
    assert_near(got.rgb, want.rgb, 1e-6)
    assert got.background is background
    # a ray that is nearly parallel to a face loses digits there
    torch.testing.assert_close(mine.t_min, right.t_min, rtol=1e-5, atol=1e-5)
    n = N if masked else 150
    torch.testing.assert_close(mine.t_max[:n], right.t_max[:n], rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.t_max[n:], mine.t_min[n:])
    hit = right.t_max > right.t_min
    assert hit.sum() > 20 and (right.t_max[hit] == 3.5).any()
    if not masked:
        assert set(got.rays.cameras.tolist()) == {1, 2}


def test_a_ray_within_a_face_is_not_divided_by_zero() -> None:
    cameras = cameras_with((PINHOLE,) * 3)
    c2w = torch.eye(3, 4).double().expand(3, 3, 4).clone()
    c2w[:, :, 3] = torch.tensor([1.0, 0.0, -3.0])
    cameras = replace(cameras, c2w=c2w, principal=torch.full((3, 2), 2.5).double())
    views, n, box = views_of(3, False), 35, Box((0.0, 0.0, 0.0), 1.0)
    u = (torch.arange(n).double() + 0.5) / views.n_pixels
    space = BoxSpace(box, 0.1, 10.0)
    batch, bounds = TritonBackend().draw(views, cameras, u, uniform(4, n, 3), space)
    rays = batch.rays
    middle = 2 * 7 + 2  # pixel (2, 2), whose centre is the principal point
    assert rays.directions[middle].tolist() == [0.0, 0.0, 1.0]
    for got, want in zip(bounds, space.bounds(rays), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)

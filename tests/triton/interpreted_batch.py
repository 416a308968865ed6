"""The rays of a step, drawn by one kernel, against views, cameras and box as everybody has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import assert_near, normal, uniform

from nerfcli.backends.triton import triton_batch
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.reference.sampling import intersect_box
from nerfcli.reference.volume import over_background
from nerfcli.scenes.views import Views

PINHOLE, BROWN = Lens(), Lens("brown", (0.06, -0.08, 0.0, 0.0, -0.001, 0.0002))
BOX = Box((0.2, -0.1, 0.3), 0.7, 2)
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


@pytest.mark.parametrize("lenses", [(PINHOLE,) * 3, (BROWN, PINHOLE, BROWN)], ids=["pin", "brown"])
@pytest.mark.parametrize(("channels", "masked"), [(3, False), (4, False), (4, True)])
def test_rays_of_a_step(lenses: tuple[Lens, ...], channels: int, masked: bool) -> None:
    cameras, views = cameras_with(lenses), views_of(channels, masked)
    u, background = torch.rand(N, dtype=torch.float64), uniform(4, N, 3)
    u[0], u[1] = 0.0, 1.0 - 2**-53
    n_counted = torch.tensor(150)
    rays, target, t_min, t_max = triton_batch.draw(
        views, cameras, u, background, BOX, 0.1, 3.5, n_counted
    )
    flat = views.draw(u)
    right = cameras.rays(views.locate(flat))
    assert torch.equal(rays.origins, right.origins)
    assert_near(rays.directions, right.directions, 3e-7)  # products in another order
    assert_near(target, over_background(views.colors(flat), background), 1e-6)
    want_min, want_max = intersect_box(right.origins, right.directions, BOX, 0.1, 3.5)
    hit = want_max > want_min
    assert hit.sum() > 20 and (want_max[hit] == 3.5).any()
    # a ray that is nearly parallel to a face loses digits there
    torch.testing.assert_close(t_min, want_min, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(t_max[:150], want_max[:150], rtol=1e-5, atol=1e-5)
    assert torch.equal(t_max[150:], t_min[150:])
    if not masked:
        assert set(views.locate(flat)[:, 0].tolist()) == {1, 2}


def test_a_ray_within_a_face_is_not_divided_by_zero() -> None:
    cameras = cameras_with((PINHOLE,) * 3)
    c2w = torch.eye(3, 4).double().expand(3, 3, 4).clone()
    c2w[:, :, 3] = torch.tensor([1.0, 0.0, -3.0])
    cameras = replace(cameras, c2w=c2w, principal=torch.full((3, 2), 2.5).double())
    views, n, box = views_of(3, False), 35, Box((0.0, 0.0, 0.0), 1.0)
    u = (torch.arange(n).double() + 0.5) / views.n_pixels
    rays, _, *bounds = triton_batch.draw(
        views, cameras, u, uniform(4, n, 3), box, 0.1, 10.0, torch.tensor(n)
    )
    middle = 2 * 7 + 2  # pixel (2, 2), whose centre is the principal point
    assert rays.directions[middle].tolist() == [0.0, 0.0, 1.0]
    for got, want in zip(
        bounds, intersect_box(rays.origins, rays.directions, box, 0.1, 10.0), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)

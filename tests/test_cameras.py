"""Rays and projection are inverses; rays follow the conventions."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerfcli.cameras import cameras as cameras_module
from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens

BROWN = Lens("brown", (0.06, -0.08, 0.0, 0.0, -0.001, 0.0002))
FISHEYE = Lens("fisheye", (0.05, -0.02, 0.003, -0.001))


def rotation(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q)


def make(lenses: tuple[Lens, ...], sizes: list[tuple[int, int]] | None = None) -> Cameras:
    n = len(lenses)
    c2w = torch.stack(
        [torch.cat([rotation(i), torch.full((3, 1), float(i)).double()], 1) for i in range(n)]
    )
    size = torch.tensor(sizes or [(40, 30)] * n)
    focal = torch.tensor([[50.0 + i, 48.0] for i in range(n)], dtype=torch.float64)
    return Cameras(c2w, focal, size / 2 + torch.tensor([1.5, -2.25]).double(), size, lenses)


def all_pixels(cameras: Cameras) -> Tensor:
    return torch.cat(
        [
            torch.stack([part.reshape(-1) for part in torch.meshgrid(*axes, indexing="ij")], -1)
            for i in range(len(cameras))
            for axes in [(torch.tensor([i]), *(torch.arange(int(s)) for s in cameras.size[i]))]
        ]
    )


def test_a_ray_by_hand() -> None:
    c2w = torch.eye(4, dtype=torch.float64)[None, :3]
    c2w[0, :, 3] = torch.tensor([1.0, 2.0, 3.0])
    cameras = Cameras(
        c2w,
        torch.tensor([[10.0, 20.0]]).double(),
        torch.tensor([[4.0, 3.0]]).double(),
        torch.tensor([[8, 6]]),
        (Lens(),),
    )
    rays = cameras.rays(torch.tensor([[0, 7, 0]]))
    want = torch.tensor([(7.5 - 4) / 10, (0.5 - 3) / 20, 1.0])  # x right, y down, z forwards
    assert torch.allclose(rays.directions[0], want / want.norm(), atol=1e-7)
    assert rays.origins[0].tolist() == [1.0, 2.0, 3.0]
    assert rays.z_scale is not None
    assert float(rays.z_scale[0]) == pytest.approx(float(1 / want.norm()), rel=1e-6)


@pytest.mark.parametrize("lenses", [(Lens(),) * 3, (BROWN,) * 3, (BROWN, FISHEYE, Lens())], ids=str)
@pytest.mark.parametrize("table_bytes", [0, 2**26], ids=["newton", "table"])
def test_a_point_on_a_ray_projects_to_its_pixel(
    lenses: tuple[Lens, ...], table_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cameras_module, "TABLE_BYTES", table_bytes)
    cameras = make(lenses, [(40, 30), (31, 23), (40, 30)])
    pixels = all_pixels(cameras)
    rays = cameras.rays(pixels)
    assert torch.allclose(rays.directions.norm(dim=-1), torch.ones(len(rays)), atol=1e-6)
    assert rays.z_scale is not None
    for i in range(len(cameras)):
        mine = pixels[:, 0] == i
        t = 3.0
        points = (rays.origins + t * rays.directions)[mine].double()
        xy, z = cameras.project(i, points)
        # float32 rays: 1e-7 of the focal length
        assert (xy - (pixels[mine, 1:] + 0.5)).abs().max() < 1e-4
        assert torch.allclose(z, t * rays.z_scale[mine].double(), atol=1e-6)


@pytest.mark.parametrize("lens", [Lens(), BROWN])
def test_image_rays_are_the_rays_of_all_pixels_row_by_row(lens: Lens) -> None:
    cameras = make((lens, lens), [(40, 30), (31, 23)])
    whole = cameras.image_rays(1)
    assert len(whole) == 31 * 23
    single = cameras.rays(torch.tensor([[1, 30, 0], [1, 0, 1]]))
    for name in ("origins", "directions", "z_scale"):
        # two orders of float32 sums
        assert torch.allclose(getattr(whole, name)[[30, 31]], getattr(single, name), atol=1e-6)


def test_indexing_gives_cameras_in_the_order_asked_for() -> None:
    cameras = make((Lens(), BROWN, FISHEYE))
    assert len(cameras[1]) == 1
    assert cameras[1].lenses == (BROWN,)
    picked = cameras[[2, 0]]
    assert picked.lenses == (FISHEYE, Lens())
    assert torch.equal(picked.focal, cameras.focal[[2, 0]])
    assert len(cameras[1:]) == 2
    assert cameras[-1].lenses == (FISHEYE,)


def test_scaled_cameras_see_the_same_view() -> None:
    cameras = make((BROWN,))
    half = cameras.scaled(0.5)
    assert half.size.tolist() == [[20, 15]]
    point = cameras.c2w[0] @ torch.tensor([0.1, -0.05, 1.0, 1.0 / 2]).double()
    full, _ = cameras.project(0, point[None])
    small, _ = half.project(0, point[None])
    assert torch.allclose(small * 2, full, atol=1e-9)
    odd = cameras.scaled(0.51)  # 20.4 x 15.3: rounded, and the intrinsics follow the ratio
    assert odd.size.tolist() == [[20, 15]]
    assert torch.allclose(odd.focal, half.focal)


def test_pixels_beyond_the_lens_are_told() -> None:
    lens = Lens("brown", (-0.9, 0.0, 0.0, 0.0, 0.0, 0.0))
    cameras = make((lens,))
    valid = cameras.valid_pixels(0).view(30, 40)
    assert not valid[0, 0]
    assert valid[15, 20]
    xy = torch.tensor([0.5, 0.5]) - cameras.principal[0]
    assert not lens.directions(xy / cameras.focal[0])[1]
    assert torch.isfinite(cameras.image_rays(0).directions).all()


def test_cameras_of_one_kind_look_for_their_valid_pixels_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lens = Lens("brown", (-0.9, 0.0, 0.0, 0.0, 0.0, 0.0))
    cameras = make((lens,) * 8 + (BROWN, Lens()), [(39, 29)] * 10)
    cameras.focal[:8] = cameras.focal[0]
    looked: list[int] = []
    find = Cameras._find_valid

    def count(self: Cameras, camera: int) -> Tensor:
        looked.append(camera)
        return find(self, camera)

    monkeypatch.setattr(Cameras, "_find_valid", count)
    _ = cameras._masks
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(cameras.valid_pixels, range(10)))
    assert len(looked) == 2
    assert all(torch.equal(mask, find(cameras, i)) for i, mask in enumerate(masks))
    assert not masks[0].all()
    monkeypatch.setattr(cameras_module, "MASK_BYTES", 0)
    assert torch.equal(replace(cameras).valid_pixels(7), masks[7])
    assert len(looked) == 3


def test_a_pinhole_has_rays_without_a_look_at_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Cameras, "_solve")
    assert make((Lens(),)).has_rays(0)


def looking_at(target: Tensor, positions: Tensor) -> Cameras:
    forward = torch.nn.functional.normalize(target - positions, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0]).double().expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    c2w = torch.stack([right, torch.linalg.cross(forward, right), forward, positions], -1)
    n = len(positions)
    ones = torch.ones(n, 2, dtype=torch.float64)
    return Cameras(c2w, 50 * ones, 20 * ones, (40 * ones).long(), (Lens(),) * n)


def test_common_focus_is_found_in_spite_of_a_stray_camera() -> None:
    angle = torch.linspace(0, 2, 12).double()
    positions = torch.stack([3 * angle.cos(), 3 * angle.sin(), 0.3 * angle], -1)
    target = torch.tensor([0.2, -0.1, 0.4]).double()
    cameras = looking_at(target, positions)
    found = common_focus(cameras)
    assert found is not None
    assert torch.allclose(found[0], target, atol=1e-6)
    depths = (target - positions).norm(dim=-1)
    assert float(depths.min()) <= found[1] <= float(depths.max())
    cameras.c2w[3, :, 2] = torch.tensor([0.0, 0.0, 1.0]).double()  # one looks elsewhere
    found = common_focus(cameras)
    assert found is not None
    assert (found[0] - target).norm() < 0.02  # of a distance of 3


def test_parallel_or_outward_cameras_have_no_focus() -> None:
    angle = torch.linspace(0, 5, 12).double()
    around = torch.stack([angle.cos(), angle.sin(), 0 * angle], -1)
    assert common_focus(looking_at(torch.zeros(3).double(), around)) is not None
    assert common_focus(looking_at(3 * around, around)) is None
    shift = torch.tensor([0.0, 1e6, 0.0]).double()
    assert common_focus(looking_at(around + shift, around)) is None
    assert common_focus(looking_at(torch.zeros(3).double(), around)[0]) is None
    assert math.isclose(float(around[0].norm()), 1.0)


def test_the_radius_of_a_cone_by_hand() -> None:
    """2 / sqrt(12) of the way to the neighbour, which widens with smaller pictures."""
    cameras = make((Lens(),), [(400, 300)])
    cameras = replace(cameras, focal=torch.full((1, 2), 500.0).double())
    centre = torch.tensor([[0, int(x), int(y)] for x, y in cameras.principal.tolist()])
    rays = cameras.rays(centre, with_radii=True)
    assert rays.radii is not None and rays.radii.dtype == torch.float32
    assert float(rays.radii) == pytest.approx(2 / 12**0.5 / 500, rel=1e-3)
    assert cameras.rays(centre).radii is None and cameras.image_rays(0).radii is None
    small = cameras.scaled(0.25).image_rays(0, with_radii=True).radii
    assert small is not None
    assert float(small.max()) == pytest.approx(4 * float(rays.radii), rel=1e-3)


@pytest.mark.parametrize("lens", [Lens(), BROWN, FISHEYE], ids=["pinhole", "brown", "fisheye"])
@pytest.mark.parametrize("tables", [True, False])
def test_radii_follow_the_neighbours(
    lens: Lens, tables: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tables:
        monkeypatch.setattr(cameras_module, "TABLE_BYTES", 0)
    cameras = make((Lens(), lens), [(40, 30), (24, 18)])
    pixels = all_pixels(cameras)
    rays = cameras.rays(pixels, with_radii=True)
    directions = cameras.rays(pixels).directions[40 * 30 :].double().view(24, 18, 3).transpose(0, 1)
    across = (directions[:, 1:] - directions[:, :-1]).norm(dim=-1)
    down = (directions[1:] - directions[:-1]).norm(dim=-1)
    across = torch.cat([across, across[:, -1:]], 1)  # the border takes its other side
    down = torch.cat([down, down[-1:]], 0)
    want = (across + down) / 12**0.5
    assert rays.radii is not None
    got = rays.radii[40 * 30 :].view(24, 18).T
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=0)
    image = cameras.image_rays(1, with_radii=True).radii
    assert image is not None
    torch.testing.assert_close(image.view(18, 24), got, rtol=1e-4, atol=0)

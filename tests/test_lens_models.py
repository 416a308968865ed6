"""All of COLMAP's camera models: round trips, COLMAP itself as the oracle, and what is masked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_lenses import compare_with_colmap
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lens_models import ROW, Polynomial
from nerfcli.cameras.lenses import Lens, LensBank, panorama
from nerfcli.extraction.visibility import CameraView
from nerfcli.scenes.extent import depths_in_view
from nerfcli.scenes.hull import _lens_stretch
from nerfcli.scenes.readers.colmap_cameras import (
    BY_NAME,
    CAMERA_MODELS,
    CameraModel,
    Intrinsics,
    camera_model_of,
    intrinsics_of,
)

WIDTH, HEIGHT = 640, 480
# lens parameters of a strong but real lens, in COLMAP's order, after focal length and centre
LENSES: dict[str, list[float]] = {
    "SIMPLE_PINHOLE": [],
    "PINHOLE": [],
    "SIMPLE_RADIAL": [0.05],
    "RADIAL": [0.05, -0.02],
    "OPENCV": [-0.2, 0.06, 0.001, -0.002],
    "OPENCV_FISHEYE": [0.05, -0.02, 0.003, -0.001],
    "FULL_OPENCV": [0.1, -0.05, 0.002, -0.003, 0.01, 0.03, -0.02, 0.005],
    "FOV": [0.9],
    "SIMPLE_RADIAL_FISHEYE": [-0.02],
    "RADIAL_FISHEYE": [-0.02, 0.004],
    "THIN_PRISM_FISHEYE": [0.05, -0.01, 0.002, -0.003, 0.004, -0.001, 0.003, -0.002],
    "RAD_TAN_THIN_PRISM_FISHEYE": [
        *(0.05, -0.01, 0.004, -0.001, 0.0005, -0.0002),
        *(0.002, -0.003, 0.003, 0.001, -0.002, 0.0007),
    ],
    "SIMPLE_DIVISION": [-0.1],
    "DIVISION": [0.08],
    "SIMPLE_FISHEYE": [],
    "FISHEYE": [],
    "EUCM": [0.6, 1.1],
    "EQUIRECTANGULAR": [],
}
MODELS = [pytest.param(model, id=model.name) for model in CAMERA_MODELS]


def params_of(model: CameraModel) -> tuple[float, ...]:
    if model.n_focal == 0:
        return (float(WIDTH), float(HEIGHT))
    return (*[400.0, 390.0][: model.n_focal], 330.0, 230.0, *LENSES[model.name])


def camera(model: CameraModel) -> Intrinsics:
    return intrinsics_of(model, (WIDTH, HEIGHT), params_of(model), "here")


def pixel_grid(step: int = 5) -> Tensor:
    """Pixel centres over the whole image, its border included, [n, 2]."""
    x = torch.cat([torch.arange(0, WIDTH, step), torch.tensor([WIDTH - 1])])
    y = torch.cat([torch.arange(0, HEIGHT, step), torch.tensor([HEIGHT - 1])])
    return torch.cartesian_prod(x, y) + torch.tensor(0.5, dtype=torch.float64)


def plane_of(camera: Intrinsics, pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(camera.principal)) / torch.tensor(camera.focal)


def pixels_of(camera: Intrinsics, plane: Tensor) -> Tensor:
    return plane * torch.tensor(camera.focal) + torch.tensor(camera.principal)


def cameras_of(views: list[Intrinsics]) -> Cameras:
    """At the origin, looking along +z."""
    return Cameras(
        torch.eye(4, dtype=torch.float64)[:3].repeat(len(views), 1, 1),
        torch.tensor([view.focal for view in views], dtype=torch.float64),
        torch.tensor([view.principal for view in views], dtype=torch.float64),
        torch.tensor([view.size for view in views]),
        tuple(view.lens for view in views),
    )


@pytest.mark.parametrize("model", MODELS)
def test_round_trip_over_the_whole_image(model: CameraModel) -> None:
    mine, pixels = camera(model), pixel_grid()
    directions, valid = mine.lens.directions(plane_of(mine, pixels))
    assert valid.all()
    assert torch.allclose(directions.norm(dim=-1), directions.new_ones(()), atol=1e-12)
    back = pixels_of(mine, mine.lens.project(directions))
    # asked for: 1e-3; double precision leaves far less
    assert (back - pixels).abs().max() < 1e-6


@pytest.mark.parametrize("model", MODELS)
def test_projection_and_its_inverse_are_colmaps(model: CameraModel) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="the oracle, pycolmap, is not installed")
    if model.name not in pycolmap.CameraModelId.__members__:
        pytest.skip(f"this pycolmap ({pycolmap.__version__}) does not know {model.name}")
    theirs = pycolmap.Camera(
        model=model.name, width=WIDTH, height=HEIGHT, params=list(params_of(model))
    )
    assert int(pycolmap.CameraModelId.__members__[model.name].value) == model.id
    mine, pixels = camera(model), pixel_grid()
    directions, _ = mine.lens.directions(plane_of(mine, pixels))
    # COLMAP projects nothing that lies behind a camera, panoramas excepted
    seen = directions[:, 2] > (-2 if model.n_focal == 0 else 0.01)
    got = pixels_of(mine, mine.lens.project(directions[seen])).numpy()
    # its longitude and latitude have a small number added against division by zero
    tolerance = 1e-8 if model.n_focal else 1e-5
    want = theirs.img_from_cam(directions[seen].numpy())
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
    if hasattr(theirs, "cam_ray_from_img"):
        # its iteration for panoramas stops at 1e-7
        rays = np.asarray(theirs.cam_ray_from_img(pixels.numpy()))
        np.testing.assert_allclose(directions.numpy(), rays, atol=2e-7)


@pytest.mark.parametrize("model", MODELS)
def test_the_model_that_is_written_is_the_one_that_was_read(model: CameraModel) -> None:
    written = camera_model_of(camera(model))
    assert written == (model, params_of(model))


def test_a_lens_with_r6_is_written_as_the_rational_model_and_r8_as_none() -> None:
    size, focal, principal = (WIDTH, HEIGHT), (400.0, 400.0), (320.0, 240.0)
    brown = Lens.of("brown", k1=0.1, k3=0.02, p1=0.001)
    written = camera_model_of(Intrinsics(size, focal, principal, brown))
    assert written is not None and written[0].name == "FULL_OPENCV"
    back = intrinsics_of(written[0], size, written[1], "here").lens
    plane = plane_of(Intrinsics(size, focal, principal, brown), pixel_grid(40))
    torch.testing.assert_close(back.distort(plane), brown.distort(plane), rtol=0, atol=1e-14)
    assert camera_model_of(Intrinsics(size, focal, principal, Lens.of("brown", k4=0.1))) is None


def test_closed_forms_at_points_by_hand() -> None:
    point = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64)  # tan(theta) = 0.5
    fov = Lens("fov", (1.0,)).project(point).norm()
    assert float(fov) == pytest.approx(math.atan(2 * 0.5 * math.tan(0.5)), abs=1e-14)
    division = Lens("division", (-0.2,)).project(point).norm()
    # what the model states: undistorted = distorted / (1 + k distorted^2)
    assert float(division / (1 - 0.2 * division**2)) == pytest.approx(0.5, abs=1e-14)
    eucm = Lens("eucm", (0.7, 1.2)).project(point).norm()
    assert float(eucm) == pytest.approx(0.5 / (0.7 * math.sqrt(1.2 * 0.25 + 1) + 0.3), abs=1e-14)


def test_a_rational_lens_by_opencvs_formula() -> None:
    k1, k2, p1, p2, k3, k4, k5, k6 = LENSES["FULL_OPENCV"]
    x, y = 0.3, -0.4
    q = 0.25
    radial = (1 + k1 * q + k2 * q**2 + k3 * q**3) / (1 + k4 * q + k5 * q**2 + k6 * q**3)
    u = x * radial + 2 * p1 * x * y + p2 * (q + 2 * x * x)
    v = y * radial + 2 * p2 * x * y + p1 * (q + 2 * y * y)
    got = camera(BY_NAME["FULL_OPENCV"]).lens.distort(torch.tensor([x, y], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([u, v], dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("lens", "radius"),
    [
        (Lens("fov", (1.0,)), math.pi / 2),  # atan(inf) / omega
        (Lens("division", (0.25,)), 2.0),  # d / (1 + d^2 / 4) turns round at 2
        (Lens("eucm", (0.75, 1.0)), math.sqrt(2)),  # 1 / sqrt((2 alpha - 1) beta)
        (Lens("fisheye", (0.0, 0.0, 0.0, 0.0)), math.pi),
        (Lens.of("rational", d1=1.0), 0.5),  # r / (1 + r^2) turns round at r = 1
    ],
    ids=lambda value: getattr(value, "model", None),
)
def test_pixels_without_a_solution_are_invalid(lens: Lens, radius: float) -> None:
    angle = torch.linspace(0, 6, 7, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
    assert lens.directions(ring * (radius * 0.999))[1].all()
    assert not lens.directions(ring * (radius * 1.001))[1].any()


def test_the_limit_is_where_the_image_stops_growing() -> None:
    assert Lens.of("rational", d1=1.0).limit == pytest.approx(1.0, abs=1e-12)  # r / (1 + r^2)
    # r (1 + q / 3) / (1 + q) with q = r^2: f' goes with 1 + q^2 / 3, which has no root
    assert Lens.of("rational", k1=1 / 3, d1=1.0).limit == math.inf
    # 1 + d1 q = 0: the image has a pole there
    assert Lens.of("rational", d1=-0.25).limit == pytest.approx(2.0, abs=1e-12)
    assert Lens("fisheye", (-0.1, 0.0, 0.0, 0.0)).limit == pytest.approx(math.sqrt(1 / 0.3))


def test_jacobian_against_differences() -> None:
    rng = np.random.default_rng(0)
    row = torch.from_numpy(rng.normal(size=len(ROW)) * 0.1).unbind()
    lens = Polynomial.of(row)
    v = torch.from_numpy(rng.uniform(-0.5, 0.5, (50, 2)))
    h = 1e-6
    shifts = h * torch.eye(2, dtype=torch.float64)
    columns = [(lens.apply(v + shift) - lens.apply(v - shift)) / (2 * h) for shift in shifts]
    want = torch.stack([columns[0][:, 0], columns[1][:, 0], columns[0][:, 1], columns[1][:, 1]])
    # central differences: rounding of 1e-16 / h
    torch.testing.assert_close(torch.stack(lens.jacobian(v)), want, rtol=0, atol=1e-8)


def test_wide_lenses_see_behind_themselves() -> None:
    theta = math.radians(105)
    point = torch.tensor([0.0, math.sin(theta), math.cos(theta)], dtype=torch.float64)
    for lens in (Lens("division", (-0.3,)), Lens("eucm", (0.75, 1.0)), Lens("equirectangular")):
        xy = lens.project(point)
        direction, valid = lens.directions(xy)
        assert valid
        torch.testing.assert_close(direction, point, rtol=0, atol=1e-12)


def test_panoramas_cover_the_sphere() -> None:
    lens = Lens("equirectangular")
    ahead, right, down = (torch.eye(3, dtype=torch.float64)[i] for i in (2, 0, 1))
    assert lens.project(ahead).tolist() == [0.0, 0.0]
    assert lens.project(right).tolist() == pytest.approx([math.pi / 2, 0.0])
    assert lens.project(down).tolist() == pytest.approx([0.0, math.pi / 2])
    assert not lens.directions(torch.tensor([[3.2, 0.0], [0.0, 1.6]]).double())[1].any()


def test_what_lies_behind_a_panorama_is_seen() -> None:
    """By what asks where points are seen: the free space of exports, and near."""
    size = (64, 32)
    focal, principal = panorama(size)
    pose = torch.eye(3, 4, dtype=torch.float64)[None]
    f, c = (torch.tensor([v], dtype=torch.float64) for v in (focal, principal))
    cameras = Cameras(pose, f, c, torch.tensor([size]), (Lens("equirectangular"),))
    points = torch.tensor([[0.5, 0.1, -2.0], [0.0, 0.0, 3.0], [2.0, 0.0, 0.0]]).double()
    pixels, distances = CameraView(cameras, 0).locate(points)
    assert (pixels >= 0).all()
    torch.testing.assert_close(distances, points.norm(dim=-1))
    torch.testing.assert_close(depths_in_view(points, cameras, 0), points.norm(dim=-1))
    pinhole = Cameras(pose, f, c, torch.tensor([size]), (Lens(),))
    assert (CameraView(pinhole, 0).locate(points)[0] >= 0).tolist() == [False, True, False]
    assert depths_in_view(points, pinhole, 0).tolist() == [3.0]


def all_lenses() -> list[Lens]:
    return [camera(model).lens for model in CAMERA_MODELS]


def test_a_bank_of_all_models_inverts_each_ray_with_its_own() -> None:
    lenses = all_lenses()
    generator = torch.Generator().manual_seed(0)
    xy = torch.rand(3000, 2, dtype=torch.float64, generator=generator) - 0.5
    which = torch.randint(len(lenses), (3000,), generator=generator)
    got, valid = LensBank(lenses, reach=1.0).directions(xy, which)
    for i, lens in enumerate(lenses):
        want, ok = lens.directions(xy[which == i])
        assert torch.equal(valid[which == i], ok)
        torch.testing.assert_close(got[which == i], want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("beside", [(0.0,) * 4 + (0.01, 0.0), (0.2, 0.0, 0.0, 0.0, -0.01, 0.02)])
def test_a_neighbour_with_tangential_terms_makes_no_pixel_valid(beside: tuple[float, ...]) -> None:
    """Far out, where the lenses have no solution: a bank must say so as a lens alone does."""
    generator = torch.Generator().manual_seed(2)
    xy = 8.0 * (torch.rand(1500, 2, dtype=torch.float64, generator=generator) - 0.5)
    reach = float(torch.linalg.vector_norm(xy, dim=-1).amax())
    strong = Lens.of("rad_tan_thin_prism_fisheye", p1=0.05, p2=0.1, s1=0.05)
    for lens in [*all_lenses(), strong, Lens("brown", (-0.1, 0.0, 0.0, 0.0, 0.0, 0.0))]:
        bank = LensBank([lens, Lens("brown", beside)], reach)
        got = bank.directions(xy, torch.zeros(len(xy), dtype=torch.int64))[1]
        assert torch.equal(got, lens.directions(xy)[1]), lens.model


def test_cameras_give_the_same_rays_from_tables_and_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hot loop's two ways, against each lens alone."""
    mine = [camera(model) for model in CAMERA_MODELS]
    n = len(mine)
    generator = torch.Generator().manual_seed(1)
    camera_index = torch.randint(n, (2000,), generator=generator)
    x = torch.randint(WIDTH, (2000,), generator=generator)
    y = torch.randint(HEIGHT, (2000,), generator=generator)
    pixels = torch.stack([camera_index, x, y], dim=-1)
    want = torch.empty(2000, 3, dtype=torch.float64)
    for i, m in enumerate(mine):
        here = camera_index == i
        want[here] = m.lens.directions(plane_of(m, pixels[here, 1:] + 0.5))[0]
    for table_bytes in (0, 2**30):
        monkeypatch.setattr("nerfcli.cameras.cameras.TABLE_BYTES", table_bytes)
        rays = cameras_of(mine).rays(pixels)
        # float32 of unit vectors
        torch.testing.assert_close(rays.directions, want.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_no_point_moves_farther_than_the_hull_allows_for(model: CameraModel) -> None:
    """The visual hull's bound of a footprint, for points and shifts at random."""
    mine = camera(model)
    cameras = cameras_of([mine])
    bound = _lens_stretch(cameras)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.uniform(0, 1, (3000, 2))) * torch.tensor(mine.size)
    directions, _ = mine.lens.directions(plane_of(mine, pixels))
    depth = torch.from_numpy(rng.uniform(1, 5, 3000))
    z = directions[:, 2]
    points = (directions * (depth / z)[:, None])[z > 0.1]
    radius = 0.02
    shift = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=points.shape)), dim=-1)
    xy, at = cameras.project(0, points)
    moved, _ = cameras.project(0, points + radius * shift)
    # a panorama's seam lies behind the camera
    assert ((moved - xy).abs().amax(-1) * (at - radius) <= radius * bound).all()
    assert bound < 3 * max(mine.focal)  # and the bound is of use


@pytest.mark.parametrize("seed", range(3))
def test_lenses_at_random_round_trip_or_are_invalid(seed: int) -> None:
    """No pixel is wrong: where a solution is claimed, it projects back to the pixel."""
    rng = np.random.default_rng(seed)
    checked = 0
    for model in CAMERA_MODELS:
        for _ in range(4):
            n = len(model.names)
            values = rng.normal(0, [0.2, 0.1, 0.01, 0.01, 0.05, 0.05][:n] + [0.01] * (n - 6), n)
            if model.lens == "eucm":
                values = [rng.uniform(0.05, 0.95), rng.uniform(0.5, 2.0)]
            lens = Lens.of(model.lens, **dict(zip(model.names, map(float, values), strict=True)))
            xy = torch.from_numpy(rng.uniform(-1.2, 1.2, (400, 2)))
            directions, valid = lens.directions(xy)
            assert directions.isfinite().all()
            error = (lens.project(directions[valid]) - xy[valid]).abs() * 1000
            assert not len(error) or error.max() < 1e-3, lens  # pixels at a focal length of 1000
            checked += int(valid.sum())
    assert checked > 10_000


@pytest.mark.parametrize("model", MODELS)
def test_where_colmap_inverts_a_pixel_of_a_random_lens_we_do(model: CameraModel) -> None:
    """A sample of tests/peers/test_lenses.py, which says how the lenses are drawn."""
    pytest.importorskip("pycolmap", reason="the oracle, pycolmap, is not installed")
    counts = compare_with_colmap(model, seed=0, n_lenses=16, step=71)
    assert counts["lenses"] >= 14
    assert counts["pixels_missed"] == 0

"""Lenses against closed forms, finite differences and each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nerfcli.cameras import lens_inverse
from nerfcli.cameras.lenses import Lens, LensBank
from nerfcli.core.errors import NerfError

FOX = Lens("brown", (0.0578421, -0.0805099, 0.0, 0.0, -0.000980296, 0.00015575))
STRONG = Lens("brown", (-0.28, 0.09, -0.015, 0.001, 0.002, -0.001))
FISHEYE = Lens("fisheye", (0.05, -0.02, 0.003, -0.001))
FOCAL = 700.0  # pixels, for tolerances stated in pixels


def plane(reach: float, n: int = 41) -> Tensor:
    axis = torch.linspace(-reach, reach, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


@pytest.mark.parametrize("lens", [Lens(), FOX, STRONG, FISHEYE], ids=str)
def test_round_trip_is_exact_to_a_thousandth_of_a_pixel(lens: Lens) -> None:
    xy = plane(0.6)
    undistorted, valid = lens.undistort(xy)
    assert valid.all()
    error = (lens.distort(undistorted) - xy).abs().max() * FOCAL
    assert error < 1e-3  # the accuracy asked for; Newton in float64 leaves far less
    back, valid = lens.undistort(lens.distort(xy))
    assert valid.all()
    assert (back - xy).abs().max() * FOCAL < 1e-3


def test_brown_is_opencvs_formula_at_a_point_by_hand() -> None:
    k1, k2, p1, p2 = 0.1, -0.05, 0.01, -0.02
    x, y = 0.3, -0.4  # r^2 = 0.25
    radial = 1 + k1 * 0.25 + k2 * 0.0625
    u = x * radial + 2 * p1 * x * y + p2 * (0.25 + 2 * x * x)
    v = y * radial + p1 * (0.25 + 2 * y * y) + 2 * p2 * x * y
    got = Lens("brown", (k1, k2, 0.0, 0.0, p1, p2)).distort(
        torch.tensor([x, y], dtype=torch.float64)
    )
    assert torch.allclose(got, torch.tensor([u, v], dtype=torch.float64), atol=1e-14)


def test_brown_k3_and_k4_are_the_r6_and_r8_terms() -> None:
    got = Lens("brown", (0.0, 0.0, 0.2, -0.1, 0.0, 0.0)).distort(torch.tensor([0.5, 0.0]).double())
    want = 0.5 * (1 + 0.2 * 0.5**6 - 0.1 * 0.5**8)
    assert float(got[0]) == pytest.approx(want, abs=1e-12)


def test_fisheye_without_terms_maps_angle_to_radius_also_beyond_90_degrees() -> None:
    lens = Lens("fisheye", (0.0, 0.0, 0.0, 0.0))
    theta = math.radians(100)
    point = torch.tensor([math.sin(theta), 0.0, math.cos(theta)], dtype=torch.float64)
    xy = lens.project(point)
    assert torch.allclose(xy, torch.tensor([theta, 0.0], dtype=torch.float64), atol=1e-12)
    direction, valid = lens.directions(xy)
    assert valid
    assert torch.allclose(direction, point, atol=1e-9)
    assert not lens.undistort(xy)[1]  # has a direction, but no place in the plane


def test_beyond_the_fold_there_is_no_solution_and_no_image() -> None:
    lens = Lens("brown", (-0.3, 0.0, 0.0, 0.0, 0.0, 0.0))
    # r (1 - 0.3 r^2) grows up to r = 1 / sqrt(0.9), where it is two thirds of that
    limit = 1 / math.sqrt(0.9)
    assert lens.limit == pytest.approx(limit, rel=1e-9)
    xy = torch.tensor([[0.999 * limit * 2 / 3, 0.0], [1.001 * limit * 2 / 3, 0.0]]).double()
    assert lens.directions(xy)[1].tolist() == [True, False]
    outside = lens.distort(torch.tensor([[1.01 * limit, 0.0]]).double())
    assert outside.isnan().all()


def test_nothing_behind_the_camera_is_seen() -> None:
    behind = torch.tensor([[0.1, 0.2, -1.0]]).double()
    for lens in (Lens(), FOX):
        assert lens.project(behind).isnan().all()
    assert FISHEYE.project(behind).isnan().all()  # beyond this fisheye's limit


def test_a_bank_inverts_each_ray_with_its_own_lens() -> None:
    lenses = (Lens("brown", (-0.3, 0.0, 0.0, 0.0, 0.0, 0.0)), FISHEYE, FOX, STRONG, Lens())
    xy = plane(0.45, 9)
    for index, lens in enumerate(lenses):
        bank = LensBank(lenses, reach=1.0)
        got, valid = bank.directions(xy, torch.full((len(xy),), index))
        assert valid.all()
        assert torch.allclose(got, lens.directions(xy)[0], atol=1e-9)


def test_faults_are_named() -> None:
    with pytest.raises(NerfError, match="Unknown lens model 'ftheta'"):
        Lens("ftheta", ())
    with pytest.raises(NerfError, match="takes 6 parameters, got 2"):
        Lens("brown", (0.1, 0.2))
    with pytest.raises(NerfError, match="finite"):
        Lens("fisheye", (math.nan, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("k", [1e308, -1e308, 1e31])
def test_an_absurd_parameter_is_refused(k: float) -> None:
    with pytest.raises(NerfError, match="absurdly large"):
        Lens.of("brown", k1=k)


def test_a_parameter_that_is_nearly_zero_counts_as_zero() -> None:
    for tiny in (5e-324, 1e-200):
        assert Lens.of("brown", k1=-0.2, k4=tiny).limit == Lens.of("brown", k1=-0.2).limit


# lenses that Newton's method from a table did not invert
POLE = Lens("rational", (0.035, -0.146, -0.0009, 0.0037, 0.0013, -0.046, -0.059, -0.034))
TWISTED = Lens("brown", (-0.43, -0.07, 0.0, 0.0, -0.074, 0.044))  # as no real lens is


@pytest.mark.parametrize(("lens", "reach"), [(POLE, 1.0), (TWISTED, 0.46)], ids=["pole", "twisted"])
def test_strange_lenses_are_inverted(lens: Lens, reach: float) -> None:
    """All points whose images are on the first branch come back; POLE's pole is at r = 1.58."""
    seen = lens.distort(plane(reach))
    back, valid = lens.undistort(seen)
    assert valid.all()
    assert (lens.distort(back) - seen).abs().max() * FOCAL < 1e-4


@pytest.mark.parametrize("tangential", [0.0, 1e-3])
def test_pixels_beside_the_fold_have_their_rays(tangential: float) -> None:
    lens = Lens("brown", (-0.3, 0.0, 0.0, 0.0, tangential, 0.0))
    edge = (1 - 10.0 ** torch.linspace(-9, -2, 50, dtype=torch.float64)) * lens.limit
    seen = lens.distort(torch.stack([edge, 0 * edge], dim=-1))
    directions, valid = lens.directions(seen)
    assert valid.all()
    assert (lens.project(directions) - seen).abs().max() * FOCAL < 1e-4


@pytest.mark.parametrize(
    "lens",
    [
        Lens.of("rad_tan_thin_prism_fisheye", k2=0.1, k3=-0.07, k4=0.01, p1=8e-4, s1=-4e-4),
        Lens("brown", (-0.3, 0.0, 0.0, 0.0, 1e-3, -5e-4)),
        Lens.of("rad_tan_thin_prism_fisheye", k1=-0.1),
    ],
    ids=["bends last", "bends first", "straight"],
)
def test_black_corners_are_not_searched_for_rays(
    lens: Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []
    search = lens_inverse._Polynomials.search

    def count(self: lens_inverse._Polynomials, xy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        searched.append(len(xy))
        return search(self, xy, which)

    monkeypatch.setattr(lens_inverse._Polynomials, "search", count)
    valid = lens.directions(plane(4.0, 101))[1]
    assert 200 < valid.sum() < 0.9 * len(valid)
    assert sum(searched) <= 0.01 * len(valid)


def test_the_edge_of_a_lens_is_looked_for_only_where_a_pixel_has_no_ray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[float] = []
    monkeypatch.setattr(lens_inverse, "_edge", lambda row, limit: looked.append(limit) or 0.5)
    assert FOX.directions(plane(0.6))[1].all()
    assert not looked
    assert not TWISTED.directions(plane(4.0))[1].all()
    assert len(looked) == 1

"""Forward-facing captures: a perspective space from the cameras, and samples even in disparity."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rays import Rays
from nerfcli.core.config import ClassicConfig, Config, UnboundedConfig
from nerfcli.methods import classic
from nerfcli.methods.classic import ClassicField
from nerfcli.methods.unbounded import UnboundedField, perspective_space, space_of
from nerfcli.methods.unbounded_trainer import fading_distance
from nerfcli.reference.contraction import ContractedSpace, PerspectiveSpace
from nerfcli.reference.sampling import Disparity, Piecewise
from nerfcli.scenes.extent import box_from_cameras

BOX = Box((0.0, 0.0, 2.0), 1.0)
NEAR, FAR = 0.8, 100.0


def row_of_cameras(turn: float = 0.0) -> Cameras:
    """Five cameras side by side that look along +z; the last is turned about y."""
    c2w = torch.eye(3, 4, dtype=torch.float64).repeat(5, 1, 1)
    c2w[:, 0, 3] = torch.linspace(-0.2, 0.2, 5, dtype=torch.float64)
    c, s = math.cos(turn), math.sin(turn)
    c2w[4, :, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    n = len(c2w)
    focal = torch.full((n, 2), 40.0, dtype=torch.float64)
    size = torch.tensor([[60, 40]]).repeat(n, 1)
    return Cameras(c2w, focal, size.double() / 2, size, (Lens(),) * n)


def test_the_cone_holds_all_frames_and_little_more() -> None:
    cameras = row_of_cameras()
    space = perspective_space(cameras, BOX, NEAR, FAR)
    assert space is not None
    units = []
    for i in range(len(cameras)):
        rays = cameras.image_rays(i, "cpu")
        for t in (NEAR, 1.5, 4.0, 90.0):
            x = rays.origins + t * rays.directions
            u = space.to_unit(x)
            torch.testing.assert_close(space.from_unit(u), x, rtol=2e-3, atol=1e-4)
            units.append(u)
    u = torch.cat(units)
    assert float(u.amin()) >= 0 and float(u.amax()) <= 1
    assert float(u[:, 0].amin()) < 0.05 and float(u[:, 0].amax()) > 0.95
    assert float(u[:, 2].amin()) < 0.05 and float(u[:, 2].amax()) > 0.95


def test_frames_beside_the_mean_pose_leave_no_cone() -> None:
    assert perspective_space(row_of_cameras(turn=2.0), BOX, NEAR, FAR) is None


@pytest.mark.parametrize("flipped", [[-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])  # rolled; turned round
def test_axes_that_cancel_leave_no_cone(flipped: list[float]) -> None:
    cameras = row_of_cameras()[[0] * 4]
    c2w = cameras.c2w.clone()
    c2w[::2, :, :3] *= torch.tensor(flipped, dtype=torch.float64)
    assert perspective_space(replace(cameras, c2w=c2w), BOX, NEAR, FAR) is None


def test_rays_that_start_anywhere_are_cut_evenly_at_first() -> None:
    """Even in disparity, all bins but one would lie at their start."""
    own = UnboundedConfig(log2_table_size=8, max_resolution=32, space="perspective")
    own = replace(own, n_bins=16, proposal_resolution=16)
    scene: Any = SimpleNamespace(cameras=row_of_cameras(), box=BOX, near=NEAR)
    field = UnboundedField.create(
        Config(unbounded=own), scene, Backend(), torch.Generator().manual_seed(0)
    )
    edges = field.between(0.0, 2.0).sampler.grid.edges
    assert (float(edges[0]), float(edges[-1])) == (0.0, 2.0)
    assert float(edges.diff().max()) < 4 * float(edges.diff().min())


@pytest.mark.parametrize(
    ("turn", "wanted", "kinds"),
    [
        (0.0, "perspective", (PerspectiveSpace, Disparity)),
        (0.0, "contraction", (ContractedSpace, Piecewise)),
        (2.0, "perspective", (ContractedSpace, Piecewise)),
    ],
)
def test_space_follows_setting_and_cameras(turn: float, wanted: Any, kinds: tuple) -> None:
    scene: Any = SimpleNamespace(cameras=row_of_cameras(turn), box=BOX, near=NEAR)
    space, spacing = space_of(UnboundedConfig(space=wanted), scene, FAR)
    assert isinstance(space, kinds[0]) and isinstance(spacing, kinds[1])


@pytest.mark.parametrize("spacing", ["linear", "disparity", None])
def test_classic_samples_are_even_in_its_spacing(
    spacing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ClassicConfig(width=8, depth=2, n_coarse=7, n_fine=3, spacing=spacing)
    scene: Any = SimpleNamespace(box=BOX, near=1.0, far=9.0)
    field = ClassicField.create(
        Config("classic", classic=own), scene, Backend(), torch.Generator().manual_seed(0)
    )
    drawn = []
    stratified = classic.stratified
    monkeypatch.setattr(
        classic, "stratified", lambda *args: drawn.append(stratified(*args)) or drawn[-1]
    )
    rays = Rays(torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 1.0]]).repeat(2, 1))
    field.render_rays(rays, torch.zeros(3))
    t = drawn[0][0].double()
    s = 1 / t if spacing == "disparity" else t
    assert float((s.diff() - s.diff().mean()).abs().max()) < 1e-5
    assert float(t[0]) > 1.0 and float(t[-1]) < 9.0


@pytest.mark.parametrize(("n_views", "distance"), [(40, 1.0), (14, (17 / 14) ** 6), (4, 10.0)])
def test_gradients_fade_farther_where_few_views_see_a_place(n_views: int, distance: float) -> None:
    cameras = row_of_cameras()[[0] * n_views]
    scene: Any = SimpleNamespace(cameras=cameras, splits={"train": range(n_views)}, box=BOX)
    assert fading_distance(scene) == pytest.approx(distance)


@pytest.mark.parametrize("n", [2, 12])
def test_a_capture_from_one_point_has_a_box_of_its_own(n: int) -> None:
    cameras = row_of_cameras()[[0] * n]
    c2w = cameras.c2w.clone()
    for i in range(n):
        c, s = math.cos(6.28 * i / n), math.sin(6.28 * i / n)
        c2w[i, :, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    c2w[:, :, 3] = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    box, _ = box_from_cameras(replace(cameras, c2w=c2w))
    assert box.half_size == 1.0

"""Forward-facing captures: a perspective space from the cameras, and samples even in disparity."""

from __future__ import annotations

import math
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
from nerfcli.methods.unbounded import perspective_space, space_of
from nerfcli.methods.unbounded_trainer import fading_distance
from nerfcli.reference.contraction import ContractedSpace, PerspectiveSpace
from nerfcli.reference.sampling import Disparity, Piecewise

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


@pytest.mark.parametrize(("n_views", "distance"), [(40, 1.0), (16, (20 / 16) ** 3), (4, 10.0)])
def test_gradients_fade_farther_where_few_views_see_a_place(n_views: int, distance: float) -> None:
    cameras = row_of_cameras()[[0] * n_views]
    scene: Any = SimpleNamespace(cameras=cameras, splits={"train": range(n_views)}, box=BOX)
    assert fading_distance(scene) == pytest.approx(distance)

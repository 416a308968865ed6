"""Camera paths keep to where the training cameras were."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from nerfcli.cameras import paths, splines
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.upright import find_upright
from nerfcli.scenes import load_scene

BOX = Box((0.0, 0.0, 0.0), 1.0)
UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def looking(positions: Tensor, targets: Tensor, up: Tensor = UP) -> Cameras:
    forward = torch.nn.functional.normalize(targets - positions, dim=-1)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(forward, up.expand_as(forward)), dim=-1
    )
    c2w = torch.stack([right, torch.linalg.cross(forward, right), forward, positions], -1)
    n = len(positions)
    size = torch.tensor([[41, 31]] * n)
    focal = torch.full((n, 2), 50.0, dtype=torch.float64)
    lens = Lens("brown", (0.1, 0.0, 0.0, 0.0, 0.0, 0.0))
    return Cameras(c2w, focal, size / 2 + 1.0, size, (lens,) * n)


def ring(start: float, end: float, n: int, elevation: float, radius: float = 4.0) -> Tensor:
    azimuth = torch.linspace(start, end, n, dtype=torch.float64)
    e = torch.full_like(azimuth, elevation)
    return radius * torch.stack([e.cos() * azimuth.cos(), e.cos() * azimuth.sin(), e.sin()], -1)


def tilt() -> Tensor:
    """A world whose up is no axis."""
    a, b = 0.6, -0.4
    x = torch.tensor([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    y = torch.tensor([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    return (x @ y).double()


def assert_sound(path: Cameras, n: int) -> None:
    assert len(path) == n
    rotation = path.c2w[:, :, :3]
    identity = torch.eye(3, dtype=torch.float64).expand(n, 3, 3)
    assert torch.allclose(rotation.transpose(1, 2) @ rotation, identity, atol=1e-9)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(n).double())
    assert (path.size % 2 == 0).all()
    assert all(lens.is_pinhole for lens in path.lenses)
    assert torch.isfinite(path.c2w).all()
    assert torch.equal(path.principal, path.size.double() / 2)


def test_cameras_all_around_give_a_level_circle_at_their_height() -> None:
    turn, shift = tilt(), torch.tensor([0.5, -1.0, 2.0]).double()
    positions = torch.cat([ring(0, 6.0, 20, 0.3), ring(0.1, 6.1, 20, 0.5), ring(0, 6, 20, 0.4)])
    cameras = looking(positions @ turn.T + shift, shift.expand(60, 3), turn @ UP)
    path = paths.orbit(cameras, BOX, 40)
    assert_sound(path, 40)
    local = (path.positions - shift) @ turn
    assert torch.allclose(local.norm(dim=-1), torch.full((40,), 4.0).double(), atol=1e-6)
    elevation = torch.asin(local[:, 2] / 4.0)
    assert torch.allclose(elevation, torch.full((40,), 0.4).double(), atol=1e-3)
    azimuth = torch.atan2(local[:, 1], local[:, 0])
    steps = torch.remainder(azimuth.roll(-1) - azimuth, 2 * math.pi)
    assert torch.allclose(steps, torch.full((40,), 2 * math.pi / 40).double(), atol=1e-3)
    down = path.c2w[:, :, 1] @ (turn @ UP)
    assert (down < 0).all()  # upright
    assert path.size[0].tolist() == [40, 32]
    assert path.focal[0].tolist() == pytest.approx([50 * 40 / 41, 50 * 32 / 31])


def test_an_arc_is_swept_and_never_left() -> None:
    positions = torch.cat([ring(-0.8, 0.8, 15, e) for e in (-0.2, 0.1, 0.4)])
    cameras = looking(positions, torch.zeros(45, 3).double())
    path = paths.orbit(cameras, BOX, 60)
    assert_sound(path, 60)
    azimuth = torch.atan2(path.positions[:, 1], path.positions[:, 0])
    elevation = torch.asin(path.positions[:, 2] / path.positions.norm(dim=-1))
    assert 0.6 < float(azimuth.max()) < 0.8
    assert -0.8 < float(azimuth.min()) < -0.6
    assert -0.2 < float(elevation.min()) < float(elevation.max()) < 0.4
    # closed: the last step is as short as the others
    steps = (path.positions.roll(-1, 0) - path.positions).norm(dim=-1)
    assert float(steps[-1]) <= float(steps.max()) < 0.5
    assert torch.cdist(path.positions, positions).amin(1).max() < 1.2


def test_up_survives_cameras_that_are_held_slanted() -> None:
    positions = ring(0, 6, 24, 0.7)
    cameras = looking(positions, torch.zeros(24, 3).double())
    for i in range(3):  # three are held sideways
        x, y = cameras.c2w[i, :, 0].clone(), cameras.c2w[i, :, 1].clone()
        cameras.c2w[i, :, 0], cameras.c2w[i, :, 1] = y, -x
    up = find_upright(cameras.c2w.numpy()).up
    assert float(torch.from_numpy(up) @ UP) > math.cos(math.radians(2))


def test_cameras_over_the_whole_sphere_are_orbited_from_a_little_above() -> None:
    positions = torch.cat([ring(0, 6, 12, e) for e in (-1.0, -0.5, 0.0, 0.5, 1.0)])
    path = paths.orbit(looking(positions, torch.zeros(60, 3).double()), BOX, 10)
    elevation = torch.asin(path.positions[:, 2] / 4.0)
    assert torch.allclose(elevation, torch.full((10,), math.radians(20)).double(), atol=0.01)


def test_forward_facing_cameras_get_a_spiral() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(20, 3, generator=generator, dtype=torch.float64) - 0.5
    positions[:, 2] *= 0.1
    ahead = torch.tensor([0.0, 1.0, 0.0]).double()
    cameras = looking(positions, positions + ahead)
    assert common_focus(cameras) is None
    path = paths.orbit(cameras, Box((0.0, 5.0, 0.0), 1.0), 30)
    assert_sound(path, 30)
    assert (path.positions.abs().amax(0) < positions.abs().amax(0) + 0.2).all()
    assert (path.forwards @ ahead > 0.9).all()
    spread = path.positions.amax(0) - path.positions.amin(0)
    assert float(spread[0]) > 0.5


def test_outward_cameras_are_followed() -> None:
    positions = ring(0, 6, 20, 0.0, radius=1.0)
    cameras = looking(positions, 3 * positions)
    path = paths.orbit(cameras, BOX, 60)
    assert_sound(path, 60)
    outward = torch.nn.functional.normalize(path.positions, dim=-1)
    assert ((path.forwards * outward).sum(-1) > 0.9).all()


def test_interpolation_passes_its_cameras_smoothly_and_around_the_object() -> None:
    positions = ring(0, 5.5, 12, 0.2)
    cameras = looking(positions, torch.zeros(12, 3).double())
    shuffled = cameras[[7, 2, 11, 0, 5, 9, 1, 4, 10, 3, 8, 6]]
    for given in (cameras, shuffled):
        path = paths.interpolate(given, BOX, 111)
        assert_sound(path, 111)
        apart = torch.cdist(positions, path.positions).amin(1)
        assert float(apart.max()) < 0.15  # between two frames, 0.2 apart
        steps = path.positions.diff(dim=0).norm(dim=-1)
        assert float(steps.max()) < 2 * float(steps.median())
        assert float(path.positions.norm(dim=-1).min()) > 3.95
        inward = -torch.nn.functional.normalize(path.positions, dim=-1)
        assert float((path.forwards * inward).sum(-1).min()) > 0.999


@pytest.mark.parametrize("n", [1, 2, 6, 12, 60, 120])
def test_interpolation_keeps_the_object_in_the_picture(n: int) -> None:
    """Also between cameras that look from opposite sides, which few frames leave as neighbours."""
    index = torch.arange(84).double()
    z, azimuth = 1.9 * (index + 0.5) / 84 - 0.95, 2.4 * index
    across = (1 - z * z).sqrt()
    positions = 4 * torch.stack([across * azimuth.cos(), across * azimuth.sin(), z], dim=1)
    offset = torch.tensor([0.3, 0.2, 0.1]).double()
    for at in (torch.zeros(84, 3).double(), offset.expand(84, 3)):
        path = paths.interpolate(looking(positions + at, at), BOX, n)
        assert_sound(path, n)
        inward = torch.nn.functional.normalize(at[0] - path.positions, dim=-1)
        assert float((path.forwards * inward).sum(-1).min()) > 1 - 1e-6
        assert float((path.positions - at[0]).norm(dim=-1).min()) > 3.9
        steps = path.positions.diff(dim=0).norm(dim=-1)
        assert n < 12 or float(steps.max()) < 3 * float(steps.median())


def test_aim_turns_by_the_least_angle() -> None:
    rng = np.random.default_rng(0)
    rotations = Rotation.random(50, rng).as_matrix()
    vectors, wanted = rng.normal(size=(2, 50, 3))
    got = splines.aim(rotations, vectors, wanted)
    np.testing.assert_allclose(
        got @ got.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-9
    )
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(splines.local_directions(got, vectors), unit, atol=1e-9)
    before = splines.local_directions(rotations, vectors)
    angle = Rotation.from_matrix(rotations.transpose(0, 2, 1) @ got).magnitude()
    np.testing.assert_allclose(angle, np.arccos((before * unit).sum(1)), atol=1e-6)


@pytest.mark.parametrize("make", [paths.orbit, paths.spiral, paths.interpolate])
@pytest.mark.parametrize("n_cameras", [1, 2])
def test_few_cameras_and_few_frames_still_give_a_path(make, n_cameras: int) -> None:
    cameras = looking(ring(0, 0.5, 2, 0.3), torch.zeros(2, 3).double())[:n_cameras]
    for n in (1, 7):
        assert_sound(make(cameras, BOX, n), n)


def test_cameras_straight_above_do_not_break_the_frame() -> None:
    positions = torch.tensor([[0.1, 0, 4.0], [0, 0.1, 4.0], [-0.1, 0, 4.0], [0, -0.1, 4.0]])
    positions = positions.double()
    # each is turned by 90 degrees against the last, so that their own ups cancel
    down = looking(positions, positions * torch.tensor([1.0, 1.0, 0.0]).double(), positions)
    for make in (paths.orbit, paths.spiral, paths.interpolate):
        assert_sound(make(down, BOX, 8), 8)


@pytest.mark.parametrize(("name", "around"), [("lego", True), ("fox", False), ("pc_tower", False)])
def test_real_captures(name: str, around: bool) -> None:
    root = os.environ.get("NERF_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"NERF_DATA does not hold the scene {name}")
    scene = load_scene(Path(root) / name)
    cameras = scene.cameras[list(scene.splits["train"])]
    path = paths.orbit(cameras, scene.box, 60)
    assert_sound(path, 60)
    found = common_focus(cameras)
    assert found is not None
    distances = (path.positions - found[0]).norm(dim=-1)
    trained = (cameras.positions - found[0]).norm(dim=-1)
    assert float(trained.min()) < float(distances.min())
    assert float(distances.max()) <= float(trained.max()) + 1e-6
    # lego's hemisphere is sparse at 100 views, the hand-held arcs are dense
    nearest = torch.cdist(path.positions, cameras.positions).amin(1) / distances
    assert float(nearest.max()) < 0.5
    up = torch.from_numpy(find_upright(cameras.c2w.numpy()).up)
    assert float(up[2]) > 0.99  # all three sources have z up
    level = torch.tensor([1.0, 1.0, 0.0]).double()
    side = ((cameras.positions - found[0]) * level).mean(0)
    behind = bool(((path.positions - found[0]) @ side < 0).any())
    assert behind == around  # only lego has been seen from all sides

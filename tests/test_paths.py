"""Camera paths keep to where the training cameras were."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from typer.testing import CliRunner

from nerfcli.cameras import paths, splines
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.orbit import Orbit, shown
from nerfcli.cameras.upright import Upright, find_upright, straighten, up_of_images
from nerfcli.cli import app
from nerfcli.core.errors import NerfError
from nerfcli.engine.path_request import PathRequest
from nerfcli.engine.plan import Plan, plan_path
from nerfcli.scenes import load_scene
from nerfcli.scenes.scene import Scene, Similarity

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
    assert path.size[0].tolist() == [41, 31]  # odd sizes stay
    assert path.focal[0].tolist() == pytest.approx([50, 50])


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


def test_the_path_is_chosen_by_the_cameras() -> None:
    zero, ahead = torch.zeros(20, 3).double(), torch.tensor([0.0, 1.0, 0.0]).double()
    name, reason = paths.choose_path(looking(ring(0, 6.0, 20, 0.3), zero))
    assert name == "orbit" and "all around" in reason
    name, reason = paths.choose_path(looking(ring(0, math.radians(100), 20, 0.3), zero))
    assert name == "orbit" and reason.endswith("°")
    side = torch.linspace(-1, 1, 20).double()[:, None] * torch.tensor([0.5, 0.0, 0.2]).double()
    assert paths.choose_path(looking(side, side + ahead))[0] == "spiral"
    out = ring(0, 6, 20, 0.0, radius=1.0)
    assert paths.choose_path(looking(out, 3 * out))[0] == "interpolate"
    for n in (1, 2, 3):
        assert paths.choose_path(looking(out[:1].expand(n, 3), 3 * out[:1].expand(n, 3)))[0]


def test_a_circle_follows_the_height_and_distance_of_the_cameras_nearby() -> None:
    """On a table by a wall: near and low on one side, far and high on the other."""
    azimuth = torch.linspace(0, 6.1, 60, dtype=torch.float64)
    far = 0.5 - 0.5 * azimuth.cos()  # 0 at azimuth 0, 1 opposite
    elevation, radius = 0.2 + 0.5 * far, 2 + 2 * far
    around = [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()]
    positions = radius[:, None] * torch.stack(around, -1)
    path = paths.orbit(looking(positions, torch.zeros(60, 3).double()), BOX, 60)
    assert_sound(path, 60)
    assert float(torch.cdist(path.positions, positions).amin(1).max()) < 0.3
    distances = path.positions.norm(dim=-1)
    assert float(distances.min()) < 2.2
    assert float(distances.max()) > 3.8


def test_a_gap_in_the_round_is_not_flown_through() -> None:
    positions = ring(0, math.radians(265), 40, 0.4)
    path = paths.orbit(looking(positions, torch.zeros(40, 3).double()), BOX, 60)
    assert float(torch.cdist(path.positions, positions).amin(1).max()) < 0.3


def test_an_orbit_looks_where_the_cameras_nearby_look() -> None:
    positions = ring(0, 2.0, 40, 0.2)
    targets = torch.linspace(-0.5, 0.5, 40).double()[:, None] * UP
    path = paths.orbit(looking(positions, targets), BOX, 40)
    first, last = path.positions[:, 0].argmax(), path.positions[:, 0].argmin()
    level = torch.tensor([1.0, 1.0, 0.0]).double()
    for frame, side in ((first, -1), (last, 1)):
        position, forward = path.positions[frame], path.forwards[frame]
        passed = position + forward * (position * level).norm() / (forward * level).norm()
        assert side * float(passed[2]) > 0.1


@pytest.mark.parametrize("turn", [1, 3])
def test_videos_of_photos_on_their_side_stand_upright(turn: int) -> None:
    upright = looking(ring(0, 6, 30, 0.5), torch.zeros(30, 3).double())
    turns = np.full(30, turn)
    lying = straighten(upright, (4 - turns) % 4)  # the inverse turn
    assert lying.size[0].tolist() == [31, 41]
    for make in paths.PATHS.values():
        got, wanted = make(lying, BOX, 12, None), make(upright, BOX, 12, None)
        assert_sound(got, 12)
        torch.testing.assert_close(got.c2w, wanted.c2w, atol=1e-9, rtol=0)
        assert torch.equal(got.size, wanted.size)
        torch.testing.assert_close(got.focal, wanted.focal)
    as_stored = paths.orbit(lying, BOX, 12, up_of_images(lying.c2w.numpy()))
    assert as_stored.size[0].tolist() == [31, 41]


def walk(n: int = 80) -> Tensor:
    """Positions round three corners of a yard, at the height of eyes that bob."""
    t = torch.linspace(0, 3.5, n, dtype=torch.float64)
    corners = torch.tensor([[0, 0], [4, 0], [4, 4], [0, 4], [0, 2]]).double()
    at = t.floor().long().clamp(max=3)
    flat = corners[at] + (t - at)[:, None] * (corners[at + 1] - corners[at])
    return torch.cat([flat, 1.6 + 0.03 * (9 * t)[:, None].sin()], 1)


def test_a_walk_is_followed_smoothly_and_level() -> None:
    """The hand shakes and rolls, and looks outwards from the way; the video does not shake."""
    generator = torch.Generator().manual_seed(0)
    positions = walk()
    middle = torch.tensor([2.0, 2.0, 1.6]).double()
    shake = 0.1 * torch.randn(80, 3, generator=generator, dtype=torch.float64)
    cameras = looking(positions, positions + (positions - middle) + shake)
    path = paths.interpolate(cameras, BOX, 120)
    assert_sound(path, 120)
    assert float(torch.cdist(path.positions, positions).amin(1).max()) < 0.5
    assert float(path.c2w[:, 2, 0].abs().max()) < 1e-3  # level
    assert float(path.c2w[:, 2, 1].max()) < 0
    turned = (path.forwards[1:] * path.forwards[:-1]).sum(-1).clamp(-1, 1).acos()
    assert float(turned.max()) < math.radians(8)
    steps = path.positions.diff(dim=0).norm(dim=-1)
    assert float(steps.max()) < 0.25  # 14 m in 120 frames, and turning


def test_a_walk_in_a_random_order_is_still_short() -> None:
    positions = walk(40)
    order = np.random.default_rng(0).permutation(40).tolist()
    middle = torch.tensor([2.0, 2.0, 1.6]).double()
    cameras = looking(positions, 2 * positions - middle)[order]
    path = paths.interpolate(cameras, BOX, 60)
    assert float(path.positions.diff(dim=0).norm(dim=-1).sum()) < 16


@pytest.mark.parametrize("n_cameras", [1, 2, 5])
@pytest.mark.parametrize("make", paths.PATHS.values())
def test_cameras_at_one_place_still_give_a_path(make, n_cameras: int) -> None:
    same = torch.ones(n_cameras, 3).double()
    for target in ([2.0, 1.0, 1.0], [1.0, 1.0, -3.0]):
        cameras = looking(same, torch.tensor([target] * n_cameras).double(), UP + 0.01)
        for n in (1, 5):
            assert_sound(make(cameras, BOX, n, None), n)


def scene_json(cameras: Cameras, **changed: Any) -> dict[str, Any]:
    """What a run would hold of a scene of these cameras, of which the first is held out."""
    names, nothing = tuple(str(i) for i in range(len(cameras))), (None,) * len(cameras)
    rotation = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
    turned = changed.pop("scene_from_source", Similarity(rotation=rotation))
    splits = {"train": tuple(range(1, len(cameras))), "test": (0,)}
    scene = Scene(
        *("s", None, "k", names, cameras, nothing, nothing, nothing, "black", splits, BOX),
        *(0.1, 9.0, "black", False, turned, "given"),
        **changed,
    )
    return json.loads(json.dumps(scene.to_json()))


def planned(
    cameras: Cameras,
    path: str,
    up: str | None = None,
    asked: dict[str, Any] | None = None,
    **changed: Any,
) -> Plan:
    """What `nerf render` would show of a scene of these cameras."""
    run: Any = SimpleNamespace(scene_json=scene_json(cameras, **changed))
    return plan_path(run, PathRequest(**{"path": path, "up": up, "frames": 9, **(asked or {})}))


def test_render_says_which_path_and_which_way_is_up() -> None:
    cameras = looking(ring(0, 6, 30, 0.5), torch.zeros(30, 3).double())
    plan = planned(cameras, "auto")
    assert plan.name == "orbit"
    assert plan.remark == "orbit: the cameras look at one place from all around"
    np.testing.assert_allclose(plan.facts["up"], [0, -1, 0], atol=1e-2)  # of the source
    assert planned(cameras, "orbit").remark == ""
    stated = planned(cameras, "orbit", "-y")  # scene up is the source's -y
    torch.testing.assert_close(stated.cameras.c2w, plan.cameras.c2w, atol=0.02, rtol=0)
    lying = straighten(cameras, np.full(30, 3))
    plan = planned(lying, "spiral")
    assert "lie on their side" in plan.remark
    assert plan.cameras.size[0].tolist() == [41, 31]
    assert planned(lying, "spiral", "image").remark == ""
    ahead = looking(ring(0, 0.1, 9, 0.5), torch.zeros(9, 3).double())
    assert "--up" in planned(ahead, "auto").remark
    known = Upright(np.array([0.0, 0.0, 1.0]), np.zeros(9, np.int64), True, "known")
    assert planned(ahead, "auto", upright=known).remark == "spiral: all cameras face one way"
    assert len(planned(ahead, "test").cameras) == 1


def test_an_orbit_is_where_the_user_asks() -> None:
    """In units of the source, which are a half of the scene's here; up is the source's -y."""
    cameras = looking(ring(0, 6, 30, 0.5), torch.zeros(30, 3).double())
    rotation = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
    half = {"scene_from_source": Similarity(2.0, rotation, (1.0, 0.0, 0.0))}
    asked = {"target": "0.5,1,-2", "distance": 3.0, "height": 1.0, "turns": -0.5, "start": 90.0}
    plan = planned(cameras, "auto", None, {**asked, "frames": 4}, **half)
    assert (plan.name, plan.facts["path_reason"]) == ("orbit", "--target asks for it")
    target = torch.tensor([2.0, -4.0, -2.0]).double()
    offsets = plan.cameras.positions - target
    assert offsets.norm(dim=-1).tolist() == pytest.approx([6.0] * 4)
    assert offsets[:, 2].tolist() == pytest.approx([2.0] * 4, abs=0.05)  # up is fitted
    assert_sound(plan.cameras, 4)
    inward = -torch.nn.functional.normalize(offsets, dim=-1)
    torch.testing.assert_close(plan.cameras.forwards, inward, atol=1e-9, rtol=0)
    azimuths = np.unwrap(torch.atan2(offsets[:, 1], offsets[:, 0]).numpy())
    np.testing.assert_allclose(np.degrees(np.diff(azimuths)), -45, atol=1)
    only = planned(cameras, "auto", None, {**asked, "frames": 4, "frame": 2}, **half)
    torch.testing.assert_close(only.cameras.c2w, plan.cameras.c2w[2:3])
    with pytest.raises(NerfError, match="--height"):
        planned(cameras, "auto", None, {"height": 9.0})
    with pytest.raises(NerfError, match="--frame 9: the path has the frames 0 to 8"):
        planned(cameras, "orbit", None, {"frame": 9})
    outward = looking(ring(0, 6, 20, 0.0, radius=1.0), ring(0, 6, 20, 0.0, radius=3.0))
    with pytest.raises(NerfError, match="--target centre"):
        planned(outward, "auto", None, {"target": "centre"})
    boxed = planned(outward, "auto", None, {"turns": 1.0})  # without a focus, about the box
    assert boxed.cameras.positions.norm(dim=-1).tolist() == pytest.approx([1.0] * 9)


def test_a_sweep_begins_where_the_user_asks() -> None:
    cameras = looking(ring(-0.8, 0.8, 30, 0.3), torch.zeros(30, 3).double())
    for start, wanted in ((0.0, 0.0), (0.4, 0.4), (-0.4 - 2 * math.pi, -0.4)):
        path = paths.orbit(cameras, BOX, 9, None, Orbit(start=start))
        azimuth = torch.atan2(path.positions[0, 1], path.positions[0, 0])
        assert float(azimuth) == pytest.approx(wanted, abs=0.01)
    with pytest.raises(NerfError, match="--start 90: .* from -40 to 40 degrees"):
        paths.orbit(cameras, BOX, 9, None, Orbit(start=math.pi / 2))
    paths.orbit(cameras, BOX, 9, None, Orbit(start=math.pi / 2, turns=1))


def test_a_subject_in_front_of_the_focus_is_not_cut() -> None:
    """A head on a wall, at which the cameras look past it: the orbit goes round the head."""
    cameras = looking(ring(-0.8, 0.8, 30, 0.1), torch.zeros(30, 3).double())
    head = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = (0.3 * torch.nn.functional.normalize(head, dim=-1)).numpy() + [2.2, 0.0, 0.3]
    before = paths.orbit(cameras, BOX, 24)
    assert not shown(before, head).all()
    path = paths.orbit(cameras, BOX, 24, None, Orbit(subject=head))
    assert_sound(path, 24)
    assert shown(path, head).all()
    steps = (path.positions.roll(-1, 0) - path.positions).norm(dim=-1)
    assert float(steps.max()) < 3 * float(steps.median())  # no jump, also at the end
    small = head - head.mean(0)  # at the focus, and not cut: nothing changes
    torch.testing.assert_close(
        paths.orbit(cameras, BOX, 24, None, Orbit(subject=small)).c2w, before.c2w
    )


@pytest.mark.parametrize("arguments", [["--up", "north"], ["--path", "test", "--up", "+z"]])
def test_an_impossible_up_is_one_message(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["render", str(tmp_path), *arguments])
    assert isinstance(result.exception, NerfError)
    assert str(result.exception).startswith("--up")


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


LOOPS = ("orbit", "turntable", "ellipse", "figure8", "dolly", "zoom", "spiral")
ALL_AROUND = looking(ring(0, 6, 30, 0.5), torch.zeros(30, 3).double())
ON_AN_ARC = looking(
    torch.cat([ring(-0.8, 0.8, 15, e) for e in (-0.2, 0.1, 0.4)]), torch.zeros(45, 3).double()
)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("cameras", [ALL_AROUND, ON_AN_ARC], ids=["around", "arc"])
def test_loops_close_with_one_step_and_go_at_an_even_speed(name: str, cameras: Cameras) -> None:
    plan = planned(cameras, name, "-y", {"frames": 120})
    assert plan.is_loop
    steps = (plan.cameras.positions.roll(-1, 0) - plan.cameras.positions).norm(dim=-1)
    if name == "zoom":  # stands still; the focal length goes by an even factor
        assert float(steps.max()) == 0.0
        steps = (plan.cameras.focal[:, 0].log() - plan.cameras.focal[:, 0].log().roll(-1)).abs()
    assert float(steps.min()) > 0.0
    # a chord is shorter than its arc where a narrow sweep turns round
    assert float(steps.max() / steps.min()) < (1.1 if name == "orbit" else 1.02)
    assert float(steps[-1]) == pytest.approx(float(steps.median()), rel=0.03)
    turns = (plan.cameras.forwards.roll(-1, 0) - plan.cameras.forwards).norm(dim=-1)
    assert float(turns[-1]) <= 1.1 * float(turns.max()) < 0.2


def test_a_turntable_keeps_its_height_and_distance() -> None:
    positions = torch.cat([ring(0, 6, 20, 0.3), ring(0.1, 6.1, 20, 0.7, radius=5.0)])
    path = paths.turntable(looking(positions, torch.zeros(40, 3).double()), BOX, 40)
    assert float(path.positions[:, 2].std()) < 1e-3  # up and the focus are found, not given
    assert float(path.positions.norm(dim=-1).std()) < 1e-3
    on_arc = paths.turntable(ON_AN_ARC, BOX, 8)  # all round, whatever was seen
    assert float(on_arc.positions[:, 0].min()) < -3.5


def test_a_circle_is_asked_for_by_radius_and_elevation() -> None:
    def where(**asked: Any) -> tuple[float, float]:
        """Height above and distance from the upward axis, in units of the source."""
        given = {"target": "0,0,0", "frames": 8, **asked}
        offsets = planned(ALL_AROUND, "orbit", "-y", given).cameras.positions
        height, across = offsets[:, 2], offsets[:, :2].norm(dim=-1)
        assert float(height.std()) < 1e-6 and float(across.std()) < 1e-6
        return float(height.mean()), float(across.mean())

    assert where(radius=3.0, height=1.0) == pytest.approx((1.0, 3.0))
    assert where(radius=3.0, elevation=45.0) == pytest.approx((3.0, 3.0))
    assert where(distance=2.0, elevation=30.0) == pytest.approx((1.0, math.sqrt(3.0)))
    assert where(radius=3.0) == pytest.approx((3.0 * math.tan(0.5), 3.0), rel=1e-2)


def test_train_shows_the_training_views_and_panoramas_are_level() -> None:
    views = planned(ALL_AROUND, "train", asked={"frames": None})
    assert len(views.cameras) == 29 and not views.is_loop
    torch.testing.assert_close(views.cameras.c2w, ALL_AROUND.c2w[1:])
    asked = {"camera": "ods", "resolution": "64x32", "ipd": 0.1}
    plan = planned(ALL_AROUND, "orbit", "-y", asked)
    assert plan.cameras.size[0].tolist() == [64, 64]
    assert float(plan.cameras.forwards[:, 2].abs().max()) < 1e-9
    assert (
        "0.064 of the scene's units" in planned(ALL_AROUND, "orbit", "-y", {"camera": "ods"}).remark
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"distance": 2.0, "radius": 1.0}, "--distance is from the target, --radius"),
        ({"height": 2.0, "elevation": 1.0}, "--height and --elevation both say"),
        ({"elevation": 90.0}, "--elevation must be above -90"),
        ({"radius": 0.0}, "--radius must be above 0"),
        ({"frames": 9, "seconds": 3.0, "fps": 3.0}, "--frames, --seconds and --fps"),
        ({"frames": 9, "speed": 2.0}, "--speed sets the number of frames, as --frames"),
        ({"seconds": 0.0}, "--seconds must be above 0"),
        ({"seconds": 1e9}, r"--seconds 1e\+09: a path has at most 100000 frames"),
        ({"seconds": 1e308, "fps": 240.0}, "at most 100000 frames"),
        ({"frames": 10**7}, "--frames 10000000: a path has at most"),
        ({"speed": 1e-9}, "--speed 1e-09: a path has at most"),
        ({"speed": 5e-324}, "at most 100000 frames"),
        ({"turns": 0.0}, "--turns 0 goes nowhere"),
        ({"frames": 9, "seconds": 1e-3}, "frames a second; from 1 to 240"),
        ({"speed": math.inf}, "--speed must be above 0"),
        ({"fov": 180.0}, "--fov must be from"),
        ({"fov": 50.0, "camera": "ods"}, "--fov: --camera ods sees all around"),
        ({"camera": "pinhole"}, "unknown camera 'pinhole'; known: perspective"),
        ({"resolution": "1920"}, "--resolution: '1920' is no size"),
        ({"resolution": "0x9"}, "--resolution: '0x9' is no size"),
        ({"ipd": 0.1}, "--ipd is between two eyes"),
        ({"path": "train", "frames": 3}, "one frame for each training view"),
        ({"path": "ellipse", "radius": 1.0}, "--radius is of an orbit, turntable, figure8"),
        ({"path_transform": Path("x.json")}, "--path-transform is of a path's file"),
        ({"path": "nowhere.json"}, "unknown path 'nowhere.json'; known: auto, orbit"),
    ],
)
def test_what_cannot_be_met_together_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(NerfError, match=message):
        PathRequest(**asked).ensure_possible()

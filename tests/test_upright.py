"""Which way is up, also where photos lie on their side."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rotations import level, look_at
from nerfcli.cameras.upright import (
    find_floor,
    find_upright,
    quarter_turns,
    restrict,
    straighten,
    up_along,
    up_of_images,
)
from nerfcli.scenes import load_scene
from nerfcli.scenes.images import exif_turn
from nerfcli.scenes.scene import Scene

Z = np.array([0.0, 0.0, 1.0])


def capture(reach: float, height: float, n: int = 30, shake: float = 0.05) -> np.ndarray:
    """Upright poses on an arc, held by a shaking hand. [n, 3, 4]"""
    rng = np.random.default_rng(0)
    azimuths = np.linspace(0, reach, n)
    positions = np.stack([3 * np.cos(azimuths), 3 * np.sin(azimuths), np.full(n, height)], axis=-1)
    c2w = look_at(positions, rng.normal(0, 0.1, (n, 3)), Z)
    return rolled(c2w, rng.normal(0, shake, n))


def rolled(c2w: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turn poses about their optical axes by angles [n]."""
    cos, sin = np.cos(angles), np.sin(angles)
    spin = np.zeros((len(c2w), 3, 3))
    spin[:, 0, 0] = spin[:, 1, 1] = cos
    spin[:, 0, 1], spin[:, 1, 0], spin[:, 2, 2] = -sin, sin, 1
    return np.concatenate([c2w[:, :, :3] @ spin, c2w[:, :, 3:]], axis=-1)


def lying(c2w: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Poses of the same photos, stored so that np.rot90(image, turns) sets them upright."""
    return rolled(c2w, -np.asarray(turns) * math.pi / 2)


def degrees_off(up: np.ndarray, wanted: np.ndarray = Z) -> float:
    return math.degrees(math.acos(min(1.0, float(up @ wanted))))


@pytest.mark.parametrize("reach", [1.5, 3.0, 6.2])
@pytest.mark.parametrize("turn", [0, 1, 3])
def test_a_whole_capture_on_its_side_is_found(reach: float, turn: int) -> None:
    turns = np.full(30, turn)
    got = find_upright(lying(capture(reach, 1.5), turns))
    assert degrees_off(got.up) < 5
    assert (got.turns == turns).all()
    assert got.is_certain
    assert ("side" in got.reason) == bool(turn)


def test_photos_of_both_kinds_in_one_capture_are_told_apart() -> None:
    turns = (np.random.default_rng(1).random(30) < 0.4).astype(int)
    got = find_upright(lying(capture(4.0, 1.0), turns))
    assert degrees_off(got.up) < 5
    assert (got.turns == turns).all()


def test_level_cameras_on_their_side_are_found_but_not_from_which_side() -> None:
    """Seen from its own height, nothing tells the left edge of the photos from the right."""
    got = find_upright(lying(capture(4.0, 0.0), np.full(30, 1)))
    assert abs(got.up[2]) > 0.99
    assert not got.is_certain


@pytest.mark.parametrize("turn", [1, 3])
def test_a_floor_tells_what_the_cameras_do_not(turn: int) -> None:
    rng = np.random.default_rng(2)
    floor = rng.uniform(-3, 3, (400, 3)) * [1, 1, 0] + [0, 0, -0.8]
    points = np.concatenate([floor, rng.normal(0, 0.3, (400, 3))])
    c2w = lying(capture(4.0, 0.0), np.full(30, turn))
    normal = find_floor(points, c2w)
    assert normal is not None and normal[2] > 0.99
    got = find_upright(c2w, points)
    assert degrees_off(got.up) < 5
    assert (got.turns == turn).all()
    assert got.is_certain


def test_a_wall_that_the_cameras_face_is_no_floor() -> None:
    rng = np.random.default_rng(3)
    wall = rng.uniform(-2, 2, (400, 3)) * [0, 1, 1]
    positions = rng.uniform(-0.5, 0.5, (10, 3)) + [3, 0, 0]
    c2w = look_at(positions, np.zeros(3), Z)
    assert find_floor(wall, c2w) is None
    assert find_floor(np.zeros((200, 3)), c2w) is None
    assert find_floor(wall[:10], c2w) is None


def test_photos_that_all_face_one_way_are_taken_as_they_stand_and_that_is_said() -> None:
    positions = np.random.default_rng(4).uniform(-0.3, 0.3, (12, 3))
    got = find_upright(look_at(positions, np.array([0.0, 4.0, 0.0]), Z))
    assert degrees_off(got.up) < 5
    assert not got.is_certain
    assert got.reason == "as the photos stand"


def test_exif_is_believed() -> None:
    positions = np.random.default_rng(4).uniform(-0.3, 0.3, (12, 3))
    turns = np.array([1] * 8 + [0] * 4)
    c2w = lying(look_at(positions, np.array([0.0, 4.0, 0.0]), Z), turns)
    got = find_upright(c2w, exif_turns=turns)
    assert degrees_off(got.up) < 5
    assert got.is_certain
    assert (got.turns == turns).all()


def test_cameras_that_roll_are_said_to() -> None:
    angles = np.random.default_rng(5).uniform(0, 2 * math.pi, 40)
    got = find_upright(rolled(capture(6.2, 1.0, 40), angles))
    assert np.isfinite(got.up).all()
    assert not got.is_certain


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_equal_and_steep_cameras_have_an_up(n: int) -> None:
    for target in ([1.0, 0.0, 0.0], [0.0, 0.0, -1.0]):
        c2w = look_at(np.zeros((n, 3)), np.array(target), Z)
        for got in (find_upright(c2w), find_upright(c2w, np.zeros((100, 3)))):
            assert np.linalg.norm(got.up) == pytest.approx(1)
            assert got.turns.shape == (n,)


def test_a_stated_direction_decides() -> None:
    c2w = capture(6.2, 1.0)
    got = up_along(c2w, np.array([0.0, 0.0, -2.0]))
    assert got.up.tolist() == [0, 0, -1]
    assert (got.turns == 2).all()
    as_they_stand = up_of_images(lying(c2w, np.full(30, 1)))
    assert (as_they_stand.turns == 0).all()
    assert restrict(got, [3, 4]).turns.tolist() == [2, 2]


def test_straightened_cameras_see_the_same_through_turned_images() -> None:
    turns = np.arange(4)
    upright = capture(2.0, 1.0, 4, shake=0.0)
    c2w = torch.from_numpy(lying(upright, turns))
    size = torch.tensor([[40, 30]] * 4)
    focal = torch.tensor([[50.0, 55.0]] * 4, dtype=torch.float64)
    principal = torch.tensor([[18.0, 16.0]] * 4, dtype=torch.float64)
    cameras = Cameras(c2w, focal, principal, size, (Lens(),) * 4)
    straight = straighten(cameras, turns)
    np.testing.assert_allclose(straight.c2w.numpy(), upright, atol=1e-12)
    index = np.arange(40 * 30).reshape(30, 40)
    for i in range(4):
        rows, columns = np.rot90(index, i).shape
        assert straight.size[i].tolist() == [columns, rows]
        before = cameras.image_rays(i).directions.numpy().reshape(30, 40, 3)
        after = straight.image_rays(i).directions.numpy().reshape(rows, columns, 3)
        np.testing.assert_allclose(after, np.rot90(before, i), atol=1e-6)
    assert (quarter_turns(straight.c2w.numpy(), Z) == 0).all()


def test_levelling_keeps_the_optical_axis_and_spares_steep_cameras() -> None:
    c2w = rolled(capture(6.2, 1.0), np.full(30, 0.4))
    got = level(c2w, Z)
    np.testing.assert_allclose(got[:, 2, 0], 0, atol=1e-9)
    np.testing.assert_array_equal(got[:, :, 2:], c2w[:, :, 2:])
    assert (got[:, 2, 1] < 0).all()
    down = rolled(look_at(np.array([[0.1, 0.0, 5.0]]), np.zeros(3), Z), np.array([1.0]))
    np.testing.assert_allclose(level(down, Z), down)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1), (5, 0)])
def test_exif_turns_what_is_read_as_stored(tmp_path: Path, orientation: int, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 4)).save(path, exif=exif)
    assert exif_turn(path, (8, 4)) == turn
    if orientation >= 5:  # reading with this size turns the pixels themselves
        assert exif_turn(path, (4, 8)) == 0
    path.write_bytes(b"no image")
    assert exif_turn(path, (8, 4)) == 0


def test_a_scene_knows_its_up_and_keeps_it_in_a_run(ball: Path) -> None:
    read = load_scene(ball)
    assert read.upright is not None
    back = Scene.from_json(json.loads(json.dumps(read.to_json())))
    assert back.upright is not None
    np.testing.assert_array_equal(back.upright.up, read.upright.up)
    np.testing.assert_array_equal(back.upright.turns, read.upright.turns)
    assert back.upright.reason == read.upright.reason
    before = replace(read, upright=None).to_json()
    assert Scene.from_json(before).upright is None
    del before["upright"]
    assert Scene.from_json(before).upright is None

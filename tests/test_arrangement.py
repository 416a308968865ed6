"""How cameras stand to what they show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nerfcli.cameras.arrangement import arrangement_of
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rotations import look_at

Z = np.array([0.0, 0.0, 1.0])


def cameras_at(positions: np.ndarray, targets: np.ndarray) -> Cameras:
    c2w = torch.from_numpy(look_at(positions, targets, Z))
    size = torch.tensor([[40, 30]] * len(c2w))
    focal = torch.full((len(c2w), 2), 40.0, dtype=torch.float64)
    return Cameras(c2w, focal, size / 2.0, size, (Lens(),) * len(c2w))


def circle(azimuths: np.ndarray, radius: float = 3.0, height: float = 1.0) -> np.ndarray:
    x, y = radius * np.cos(azimuths), radius * np.sin(azimuths)
    return np.stack([x, y, np.full_like(x, height)], axis=-1)


@pytest.mark.parametrize("reach", [0.9, 2.0, 6.2])
def test_cameras_that_look_at_one_place_stand_around_it(reach: float) -> None:
    positions = circle(np.linspace(0, reach, 20))
    jitter = np.random.default_rng(0).normal(0, 0.1, (20, 3))
    got = arrangement_of(cameras_at(positions, jitter))
    assert got.kind == "around"
    assert got.focus is not None and np.linalg.norm(got.focus) < 0.2
    assert got.depth == pytest.approx(math.hypot(3, 1), rel=0.1)


def test_cameras_side_by_side_face_forward() -> None:
    rng = np.random.default_rng(1)
    positions = rng.uniform(-0.5, 0.5, (20, 3)) * [1, 0.1, 1]
    ahead = np.array([0.0, 5.0, 0.0])
    assert arrangement_of(cameras_at(positions, positions + ahead)).kind == "forward"
    converging = arrangement_of(cameras_at(positions, np.tile(ahead, (20, 1))))
    assert converging.kind == "forward"
    assert converging.focus is not None


def test_a_walk_and_cameras_that_turn_on_the_spot_look_outward() -> None:
    along = np.linspace(0, 10, 30)
    walk = np.stack([along, np.sin(along), np.ones(30)], axis=-1)
    heading = 0.6 * along
    targets = walk + np.stack([np.cos(heading), np.sin(heading), np.zeros(30)], axis=-1)
    assert arrangement_of(cameras_at(walk, targets)).kind == "outward"
    ahead = walk + [1.0, 0.0, 0.0]
    assert arrangement_of(cameras_at(walk, ahead)).kind == "outward"
    spot = circle(np.linspace(0, 6, 20), radius=0.3, height=0.0)
    assert arrangement_of(cameras_at(spot, 3 * spot)).kind == "outward"
    random = np.random.default_rng(2).normal(size=(40, 3))
    room = np.random.default_rng(3).uniform(-2, 2, (40, 3)) * [1, 1, 0.1]
    assert arrangement_of(cameras_at(room, room + random * [1, 1, 0.3])).kind == "outward"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_or_equal_cameras_have_an_arrangement(n: int) -> None:
    same = np.tile([1.0, 2.0, 3.0], (n, 1))
    got = arrangement_of(cameras_at(same, same + [1.0, 0.0, 0.0]))
    assert got.kind in ("forward", "outward")
    assert got.focus is None or np.isfinite(got.focus).all()

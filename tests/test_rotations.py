"""Rotations between directions, look-at poses and the cameras' mean upward axis."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nerfcli.cameras.rotations import least_rotation, look_at, mean_up

Z = np.array([0.0, 0.0, 1.0])


def directions(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_least_rotation_turns_one_direction_onto_the_other_by_their_angle() -> None:
    a, b = directions(50, 0), directions(50, 1)
    a[0], b[0] = Z, -Z  # every axis is as good
    a[1], b[1] = directions(1, 2)[0], -directions(1, 2)[0]
    a[2] = b[2]
    rotations = least_rotation(a, b)
    np.testing.assert_allclose((rotations @ a[:, :, None])[..., 0], b, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    angle = np.arccos(np.clip((a * b).sum(1), -1, 1))
    # the arc cosine loses half the digits near 0 and pi
    np.testing.assert_allclose(Rotation.from_matrix(rotations).magnitude(), angle, atol=1e-7)
    np.testing.assert_array_equal(least_rotation(a[5], b[5]), rotations[5])


def test_look_at_puts_the_target_on_the_optical_axis_and_keeps_the_horizon() -> None:
    positions, target = 3 * directions(20, 3), np.array([0.1, -0.2, 0.3])
    poses = look_at(positions, target, Z)
    local = np.einsum("nji,nj->ni", poses[:, :, :3], target - positions)
    np.testing.assert_allclose(local[:, :2], 0.0, atol=1e-12)
    assert (local[:, 2] > 0).all()
    np.testing.assert_allclose(np.linalg.det(poses[:, :, :3]), 1.0)
    np.testing.assert_allclose(poses[:, 2, 0], 0.0, atol=1e-12)  # x axes are level
    assert (poses[:, 2, 1] < 0).all()  # y points down
    np.testing.assert_array_equal(poses[:, :, 3], positions)


def test_look_at_works_straight_down() -> None:
    pose = look_at(np.array([[0.0, 0.0, 2.0]]), np.zeros(3), Z)[0]
    np.testing.assert_allclose(pose[:, 2], -Z, atol=1e-12)
    np.testing.assert_allclose(pose[:, :3].T @ pose[:, :3], np.eye(3), atol=1e-12)


@pytest.mark.parametrize("down", [-Z, np.array([0.6, 0.0, -0.8])])
def test_up_is_against_the_view_where_headings_cancel(down: np.ndarray) -> None:
    """Views of a drone straight down: their own up axes lie in the ground and cancel."""
    turns = Rotation.from_rotvec(np.linspace(0, 2 * np.pi, 8, endpoint=False)[:, None] * down)
    pose = look_at(np.zeros((1, 3)), down, Z if down[0] else np.array([0.0, 1.0, 0.0]))[0]
    c2w = np.concatenate([turns.as_matrix() @ pose[:, :3], np.zeros((8, 3, 1))], axis=2)
    np.testing.assert_allclose(mean_up(c2w), -down, atol=1e-12)


def test_up_is_the_mean_of_the_cameras_own_and_else_z() -> None:
    eyes = np.array([[2.0, 0, 1], [-2, 0, 1], [0, 2, 1], [0, -2, 1]])
    np.testing.assert_allclose(mean_up(look_at(eyes, np.zeros(3), Z)), Z, atol=1e-12)
    tilted = look_at(eyes[:1], np.zeros(3), Z)
    np.testing.assert_allclose(mean_up(tilted), -tilted[0, :, 1], atol=1e-12)
    opposite = np.concatenate([tilted, tilted])
    opposite[1, :, 1:3] *= -1
    np.testing.assert_array_equal(mean_up(opposite), Z)

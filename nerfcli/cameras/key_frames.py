"""Smooth flights through key frames: poses, and focal lengths with them."""

from __future__ import annotations

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.splines import b_spline, catmull_rom, rotation_spline

Array = np.ndarray
DENSE = 16  # places a frame, or a key frame, at which the length of the flight is measured
WRAPPED = 3  # key frames of a loop that are repeated at either end


def fly_through(keys: Cameras, n_frames: int, *, is_loop: bool) -> Cameras:
    """Pass all key frames, at an even speed, on centripetal Catmull-Rom splines.

    Args:
        keys: cameras of one lens and size. is_loop: fly from the last back to the first.
    """
    n = len(keys)
    if n == 1:
        return keys[[0] * n_frames]
    rows = [i % n for i in range(-WRAPPED, n + WRAPPED + 1)] if is_loop else list(range(n))
    c2w = keys.c2w[rows].numpy()
    steps = np.linalg.norm(np.diff(c2w[:, :, 3], axis=0), axis=-1)
    turns = np.linalg.norm(np.diff(c2w[:, :, 2], axis=0), axis=-1)
    spread = c2w[:, :, 3] - c2w[:, :, 3].mean(0)
    size = max(float(np.median(np.linalg.norm(spread, axis=-1))), 1e-9)
    moved = steps + size * turns  # turning on the spot takes its time, too
    knots = np.concatenate([[0.0], np.sqrt(moved + 1e-3 * moved.mean() + 1e-9).cumsum()])
    first, last = (WRAPPED, WRAPPED + n) if is_loop else (0, n - 1)

    dense = np.linspace(knots[first], knots[last], DENSE * max(n_frames, len(rows)) + 1)
    places = catmull_rom(knots, c2w[:, :, 3], dense)
    ahead = rotation_spline(knots, c2w[:, :, :3], dense)[:, :, 2]
    gone = np.linalg.norm(np.diff(places, axis=0), axis=-1)
    gone = gone + size * np.linalg.norm(np.diff(ahead, axis=0), axis=-1)
    way = np.concatenate([[0.0], (gone + 1e-9 * size).cumsum()])
    shares = np.arange(n_frames) / max(n_frames if is_loop else n_frames - 1, 1)
    at = np.interp(shares * way[-1], way, dense)
    positions = catmull_rom(knots, c2w[:, :, 3], at)
    rotations = rotation_spline(knots, c2w[:, :, :3], at)
    focal = np.exp(catmull_rom(knots, np.log(keys.focal[rows].numpy()), at))
    return _like(keys, rotations, positions, focal)


def b_spline_through(keys: Cameras, n_frames: int, *, is_loop: bool, order: int = 3) -> Cameras:
    """Fly as instant-ngp does: a uniform B-spline near the key frames, of order 1 or 3.

    Frame i of n is at i / n of the whole time, so that the last key frame is not reached.
    """
    from scipy.spatial.transform import Rotation

    n = len(keys)
    at = np.arange(n_frames) / n_frames * (n if is_loop else n - 1)
    quaternions = Rotation.from_matrix(keys.c2w[:, :, :3].numpy()).as_quat()
    half = keys.size.double().numpy() / 2  # its angles are mixed
    angles = np.arctan(half / keys.focal.numpy())
    values = np.concatenate([keys.positions.numpy(), angles, quaternions], axis=1)
    mixed = b_spline(values, at, is_loop=is_loop, order=order)
    rotations = Rotation.from_quat(mixed[:, 5:]).as_matrix()
    return _like(keys, rotations, mixed[:, :3], half[:1] / np.tan(mixed[:, 3:5]))


def _like(keys: Cameras, rotations: Array, positions: Array, focal: Array) -> Cameras:
    n = len(positions)
    c2w = np.concatenate([rotations, positions[:, :, None]], axis=-1)
    return Cameras(
        torch.from_numpy(c2w),
        torch.from_numpy(np.ascontiguousarray(focal)),
        keys.principal[:1].repeat(n, 1),
        keys.size[:1].repeat(n, 1),
        keys.lenses[:1] * n,
    )

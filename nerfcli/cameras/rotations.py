"""Rotations and poses from directions: least rotation, look-at, the upward direction of cameras."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
CANCELLED = 0.1  # length of a mean of unit vectors, below which it has no meaningful direction


def perpendicular(direction: Array) -> Array:
    """Return a unit vector at right angles to a unit vector [3]."""
    across = np.cross(direction, np.eye(3)[np.abs(direction).argmin()])
    return across / np.linalg.norm(across)


def least_rotation(a: Array, b: Array) -> Array:
    """Rotate unit vectors a onto unit vectors b by the least angle (Rodrigues' formula).

    Args:
        a, b: [..., 3]. Between opposite vectors the axis is arbitrary.

    Returns:
        Rotations R [..., 3, 3] with R @ a = b.
    """
    axis, cosine = np.cross(a, b), (a * b).sum(-1)
    x, y, z = np.moveaxis(axis, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1)
    cross = cross.reshape(*axis.shape, 3)
    scale = np.maximum(1 + cosine, 1e-6)[..., None, None]
    rotations = np.eye(3) + cross + cross @ cross / scale
    for index in np.argwhere(cosine < -1 + 1e-6):  # Rodrigues divides by zero: half a turn
        at = tuple(index)
        half = np.cross(perpendicular(a[at]), a[at])
        rotations[at] = 2 * np.outer(half, half) - np.eye(3)
    return rotations


def look_at(positions: Array, target: Array, up: Array) -> Array:
    """Build poses at `positions` that look at `target` without roll.

    Args:
        positions: [n, 3]. target: [3] or [n, 3]. up: [3] unit length.

    Returns:
        OpenCV camera-to-world, [n, 3, 4].
    """
    forward = target - positions
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, up)
    is_defined = np.linalg.norm(right, axis=-1, keepdims=True) > 1e-6
    right = np.where(is_defined, right, np.cross(forward, perpendicular(up)))  # straight up or down
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    return np.stack([right, down, forward, positions], axis=-1)


def level(c2w: Array, up: Array) -> Array:
    """Turn cameras about their optical axes until their x axes are level.

    Cameras that look steeply up or down, where a small turn would roll them far, keep theirs.

    Args:
        c2w: [n, 3, 4] OpenCV camera-to-world. up: [3] unit length.
    """
    right, down, forward = np.moveaxis(c2w[:, :, :3], -1, 0)
    across = np.cross(forward, up)
    steepness = np.clip((np.linalg.norm(across, axis=-1) - 0.2) / 0.3, 0.0, 1.0)
    share = steepness**2 * (3 - 2 * steepness)
    roll = share * np.arctan2((across * down).sum(-1), (across * right).sum(-1))
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    axes = [cos * right + sin * down, cos * down - sin * right, forward, c2w[:, :, 3]]
    return np.stack(axes, axis=-1)


def mean_up(c2w: Array) -> Array:
    """Average the cameras' own upward axes.

    Where these cancel, as in views straight down from all headings, return the direction opposite
    to the mean viewing direction; where that cancels too, +z.

    Args:
        c2w: [n, 3, 4] OpenCV camera-to-world.

    Returns:
        [3], unit length.
    """
    for axes in (c2w[:, :, 1], c2w[:, :, 2]):
        mean = -axes.mean(0)
        length = float(np.linalg.norm(mean))
        if length >= CANCELLED:
            return mean / length
    return np.array([0.0, 0.0, 1.0])

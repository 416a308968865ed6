"""A model of structure from motion as a scene: upright, of a sensible size, its move recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens
from nerfcli.scenes.source import Source

DISTANCE = 4.0  # mean of the cameras' to what they look at, as Blender scenes and instant-ngp have
LEVEL = 0.01  # mean square of the sideways axes' second component: below, they all are alike
ROLL = 0.25  # of it out of their plane: above, the cameras were not held level


def upright(c2w: np.ndarray) -> np.ndarray:
    """The direction that is up, from how cameras are held. c2w [n, 3, 4] OpenCV -> [3], unit.

    People hold cameras level: up is square to all their sideways axes. Where those hardly differ
    (all look the same way), or span all of space (a camera that rolls), up is the mean of the
    cameras' own.
    """
    mean = -c2w[:, :, 1].mean(0)
    mean = mean / max(float(np.linalg.norm(mean)), 1e-12)
    sideways = c2w[:, :, 0]
    values, vectors = np.linalg.eigh(sideways.T @ sideways / len(c2w))
    if values[1] < LEVEL or values[0] > ROLL * values[1]:
        return mean
    return vectors[:, 0] * (1.0 if vectors[:, 0] @ mean >= 0 else -1.0)


def placed(source: Source) -> Source:
    """The scene with +z up, the origin where the cameras look, the cameras about DISTANCE away.

    x_new = applied_scale * applied_transform @ x_old, as nerfstudio records it.
    """
    c2w = np.stack([frame.c2w for frame in source.frames])
    center, distance = _middle(source, c2w)
    up = upright(c2w)
    scale = DISTANCE / distance
    rotation = _turn_to_z(up)
    move = np.concatenate([rotation, (-rotation @ center)[:, None]], axis=1)
    frames = tuple(replace(frame, c2w=_moved(frame.c2w, move, scale)) for frame in source.frames)
    points = source.points
    if points is not None:
        points = replace(points, xyz=scale * (points.xyz @ rotation.T + move[:, 3]))
    return replace(
        source, frames=frames, points=points, applied_transform=move, applied_scale=scale
    )


def _middle(source: Source, c2w: np.ndarray) -> tuple[np.ndarray, float]:
    """What the cameras look at, and their mean distance to it."""
    n = len(c2w)
    ones = torch.ones(n, 2, dtype=torch.float64)
    cameras = Cameras(torch.from_numpy(c2w), ones, ones, ones.long(), (Lens(),) * n)
    focus = common_focus(cameras)
    if focus is not None:
        center = focus[0].numpy()
    elif source.points is not None and len(source.points):
        center = np.median(source.points.xyz, axis=0)
    else:
        center = c2w[:, :, 3].mean(0)
    distance = float(np.linalg.norm(c2w[:, :, 3] - center, axis=1).mean())
    return center, max(distance, 1e-9)


def _turn_to_z(up: np.ndarray) -> np.ndarray:
    """The least rotation that takes `up` to +z. [3, 3]"""
    z = np.array([0.0, 0.0, 1.0])
    axis, cos = np.cross(up, z), float(up @ z)
    if cos < -0.999999:
        return np.diag([1.0, -1.0, -1.0])
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + k + k @ k / (1 + cos)


def _moved(c2w: np.ndarray, move: np.ndarray, scale: float) -> np.ndarray:
    rotation = move[:, :3]
    position = scale * (rotation @ c2w[:, 3] + move[:, 3])
    return np.concatenate([rotation @ c2w[:, :3], position[:, None]], axis=1)

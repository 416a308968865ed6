"""Normalise a scene from structure from motion: upright, centred, of a sensible size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rotations import least_rotation
from nerfcli.cameras.upright import find_upright
from nerfcli.scenes.source import Source

DISTANCE = 4.0  # mean distance of cameras to the focus, as in Blender scenes and instant-ngp


def normalise(source: Source) -> Source:
    """Move a scene so that +z is up, the focus is the origin and cameras are DISTANCE away.

    x_new = applied_scale * applied_transform @ x_old, as nerfstudio records it.
    """
    c2w = np.stack([frame.c2w for frame in source.frames])
    center, distance = _find_center(source, c2w)
    scale = DISTANCE / distance
    xyz = None if source.points is None else source.points.xyz
    rotation = least_rotation(find_upright(c2w, xyz).up, np.array([0.0, 0.0, 1.0]))
    transform = np.concatenate([rotation, (-rotation @ center)[:, None]], axis=1)
    frames = tuple(
        replace(frame, c2w=_transform_pose(frame.c2w, transform, scale)) for frame in source.frames
    )
    points = source.points
    if points is not None:
        points = replace(points, xyz=scale * (points.xyz @ rotation.T + transform[:, 3]))
    return replace(
        source, frames=frames, points=points, applied_transform=transform, applied_scale=scale
    )


def _find_center(source: Source, c2w: np.ndarray) -> tuple[np.ndarray, float]:
    """Find the point that the cameras look at [3], and their mean distance to it."""
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


def _transform_pose(c2w: np.ndarray, transform: np.ndarray, scale: float) -> np.ndarray:
    """Apply a rigid transform [3, 4], then a scale, to a pose [3, 4]."""
    rotation = transform[:, :3]
    position = scale * (rotation @ c2w[:, 3] + transform[:, 3])
    return np.concatenate([rotation @ c2w[:, :3], position[:, None]], axis=1)

"""Estimate the size of a scene (box, near, far) from cameras and points, in source units.

The focus is the point that the cameras look at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import ROUNDING, Cameras, common_focus

DETAIL_SHARE = 0.5  # half size of the detail cube, as a share of the distance to the focus
REACH = 4.0  # the outer cube extends at least this many camera distances from the focus
MAX_CASCADES = 8  # the most that instant-ngp's aabb_scale (128) says
NEAR_SHARE = 0.05  # near, as a share of the distance to the focus
NEAR_OF_NEAREST = 0.5  # near, as a share of the nearest depth that points or the files state
STRAY_SHARE = 0.001  # of the points seen: nearer ones are taken for wrong matches
MAX_POINTS, MAX_VIEWS = 4000, 250  # that are looked at; torch.quantile takes 16 million values


def box_from_points(points: np.ndarray, cameras: Cameras) -> Box:
    """Put the detail cube around three quarters of the points, the outer cube around nearly all.

    Points lie densest on what has texture, so that their cube may be smaller than what a view
    shows at the cameras' common focus; it is no smaller than that.
    """
    center = np.median(points, axis=0)
    spread = np.abs(points - center).max(-1)
    half = max(float(np.quantile(spread, 0.75)), 1e-6)
    focus = common_focus(cameras)
    if focus is not None:
        half = max(half, DETAIL_SHARE * focus[1])
    reach = max(
        float(np.quantile(spread, 0.99)),
        float((cameras.positions - torch.from_numpy(center)).abs().max()),
    )
    return Box(tuple(center.tolist()), half, cascades_for(reach, half))


def nearest_depth(points: np.ndarray, cameras: Cameras) -> float:
    """Find the depth of the nearest points that any view sees, without outliers; 0 if none."""
    chosen = torch.from_numpy(points[:: math.ceil(len(points) / MAX_POINTS)])
    views = range(0, len(cameras), math.ceil(len(cameras) / MAX_VIEWS))
    seen = torch.cat([depths_in_view(chosen, cameras, i) for i in views])
    return float(torch.quantile(seen, STRAY_SHARE)) if len(seen) else 0.0


def depths_in_view(points: Tensor, cameras: Cameras, i: int) -> Tensor:
    """Compute depths [m] of the points [n, 3] within the image of camera i.

    Along the axis, or along the ray where a lens sees beyond 90 degrees.
    """
    xy, depth = cameras.project(i, points)  # xy is nan where the camera cannot see a point
    if cameras.lenses[i].is_wide:
        depth = (points - cameras.positions[i].to(points)).norm(dim=-1)
    return depth[((xy >= 0) & (xy <= cameras.size[i])).all(-1)]


def points_in_view(cameras: Cameras, bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """Spread points [n, 3] over what the cameras see between their near and far depths.

    Evenly over the image and in the inverse of depth, since that is how parallax and detail are.

    Args:
        bounds: near and far along the optical axis, of each camera.
    """
    points = []
    share = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    for i, (near, far) in enumerate(bounds):
        pixels = torch.cartesian_prod(share, share) * cameras.size[i]
        plane = (pixels - cameras.principal[i]) / cameras.focal[i]
        directions, valid = cameras.lenses[i].directions(plane)
        ahead = directions[valid & (directions[:, 2] > 1e-3)]
        depths = 1.0 / ((1 - share) / near + share / far)
        local = ahead[:, None] / ahead[:, None, 2:] * depths[:, None]
        points.append((local @ cameras.c2w[i, :, :3].T + cameras.positions[i]).reshape(-1, 3))
    return torch.cat(points).numpy()


def box_from_cameras(cameras: Cameras) -> tuple[Box, str]:
    """Put the detail cube at the common focus, or around the cameras if there is none."""
    focus = common_focus(cameras)
    if focus is None:
        center = cameras.positions.mean(0)
        spread = float((cameras.positions - center).norm(dim=-1).max())
        rounding = ROUNDING * float(cameras.positions.abs().max())
        half = 2.0 * spread if spread > rounding else 1.0
        box = Box(tuple(center.tolist()), half, cascades_for(REACH * half, half))
        return box, "the cameras' positions, which have no common focus"
    center, depth = focus
    half = DETAIL_SHARE * depth
    distance = float((cameras.positions - center).norm(dim=-1).max())
    box = Box(tuple(center.tolist()), half, cascades_for(REACH * distance, half))
    return box, "the cameras' common focus"


def cascades_for(reach: float, half_size: float) -> int:
    """Count the cascades, the detail cube included, that cover about `reach`."""
    return min(1 + round(math.log2(max(reach / half_size, 1.0))), MAX_CASCADES)


def bounds_from_cameras(cameras: Cameras, box: Box) -> tuple[float, float]:
    """Choose near and far so that nothing in the outer cube is cut off.

    Near is a share of the distance to the focus: a path may come closer than the scene's cameras,
    and rays begin at the outer cube anyway. Far is the far side of the sphere around that cube.
    """
    center = cameras.positions.new_tensor(box.center)
    distances = (cameras.positions - center).norm(dim=-1)
    radius = math.sqrt(3) * box.outer_half_size
    focus = common_focus(cameras)
    depth = focus[1] if focus is not None else box.half_size
    return NEAR_SHARE * depth, float(distances.max()) + radius

"""Find what a capture shows: the near surfaces in the middle of its photos, by rendered depth."""

from __future__ import annotations

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.engine.render import Model, render_rays

VIEWS, RAYS_A_SIDE = 16, 12  # that are looked at, and rays across each
MIDDLE = 0.7  # of width and height: the part of a photo where its subject is
NEAR = 0.5  # share of a photo's depths that are taken for near
COMMON = 0.6  # share of the views that must have a point in the frame
SOLID = 0.5  # opacity of a surface
SPREAD = 2.0  # points further from the middle than this many medians are not of the subject


def find_subject(model: Model, cameras: Cameras) -> np.ndarray | None:
    """Find points [n, 3] on what the cameras look at; None where too little is solid.

    Args:
        cameras: of the training views.
    """
    chosen = np.unique(np.linspace(0, len(cameras) - 1, min(VIEWS, len(cameras))).round())
    found = [_near_surface(model, cameras, int(i)) for i in chosen]
    points = torch.cat(found)
    seen = torch.zeros(len(points), dtype=torch.float64)
    for i in chosen:
        xy, depth = cameras.project(int(i), points)
        seen += ((depth > 0) & (xy >= 0).all(-1) & (xy <= cameras.size[int(i)]).all(-1)).double()
    common = points[seen >= COMMON * len(chosen)].numpy()
    if len(common) < RAYS_A_SIDE:
        return None
    away = np.linalg.norm(common - np.median(common, axis=0), axis=-1)
    return common[away <= SPREAD * np.median(away)]


def _near_surface(model: Model, cameras: Cameras, index: int) -> torch.Tensor:
    """The nearer points [n, 3] that the middle of a view sees, float64 on the CPU."""
    width, height = cameras.size[index].tolist()
    share = 0.5 + MIDDLE * (torch.arange(RAYS_A_SIDE) + 0.5 - RAYS_A_SIDE / 2) / RAYS_A_SIDE
    grid = torch.cartesian_prod((share * width).long(), (share * height).long())
    pixels = torch.cat([torch.full((len(grid), 1), index), grid], dim=1).to(model.device)
    rays = cameras.rays(pixels, model.field.needs_radii)
    seen = render_rays(model, rays)
    solid = seen.opacity > SOLID
    if not bool(solid.any()):
        return torch.zeros(0, 3, dtype=torch.float64)
    depth = seen.median_depth
    near = solid & (depth <= depth[solid].quantile(NEAR))
    return (rays.origins + depth[:, None] * rays.directions)[near].cpu().double()

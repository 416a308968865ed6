"""Measure how well poses explain matches: distance to the epipolar line, and depth along each ray.

For two views with centres o_a, o_b and unit directions w_a, w_b of a match in the world, the three
vectors o_b - o_a, w_a and w_b lie in one plane if poses and match agree (Longuet-Higgins 1981).
All tests are on angles, so they hold for every lens; angles times the focal length are pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.matching.matching import Matches


@dataclass(frozen=True)
class MatchedRays:
    """Matches as rays of two cameras each.

    Attributes:
        cameras: [m, 2] int64, indices into the poses to be tested.
        directions: [m, 2, 3] float64, unit length, camera frames.
        focal: [m, 2] float64, pixels per radian at working size.
        pair: [m] int64, index of each match's pair of views. n_pairs: number of pairs.
    """

    cameras: Tensor
    directions: Tensor
    focal: Tensor
    pair: Tensor
    n_pairs: int

    def select(self, keep: Tensor) -> MatchedRays:
        """Keep only the matches `keep`, [m] bool or [k] int64; pairs keep their numbers."""
        return MatchedRays(
            self.cameras[keep], self.directions[keep], self.focal[keep], self.pair[keep],
            self.n_pairs,
        )  # fmt: skip


def trace_matches(
    matches: Matches,
    cameras: Cameras,
    working_scale: Tensor,
    focal_factor: float = 1.0,
    size_factor: float = 1.0,
) -> MatchedRays:
    """Turn matches into rays of these cameras.

    Args:
        working_scale: [n_cameras] pixels at working size per pixel of the camera.
        focal_factor: multiplies the focal lengths.
        size_factor: multiplies all intrinsics, as if the images had another size.
    """
    which = matches.cameras
    directions = torch.empty(len(matches), 2, 3, dtype=torch.float64)
    principal = cameras.principal[which] * size_factor
    plane = (matches.xy - principal) / (cameras.focal[which] * size_factor)
    by_lens: dict[Lens, list[int]] = {}
    for camera in which.unique().tolist():
        by_lens.setdefault(cameras.lenses[camera], []).append(camera)
    for lens, members in by_lens.items():
        rows = torch.isin(which, torch.tensor(members))
        directions[rows] = lens.directions(plane[rows])[0]
    if focal_factor != 1.0:
        scaled = directions * directions.new_tensor([1.0, 1.0, focal_factor])
        directions = torch.nn.functional.normalize(scaled, dim=-1)
    focal = cameras.focal.mean(-1) * working_scale * focal_factor * size_factor
    return MatchedRays(which, directions, focal[which], matches.pair, len(matches.pairs))


@dataclass(frozen=True)
class Residuals:
    """Errors of matches under given poses.

    Attributes:
        pixels: [..., m] distance to the epipolar line, mean of both views.
        depths: [..., m, 2] distance along each ray to the point, scene units.
        parallax: [..., m] sine of the angle between the rays.
    """

    pixels: Tensor
    depths: Tensor
    parallax: Tensor


def compute_residuals(rays: MatchedRays, c2w: Tensor) -> Residuals:
    """Test poses against matches; c2w [..., n, 3, 4] is one set of poses or many."""
    a, b = rays.cameras.unbind(-1)
    first = (c2w[..., a, :, :3] @ rays.directions[:, 0, :, None])[..., 0]
    second = (c2w[..., b, :, :3] @ rays.directions[:, 1, :, None])[..., 0]
    baseline = c2w[..., b, :, 3] - c2w[..., a, :, 3]
    normal_a = torch.linalg.cross(baseline, first)
    normal_b = torch.linalg.cross(baseline, second)
    volume = (normal_a * second).sum(-1).abs()
    tiny = torch.finfo(torch.float64).tiny
    to_second = volume / normal_a.norm(dim=-1).clamp(min=tiny) * rays.focal[:, 1]
    to_first = volume / normal_b.norm(dim=-1).clamp(min=tiny) * rays.focal[:, 0]
    cos = (first * second).sum(-1)
    sin = torch.linalg.cross(first, second).norm(dim=-1)
    # without a baseline the rays themselves must be parallel
    is_still = baseline.norm(dim=-1) <= 1e-9 * (1 + c2w[..., a, :, 3].norm(dim=-1))
    angle = torch.atan2(sin, cos) * rays.focal.mean(-1)
    pixels = torch.where(is_still, angle, (to_first + to_second) / 2)
    along_a, along_b = (baseline * first).sum(-1), (baseline * second).sum(-1)
    square = (sin**2).clamp(min=1e-12)
    depths = torch.stack([along_a - cos * along_b, cos * along_a - along_b], dim=-1)
    return Residuals(pixels, depths / square[..., None], sin)


def is_behind(rays: MatchedRays, residuals: Residuals, tolerance: float) -> Tensor:
    """Find matches that meet behind a camera, beyond what `tolerance` pixels explain. [..., m]"""
    is_clear = residuals.parallax > 3 * tolerance / rays.focal.mean(-1)
    return is_clear & (residuals.depths < 0).any(-1)


def triangulate(rays: MatchedRays, residuals: Residuals, c2w: Tensor) -> Tensor:
    """Return the midpoint between the two rays of each match at their closest. [m, 3]"""
    ends = []
    for side in (0, 1):
        pose = c2w[rays.cameras[:, side]]
        direction = (pose[:, :, :3] @ rays.directions[:, side, :, None])[..., 0]
        ends.append(pose[:, :, 3] + residuals.depths[:, side, None] * direction)
    return (ends[0] + ends[1]) / 2

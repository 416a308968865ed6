"""How well poses explain matches: the distance to the epipolar line, and the side of the camera.

For two views with centres o_a, o_b and unit directions w_a, w_b of a match in the world, the three
vectors o_b - o_a, w_a and w_b lie in one plane if poses and match agree (Longuet-Higgins 1981).
All of it is in angles, so it holds for every lens; times the focal length it is in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.matching.matching import Matches


@dataclass(frozen=True)
class Evidence:
    """Matches as rays.

    Attributes:
        cameras: [m, 2] int64, indices into the poses that are tested.
        rays: [m, 2, 3] float64, unit directions in the camera frames.
        focal: [m, 2] float64, pixels per radian at working size.
        pair: [m] int64. n_pairs: of views.
    """

    cameras: Tensor
    rays: Tensor
    focal: Tensor
    pair: Tensor
    n_pairs: int

    def subset(self, keep: Tensor) -> Evidence:
        """Only the matches `keep` [m] bool or [k] int64; pairs keep their numbers."""
        return Evidence(
            self.cameras[keep], self.rays[keep], self.focal[keep], self.pair[keep], self.n_pairs
        )


def evidence(
    matches: Matches, cameras: Cameras, working: Tensor, focal: float = 1.0, size: float = 1.0
) -> Evidence:
    """Matches as rays of these cameras.

    Args:
        working: [n_cameras] pixels at working size per pixel of the camera.
        focal: focal lengths are taken times this.
        size: all intrinsics are, as if they were stated for images of another size.
    """
    which = matches.cameras
    rays = torch.empty(len(matches), 2, 3, dtype=torch.float64)
    plane = (matches.xy - cameras.principal[which] * size) / (cameras.focal[which] * size)
    alike: dict[Lens, list[int]] = {}
    for camera in which.unique().tolist():
        alike.setdefault(cameras.lenses[camera], []).append(camera)
    for lens, those in alike.items():
        mine = torch.isin(which, torch.tensor(those))
        rays[mine] = lens.directions(plane[mine])[0]
    if focal != 1.0:
        rays = torch.nn.functional.normalize(rays * rays.new_tensor([1.0, 1.0, focal]), dim=-1)
    mean = cameras.focal.mean(-1) * working * focal * size
    return Evidence(which, rays, mean[which], matches.pair, len(matches.pairs))


@dataclass(frozen=True)
class Residuals:
    """What poses make of matches.

    Attributes:
        pixels: [..., m] distance to the epipolar line, mean of both views.
        depths: [..., m, 2] distance along each ray to the point, scene units.
        parallax: [..., m] sine of the angle between the rays.
    """

    pixels: Tensor
    depths: Tensor
    parallax: Tensor


def residuals(seen: Evidence, c2w: Tensor) -> Residuals:
    """Test poses c2w [..., n, 3, 4], one or many sets of them, against matches."""
    a, b = seen.cameras.unbind(-1)
    first = (c2w[..., a, :, :3] @ seen.rays[:, 0, :, None])[..., 0]
    second = (c2w[..., b, :, :3] @ seen.rays[:, 1, :, None])[..., 0]
    baseline = c2w[..., b, :, 3] - c2w[..., a, :, 3]
    across_a = torch.linalg.cross(baseline, first)
    across_b = torch.linalg.cross(baseline, second)
    volume = (across_a * second).sum(-1).abs()
    tiny = torch.finfo(torch.float64).tiny
    to_second = volume / across_a.norm(dim=-1).clamp(min=tiny) * seen.focal[:, 1]
    to_first = volume / across_b.norm(dim=-1).clamp(min=tiny) * seen.focal[:, 0]
    cos = (first * second).sum(-1)
    sin = torch.linalg.cross(first, second).norm(dim=-1)
    # without a baseline the rays themselves must be parallel
    still = baseline.norm(dim=-1) <= 1e-9 * (1 + c2w[..., a, :, 3].norm(dim=-1))
    turned = torch.atan2(sin, cos) * seen.focal.mean(-1)
    pixels = torch.where(still, turned, (to_first + to_second) / 2)
    along_a, along_b = (baseline * first).sum(-1), (baseline * second).sum(-1)
    square = (sin**2).clamp(min=1e-12)
    depths = torch.stack([along_a - cos * along_b, cos * along_a - along_b], dim=-1)
    return Residuals(pixels, depths / square[..., None], sin)


def behind(seen: Evidence, found: Residuals, tolerance: Tensor) -> Tensor:
    """Matches that meet behind a camera, by more than `tolerance` [m] pixels explain."""
    clear = found.parallax > 3 * tolerance / seen.focal.mean(-1)
    return clear & (found.depths < 0).any(-1)


def points(seen: Evidence, found: Residuals, c2w: Tensor) -> Tensor:
    """Where matches meet: the middle between the two rays at their closest. [m, 3]"""
    ends = []
    for side in (0, 1):
        pose = c2w[seen.cameras[:, side]]
        direction = (pose[:, :, :3] @ seen.rays[:, side, :, None])[..., 0]
        ends.append(pose[:, :, 3] + found.depths[:, side, None] * direction)
    return (ends[0] + ends[1]) / 2

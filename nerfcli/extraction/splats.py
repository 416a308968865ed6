"""Make Gaussian splats of a field: flat ones on the surface that the training views see.

A splat lies along the surface, as wide as its neighbours are far. Its harmonics are fitted to the
colours that the training views show at its place (least squares). `splat_fit` then finds opacities,
and improves what no neighbour knows of: how splats overlap.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.core.progress import Progress
from nerfcli.engine.render import render_rays
from nerfcli.extraction.point_cloud import SOLID, field_points
from nerfcli.extraction.source_field import SourceField
from nerfcli.extraction.splat_render import WIDER
from nerfcli.extraction.visibility import ViewMap, Visibility
from nerfcli.reference.encoding import spherical_harmonics
from nerfcli.scenes.scene import Scene
from nerfcli.shapes.splat_files import CONSTANT, N_HARMONICS, Splats, quaternions_of

NEIGHBOURS, AROUND = 3, 16  # nearest points that set a splat's size, and how flat it is
COVERING = 0.6  # standard deviation along the surface, in the mean distance of NEIGHBOURS
LEAST = 0.35  # the same, where points lie closer than pixels
FLATTEST = 0.15  # across the surface, in that along it: where the points lie in a plane
WIDEST = 0.95  # quantile of the distances: larger ones are cut to it
SIZED_BY = 16  # training views
OPACITY = 0.6  # at first
NEAR_SURFACE = 4.0  # samples: a pixel whose light stops so near to a splat shows it
MOST_VIEWS = 40  # of the training views, whose colours the harmonics are fitted to
DEGREES = (1, 3, 5, 7)  # harmonics a degree
DAMPING = (1e-4, 0.05, 0.1, 0.2)  # of each degree, in views
CHUNK = 1 << 15  # splats whose harmonics are fitted at a time


def field_splats(
    source: SourceField, visibility: Visibility, n_splats: int, seed: int, progress: Progress
) -> Splats:
    """Make n_splats splats of the surface that the training views see.

    Raises:
        NerfError: no training view sees a surface.
    """
    with progress.another(None, "splat", "splats") as reporter:
        cloud = field_points(source, visibility, n_splats, seed, reporter, progress.note, far=True)
    assert cloud.normals is not None and cloud.colors is not None
    log_scales = np.log(_scales(source, cloud.points))
    opacity = np.full(len(log_scales), OPACITY)
    with progress.another(None, "splat", "colours") as reporter:
        harmonics = _harmonics(source, visibility, cloud.points, cloud.colors, reporter)
    return Splats(
        cloud.points,
        cloud.normals.astype(np.float32),
        harmonics,
        np.log(opacity / (1.0 - opacity)).astype(np.float32),
        log_scales.astype(np.float32),
        quaternions_of(_frames(cloud.normals)),
    )


def cameras_in_source(scene: Scene, cameras: Cameras | None = None) -> Cameras:
    """Move a scene's cameras into its source's frame, where splats are."""
    cameras = scene.cameras if cameras is None else cameras
    c2w = scene.scene_from_source.inverse().apply_c2w(cameras.c2w)
    return Cameras(c2w, cameras.focal, cameras.principal, cameras.size, cameras.lenses)


def _frames(normals: np.ndarray) -> np.ndarray:
    """Build rotations [n, 3, 3] whose third column is the normal [n, 3]."""
    axes = np.eye(3)[np.abs(normals).argmin(axis=1)]
    first = np.cross(axes, normals)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(normals, first), normals], axis=-1)


def _scales(source: SourceField, points: np.ndarray) -> np.ndarray:
    """Choose standard deviations [n, 3] of splats at source points, the last along the normal.

    Viewers widen images by a third of a pixel, which covers what lies that close together.
    """
    remote = source.remoteness(source.to_scene(points)).numpy()
    pixel = _pixel_sizes(source, points)
    ranks: Any = range(1, min(AROUND + 1, len(points)) + 1)  # a column of each, also of one
    distance, nearest = KDTree(points).query(points, ranks, workers=-1)
    near = distance[:, 1 : NEIGHBOURS + 1]
    spread = (near.mean(axis=1) if near.size else pixel) / remote
    spread = np.minimum(spread, np.quantile(spread, WIDEST)) * remote
    along = np.sqrt(np.maximum((COVERING * spread) ** 2 - WIDER * pixel**2, (LEAST * spread) ** 2))
    flatness = np.empty(len(points))
    for start in range(0, len(points), CHUNK):
        around = points[np.asarray(nearest)[start : start + CHUNK]]
        around = around - around.mean(axis=1, keepdims=True)
        values = np.linalg.eigvalsh(np.einsum("nki,nkj->nij", around, around))
        flatness[start : start + CHUNK] = np.sqrt(
            values[:, 0].clip(min=0.0) / values[:, 1].clip(min=1e-30)
        )
    along = np.maximum(along, 1e-12)
    return np.stack([along, along, along * flatness.clip(FLATTEST, 1.0)], axis=1)


def _pixel_sizes(source: SourceField, points: np.ndarray) -> np.ndarray:
    """Estimate how wide a pixel is at source points [n]: the median of some training views."""
    scene = source.model.scene
    cameras = cameras_in_source(scene)[list(scene.splits["train"])]
    cameras = cameras[:: math.ceil(len(cameras) / SIZED_BY)]
    centers, focal = cameras.positions.numpy(), cameras.focal.mean(dim=1).numpy()
    sizes = [
        np.linalg.norm(points - center, axis=1) / f
        for center, f in zip(centers, focal, strict=True)
    ]
    return np.median(sizes, axis=0)


def _harmonics(
    source: SourceField,
    visibility: Visibility,
    points: np.ndarray,
    colors: np.ndarray,
    progress: Progress,
) -> np.ndarray:
    """Fit harmonics [n, 16, 3] to the colours of the training views that show each point.

    points, colors: [n, 3], in the source's frame; the colours stand for what no view shows.
    """
    views = visibility.training[:MOST_VIEWS]
    images = [_image(source, view) for view in views]
    damping = torch.cat([torch.full((n,), d) for n, d in zip(DEGREES, DAMPING, strict=True)])
    parts = [torch.zeros(0, N_HARMONICS, 3)]
    for start in range(0, len(points), CHUNK):
        some = points[start : start + CHUNK]
        scene_points = source.to_scene(some)
        tolerance = NEAR_SURFACE * source.step * source.remoteness(scene_points)
        normal = torch.diag(damping).repeat(len(some), 1, 1)
        right = torch.zeros(len(some), N_HARMONICS, 3)
        first = torch.from_numpy((colors[start : start + CHUNK] - 0.5) / CONSTANT).float()
        right[:, 0] = damping[0] * first
        for view, image in zip(views, images, strict=True):
            half_t, distance = view.at(scene_points, view.half_t)
            shown = (half_t - distance).abs() <= tolerance
            shown &= view.at(scene_points, image[:, 0])[0].isfinite()
            rows = shown.nonzero()[:, 0]
            pixel = view.view.locate(scene_points[rows])[0]
            basis = spherical_harmonics(_directions(source, view, some[rows.numpy()]))
            normal[rows] += basis[:, :, None] * basis[:, None, :]
            right[rows] += basis[:, :, None] * (image[pixel] - 0.5)[:, None, :]
        parts.append(torch.linalg.solve(normal, right))
        progress.update(start + len(some), total=len(points))
    return torch.cat(parts).numpy()


def _image(source: SourceField, view: ViewMap) -> Tensor:
    """Render a view's colours [n_pixels, 3]; nan where a pixel is not of one surface."""
    model = source.model
    seen = render_rays(model, view.view.rays())
    rest = (1.0 - seen.opacity)[:, None] * model.background
    colors = ((seen.rgb - rest) / seen.opacity.clamp(min=SOLID)[:, None]).clamp(0.0, 1.0)
    return torch.where((seen.opacity >= SOLID)[:, None], colors, torch.nan)


def _directions(source: SourceField, view: ViewMap, points: np.ndarray) -> Tensor:
    """Unit vectors [n, 3] from a camera to points, both in the source's frame."""
    camera = view.view
    center = source.to_source(camera.cameras.positions[camera.index][None])  # pyright: ignore
    ahead = torch.from_numpy(points - center)
    return (ahead / ahead.norm(dim=-1, keepdim=True)).float()

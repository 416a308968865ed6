"""Make a point cloud of a field: where training rays pass half of their opacity."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import KDTree

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Note, Progress
from nerfcli.engine.render import render_image
from nerfcli.extraction.source_field import SourceField
from nerfcli.extraction.visibility import Visibility
from nerfcli.shapes.types import PointCloud, unit

SOLID = 0.9  # opacity from which a pixel shows one surface: at edges it mixes two
NEIGHBOURS = 16  # for the fit of a normal and the test for outliers
SPARSE = 3.0  # times the median distance to the neighbours: farther points are outliers
LOOKED_THROUGH = 3.0  # samples: a point this far in front of other views' surface is wrong


def field_points(
    source: SourceField,
    visibility: Visibility,
    n_points: int,
    seed: int,
    progress: Progress,
    note: Note,
) -> PointCloud:
    """Make points with rendered colours and outward normals, in the source's frame.

    Points that two views look through, and points far from all others, are removed. Normals are
    fitted to the nearest points and turned to where the field is thinner.

    Raises:
        NerfError: no training view sees a surface.
    """
    points, colors = _seen(source, n_points, seed, progress)
    if len(points) <= NEIGHBOURS:
        raise NerfError(
            f"the field is empty: the training views see {len(points)} points of a surface. "
            "Train longer, or look at it with nerf render."
        )
    inside = visibility.depth_inside(points, 2.0 * LOOKED_THROUGH * source.step)
    solid = inside > -LOOKED_THROUGH * source.step
    places = source.to_source(points)
    distance, nearest = KDTree(places).query(places, NEIGHBOURS + 1, workers=-1)
    spread = distance[:, 1:].mean(axis=1)
    keep = solid.numpy() & (spread <= SPARSE * np.median(spread))
    note(f"{len(keep) - int(keep.sum())} of {len(keep)} points removed as outliers")
    normals = _normals(source, places, np.asarray(nearest))
    return PointCloud(places[keep], normals[keep], colors.numpy()[keep])


def _seen(
    source: SourceField, n_points: int, seed: int, progress: Progress
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pixels from all training views: their scene points and colours."""
    scene, rng = source.model.scene, np.random.default_rng(seed)
    cameras = scene.cameras[list(scene.splits["train"])]
    rendered: list[tuple[torch.Tensor, ...]] = []
    for i in range(len(cameras)):
        rays, pixels = cameras.image_rays(i), render_image(source.model, cameras, i)
        hit = (pixels.opacity >= SOLID).nonzero()[:, 0]
        points = rays.origins[hit] + pixels.median_depth[hit, None] * rays.directions[hit]
        # remove the share of the run's background in a nearly opaque pixel
        rest = (1.0 - pixels.opacity[hit])[:, None] * source.model.background
        colors = ((pixels.rgb[hit] - rest) / pixels.opacity[hit, None]).clamp(0.0, 1.0)
        most = max(1, 4 * n_points // len(cameras))  # of one view: bounds the memory
        if len(hit) > most:
            some = torch.from_numpy(np.sort(rng.choice(len(hit), most, replace=False)))
            points, colors = points[some], colors[some]
        rendered.append((points, colors))
        progress.update(i + 1, total=len(cameras))
    points, colors = (torch.cat(column) for column in zip(*rendered, strict=True))
    if len(points) > n_points:
        chosen = torch.from_numpy(np.sort(rng.choice(len(points), n_points, replace=False)))
        points, colors = points[chosen], colors[chosen]
    return points, colors


def _normals(source: SourceField, points: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Fit a plane to each point's neighbours; its normal points to the side with less density."""
    normals = np.empty_like(points)
    for start in range(0, len(points), 100_000):
        some = slice(start, start + 100_000)
        around = points[nearest[some]]
        around = around - around.mean(axis=1, keepdims=True)
        _, vectors = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))
        normals[some] = vectors[:, :, 0]
    reach = source.step / source.scale
    before, behind = (source.density(points + side * reach * normals) for side in (1.0, -1.0))
    normals[before > behind] *= -1.0
    return unit(normals)

"""Make a point cloud of a field: where training rays pass half of their opacity."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial import KDTree

from nerfcli.core.errors import EmptyField
from nerfcli.core.progress import Note, Progress
from nerfcli.core.text import quantity
from nerfcli.engine.render import render_rays
from nerfcli.extraction.source_field import SourceField
from nerfcli.extraction.visibility import Visibility
from nerfcli.shapes.types import PointCloud, unit

SOLID = 0.9  # opacity from which a pixel shows one surface: at edges it mixes two
NEIGHBOURS = 16  # for the fit of a normal and the test for outliers
SPARSE = 3.0  # times the median distance to the neighbours: farther points are outliers
SPARE = 1.1  # times the points that are wanted: a few are outliers
ROUNDS = 8  # of drawing more
LEAST_SHARE = 1e-3  # of pixels that show a surface: bounds what is drawn at once
MOST_DRAWN = 10  # times the points that are wanted, where most are outliers
ALL_VIEWS_POINTS = 100_000  # so many points are worth a look from everywhere for outliers
LOOKED_THROUGH = 3.0  # samples: a point this far in front of other views' surface is wrong


def field_points(
    source: SourceField,
    visibility: Visibility,
    n_points: int,
    seed: int,
    progress: Progress,
    note: Note,
    far: bool = False,
) -> PointCloud:
    """Make n_points points with rendered colours and outward normals, in the source's frame.

    Pixels of all training views are drawn until enough points are left of them: points that two
    views look through, and points far from all others, are removed. Normals are fitted to the
    nearest points and turned to where the field is thinner.

    far: keep what lies outside of the detail cube, where points are sparser and depths less exact.

    Raises:
        NerfError: no training view sees a surface.
    """
    rng = np.random.default_rng(seed)
    seen = _SeenPoints(source, rng, visibility.hit_share)
    wanted = n_points
    for _ in range(ROUNDS):
        seen.draw(int(SPARE * wanted) + NEIGHBOURS + 1, progress)
        if len(seen) <= NEIGHBOURS:
            raise EmptyField(
                f"the field is empty: the training views see {quantity(len(seen), 'point')} of a "
                "surface. "
                "Train longer, or look at it with nerf render."
            )
        points, colors = seen.points, seen.colors
        inside = visibility.depth_inside(points, 2.0 * LOOKED_THROUGH * source.step)
        solid = inside > -LOOKED_THROUGH * source.step
        reach = source.remoteness(points) if far else torch.ones(len(points))
        solid |= reach > 1.0
        places = source.to_source(points)
        distance, nearest = KDTree(places).query(places, NEIGHBOURS + 1, workers=-1)
        spread = distance[:, 1:].mean(axis=1) / reach.numpy()
        keep = np.flatnonzero(solid.numpy() & (spread <= SPARSE * np.median(spread)))
        if len(keep) >= n_points:
            break
        wanted = n_points * len(points) // max(len(keep), 1)
        wanted = min(wanted, MOST_DRAWN * n_points)
    note(f"{len(points) - len(keep)} of {len(points)} points removed as outliers")
    if len(keep) < n_points:
        note(f"only {len(keep)} of {n_points} points: the field has too much haze for more")
    else:
        keep = np.sort(rng.choice(keep, n_points, replace=False))
    normals = _normals(source, places, keep, np.asarray(nearest))
    return PointCloud(places[keep], normals, colors.numpy()[keep])


class _SeenPoints:
    """Scene points and colours [n, 3] that pixels of the training views show.

    Each pixel is drawn once; when none is left, parts of those that show a surface are.
    """

    def __init__(self, source: SourceField, rng: np.random.Generator, share: float) -> None:
        scene = source.model.scene
        self.source, self.rng, self.share = source, rng, share
        self.whole = scene.cameras[list(scene.splits["train"])]
        self.cameras, self.split = self.whole, 1
        self.ends = self.whole.size.prod(dim=1).cumsum(0).numpy()
        self.total, self.drawn = int(self.ends[-1]), np.zeros(0, dtype=np.int64)
        self.hits: np.ndarray | None = None  # pixels [n, 3] whose parts are drawn
        self.shown: list[np.ndarray] = []
        self.points, self.colors = torch.zeros(0, 3), torch.zeros(0, 3)

    def __len__(self) -> int:
        return len(self.points)

    def draw(self, n: int, progress: Progress) -> None:
        """Look at more pixels until n of all show a surface, or as many as a few tries give."""
        for _ in range(ROUNDS):
            lacking = n - len(self)
            if lacking <= 0:
                return
            pixels = self._choose(int(lacking / max(self.share, LEAST_SHARE)) + 1)
            if not len(pixels):
                if not self.shown:
                    return
                self._refine(lacking)
                continue
            before = len(self)
            self._look(pixels, progress, n)
            self.share = (len(self) - before) / len(pixels)

    def _choose(self, n: int) -> np.ndarray:
        """Draw about n new pixels [n, 3]: camera, x, y; at most those that are left."""
        if 2 * (len(self.drawn) + n) >= self.total:
            left = np.setdiff1d(np.arange(self.total), self.drawn, assume_unique=True)
        else:
            left = np.setdiff1d(self.rng.integers(self.total, size=n + n // 2), self.drawn)
        if len(left) > n:
            left = np.sort(self.rng.choice(left, n, replace=False))
        self.drawn = np.union1d(self.drawn, left)
        if self.hits is not None:
            hit, part = np.divmod(left, self.split**2)
            pixels = self.hits[hit] * [1, self.split, self.split]
            pixels[:, 1] += part % self.split
            pixels[:, 2] += part // self.split
            return pixels
        camera = np.searchsorted(self.ends, left, side="right")
        inner = left - (self.ends - self.whole.size.prod(dim=1).numpy())[camera]
        y, x = np.divmod(inner, self.whole.size[:, 0].numpy()[camera])
        return np.stack([camera, x, y], axis=1)

    def _refine(self, lacking: int) -> None:
        """Go on with parts of the pixels that showed a surface."""
        if self.hits is None:
            self.hits = np.concatenate(self.shown)
        self.split = max(2 * self.split, 1 + math.isqrt(2 * lacking // len(self.hits)))
        self.cameras = self.whole.scaled(float(self.split))
        self.total, self.drawn = len(self.hits) * self.split**2, np.zeros(0, dtype=np.int64)
        self.share = 1.0

    def _look(self, pixels: np.ndarray, progress: Progress, n: int) -> None:
        """Render pixels and keep the points of those that show one surface."""
        model = self.source.model
        field, background = model.field, model.background
        chunk = field.rays_per_chunk
        points, colors = [self.points], [self.colors]
        for start in range(0, len(pixels), chunk):
            some = pixels[start : start + chunk]
            rays = self.cameras.rays(torch.from_numpy(some), field.needs_radii)
            seen = render_rays(model, rays)
            hit = (seen.opacity >= SOLID).nonzero()[:, 0]
            points.append(rays.origins[hit] + seen.median_depth[hit, None] * rays.directions[hit])
            # remove the share of the run's background in a nearly opaque pixel
            rest = (1.0 - seen.opacity[hit])[:, None] * background
            colors.append(((seen.rgb[hit] - rest) / seen.opacity[hit, None]).clamp(0.0, 1.0))
            if self.hits is None and len(hit):
                self.shown.append(some[hit.numpy()])
            progress.update(min(sum(map(len, points)), n), total=n)
        self.points, self.colors = torch.cat(points), torch.cat(colors)


def _normals(
    source: SourceField, points: np.ndarray, rows: np.ndarray, nearest: np.ndarray
) -> np.ndarray:
    """Fit a plane to the neighbours of points[rows]; its normal looks to where density is less."""
    normals = np.empty((len(rows), 3))
    for start in range(0, len(rows), 100_000):
        some = slice(start, start + 100_000)
        around = points[nearest[rows[some]]]
        around = around - around.mean(axis=1, keepdims=True)
        _, vectors = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))
        normals[some] = vectors[:, :, 0]
    reach = source.step / source.scale
    before, behind = (source.density(points[rows] + side * reach * normals) for side in (1.0, -1.0))
    normals[before > behind] *= -1.0
    return unit(normals)

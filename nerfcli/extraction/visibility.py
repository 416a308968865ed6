"""Find the space that light reaches, from the training views and from outside.

Fields of shiny things are translucent shells with a mirror image behind them, and every field is
hollow: training needs density only where light stops. "Inside" is therefore where the density is
high or where no light arrives. A point is free if at least two views see it through less than a
tenth of opacity. Parallel views from outside count too: the space behind a wall that was
photographed from one side is not solid either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Rays
from nerfcli.core.progress import Progress
from nerfcli.engine.render import Model, render_rays
from nerfcli.extraction.source_field import SourceField
from nerfcli.methods import Field
from nerfcli.reference.sampling import Steps, intersect_box

FREE_OPACITY = 0.1  # light that lost less has arrived: a glossy shell stops more
HALF = 0.5
WITNESSES = 2  # views that must agree on a free point: one alone may err at an edge
MAX_VIEWS = 120
LEAST_VIEWS = 8  # of the training views, and from outside, where a share of them is enough
MAX_RAYS = 1_500_000  # of all training views together
N_OUTSIDE = 24  # directions of the parallel views
OUTSIDE_SIDE = 128  # pixels of a parallel view, along a side
DENSITIES = 2000  # of each training view
CHUNK = 1 << 17  # points tested at a time: they stay in the cache


@dataclass(frozen=True, eq=False)
class ViewMap:
    """Distances at which the light of one view stops, in scene units along the ray; inf: never.

    free_t, half_t: [n_pixels], where opacity passes FREE_OPACITY, and half of what it becomes.
    """

    view: CameraView | ParallelView
    free_t: Tensor
    half_t: Tensor

    def at(self, points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Look up values at the pixels of scene points [n, 3] (nan outside), and distances [n]."""
        pixel, distance = self.view.locate(points)
        found = values[pixel.clamp(min=0)]
        return torch.where(pixel >= 0, found, torch.nan), distance


@dataclass(frozen=True, eq=False)
class CameraView:
    """The view of one camera."""

    cameras: Cameras
    index: int

    def rays(self) -> Rays:
        return self.cameras.image_rays(self.index)

    def locate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Find the pixel of each scene point [n], -1 outside of the image, and its distance [n]."""
        xy, _ = self.cameras.project(self.index, points)  # nan where the lens sees no point
        width, height = self.cameras.size[self.index].tolist()
        x, y = xy.nan_to_num(nan=-1.0).clamp(-1.0, 1e6).floor().long().unbind(-1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        distance = (points - self.cameras.positions[self.index].to(points)).norm(dim=-1)
        return torch.where(inside, y * width + x, -1), distance


@dataclass(frozen=True, eq=False)
class ParallelView:
    """Parallel rays along `axes[2]` that start where they enter a cube; axes [3, 3] are rows."""

    cube: Box
    axes: Tensor
    side: int

    @property
    def half_size(self) -> float:
        """Of the square that the rays go through, about the cube's centre."""
        return math.sqrt(3.0) * self.cube.half_size

    def rays(self) -> Rays:
        rays = self._plane_rays()
        entry = self.entry()
        return Rays(rays.origins + entry[:, None] * rays.directions, rays.directions)

    def entry(self) -> Tensor:
        """Distance [n_pixels] from the square to the cube; inf where a ray misses it."""
        rays = self._plane_rays()
        t_min, t_max = intersect_box(rays, self.cube, 0.0, math.inf)
        return torch.where(t_max > t_min, t_min, torch.inf)

    def _plane_rays(self) -> Rays:
        axis = ((torch.arange(self.side) + 0.5) / self.side * 2.0 - 1.0) * self.half_size
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        local = torch.stack([x.reshape(-1), y.reshape(-1)], dim=-1)
        center = torch.tensor(self.cube.center)
        origins = local @ self.axes[:2] + center - self.half_size * self.axes[2]
        return Rays(origins, self.axes[2].expand(len(origins), 3).contiguous())

    def locate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        local = (points - torch.tensor(self.cube.center)) @ self.axes.T
        cell = ((local[:, :2] / self.half_size + 1.0) * (0.5 * self.side)).floor().long()
        inside = ((cell >= 0) & (cell < self.side)).all(dim=-1)
        pixel = cell[:, 1] * self.side + cell[:, 0]
        return torch.where(inside, pixel, -1), local[:, 2] + self.half_size


@dataclass(frozen=True, eq=False)
class Visibility:
    """Maps of the training views and of the views from outside.

    sample_length: of the samples around the median distance at which rays of the training views
        pass half opacity, scene units; nan if no ray does.
    densities: [n] of the field at such places, per scene unit, a choice from all training views.
    """

    training: tuple[ViewMap, ...]
    outside: tuple[ViewMap, ...]
    sample_length: float
    densities: Tensor

    @property
    def hit_share(self) -> float:
        """Share of the pixels of the training views that pass half opacity."""
        hits = [found.half_t.isfinite() for found in self.training]
        return float(torch.cat(hits).float().mean())

    def depth_inside(self, points: Tensor, reach: float) -> Tensor:
        """Compute how far behind its last light each scene point [n, 3] lies, cut to +-reach.

        Positive: hidden. The view counts that looks deepest but for WITNESSES - 1 others.
        """
        maps = _interleave(self.training, self.outside)
        parts = [_depth_inside(part, maps, reach) for part in points.split(CHUNK)]
        return torch.cat([points.new_zeros(0), *parts])

    def shown(self, points: Tensor, tolerance: float) -> Tensor:
        """Whether a training view shows each scene point [n, 3].

        A pixel shows a point if half of its light stops within `tolerance` of the point.
        """
        seen = torch.zeros(len(points), dtype=torch.bool)
        for view in self.training:
            left = (~seen).nonzero()[:, 0]
            if not len(left):
                break
            half_t, distance = view.at(points[left], view.half_t)
            seen[left[(half_t - distance).abs() <= tolerance]] = True
        return seen


def compute_visibility(source: SourceField, progress: Progress, share: float = 1.0) -> Visibility:
    """Render where light stops, from the training cameras and from outside.

    share: of the views, for where fewer are enough; they stay spread over the capture.
    """
    scene = source.model.scene
    training = _training_views(scene.cameras[list(scene.splits["train"])])
    training = training[: max(LEAST_VIEWS, math.ceil(share * len(training)))]
    outside = _outside_views(source, max(LEAST_VIEWS, math.ceil(share * N_OUTSIDE)))
    total, maps = len(training) + len(outside), []
    for view in (*training, *outside):
        field = source.model.field if isinstance(view, CameraView) else source.from_inside
        maps.append(_map(source.model, field, view))
        progress.update(len(maps), total=total)
    half_t = torch.cat([found.half_t for found in maps[: len(training)]])
    known = half_t[half_t.isfinite()]
    length = float(_sample_length(source.steps, known.median())) if len(known) else math.nan
    densities = torch.cat([_half_densities(source, found) for found in maps[: len(training)]])
    return Visibility(tuple(maps[: len(training)]), tuple(maps[len(training) :]), length, densities)


def spread_directions(n: int) -> np.ndarray:
    """n unit vectors [n, 3] spread evenly over the sphere (Fibonacci lattice)."""
    k = np.arange(n) + 0.5
    z = 1.0 - 2.0 * k / n
    azimuth = math.pi * (1.0 + 5.0**0.5) * k
    ring = np.sqrt(1.0 - z * z)
    return np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), z], axis=1)


def _training_views(cameras: Cameras) -> list[CameraView]:
    """At most MAX_VIEWS, any first few of which are spread over the capture; reduced in size."""
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    order = sorted(range(len(cameras)), key=lambda i: i * golden % 1.0)[:MAX_VIEWS]
    chosen = cameras[order]
    n_rays = float(chosen.size.prod(dim=1).sum())
    chosen = chosen.scaled(min(1.0, math.sqrt(MAX_RAYS / n_rays)))
    return [CameraView(chosen, i) for i in range(len(chosen))]


def _outside_views(source: SourceField, n: int) -> list[ParallelView]:
    views = []
    for forward in spread_directions(n):
        right = np.cross(forward, np.eye(3)[np.abs(forward).argmin()])
        right /= np.linalg.norm(right)
        axes = torch.tensor(np.stack([right, np.cross(forward, right), forward])).float()
        views.append(ParallelView(source.box, axes, OUTSIDE_SIDE))
    return views


def _map(model: Model, field: Field, view: CameraView | ParallelView) -> ViewMap:
    """Find where the light of a view stops, from two renderings.

    The second ends its rays as soon as FREE_OPACITY is passed, so its median depth is where they
    lost that light. Where a field cannot end rays, its free space reaches to the surface.
    """
    rays, start = view.rays(), torch.zeros(())
    met = torch.ones(len(rays), dtype=torch.bool)
    if isinstance(view, ParallelView):
        start = view.entry()
        met = start.isfinite()
    half_t = torch.full((len(rays),), torch.inf)
    free_t = half_t.clone()
    opacity, depth = _render(model, field, rays[met])
    half_t[met] = torch.where(opacity >= HALF, depth, torch.inf)
    short = field.ending_at(1.0 - FREE_OPACITY)
    if short is None:
        return ViewMap(view, half_t + start, half_t + start)
    opacity, depth = _render(model, short, rays[met])
    free_t[met] = torch.where(opacity >= FREE_OPACITY, depth, torch.inf)
    return ViewMap(view, free_t + start, half_t + start)


def _half_densities(source: SourceField, found: ViewMap) -> Tensor:
    """Evaluate densities where some rays of a view pass half of their opacity."""
    hit = found.half_t.isfinite().nonzero()[:, 0]
    hit = hit[:: max(1, len(hit) // DENSITIES)]
    rays = found.view.rays()[hit]
    return source.model.field.density(rays.origins + found.half_t[hit, None] * rays.directions)


def _render(model: Model, field: Field, rays: Rays) -> tuple[Tensor, Tensor]:
    """Render the opacity and median depth [n] of rays through a form of the model's field."""
    pixels = render_rays(model, rays, field=field, background=torch.zeros(3))
    return pixels.opacity, pixels.median_depth


def _sample_length(steps: Steps, t: Tensor) -> Tensor:
    """Length of the marching step at distance t."""
    return steps.t_from_s(steps.s_from_t(t) + 1.0) - t


def _depth_inside(points: Tensor, maps: list[ViewMap], reach: float) -> Tensor:
    """The WITNESSES-th largest room in front of the light's end, negated and cut."""
    out = points.new_full((len(points),), -reach)
    rows = torch.arange(len(points))
    best = points.new_full((WITNESSES, len(points)), -reach)
    for view in maps:
        free_t, distance = view.at(points, view.free_t)
        room = torch.nan_to_num(free_t - distance, nan=-reach, posinf=reach).clamp(-reach, reach)
        best = torch.cat([best, room[None]]).sort(dim=0, descending=True).values[:WITNESSES]
        left = (best[-1] < reach).nonzero()[:, 0]
        if len(left) < len(rows):  # the others are free for good
            rows, points, best = rows[left], points[left], best[:, left]
        if not len(rows):
            return out
    out[rows] = -best[-1]
    return out


def _interleave(a: tuple[ViewMap, ...], b: tuple[ViewMap, ...]) -> list[ViewMap]:
    """Mix both lists evenly: the first few views settle most free points."""
    places = [(i / len(a), 0, view) for i, view in enumerate(a)]
    places += [(i / len(b), 1, view) for i, view in enumerate(b)]
    return [view for *_, view in sorted(places, key=lambda place: place[:2])]

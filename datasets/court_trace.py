"""Sphere tracing, light, sky and pixels of the courtyard, in float64 numpy.

Every ray is traced against one part at a time, and only within the part's bounding box. Parts that
a tile of the picture cannot see are left out beforehand. Sphere tracing: J. C. Hart, "Sphere
tracing" (1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from court_paint import MIRRORS, albedo, noise
from court_parts import PARTS, Part, box_field, leaves_field
from numpy.typing import NDArray

Array = NDArray[Any]
Indices = NDArray[np.integer[Any]]

BOUNDS = np.array([part.bounds() for part in PARTS])  # [parts, 2, 3]
MIDDLES = BOUNDS.mean(axis=1)
RADII = np.linalg.norm(BOUNDS[:, 1] - BOUNDS[:, 0], axis=1) / 2
KIND = [getattr(part.shape, "func", None) for part in PARTS]
SUN = np.array([0.50, -0.47, 0.66]) / np.linalg.norm([0.50, -0.47, 0.66])
SUN_LIGHT = np.array([1.00, 0.92, 0.78]) * 0.80
SUN_SPREAD = 0.012  # radius of the sun's disc as seen from here, for soft shadow edges
SKY_LIGHT = np.array([0.74, 0.86, 1.00]) * 0.40
BOUNCE = np.array([1.00, 0.90, 0.76]) * 0.11  # from sunlit ground and walls, everywhere
HORIZON = np.array([0.60, 0.66, 0.70])
ZENITH = np.array([0.13, 0.28, 0.58])
CLOUD = np.array([0.68, 0.68, 0.68])
HAZE = 900.0  # metres after which 1/e of a colour is left
HIT = 5e-5  # relative tolerance of a hit
STEPS = 400
SHADOW_REACH = 100.0  # metres from the camera within which shadows are traced
SKY_DIRECTIONS = 4
CONTRAST = 0.12  # of a pixel's first two samples, above which it gets two more


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: pose [4, 4] (OpenGL axes), size and focal length in pixels."""

    pose: Array
    width: int
    height: int
    focal: float

    def rays(self, columns: Array, rows: Array) -> Array:
        """Unit directions [3, n] through image positions; pixel centres are at .5."""
        local = np.stack(
            [
                (columns - self.width / 2) / self.focal,
                -(rows - self.height / 2) / self.focal,
                -np.ones_like(columns),
            ]
        )
        return self.pose[:3, :3] @ (local / np.linalg.norm(local, axis=0))

    def project(self, points: Array) -> tuple[Array, Array, Array]:
        """Column, row and depth along the axis [n] of world points [3, n]."""
        x, y, z = self.pose[:3, :3].T @ (points - self.pose[:3, 3:])
        depth = np.where(z < 0, -z, np.nan)
        column = self.focal * x / depth + self.width / 2
        return column, self.height / 2 - self.focal * y / depth, -z


def march(
    part: Part, origins: Array, ways: Array, start: Array, end: Array, hit: float, steps: int
) -> Array:
    """Distance [n] to a part along rays [3, n] between start and end [n]; inf: none."""
    found = np.full(start.size, np.inf)
    rows, t = np.arange(start.size), start.copy()
    o, d = part.local(origins), ways if part.rotation is None else part.rotation.T @ ways
    for _ in range(steps):
        gap = part.shape(*(o + t * d))
        near = gap < hit * np.maximum(t, 1.0)
        t += np.maximum(gap, 0.0)
        going = ~near & (t < end)
        left = np.count_nonzero(going)
        if left < rows.size:
            found[rows[near]] = t[near]
            if left == 0:
                break
            if left < 0.8 * rows.size:
                rows, t, end = rows[going], t[going], end[going]
                o, d = o[:, going], d[:, going]
    return found


def into_box(part: Part, origins: Array, ways: Array, start: Array, end: Array) -> Array:
    """What `march` finds for a box, at once."""
    o, d = part.local(origins), ways if part.rotation is None else part.rotation.T @ ways
    with np.errstate(divide="ignore"):
        inverse = 1.0 / np.where(d == 0, 1e-300, d)
    reach = np.array(part.half)[:, None] * np.abs(inverse)
    middle = -o * inverse
    low, high = middle - reach, middle + reach
    enter = np.maximum(np.maximum(low[0], low[1]), low[2])
    leave = np.minimum(np.minimum(high[0], high[1]), high[2])
    return np.where((enter < leave) & (enter >= start - 1e-2) & (enter < end), enter, np.inf)


def into_ball(part: Part, origins: Array, ways: Array, start: Array, end: Array) -> Array:
    """What `march` finds for a ball of leaves without its bumps, which do for a shadow."""
    o = part.local(origins)
    along = (o * ways).sum(axis=0)
    root = along**2 - (o * o).sum(axis=0) + part.shape.keywords["radius"] ** 2  # type: ignore[attr-defined]
    enter = -along - np.sqrt(np.maximum(root, 0.0))
    return np.where((root > 0) & (enter >= 0) & (enter < end), enter, np.inf)


def slab(part: int, origins: Array, inverse: Array) -> tuple[Array, Array]:
    """Where rays enter and leave [n] a part's bounding box."""
    low, high = BOUNDS[part]
    a, b = (low[:, None] - origins) * inverse, (high[:, None] - origins) * inverse
    low, high = np.minimum(a, b), np.maximum(a, b)
    enter = np.maximum(np.maximum(low[0], low[1]), low[2])
    return enter, np.minimum(np.minimum(high[0], high[1]), high[2])


def trace(
    origins: Array, ways: Array, parts: Sequence[int] | Indices, limit: Array, any_hit: bool = False
) -> tuple[Array, Indices]:
    """Distance [n] to the first hit along unit rays [3, n] (inf: none) and the part's index [n].

    Args:
        limit: [n], nothing beyond counts.
        any_hit: some hit will do, be it not the first.
    """
    with np.errstate(divide="ignore"):
        inverse = 1.0 / np.where(ways == 0, 1e-300, ways)
    best, index = np.full(ways.shape[1], np.inf), np.zeros(ways.shape[1], dtype=np.int64)
    end = limit.copy()
    for k in parts:
        enter, leave = slab(k, origins, inverse)
        enter = np.maximum(enter, 0.0)
        leave = np.minimum(leave, end)
        rows = np.flatnonzero(enter < leave)
        if rows.size == 0:
            continue
        part = PARTS[k]
        rays = origins[:, rows], ways[:, rows], enter[rows], leave[rows]
        if KIND[k] is box_field:
            t = into_box(part, *rays)
        elif KIND[k] is leaves_field and any_hit:
            t = into_ball(part, *rays)
        else:
            t = march(part, *rays, *((2e-3, 50) if any_hit else (HIT, STEPS)))
        hit = np.flatnonzero(np.isfinite(t))
        rows = rows[hit]
        best[rows], index[rows], end[rows] = t[hit], k, (-1.0 if any_hit else t[hit])
    return best, index


def in_cone(apex: Array, ways: Array) -> Indices:
    """Parts that rays [3, n] from `apex` may hit, the nearest first."""
    axis = ways.mean(axis=1)
    axis /= np.linalg.norm(axis)
    spread = np.arccos(np.clip((axis @ ways).min(), -1, 1))
    to = MIDDLES - apex
    distance = np.maximum(np.linalg.norm(to, axis=1), 1e-9)
    angle = np.arccos(np.clip(to @ axis / distance, -1, 1))
    wide = np.arcsin(np.clip(RADII / distance, 0, 1))
    seen = np.flatnonzero((distance <= RADII) | (angle < spread + wide))
    gap = np.maximum(np.maximum(BOUNDS[:, 0] - apex, apex - BOUNDS[:, 1]), 0)
    return seen[np.argsort(np.linalg.norm(gap, axis=1)[seen], kind="stable")]


def towards(points: Array, way: Array, spread: float) -> Indices:
    """Parts that may shade points [3, n] from directions within about `spread` of `way` [3]."""
    u = np.cross(way, [0.0, 0.0, 1.0])
    u = u / np.linalg.norm(u) if np.linalg.norm(u) > 1e-6 else np.array([1.0, 0.0, 0.0])
    frame = np.stack([u, np.cross(way, u), way])
    at, middles = frame @ points, frame @ MIDDLES.T
    slack = RADII + spread * np.maximum(middles[2] + RADII - at[2].min(), 0.0)
    beside = (middles[:2] > at[:2].min(axis=1)[:, None] - slack) & (
        middles[:2] < at[:2].max(axis=1)[:, None] + slack
    )
    found = np.flatnonzero(beside.all(axis=0) & (middles[2] + RADII > at[2].min()))
    return found[[PARTS[k].paint not in ("ground", "hill") for k in found]]


def normals_of(points: Array, index: Indices, step: float = 1e-5) -> Array:
    """Unit gradient [3, n] of each point's part."""
    gradient = np.empty(points.shape)
    for k in np.unique(index):
        rows = np.flatnonzero(index == k)
        p = points[:, rows]
        for axis in range(3):
            move = np.zeros((3, 1))
            move[axis] = step
            gradient[axis, rows] = PARTS[k].distance(p + move) - PARTS[k].distance(p - move)
    return gradient / np.maximum(np.linalg.norm(gradient, axis=0), 1e-30)


def sky(ways: Array) -> Array:
    """Light [n, 3] of the sky in unit directions [3, n]: a gradient and clouds, at infinity."""
    height = np.clip(ways[2], 0.0, 1.0)
    blend = 1 - np.exp(-2.6 * height)
    rgb = HORIZON + (ZENITH - HORIZON) * blend[:, None]
    # clouds on a plane overhead, drawn together towards the horizon
    scale = 1.0 / (height + 0.25)
    u, v, width = ways[0] * scale, ways[1] * scale, np.full(height.size, 0.03)
    thick = noise(u + 0.9, v, 6.5, width) + 0.25 * noise(v, u + 0.3, 2.1, width)
    cover = np.clip((thick - 0.1) * 0.6, 0, 0.85) * np.clip(height * 9, 0, 1)
    shaded = CLOUD * (1 - 0.10 * np.clip(thick - 1.2, 0, 1))[:, None]
    return rgb + (shaded - rgb) * cover[:, None]


def sky_directions() -> Array:
    """Directions [3, SKY_DIRECTIONS] from above, dense where they matter most (cosine)."""
    k = np.arange(SKY_DIRECTIONS)
    radius, angle = np.sqrt((k + 0.5) / SKY_DIRECTIONS), k * np.pi * (3 - np.sqrt(5)) + 0.4
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - radius**2)])


def crevices(points: Array, normals: Array, parts: Indices) -> Array:
    """How open [n] the near surroundings are, by distance probes along the normal."""
    blocked = np.zeros(points.shape[1])
    for reach, weight in ((0.04, 3.0), (0.13, 1.6), (0.35, 0.9), (0.8, 0.4)):
        probe = points + reach * normals
        gap = np.full(points.shape[1], reach)
        for k in parts:
            low, high = BOUNDS[k][:, :, None]
            inside = (probe > low - reach) & (probe < high + reach)
            rows = np.flatnonzero(inside[0] & inside[1] & inside[2])
            if rows.size:
                gap[rows] = np.minimum(gap[rows], PARTS[k].distance(probe[:, rows]))
        blocked += weight * np.maximum(reach - gap, 0.0)
    return np.exp(-1.2 * blocked)


def shade(
    points: Array, index: Indices, ways: Array, far: Array, width: Array, sample: Indices
) -> Array:
    """Linear light [n, 3] that leaves surface points [3, n] against the rays `ways`.

    Args:
        far: distance [n] from the camera. width: metres [n] that a pixel covers there.
        sample: number [n] of the sample in its pixel; samples see other spots of sun and sky.
    """
    normals = normals_of(points, index)
    base = np.zeros((points.shape[1], 3))
    for k in np.unique(index):
        rows = np.flatnonzero(index == k)
        slant = np.maximum(np.abs((normals[:, rows] * ways[:, rows]).sum(axis=0)), 0.25)
        base[rows] = albedo(PARTS[k], points[:, rows], normals[:, rows], width[rows] / slant)
    lifted = points + (2e-3 + 2e-5 * far) * normals
    spots = sun_spots()[:, sample]
    facing = np.clip((normals * SUN[:, None]).sum(axis=0), 0.0, 1.0)
    sunlit = facing.copy()
    rows = np.flatnonzero((facing > 0) & (far < SHADOW_REACH))
    if rows.size:
        sunlit[rows[blocked(lifted[:, rows], spots[:, rows], SUN, SUN_SPREAD)]] = 0.0
    # ambient: each sample asks every other direction, those of a pixel ask all
    dome = sky_directions()
    ambient = np.zeros(points.shape[1])
    total = np.zeros(points.shape[1])
    near = far < 30.0
    for k in range(SKY_DIRECTIONS):
        mine = sample % 2 == k % 2
        weight = np.where(mine, 0.25 + np.clip(dome[:, k] @ normals, -0.25, 1.0), 0.0)
        total += np.where(mine, 1.0, 0.0)
        ambient += weight
        rows = np.flatnonzero(mine & near & (weight > 0))
        if rows.size:
            to = np.repeat(dome[:, k : k + 1], rows.size, axis=1)
            stopped = blocked(lifted[:, rows], to, dome[:, k], 0.0)
            ambient[rows[stopped]] -= weight[rows[stopped]]
    ambient = ambient / total / 0.9
    close = np.flatnonzero(far < 30.0)
    open_ = np.ones(points.shape[1])
    if close.size:
        reach = 0.9
        low = points[:, close].min(axis=1) - reach
        high = points[:, close].max(axis=1) + reach
        parts = np.flatnonzero(((BOUNDS[:, 0] < high) & (BOUNDS[:, 1] > low)).all(axis=1))
        open_[close] = crevices(points[:, close], normals[:, close], parts)
    light = sunlit[:, None] * SUN_LIGHT
    light = light + (ambient[:, None] * SKY_LIGHT + BOUNCE) * open_[:, None]
    rgb = base * light
    for k in np.unique(index):
        reflectance = MIRRORS.get(PARTS[k].paint)
        if reflectance is None:
            continue
        rows = np.flatnonzero(index == k)
        n, w = normals[:, rows], ways[:, rows]
        cosine = -(n * w).sum(axis=0)
        mirrored = w + 2 * cosine * n
        fresnel = reflectance + (1 - reflectance) * (1 - np.clip(cosine, 0, 1)) ** 5
        rgb[rows] += (0.6 * fresnel * open_[rows])[:, None] * sky(mirrored)
    haze = np.exp(-far / HAZE)[:, None]
    return rgb * haze + HORIZON * 0.9 * (1 - haze)


def blocked(points: Array, ways: Array, way: Array, spread: float) -> NDArray[np.bool_]:
    """Whether something lies between points [3, n] and the sky along `ways` [3, n] near `way`."""
    extent = np.ptp(points, axis=1)
    axis = int(extent.argmax())
    if points.shape[1] > 4000 and extent[axis] > 0.8:  # near each other, they share few parts
        first = points[axis] < points[axis].min() + extent[axis] / 2
        found = np.empty(points.shape[1], dtype=bool)
        for rows in (first, ~first):
            found[rows] = blocked(points[:, rows], ways[:, rows], way, spread)
        return found
    found = np.zeros(points.shape[1], dtype=bool)
    rows = np.arange(points.shape[1])
    limit = np.full(points.shape[1], SHADOW_REACH)
    parts = towards(points, way, spread)
    for first in range(0, len(parts), 6):
        t = trace(points, ways, parts[first : first + 6], limit, any_hit=True)[0]
        hit = np.isfinite(t)
        if hit.any():
            found[rows[hit]] = True
            rows, points, ways, limit = (v[..., ~hit] for v in (rows, points, ways, limit))
            if rows.size == 0:
                break
    return found


def sun_spots() -> Array:
    """One direction [3, 4] on the sun's disc for each sample of a pixel."""
    angle = np.pi / 4 + np.pi / 2 * np.arange(4)
    u = np.cross([0.0, 0.0, 1.0], SUN)
    u /= np.linalg.norm(u)
    v = np.cross(SUN, u)
    radius = SUN_SPREAD * np.array([0.35, 0.8, 0.55, 1.0])
    spots = SUN[:, None] + radius * (np.cos(angle) * u[:, None] + np.sin(angle) * v[:, None])
    return spots / np.linalg.norm(spots, axis=0)


# places of a pixel's samples, on a turned grid: two for all, two more where these differ
OFFSETS = np.array([[0.125, 0.375], [0.875, 0.625], [0.625, 0.125], [0.375, 0.875]])


def sample_pixels(camera: Camera, i: Indices, j: Indices, s: Indices) -> tuple[Array, Indices]:
    """Linear light [n, 3] of sample s [n] of pixels (i, j) [n], and the part it shows (-1: sky)."""
    ways = camera.rays(i + OFFSETS[s, 0], j + OFFSETS[s, 1])
    eye = camera.pose[:3, 3]
    origins = np.repeat(eye[:, None], s.size, axis=1)
    t, index = trace(origins, ways, in_cone(eye, ways), np.full(s.size, 1e6))
    rgb = np.empty((s.size, 3))
    hit, free = np.flatnonzero(np.isfinite(t)), np.flatnonzero(~np.isfinite(t))
    rgb[free] = sky(ways[:, free])
    if hit.size:
        points = origins[:, hit] + t[hit] * ways[:, hit]
        width = t[hit] / camera.focal
        rgb[hit] = shade(points, index[hit], ways[:, hit], t[hit], width, s[hit])
    return rgb, np.where(np.isfinite(t), index, -1)


def render_tile(camera: Camera, rows: range, columns: range) -> Array:
    """Linear light [rows, columns, 3]: the mean of two samples a pixel, or of four."""
    j, i = (g.ravel() for g in np.meshgrid(np.array(rows), np.array(columns), indexing="ij"))
    n = i.size
    order = np.repeat([0, 1], n)
    rgb, part = sample_pixels(camera, np.tile(i, 2), np.tile(j, 2), order)
    mean = (rgb[:n] + rgb[n:]) / 2
    differ = np.abs(rgb[:n] - rgb[n:]).max(axis=1) > CONTRAST * (0.1 + mean.max(axis=1))
    more = np.flatnonzero((part[:n] != part[n:]) | differ)
    if more.size:
        twice = np.tile(more, 2)
        extra = sample_pixels(camera, i[twice], j[twice], np.repeat([2, 3], more.size))[0]
        mean[more] = (mean[more] + (extra[: more.size] + extra[more.size :]) / 2) / 2
    return mean.reshape(len(rows), len(columns), 3)


def tiles(camera: Camera, size: int) -> list[tuple[range, range]]:
    """The picture cut into squares."""
    return [
        (range(j, min(j + size, camera.height)), range(i, min(i + size, camera.width)))
        for j in range(0, camera.height, size)
        for i in range(0, camera.width, size)
    ]


def render(camera: Camera, size: int = 100) -> Array:
    """Linear light [height, width, 3]."""
    picture = np.empty((camera.height, camera.width, 3))
    for rows, columns in tiles(camera, size):
        part = render_tile(camera, rows, columns)
        picture[rows.start : rows.stop, columns.start : columns.stop] = part
    return picture


def distances(camera: Camera, columns: Array, rows: Array) -> Array:
    """Distance along the ray [n] through image positions [n]; inf: sky."""
    ways = camera.rays(columns, rows)
    eye = camera.pose[:3, 3]
    origins = np.repeat(eye[:, None], ways.shape[1], axis=1)
    return trace(origins, ways, in_cone(eye, ways), np.full(ways.shape[1], 1e6))[0]


def depth_image(camera: Camera, size: int = 100) -> Array:
    """Distance along the rays through pixel centres [height, width]; inf: sky."""
    picture = np.empty((camera.height, camera.width))
    for rows, columns in tiles(camera, size):
        j, i = (g.ravel() for g in np.meshgrid(np.array(rows), np.array(columns), indexing="ij"))
        part = distances(camera, i + 0.5, j + 0.5).reshape(len(rows), len(columns))
        picture[rows.start : rows.stop, columns.start : columns.stop] = part
    return picture


def encode(values: Array) -> Array:
    """Linear light to sRGB in [0, 1] (IEC 61966-2-1); what is above 1 is clipped."""
    values = np.clip(values, 0.0, 1.0)
    return np.where(
        values <= 0.0031308, 12.92 * values, 1.055 * np.maximum(values, 1e-9) ** (1 / 2.4) - 0.055
    )

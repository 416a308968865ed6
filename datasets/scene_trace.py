"""Sphere tracing and shading of the toy biplane, in float64 numpy.

Everything is elementwise and in a fixed order, so pixels do not depend on the number of processes,
and float64 keeps the differences between machines far below a grey level.
Sphere tracing: J. C. Hart, "Sphere tracing" (1996). Microfacets: Walter et al., "Microfacet models
for refraction" (2007), with Schlick's Fresnel term. Ambient occlusion by five distance probes:
I. Quilez, "Rendering worlds with two triangles" (2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scene_paint import METAL, MIRROR, REFLECTANCE, ROUGHNESS, albedo
from scene_parts import BOUND_RADIUS
from scene_sdf import grid, part_gradient

Array = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]

SUN = np.array([0.42, -0.46, 0.78]) / np.linalg.norm([0.42, -0.46, 0.78])
SUN_LIGHT = np.array([1.00, 0.93, 0.80]) * 2.35
SUN_SPREAD = 0.045  # radius of the sun's disc as seen from the object, for soft shadow edges
FILL = np.array([-0.55, 0.60, -0.58]) / np.linalg.norm([-0.55, 0.60, -0.58])
FILL_LIGHT = np.array([0.62, 0.74, 1.00]) * 0.34
SKY = np.array([0.62, 0.76, 1.00]) * 0.62  # ambient light from straight above
GROUND = np.array([1.00, 0.90, 0.78]) * 0.70  # and from straight below
HIT = 1e-5
SAMPLES = 4  # per pixel side


@dataclass(frozen=True)
class View:
    """A square pinhole camera: pose [4, 4] (OpenGL axes), width in pixels, angle in radians."""

    camera_to_world: Array
    size: int
    angle: float

    def rays(self, columns: Array, rows: Array) -> tuple[Array, Array]:
        """Origins and unit directions [n, 3] through image positions; pixel centres are at .5."""
        focal = 0.5 * self.size / np.tan(0.5 * self.angle)
        local = np.stack(
            [
                (columns - self.size / 2) / focal,
                -(rows - self.size / 2) / focal,
                -np.ones_like(columns),
            ],
            axis=1,
        )
        local /= np.linalg.norm(local, axis=1, keepdims=True)
        directions = np.einsum("ij,nj->ni", self.camera_to_world[:3, :3], local)
        return np.broadcast_to(self.camera_to_world[:3, 3], directions.shape), directions


def dot(a: Array, b: Array) -> Array:
    """Row-wise dot product [n] of [n, 3] with [n, 3] or [3]."""
    return np.einsum("ni,ni->n", a, np.broadcast_to(b, a.shape))


def trace(
    origins: Array, directions: Array, start: float = 0.0, limit: int = 4000
) -> tuple[Array, Indices]:
    """Distance [n] to the first hit along unit rays [n, 3] (inf: none) and the part's index [n]."""
    accel = grid()
    b = dot(origins, directions)
    root = b * b - dot(origins, origins) + BOUND_RADIUS**2
    alive = np.flatnonzero((root > 0) & (np.sqrt(np.maximum(root, 0.0)) - b > start))
    t = np.full(len(origins), np.inf)
    index = np.zeros(len(origins), dtype=np.int64)
    half = np.sqrt(root[alive])
    now, end = np.maximum(-b[alive] - half, start), -b[alive] + half
    o, d = np.ascontiguousarray(origins[alive].T), np.ascontiguousarray(directions[alive].T)
    for _ in range(limit):
        if alive.size == 0:
            break
        points = o + now * d
        cell = accel.cell(points)
        step = accel.lower[cell]
        close = np.flatnonzero(step < 0.5 * accel.size)
        distance, part = accel.nearest(points[:, close], cell[close])
        step[close] = distance
        hit = distance < HIT
        t[alive[close[hit]]] = now[close[hit]]
        index[alive[close[hit]]] = part[hit]
        now = now + step
        keep = now < end
        keep[close[hit]] = False
        alive, now, end, o, d = alive[keep], now[keep], end[keep], o[:, keep], d[:, keep]
    return t, index


def sky(directions: Array) -> Array:
    """What a mirror sees [n, 3] beside the object: ground, horizon, sky, and two bright windows."""
    z = directions[:, 2:3]
    up = np.clip(z, 0.0, 1.0) ** 0.55
    air = np.array([0.62, 0.74, 0.86]) * (1 - up) + np.array([0.06, 0.16, 0.42]) * up
    down = np.clip(-z, 0.0, 1.0) ** 0.5
    earth = np.array([0.48, 0.40, 0.30]) * (1 - down) + np.array([0.22, 0.18, 0.14]) * down
    light = np.where(z > 0, air, earth)
    azimuth = np.arctan2(directions[:, 1], directions[:, 0])
    for centre in (2.3, -2.2):
        across = np.abs((azimuth - centre + np.pi) % (2 * np.pi) - np.pi)
        inside = (across < 0.55) & (np.abs(directions[:, 2] - 0.50) < 0.22)
        bars = (np.abs(across) > 0.035) & (np.abs(directions[:, 2] - 0.50) > 0.018)
        light = light + 2.2 * (inside & bars)[:, None]
    return light


def ambient(points: Array, normals: Array) -> Array:
    """Light [n, 3] from the sky and the ground, dimmed in corners."""
    accel = grid()
    blocked = np.zeros(len(points))
    for k in range(5):
        reach = 0.012 + 0.05 * k
        probe = np.ascontiguousarray((points + reach * normals).T)
        blocked += (reach - accel.nearest(probe)[0]) * 0.72**k
    open_ = np.clip(1.0 - 2.6 * blocked, 0.08, 1.0)[:, None]
    mix = 0.5 + 0.5 * normals[:, 2:3]
    return (SKY * mix + GROUND * (1 - mix)) * open_


def microfacet(
    normals: Array, view: Array, light: Array, roughness: Array, fresnel0: Array
) -> Array:
    """GGX reflection [n, 3] times the cosine to the light; fresnel0 [n, 3]."""
    half = view + light
    half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-9)
    nl, nv = np.clip(dot(normals, light), 0.0, 1.0), np.clip(dot(normals, view), 1e-3, 1.0)
    nh, vh = np.clip(dot(normals, half), 0.0, 1.0), np.clip(dot(view, half), 0.0, 1.0)
    a2 = roughness**4
    d = a2 / (np.pi * (nh * nh * (a2 - 1) + 1) ** 2)
    k = (roughness + 1) ** 2 / 8
    g = nl / (nl * (1 - k) + k) / (nv * (1 - k) + k)
    fresnel = fresnel0 + (1 - fresnel0) * ((1 - vh) ** 5)[:, None]
    return (d * g / 4)[:, None] * fresnel


def shade(points: Array, index: Indices, view: Array, sun: Array, bounce: bool = True) -> Array:
    """Linear light [n, 3] leaving surface points [n, 3] towards `view` [n, 3].

    sun: unit directions [n, 3] to the sampled spot of the sun. Mirror paints trace a reflected ray.
    """
    normals = part_gradient(points, index)
    base = albedo(points, index)
    metal = METAL[index][:, None]
    facing = np.clip(dot(normals, sun), 0.0, 1.0)
    lit = np.flatnonzero(facing > 0)
    blocked = trace(points[lit] + 2e-3 * normals[lit], sun[lit])[0]
    light = np.zeros(len(points))
    light[lit] = np.where(np.isfinite(blocked), 0.0, 1.0)
    fill = np.clip(dot(normals, FILL), 0.0, 1.0)[:, None] * FILL_LIGHT
    around = ambient(points, normals)
    fresnel0 = np.where(metal, base, REFLECTANCE[index][:, None])
    diffuse = base * np.where(metal, 0.25, 1.0)
    total = diffuse * ((light * facing)[:, None] * SUN_LIGHT + fill + around) * 0.62
    gloss = microfacet(normals, view, sun, ROUGHNESS[index], fresnel0)
    total += np.minimum(gloss * np.pi, 6.0) * light[:, None] * SUN_LIGHT * 0.5
    rows = np.flatnonzero(MIRROR[index])
    if bounce and rows.size:
        n, v = normals[rows], view[rows]
        cosine = np.clip(dot(n, v), 0.0, 1.0)[:, None]
        mirrored = 2 * dot(n, v)[:, None] * n - v
        seen = sky(mirrored)
        start = points[rows] + 2e-3 * n
        t, part = trace(start, mirrored)
        hit = np.flatnonzero(np.isfinite(t))
        if hit.size:
            place = start[hit] + t[hit, None] * mirrored[hit]
            seen[hit] = shade(place, part[hit], -mirrored[hit], sun[rows[hit]], bounce=False)
        total[rows] += (fresnel0[rows] + (1 - fresnel0[rows]) * (1 - cosine) ** 5) * seen
    return total


def display(light: Array) -> Array:
    """Linear light to linear display values in [0, 1]: straight to 0.6, then a soft shoulder."""
    knee = 0.6
    over = np.maximum(light - knee, 0.0)
    return np.minimum(light, knee) + (1 - knee) * (1 - np.exp(-over / (1 - knee)))


def encode(values: Array) -> Array:
    """Linear [0, 1] to sRGB [0, 1] (IEC 61966-2-1)."""
    return np.where(
        values <= 0.0031308, 12.92 * values, 1.055 * np.maximum(values, 1e-9) ** (1 / 2.4) - 0.055
    )


def sun_spots() -> Array:
    """One direction [16, 3] on the sun's disc per subsample, spread evenly (sunflower pattern)."""
    n = SAMPLES * SAMPLES
    k = np.array([(7 * i + 3) % n for i in range(n)])
    radius, angle = SUN_SPREAD * np.sqrt((k + 0.5) / n), k * np.pi * (3 - np.sqrt(5))
    u = np.cross([0.0, 0.0, 1.0], SUN)
    u /= np.linalg.norm(u)
    spots = SUN + radius[:, None] * (
        np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * np.cross(SUN, u)
    )
    return spots / np.linalg.norm(spots, axis=1, keepdims=True)


def render_rows(view: View, first: int, last: int) -> NDArray[np.uint8]:
    """Pixel rows first..last-1 as straight-alpha sRGB [rows, width, 4], 4 x 4 samples per pixel.

    Samples are toned, averaged with premultiplied alpha in linear light, then divided by alpha.
    """
    n = SAMPLES * SAMPLES
    j, i, s = (
        g.ravel()
        for g in np.meshgrid(
            np.arange(first, last), np.arange(view.size), np.arange(n), indexing="ij"
        )
    )
    origins, directions = view.rays(
        i + (s % SAMPLES + 0.5) / SAMPLES, j + (s // SAMPLES + 0.5) / SAMPLES
    )
    t, index = trace(origins, directions)
    hit = np.flatnonzero(np.isfinite(t))
    rgb = np.zeros((t.size, 3))
    if hit.size:
        points = origins[hit] + t[hit, None] * directions[hit]
        rgb[hit] = display(shade(points, index[hit], -directions[hit], sun_spots()[s[hit]]))
    count = np.isfinite(t).reshape(-1, n).sum(axis=1)
    colour = rgb.reshape(-1, n, 3).sum(axis=1) / np.maximum(count, 1)[:, None]
    pixels = np.concatenate([encode(colour) * (count > 0)[:, None], count[:, None] / n], axis=1)
    return np.floor(pixels * 255 + 0.5).astype(np.uint8).reshape(last - first, view.size, 4)


def render(view: View, band: int = 10) -> NDArray[np.uint8]:
    """The whole picture [size, size, 4] uint8, straight alpha, sRGB."""
    rows = range(0, view.size, band)
    return np.concatenate([render_rows(view, k, min(k + band, view.size)) for k in rows])


def depth_and_normals(view: View) -> tuple[Array, Array]:
    """Through pixel centres: distance along the ray [size, size] (0: none), normals [.., 3]."""
    j, i = (
        g.ravel() for g in np.meshgrid(np.arange(view.size), np.arange(view.size), indexing="ij")
    )
    origins, directions = view.rays(i + 0.5, j + 0.5)
    t, index = trace(origins, directions)
    hit = np.flatnonzero(np.isfinite(t))
    normals = np.zeros((t.size, 3))
    normals[hit] = part_gradient(origins[hit] + t[hit, None] * directions[hit], index[hit])
    shape = (view.size, view.size)
    return np.where(np.isfinite(t), t, 0.0).reshape(shape), normals.reshape(*shape, 3)

"""What the courtyard is painted with: linear albedo by place, filtered to the pixel's footprint.

A painter takes the part, local points [3, n], local normals [3, n] and the width [n] in metres
that a pixel covers there. What is finer than that width fades to its mean, so that pictures do
not alias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from court_parts import DOOR, WINDOWS, Part
from numpy.typing import NDArray

Array = NDArray[Any]
Painter = Callable[[Part, Array, Array, Array], Array]
TILE = 512  # texels along a side of the noise texture


def linear(code: str) -> Array:
    """sRGB hex code to linear RGB [3] (IEC 61966-2-1)."""
    v = np.array([int(code[k : k + 2], 16) for k in (0, 2, 4)]) / 255.0
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


@lru_cache(maxsize=1)
def noise_levels() -> tuple[Array, NDArray[np.int64]]:
    """Periodic noise of spectrum 1/f, and its halvings, end to end; where each level starts."""
    rng = np.random.default_rng(7)
    f = np.fft.fftfreq(TILE) * TILE
    radius = np.maximum(np.hypot(f[:, None], f[None]), 1.0)
    spectrum = np.fft.fft2(rng.standard_normal((TILE, TILE))) / radius**1.05
    spectrum[radius < 2] = 0
    level = np.fft.ifft2(spectrum).real
    level = level / level.std()
    levels = []
    while True:
        levels.append(level.ravel())
        if len(level) == 1:
            break
        level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4
    starts = np.cumsum([0, *(part.size for part in levels)])[:-1]
    return np.concatenate(levels), starts.astype(np.int64)


def noise(u: Array, v: Array, size: float, width: Array) -> Array:
    """Noise [n] of mean 0 and deviation 1 that repeats every `size` metres, filtered to `width`."""
    values, starts = noise_levels()
    level = np.clip(np.log2(np.maximum(width * TILE / size, 1e-6)) + 0.3, 0, 9).astype(np.int64)
    n = TILE >> level
    a, b = u / size * n - 0.5, v / size * n - 0.5
    i, j = np.floor(a).astype(np.int64), np.floor(b).astype(np.int64)
    a, b = a - i, b - j
    mask, start = n - 1, starts[level]
    i0, j0, i1, j1 = (i & mask) * n, j & mask, ((i + 1) & mask) * n, (j + 1) & mask
    top = values[start + i0 + j0] * (1 - b) + values[start + i0 + j1] * b
    low = values[start + i1 + j0] * (1 - b) + values[start + i1 + j1] * b
    return top * (1 - a) + low * a


def grain(u: Array, v: Array, width: Array) -> Array:
    """Noise [n] on two scales, so that its repetition does not show."""
    return 0.6 * noise(u, v, 1.7, width) + 0.6 * noise(v + 3.1, u, 11.3, width)


def chance(i: Array, j: Array, seed: int = 0) -> Array:
    """A number [n] in [0, 1) for each cell (i, j)."""
    h = i.astype(np.int64) * 73856093 ^ j.astype(np.int64) * 19349663 ^ (seed * 83492791 + 977)
    h = (h ^ (h >> 13)) * 1274126177 & 0x7FFFFFFF
    h = (h ^ (h >> 11)) * 668265263 & 0x7FFFFFFF
    return ((h ^ (h >> 15)) & 0xFFFF) / 65536.0


def line(distance: Array, half: float, width: Array) -> Array:
    """Cover [n] by a line of half width `half` of pixels of `width`, `distance` from its middle."""
    width = np.maximum(width, 1e-4)
    top = np.minimum(distance + width / 2, half)
    return np.clip((top - np.maximum(distance - width / 2, -half)) / width, 0.0, 1.0)


def fade(width: Array, size: float) -> Array:
    """1 where cells of `size` are resolved, 0 where a pixel covers several."""
    return np.clip(1.6 - 1.6 * width / size, 0.0, 1.0)


def flat(p: Array, n: Array) -> tuple[Array, Array]:
    """Coordinates on the plane that faces most like the normal: along, and up (or y)."""
    k = np.abs(n).argmax(axis=0)
    u = np.where(k == 0, p[1], p[0])
    return u, np.where(k == 2, p[1], p[2])


def masonry(
    u: Array, v: Array, width: Array, size: tuple[float, float], joint: float
) -> tuple[Array, Array, Array]:
    """Cover [n] by joints, and two random numbers [n] of the block, in a running bond."""
    row = np.floor(v / size[1])
    shifted = u / size[0] + 0.5 * (row % 2)
    column = np.floor(shifted)
    du = (0.5 - np.abs(shifted - column - 0.5)) * size[0]
    dv = (0.5 - np.abs(v / size[1] - row - 0.5)) * size[1]
    cover = np.maximum(line(du, joint / 2, width), line(dv, joint / 2, width))
    shown = fade(width, size[1])
    first = 0.5 + (chance(column, row) - 0.5) * shown
    return cover, first, 0.5 + (chance(column, row, 5) - 0.5) * shown


def mix(a: Array, b: Array, t: Array) -> Array:
    """Blend colours a, b ([3] or [n, 3]) by t [n]."""
    return a + (b - a) * t[:, None]


def tint(colour: Array, factor: Array) -> Array:
    """A colour [3] or colours [n, 3] times a factor [n], kept a possible albedo."""
    return np.clip(colour * np.maximum(factor, 0.15)[:, None], 0.0, 0.82)


BRICK = [linear(c) for c in ("a4573c", "8a4030", "c07a52", "b7aa98")]


def brick(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Red bricks in lime mortar."""
    u, v = flat(p + np.array(part.centre)[:, None], n)
    joints, a, b = masonry(u, v, width, (0.25, 0.083), 0.014)
    colour = mix(mix(BRICK[0], BRICK[1], a), BRICK[2], np.clip(2.2 * b - 1.3, 0, 1))
    colour = mix(colour, BRICK[3], 0.85 * joints)
    return tint(colour, 1 + 0.16 * grain(u, v, width))


def blocks(colour: Array, size: tuple[float, float], dark: float = 0.45) -> Painter:
    """Dressed stone of one colour in courses."""

    def paint(part: Part, p: Array, n: Array, width: Array) -> Array:
        u, v = flat(p + np.array(part.centre)[:, None], n)
        joints, a, b = masonry(u, v, width, size, 0.02)
        rough = grain(u, v, width)
        shade = (0.78 + 0.44 * a) * (1 + 0.10 * rough) * (1 - dark * joints)
        warm = np.array([1.08, 1.0, 0.86])
        return tint(colour * (1 + (warm - 1) * b[:, None]), shade)

    return paint


def plain(code: str, strength: float = 0.12, wear: float = 0.0) -> Painter:
    """One colour with grain; `wear` adds patches of lighter stuff."""
    colour = linear(code)

    def paint(part: Part, p: Array, n: Array, width: Array) -> Array:
        u, v = flat(p + np.array(part.centre)[:, None], n)
        rough = grain(u, v, width)
        rgb = tint(colour, 1 + strength * rough)
        if wear:
            worn = np.clip(noise(v, u + 0.7, 2.9, width) - 1.1, 0, 0.6)
            rgb = mix(rgb, linear("b9a58c"), worn * wear)
        return rgb

    return paint


def wall(code: str) -> Painter:
    """Limewash with stains, darker at its foot, some bricks laid bare."""
    colour = linear(code)

    def paint(part: Part, p: Array, n: Array, width: Array) -> Array:
        world = p + np.array(part.centre)[:, None]
        u, v = flat(world, n)
        slow, quick = noise(u, v, 9.0, width), noise(v, u, 1.9, width)
        streaks = noise(u * 1.0, v * 0.12, 2.3, width)
        rgb = tint(colour, 1 + 0.10 * slow + 0.07 * quick + 0.06 * streaks)
        foot = np.clip(1 - world[2] / 0.7 + 0.3 * quick, 0, 1)
        rgb = mix(rgb, rgb * np.array([0.62, 0.60, 0.52]), foot)
        bare = np.clip((noise(u + 2.0, v, 6.1, width) + 0.3 * quick - 1.25) * 6, 0, 1)
        return mix(rgb, brick(part, p, n, width), bare)

    return paint


def planks(code: str, step: float) -> Painter:
    """Boards along the longest side, with grain along them."""
    colour = linear(code)

    def paint(part: Part, p: Array, n: Array, width: Array) -> Array:
        along = int(np.argmax(part.half))
        others = [k for k in range(3) if k != along]
        facing = np.abs(n[others[0]]) > np.abs(n[others[1]])
        u, v = p[along], np.where(facing, p[others[1]], p[others[0]])
        row = np.floor(v / step)
        off = (0.5 - np.abs(v / step - row - 0.5)) * step
        shade = 0.8 + 0.4 * (0.5 + (chance(row, row * 0 + 3) - 0.5) * fade(width, step))
        fibre = noise(u * 0.15 + 3 * row, v, 0.6, width)
        return tint(colour, shade * (1 + 0.18 * fibre) * (1 - 0.7 * line(off, 0.006, width)))

    return paint


def tiles(code: str, course: float = 0.28) -> Painter:
    """Curved roof tiles in courses: shaded across, dark under each lower edge."""
    colour = linear(code)

    def paint(part: Part, p: Array, n: Array, width: Array) -> Array:
        # courses run along the longer horizontal side
        u, v = (p[0], p[1]) if part.half[0] > part.half[1] else (p[1], p[0])
        v = v * 1.15  # a roof is longer than its plan
        row, column = np.floor(v / course), np.floor(u / 0.19)
        fu, fv = u / 0.19 - column, v / course - row
        shown = fade(width, 0.19)
        bulge = 1 + 0.38 * (np.sin(np.pi * fu) - 0.64) * shown
        under = 1 - 0.5 * line((0.5 - np.abs(fv - 0.5)) * course, 0.02, width)
        lot = 0.5 + (chance(column, row, 2) - 0.5) * fade(width, course)
        rgb = mix(colour, linear("d09a6c"), np.clip(1.6 * lot - 0.7, 0, 1))
        moss = np.clip(noise(u, v, 5.3, width) - 0.9, 0, 1)
        rgb = mix(rgb, linear("7a7a4a"), 0.6 * moss)
        return tint(rgb, bulge * under * (0.8 + 0.35 * lot) * (1 + 0.1 * grain(u, v, width)))

    return paint


PAVING = [linear(c) for c in ("b5a78e", "9a9184", "c4b59a", "7b7466")]
GRASS = [linear(c) for c in ("6f8a3e", "93964f", "4f6b30", "b8a468")]


def ground(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Flags in the yard, chequered tiles in the gallery, a road, meadows and fields."""
    x, y = p[0] + part.centre[0], p[1] + part.centre[1]
    joints, a, b = masonry(x, y, width, (0.9, 0.6), 0.022)
    rough = grain(x, y, width)
    flags = mix(mix(PAVING[0], PAVING[1], a), PAVING[2], np.clip(2 * b - 1.1, 0, 1))
    mossy = np.clip(noise(x, y, 7.7, width) + 0.4, 0, 1)
    flags = mix(flags, mix(PAVING[3], linear("5d6638"), mossy), 0.8 * joints)
    flags = tint(flags, 1 + 0.13 * rough)
    # two strips of red brick cross the yard
    strip = np.minimum(np.abs(np.abs(x) - 3.1), np.abs(np.abs(y) - 3.1)) - 0.22
    red = brick(part, np.stack([x, n[1], y * 1.0]), n * 0 + np.array([[0.0], [1.0], [0.0]]), width)
    flags = mix(flags, red, np.clip(-strip / np.maximum(width, 0.01) + 0.5, 0, 1))
    odd = (np.floor(x / 0.4) + np.floor(y / 0.4)) % 2
    odd = 0.5 + (odd - 0.5) * fade(width, 0.4)
    gallery = tint(mix(linear("a85f3f"), linear("d8c7a4"), odd), 1 + 0.12 * rough)
    rgb = np.where((x < -7.2)[:, None], gallery, flags)
    tufts = noise(x, y, 2.1, width) + 0.8 * noise(y, x, 23.0, width)
    meadow = mix(
        mix(GRASS[0], GRASS[1], np.clip(0.5 + 0.4 * tufts, 0, 1)),
        GRASS[2],
        np.clip(-tufts - 0.4, 0, 0.8),
    )
    i, j = np.floor((x + 0.3 * y) / 31.0), np.floor((y - 0.2 * x) / 24.0)
    field = mix(GRASS[0], GRASS[3], chance(i, j, 9)) * (0.75 + 0.5 * chance(i, j, 4))[:, None]
    rows = 1 + 0.15 * np.sin(2 * np.pi * (x + 0.3 * y) / 1.7) * fade(width, 1.7)
    far = np.clip((np.hypot(x, y) - 24) / 10, 0, 1) * 0.75
    meadow = mix(meadow, tint(field, rows * (1 + 0.1 * tufts)), far)
    road = np.clip((1.6 + 0.25 * tufts - np.abs(x + 1.2 * np.sin(y / 13))) / 0.5, 0, 1) * (y < -9)
    meadow = mix(meadow, tint(linear("bfa988"), 1 + 0.14 * rough), road)
    yard = (np.abs(y) < 9.45) & (x < 7.4) & (x > -10.2)
    return np.where(yard[:, None], rgb, np.clip(meadow, 0, 0.8))


def house(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Ochre limewash; in the recesses glass with bars, and the door."""
    rgb = wall("dcae6c")(part, p, n, width)
    u, depth, w = p[0], p[1] + part.half[1], p[2] + part.half[2]
    back = np.flatnonzero((depth > 0.2) & (depth < 0.25) & (n[1] < -0.5))
    for a, b, half_u, half_w in (*WINDOWS, DOOR):
        rows = back[(np.abs(u[back] - a) < half_u) & (np.abs(w[back] - b) < half_w)]
        if not rows.size:
            continue
        s, t, wide = u[rows] - a, w[rows] - b, width[rows]
        if (a, b) == DOOR[:2]:
            rgb[rows] = door(part, np.stack([s, t * 0, t]), n[:, rows], wide)
            continue
        glass = mix(linear("2f3f4a"), linear("5d7482"), np.clip(0.5 + t, 0, 1))
        curtain = (np.abs(s) > 0.27) & (np.abs(t) < 0.7)
        glass[curtain] = mix(
            linear("b9b0a0"), linear("8c8478"), 0.5 + 0.5 * np.sin(70 * s[curtain])
        )
        bars = np.maximum(line(np.abs(s), 0.03, wide), line(np.abs(np.abs(t) - 0.25), 0.022, wide))
        edge = np.minimum(half_u - np.abs(s), half_w - np.abs(t))
        bars = np.maximum(bars, line(edge, 0.06, wide))
        rgb[rows] = mix(glass, linear("efe8d8"), bars)
    return rgb


def door(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Green boards with iron bands."""
    u, v = (
        flat(p, n * 0 + np.array([[0.0], [1.0], [0.0]])) if part.paint == "house" else (p[1], p[2])
    )
    row = np.floor(u / 0.16)
    off = (0.5 - np.abs(u / 0.16 - row - 0.5)) * 0.16
    fibre = noise(u + 2 * row, 0.15 * v, 0.7, width)
    shade = (
        (0.85 + 0.3 * chance(row, row * 0))
        * (1 + 0.15 * fibre)
        * (1 - 0.6 * line(off, 0.007, width))
    )
    bands = line(np.abs(np.abs(v) - 0.7), 0.035, width)
    return mix(tint(linear("3f6b52"), shade), linear("34302c"), bands)


def shutter(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Blue slats in a frame."""
    f = p[2] / 0.07 - np.floor(p[2] / 0.07)
    slat = 1 - 0.45 * fade(width, 0.07) * (1 - f)
    frame = np.maximum(np.abs(p[0]) - 0.20, np.abs(np.abs(p[2]) - part.half[2] / 2) * -1 + 0.32) > 0
    shade = np.where(frame, 1.0, slat) * (1 + 0.1 * grain(p[0] + part.centre[0], p[2], width))
    return tint(linear("4a7896"), shade)


def gallery(part: Part, p: Array, n: Array, width: Array) -> Array:
    """White wall with a painted dado, a frieze and pictures of stars."""
    rgb = wall("e6dcc6")(part, p, n, width)
    y, z = p[1], p[2] + part.half[2]
    dado = tint(linear("a4483a"), 1 + 0.12 * grain(y, z, width))
    rgb = mix(rgb, dado, (z < 1.0) * 1.0)
    rgb = mix(rgb, linear("3b5875"), line(np.abs(z - 1.06), 0.04, width))
    cell = np.floor(y / 0.5)
    lozenge = np.abs(y / 0.5 - cell - 0.5) * 0.5 + np.abs(z - 3.3)
    rgb = mix(rgb, linear("3b5875"), (np.abs(z - 3.3) < 0.26) * 1.0)
    lot = chance(cell, cell * 0)
    hue = np.stack([linear("e0b04a"), linear("c8543a"), linear("e6dcc6")])[(lot * 3).astype(int)]
    shown = np.clip((0.2 - lozenge) / np.maximum(width, 0.005) + 0.5, 0, 1)
    return mix(rgb, hue, shown)


def drums(part: Part, p: Array, n: Array, width: Array) -> Array:
    """A shaft of pale drums with fluting worn off."""
    angle = np.arctan2(p[1], p[0])
    z = p[2] + part.half[2]
    drum = np.floor(z / 0.52)
    off = (0.5 - np.abs(z / 0.52 - drum - 0.5)) * 0.52
    lot = chance(drum, drum * 0 + round(10 * part.centre[1]))
    rough = grain(angle * 0.25 + 5 * part.centre[1], z + part.centre[1], width)
    return tint(
        linear("cfc0a2"),
        (0.85 + 0.25 * lot) * (1 + 0.13 * rough) * (1 - 0.4 * line(off, 0.01, width)),
    )


def radial(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Wedges of two stones around the fountain."""
    r, angle = np.hypot(p[0], p[1]), np.arctan2(p[1], p[0])
    k = np.floor(angle / (2 * np.pi) * 32)
    off = np.abs(angle / (2 * np.pi) * 32 - k - 0.5)
    joint = line((0.5 - off) * 2 * np.pi / 32 * r, 0.01, width)
    colour = mix(linear("b8ab95"), linear("8f6f5c"), k % 2)
    return tint(colour, (1 - 0.5 * joint) * (1 + 0.14 * grain(p[0], p[1], width)))


def mosaic(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Glazed tiles around the basin: blue, white and yellow squares."""
    angle, z = np.arctan2(p[1], p[0]), p[2] + part.half[2]
    u = angle * 1.85
    size = 2 * np.pi * 1.85 / 72
    i, j = np.floor(u / size), np.floor(z / 0.15)
    off = np.minimum(
        (0.5 - np.abs(u / size - i - 0.5)) * size, (0.5 - np.abs(z / 0.15 - j - 0.5)) * 0.15
    )
    lot = chance(i % 72, j, 3)
    table = np.stack([linear(c) for c in ("2f5f8f", "e4ddca", "3f86a0", "dcb050")])
    rgb = table[np.minimum((lot * 4).astype(int), 3)]
    mean = table.mean(axis=0)
    rgb = mean + (rgb - mean) * fade(width, 0.15)[:, None]
    return tint(mix(rgb, linear("a89d8c"), line(off, 0.007, width)), 1 + 0.06 * grain(u, z, width))


def foliage(codes: tuple[str, str, str], size: float = 0.9) -> Painter:
    """Mottled leaves; the third colour is for blossoms or bright leaves."""
    dark, light, accent = (linear(code) for code in codes)

    def paint(part: Part, p: Array, n: Array, width: Array) -> Array:
        u, v = p[0] + 0.6 * p[2] + 7 * part.centre[0], p[1] - 0.55 * p[2] + 3 * part.centre[1]
        f = noise(u, v, size, width) + 0.4 * noise(v, u, 3.7 * size, width)
        rgb = mix(dark, light, np.clip(0.5 + 0.45 * f, 0, 1))
        return mix(rgb, accent, np.clip(3.0 * noise(v + 0.3, u, 0.8 * size, width) - 3.6, 0, 1))

    return paint


def hill(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Fields, hedges and woods."""
    x, y = p[0] + part.centre[0], p[1] + part.centre[1]
    a, b = x / 19.0 + 0.3 * np.sin(y / 21), y / 15.0 + 0.3 * np.sin(x / 17)
    i, j = np.floor(a), np.floor(b)
    rgb = mix(GRASS[0], GRASS[3], chance(i, j, 8)) * (0.7 + 0.5 * chance(i, j, 6))[:, None]
    off = np.minimum(0.5 - np.abs(a - i - 0.5), 0.5 - np.abs(b - j - 0.5)) * 15
    rgb = mix(rgb, linear("3d5230"), line(off, 0.7, width))
    wood = np.clip((noise(x, y, 160.0, width) - 0.1) * 5, 0, 1)
    return tint(mix(rgb, linear("3a5030"), wood), 1 + 0.22 * noise(x, y, 40.0, width))


def cottage(code: str) -> Painter:
    """Plaster with two rows of dark windows."""
    colour = linear(code)

    def paint(part: Part, p: Array, n: Array, width: Array) -> Array:
        u, v = flat(p, n)
        rgb = tint(colour, 1 + 0.10 * grain(u + part.centre[0], v, width))
        z = p[2] + part.half[2]
        along = np.abs(u / 1.9 - np.round(u / 1.9)) * 1.9
        up = np.abs(z - 1.5 - 2.7 * np.clip(np.round((z - 1.5) / 2.7), 0, 1))
        edge = np.minimum(0.48 - along, 0.68 - up)
        side = np.abs(n[2]) < 0.5
        cover = (
            np.clip(edge / np.maximum(width, 0.02) + 0.5, 0, 1)
            * side
            * (z < part.half[2] * 2 - 0.5)
        )
        frame = np.clip((edge + 0.12) / np.maximum(width, 0.02) + 0.5, 0, 1) * side
        rgb = mix(rgb, linear("e9e2d4"), frame * (cover < 1) * (z < part.half[2] * 2 - 0.5))
        return mix(rgb, linear("33404a"), cover)

    return paint


def barrel(part: Part, p: Array, n: Array, width: Array) -> Array:
    """Staves and hoops."""
    angle, z = np.arctan2(p[1], p[0]), p[2]
    k = np.floor(angle / (2 * np.pi) * 18)
    off = (0.5 - np.abs(angle / (2 * np.pi) * 18 - k - 0.5)) * 0.118
    fibre = noise(angle * 0.34 + k, 0.15 * z, 0.6, width)
    rgb = tint(
        linear("9c6c40"),
        (0.8 + 0.4 * chance(k, k * 0)) * (1 + 0.16 * fibre) * (1 - 0.6 * line(off, 0.005, width)),
    )
    hoops = np.minimum(np.abs(np.abs(z) - 0.38), np.abs(np.abs(z) - 0.16))
    return mix(rgb, linear("4a4742"), line(hoops, 0.025, width))


PAINTS: dict[str, Painter] = {
    "ground": ground,
    "brick": brick,
    "stone": plain("c3b69d", 0.14),
    "ashlar": blocks(linear("c2b091"), (0.62, 0.31)),
    "plaster": wall("e2d6bf"),
    "gallery": gallery,
    "house": house,
    "rooftile": tiles("b4603f"),
    "farroof": tiles("a65a40", 0.4),
    "planks": planks("9a7650", 0.14),
    "crate": planks("b58e5c", 0.11),
    "beam": planks("6e4f35", 0.2),
    "door": door,
    "shutter": shutter,
    "drums": drums,
    "radial": radial,
    "mosaic": mosaic,
    "water": plain("4c6f6c", 0.2),
    "bronze": plain("6a7a5c", 0.2),
    "iron": plain("3a3b3d", 0.1),
    "lantern": plain("d9d2b0", 0.1),
    "pot": plain("b8683f", 0.16, 0.6),
    "soil": plain("4f3b2a", 0.3),
    "bark": plain("6b5a48", 0.3),
    "barrel": barrel,
    "leaf": foliage(("2f4a20", "7d9a48", "a9b868")),
    "flowers": foliage(("34502a", "7c9a4c", "d8507a"), 0.5),
    "far leaf": foliage(("33502a", "74904a", "98a85c"), 3.0),
    "hill": hill,
    "cottage ochre": cottage("d9b27a"),
    "cottage white": cottage("e0d9cb"),
    "cottage rose": cottage("cf9f86"),
}
MIRRORS = {"water": 0.04, "mosaic": 0.02}  # reflectance at normal incidence


def albedo(part: Part, points: Array, normals: Array, width: Array) -> Array:
    """Albedo [n, 3] at world points [3, n] with world normals [3, n]."""
    turned = normals if part.rotation is None else part.rotation.T @ normals
    return PAINTS[part.paint](part, part.local(points), turned, width)

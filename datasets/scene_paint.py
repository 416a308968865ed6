"""What toy biplane and cup are painted with: linear albedo from position, gloss per paint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scene_parts import PARTS

Array = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]
Painter = Callable[[Array, Array, Array], Array]

LETTERS = {  # 5 x 7 dot letters, rows from the top
    "N": ("#...#", "##..#", "#.#.#", "#.#.#", "#..##", "#...#", "#...#"),
    "E": ("#####", "#....", "#....", "####.", "#....", "#....", "#####"),
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "F": ("#####", "#....", "#....", "####.", "#....", "#....", "#...."),
}


def linear(code: str) -> Array:
    """sRGB hex code to linear RGB [3] (IEC 61966-2-1)."""
    v = np.array([int(code[k : k + 2], 16) for k in (0, 2, 4)]) / 255.0
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


RED, CREAM, YELLOW, TEAL, NAVY = (
    linear(c) for c in ("d8232f", "fff0cf", "fbb023", "149a93", "27304f")
)
BROWN, WOOD, DARK, STEEL, SKIN = (
    linear(c) for c in ("a8642c", "c98a48", "33343c", "9aa3ad", "f0d3a2")
)
GOLD, LEATHER, GLASS = (linear(c) for c in ("f2b53c", "70401f", "8fd0e8"))


def solid(colour: Array, n: int) -> Array:
    """One colour [3] for n points."""
    return np.repeat(colour[None], n, axis=0)


def put(rgb: Array, mask: NDArray[np.bool_], colour: Array) -> None:
    """Paint `colour` over the masked rows of rgb [n, 3]."""
    rgb[mask] = colour


def noise(x: Array, y: Array, z: Array, frequency: float) -> Array:
    """Value noise in [0, 1]: hashed lattice values, trilinear with smoothstep weights."""
    p = np.stack([x, y, z]) * frequency + 1000.0
    base = np.floor(p)
    f = p - base
    f = f * f * (3 - 2 * f)
    i = base.astype(np.uint64)
    total = np.zeros(x.size)
    for corner in range(8):
        bits = [(corner >> k) & 1 for k in range(3)]
        h = sum(
            (i[k] + np.uint64(bits[k])) * np.uint64((73856093, 19349663, 83492791)[k])
            for k in range(3)
        )
        h = (h ^ (h >> np.uint64(13))) * np.uint64(1274126177)
        h = (h ^ (h >> np.uint64(16))) & np.uint64(0xFFFF)
        weight = np.prod([f[k] if bits[k] else 1 - f[k] for k in range(3)], axis=0)
        total += weight * h.astype(np.float64) / 65535.0
    return total


def fuselage(x: Array, y: Array, z: Array) -> Array:
    """Local z runs from nose (0) to tail (1.28); the angle is taken around it, 0 at the top."""
    rgb = solid(RED, x.size)
    up, side = x, y  # `along` gives this solid local x up and local y sideways
    angle = np.degrees(np.arctan2(np.abs(side), up))
    put(rgb, angle > 118, CREAM)
    put(rgb, (angle > 112) & (angle < 118), NAVY)
    put(rgb, np.abs(angle - 84) < 8.5, CREAM)
    put(rgb, np.abs(angle - 84) < 3.5, NAVY)
    band = (z > 0.80) & (z < 0.98)
    check = (
        np.floor((z - 0.80) / 0.06) + np.floor(np.degrees(np.arctan2(side, up)) / 30.0)
    ) % 2 == 0
    put(rgb, band, CREAM)
    put(rgb, band & check, NAVY)
    put(rgb, (np.abs(z - 0.79) < 0.011) | (np.abs(z - 0.99) < 0.011), YELLOW)
    put(rgb, z > 1.12, TEAL)
    put(rgb, (z < 0.0) & (np.hypot(x, y) < 0.245), DARK)
    return rgb


def cowling(x: Array, y: Array, z: Array) -> Array:
    """Teal ring with a yellow lip and cream rivets; dark inside."""
    rgb = solid(TEAL, x.size)
    put(rgb, z > 0.085, YELLOW)
    angle = np.arctan2(y, x) * 24 / (2 * np.pi)
    dots = np.hypot((angle - np.round(angle)) * 2 * np.pi / 24 * 0.31, z + 0.06) < 0.014
    put(rgb, dots, CREAM)
    put(rgb, (np.hypot(x, y) < 0.262) & (z < 0.10), DARK)
    return rgb


def upper(x: Array, y: Array, z: Array) -> Array:
    """Yellow top with red and cream checks and roundels; teal stripes below; red rim."""
    rgb = solid(YELLOW, x.size)
    ribs = np.abs(y / 0.1 - np.round(y / 0.1)) < 0.07
    put(rgb, ribs, YELLOW * 0.62)
    span = np.abs(y)
    checked = (span > 0.58) & (span < 0.82)
    squares = (np.floor((span - 0.58) / 0.06) + np.floor((x + 0.3) / 0.06)) % 2 == 0
    put(rgb, checked, CREAM)
    put(rgb, checked & squares, RED)
    put(rgb, span > 0.82, RED)
    r = np.hypot(x, span - 0.35)
    for radius, colour in ((0.165, CREAM), (0.148, NAVY), (0.105, CREAM), (0.060, RED)):
        put(rgb, r < radius, colour)
    below = z < 0
    put(rgb, below, CREAM)
    put(rgb, below & (np.floor((span + 0.05) / 0.10) % 2 == 0), TEAL)
    put(rgb, below & (span > 0.85), RED)
    put(rgb, np.abs(z) < 0.022, RED)
    return rgb


def lower(x: Array, y: Array, z: Array, side: int) -> Array:
    """Yellow top with red tips; cream below with the letters NERF, read from beneath, nose up."""
    rgb = solid(YELLOW, x.size)
    put(rgb, np.abs(y / 0.1 - np.round(y / 0.1)) < 0.07, YELLOW * 0.62)
    out = y * side
    put(rgb, out > 0.22, CREAM)
    put(rgb, (out > 0.22) & (np.floor((out - 0.22) / 0.05) % 2 == 0), RED)
    below = z < 0
    put(rgb, below, CREAM)
    put(rgb, below & (out > 0.34), RED)
    put(rgb, below & (np.abs(out - 0.31) < 0.012), NAVY)
    dot = 0.038
    for letter, middle in zip(
        "NE" if side < 0 else "RF", (-0.09, 0.15) if side > 0 else (-0.15, 0.09), strict=True
    ):
        column = np.floor((y - middle) / dot + 2.5).astype(int)
        row = np.floor(3.5 - x / dot).astype(int)
        valid = below & (column >= 0) & (column < 5) & (row >= 0) & (row < 7)
        dots = np.array([[c == "#" for c in line] for line in LETTERS[letter]])
        put(rgb, valid & dots[np.clip(row, 0, 6), np.clip(column, 0, 4)], NAVY)
    put(rgb, np.abs(z) < 0.020, RED)
    return rgb


def tailplane(x: Array, y: Array, z: Array) -> Array:
    """Stripes along the chord."""
    rgb = solid(CREAM, x.size)
    put(rgb, np.floor((np.abs(y) + 0.02) / 0.06) % 2 == 0, TEAL)
    put(rgb, np.abs(z) < 0.016, RED)
    return rgb


def fin(x: Array, y: Array, z: Array) -> Array:
    """Three broad rudder stripes and a yellow disc."""
    rgb = solid(CREAM, x.size)
    put(rgb, x < -0.035, RED)
    put(rgb, x > 0.045, TEAL)
    put(rgb, np.hypot(x - 0.005, y - 0.05) < 0.062, NAVY)
    put(rgb, np.hypot(x - 0.005, y - 0.05) < 0.045, YELLOW)
    return rgb


def wood(x: Array, y: Array, z: Array) -> Array:
    """Grain along local z."""
    g = noise(x, y, z * 0.15, 70.0)
    return WOOD * (0.62 + 0.5 * g)[:, None]


def propeller(x: Array, y: Array, z: Array) -> Array:
    """Laminated planks along the blade, a yellow and red tip."""
    g = noise(x, y * 0.1, z, 60.0)
    plank = np.floor((x + 0.3) / 0.025) % 2
    rgb = BROWN * (0.60 + 0.35 * g + 0.35 * plank)[:, None]
    put(rgb, y > 0.12, YELLOW)
    put(rgb, (y > 0.155) & (y < 0.19), RED)
    return rgb


def cylinder(x: Array, y: Array, z: Array) -> Array:
    """Cooling fins."""
    return np.where((np.floor(z / 0.014) % 2 == 0)[:, None], STEEL, DARK)


def hub(x: Array, y: Array, z: Array) -> Array:
    """Wheel disc: yellow with red spokes."""
    rgb = solid(YELLOW, x.size)
    r = np.hypot(x, y)
    put(rgb, np.floor(np.arctan2(y, x) / (2 * np.pi) * 10) % 2 == 0, RED)
    put(rgb, r < 0.03, CREAM)
    return rgb


def scarf(x: Array, y: Array, z: Array) -> Array:
    """Stripes; on the round collar (ring in xy) by angle, on rods along z."""
    return np.where((np.floor(z / 0.028) % 2 == 0)[:, None], CREAM, RED)


def collar(x: Array, y: Array, z: Array) -> Array:
    """The scarf around the neck."""
    turns = np.floor(np.arctan2(y, x) / (2 * np.pi) * 20) % 2
    return np.where((turns == 0)[:, None], CREAM, RED)


def fur(x: Array, y: Array, z: Array) -> Array:
    """Brown with soft mottling."""
    return BROWN * (0.70 + 0.6 * noise(x, y, z, 38.0))[:, None]


def cup(x: Array, y: Array, z: Array) -> Array:
    """Teal with checks and stripes outside, cream with rings and spokes inside, a yellow rim."""
    rgb = solid(TEAL, x.size)
    angle, r = np.arctan2(y, x) / (2 * np.pi), np.hypot(x, y)
    squares = (np.floor((z + 1.0) / 0.09) + np.floor(angle * 40)) % 2 == 0
    put(rgb, np.abs(z) < 0.18, CREAM)
    put(rgb, (np.abs(z) < 0.18) & squares, RED)
    put(rgb, np.abs(np.abs(z) - 0.26) < 0.02, YELLOW)
    inner = r < 0.595
    put(rgb, inner, CREAM)
    put(rgb, inner & (np.floor((z + r) / 0.07) % 3 == 0), TEAL)
    put(rgb, inner & (np.floor(angle * 30) % 5 == 0), NAVY)
    put(rgb, z > 0.425, YELLOW)
    return rgb


def saucer(x: Array, y: Array, z: Array) -> Array:
    """Rings of red, cream and navy, in twelve sectors that alternate."""
    ring = np.floor(np.hypot(x, y) / 0.08 + np.floor(np.arctan2(y, x) / (2 * np.pi) * 12) % 2)
    rgb = solid(CREAM, x.size)
    put(rgb, ring % 3 == 0, RED)
    put(rgb, ring % 3 == 1, NAVY)
    put(rgb, (z < 0) & (ring % 3 == 1), YELLOW)
    return rgb


def plain(colour: Array) -> Painter:
    """A painter of one colour."""
    return lambda x, y, z: solid(colour, x.size)


@dataclass(frozen=True)
class Paint:
    """Painter in the part's frame; reflectance head-on; GGX roughness; mirror rays traced or not.

    A `metal` tints its reflection with its albedo and has little diffuse light.
    """

    painter: Painter
    reflectance: float = 0.04
    roughness: float = 0.55
    mirror: bool = False
    metal: bool = False


PAINTS: dict[str, Paint] = {
    "fuselage": Paint(fuselage, 0.06, 0.16, True),
    "cowling": Paint(cowling, 0.09, 0.14, True),
    "gold": Paint(plain(GOLD), 0.9, 0.20, True, True),
    "dark": Paint(plain(DARK), 0.04, 0.40),
    "steel": Paint(plain(STEEL), 0.3, 0.35),
    "glass": Paint(plain(GLASS), 0.12, 0.10, True),
    "lens": Paint(plain(NAVY), 0.12, 0.10, True),
    "nose": Paint(plain(DARK), 0.06, 0.25),
    "upper": Paint(upper, 0.04, 0.38),
    "lower-1": Paint(lambda x, y, z: lower(x, y, z, -1), 0.04, 0.38),
    "lower1": Paint(lambda x, y, z: lower(x, y, z, 1), 0.04, 0.38),
    "tailplane": Paint(tailplane, 0.04, 0.38),
    "fin": Paint(fin, 0.04, 0.38),
    "wood": Paint(wood, 0.04, 0.45),
    "propeller": Paint(propeller, 0.05, 0.30),
    "cylinder": Paint(cylinder, 0.15, 0.40),
    "rubber": Paint(plain(linear("3a3a42")), 0.04, 0.50),
    "hub": Paint(hub, 0.05, 0.25),
    "scarf": Paint(scarf, 0.02, 0.80),
    "collar": Paint(collar, 0.02, 0.80),
    "fur": Paint(fur, 0.02, 0.90),
    "snout": Paint(plain(SKIN), 0.02, 0.90),
    "jacket": Paint(plain(NAVY), 0.04, 0.50),
    "leather": Paint(plain(LEATHER), 0.04, 0.40),
    "cup": Paint(cup, 0.05, 0.16, True),
    "saucer": Paint(saucer, 0.04, 0.38),
}

REFLECTANCE = np.array([PAINTS[part.paint].reflectance for part in PARTS])
ROUGHNESS = np.array([PAINTS[part.paint].roughness for part in PARTS])
MIRROR = np.array([PAINTS[part.paint].mirror for part in PARTS])
METAL = np.array([PAINTS[part.paint].metal for part in PARTS])


def albedo(points: Array, index: Indices) -> Array:
    """Linear RGB [n, 3] of surface points [n, 3] on parts `index` [n]."""
    rgb = np.zeros((len(points), 3))
    for k in np.unique(index):
        rows = np.flatnonzero(index == k)
        local = PARTS[k].local(np.ascontiguousarray(points[rows].T))
        rgb[rows] = PAINTS[PARTS[k].paint].painter(*local)
    return np.clip(rgb, 0.0, 1.0)

"""The courtyard: its parts, each a distance field in its own frame with bounds and a paint.

World frame: metres, z up, +y north, the ground at z = 0. The yard is 14 x 18 m around the origin.
A part's field is zero exactly on its surface and never more than the distance to it, so that
sphere tracing cannot pass through: fields of single solids are exact, intersections and
differences are lower bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Vector = tuple[float, float, float]
Shape = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Part:
    """One shape around `centre` within the box `half`; `rotation` has the local axes as columns."""

    name: str
    paint: str
    shape: Shape
    centre: Vector
    half: Vector
    rotation: Array | None = None

    def local(self, points: Array) -> Array:
        """World points [3, n] in this part's frame."""
        moved = points - np.array(self.centre)[:, None]
        return moved if self.rotation is None else self.rotation.T @ moved

    def distance(self, points: Array) -> Array:
        """Field [n] of world points [3, n]."""
        return self.shape(*self.local(points))

    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest corner of the bounding box along the world's axes, a bit wide."""
        half = np.array(self.half)
        reach = (half if self.rotation is None else np.abs(self.rotation) @ half) + 1e-3
        return np.array(self.centre) - reach, np.array(self.centre) + reach


def turn(axis: str, degrees: float) -> Array:
    """Rotation [3, 3] about a coordinate axis, right-handed."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def box_field(x: Array, y: Array, z: Array, half: tuple[Any, Any, Any]) -> Array:
    """Exact distance to a box."""
    u, v, w = np.abs(x) - half[0], np.abs(y) - half[1], np.abs(z) - half[2]
    a, b, c = np.maximum(u, 0.0), np.maximum(v, 0.0), np.maximum(w, 0.0)
    return np.sqrt(a * a + b * b + c * c) + np.minimum(np.maximum(np.maximum(u, v), w), 0.0)


def cylinder_field(x: Array, y: Array, z: Array, radius: float, half: float) -> Array:
    """Exact distance to an upright cylinder."""
    u, w = np.sqrt(x * x + y * y) - radius, np.abs(z) - half
    a, b = np.maximum(u, 0.0), np.maximum(w, 0.0)
    return np.sqrt(a * a + b * b) + np.minimum(np.maximum(u, w), 0.0)


def ring_field(x: Array, y: Array, z: Array, inner: float, outer: float, half: float) -> Array:
    """Exact distance to an upright tube of square section."""
    u = np.abs(np.sqrt(x * x + y * y) - (inner + outer) / 2) - (outer - inner) / 2
    w = np.abs(z) - half
    a, b = np.maximum(u, 0.0), np.maximum(w, 0.0)
    return np.sqrt(a * a + b * b) + np.minimum(np.maximum(u, w), 0.0)


def ball_field(x: Array, y: Array, z: Array, radius: float) -> Array:
    """Exact distance to a ball."""
    return np.sqrt(x * x + y * y + z * z) - radius


def cone_field(x: Array, y: Array, z: Array, low: float, high: float, half: float) -> Array:
    """Lower bound for a frustum: radius `low` at the bottom, `high` at the top."""
    slope = (low - high) / (2 * half)
    side = np.sqrt(x * x + y * y) - (low + high) / 2 + slope * z
    return np.maximum(side / np.sqrt(1 + slope * slope), np.abs(z) - half)


def bowl_field(x: Array, y: Array, z: Array, radius: float, wall: float, rim: float) -> Array:
    """Lower bound for the part below `rim` of a sphere's shell."""
    shell = np.abs(np.sqrt(x * x + y * y + z * z) - radius) - wall
    return np.maximum(shell, z - rim)


def gable_field(x: Array, y: Array, z: Array, half: Vector) -> Array:
    """Lower bound for a roof with the ridge along x: its eaves at -half z, its ridge at half z."""
    rise, run = 2 * half[2], half[1]
    slant = ((np.abs(y) - run) * rise + (z + half[2]) * run) / np.hypot(rise, run)
    return np.maximum(np.maximum(slant, -half[2] - z), np.abs(x) - half[0])


def pyramid_field(x: Array, y: Array, z: Array, half: Vector) -> Array:
    """Lower bound for a pyramid on a square."""
    rise, run = 2 * half[2], half[0]
    side = np.maximum(np.abs(x), np.abs(y)) - run
    return np.maximum((side * rise + (z + half[2]) * run) / np.hypot(rise, run), -half[2] - z)


def leaves_field(x: Array, y: Array, z: Array, radius: float, bump: float) -> Array:
    """Lower bound for a ball with bumps of up to `bump`."""
    field = np.sqrt(x * x + y * y + z * z) - radius
    near = np.flatnonzero(field < 1.1 * bump)
    field -= bump
    x, y, z, k = x[near], y[near], z[near], 2.4 / bump
    waves = np.sin(k * x + 1.0) * np.sin(k * y + 2.0) * np.sin(k * z)
    waves += 0.5 * np.sin(2.1 * k * x) * np.sin(1.9 * k * y + 1.0) * np.sin(2.0 * k * z + 2.0)
    field[near] = (field[near] + bump + bump * waves / 1.5) * 0.36
    return field


def arches_field(
    x: Array, y: Array, z: Array, half: Vector, spacing: float, radius: float, spring: float
) -> Array:
    """Lower bound for a wall along y pierced by round arches that spring at local z `spring`."""
    v = y - spacing * np.clip(np.round(y / spacing), -3, 3)
    w = np.maximum(z - spring, 0.0)
    hole = np.sqrt(v * v + w * w) - radius
    return np.maximum(box_field(x, y, z, half), -hole)


def gate_field(x: Array, y: Array, z: Array, half: Vector, radius: float, spring: float) -> Array:
    """Lower bound for a wall along x with one arch through it."""
    w = np.maximum(z - spring, 0.0)
    return np.maximum(box_field(x, y, z, half), radius - np.sqrt(x * x + w * w))


# recesses of the house's front as (x, z, half width, half height) from the front's centre, floor
WINDOWS = tuple((x, 4.45, 0.5, 0.75) for x in (-4.2, -2.1, 0.0, 2.1, 4.2)) + tuple(
    (x, 1.75, 0.5, 0.75) for x in (-4.2, -2.1, 2.1, 4.2)
)
DOOR = (0.0, 1.7, 0.65, 1.2)
RECESS = 0.22


def house_field(x: Array, y: Array, z: Array, half: Vector) -> Array:
    """Lower bound for a house whose front, at -half y, has recessed windows and a door."""
    field = box_field(x, y, z, half)
    near = np.flatnonzero(y < -half[1] + 0.6)
    if near.size:
        u, v, w = x[near], y[near] + half[1], z[near] + half[2]
        column = np.clip(np.round(u / 2.1), -2, 2)
        upper = w > 3.1
        is_door = (column == 0) & ~upper
        level = np.where(upper, 4.45, np.where(is_door, DOOR[1], 1.75))
        wide, high = np.where(is_door, DOOR[2], 0.5), np.where(is_door, DOOR[3], 0.75)
        hole = box_field(u - 2.1 * column, v, w - level, (wide, RECESS, high))
        field[near] = np.maximum(field[near], -hole)
    return field


def box(name: str, paint: str, low: Vector, high: Vector, rotation: Array | None = None) -> Part:
    """Box between two corners; a rotation turns it about its centre."""
    half = tuple(float(b - a) / 2 for a, b in zip(low, high, strict=True))
    centre = tuple(float(a + b) / 2 for a, b in zip(low, high, strict=True))
    return Part(name, paint, partial(box_field, half=half), centre, half, rotation)  # type: ignore[arg-type]


def upright(
    name: str, paint: str, foot: Vector, height: float, radius: float, top: float | None = None
) -> Part:
    """Cylinder on `foot`, or a frustum with the radius `top` at the top."""
    half = height / 2
    centre = (foot[0], foot[1], foot[2] + half)
    wide = max(radius, top or 0.0)
    shape = (
        partial(cylinder_field, radius=radius, half=half)
        if top is None
        else partial(cone_field, low=radius, high=top, half=half)
    )
    return Part(name, paint, shape, centre, (wide, wide, half))


def ball(name: str, paint: str, centre: Vector, radius: float) -> Part:
    """Ball."""
    return Part(name, paint, partial(ball_field, radius=radius), centre, (radius, radius, radius))


def leaves(name: str, centre: Vector, radius: float, bump: float, paint: str = "leaf") -> Part:
    """Bumpy ball of leaves."""
    shape = partial(leaves_field, radius=radius, bump=bump)
    reach = radius + bump
    return Part(name, paint, shape, centre, (reach, reach, reach))


def gable(
    name: str, paint: str, centre: Vector, half: Vector, rotation: Array | None = None
) -> Part:
    """Gable roof, ridge along local x."""
    return Part(name, paint, partial(gable_field, half=half), centre, half, rotation)


def ground_and_walls() -> list[Part]:
    """The ground, the brick wall in the east, the plastered wall and the gate in the south."""
    parts = [box("ground", "ground", (-240, -240, -1), (240, 240, 0))]
    parts += [box("east wall", "brick", (7.0, -9.35, 0), (7.35, 9.35, 1.15))]
    parts += [box("coping", "stone", (6.94, -9.4, 1.15), (7.41, 9.4, 1.26))]
    for y in (-9.2, -4.6, 0.0, 4.6, 9.2):
        parts += [box("pillar", "brick", (6.87, y - 0.3, 0), (7.48, y + 0.3, 1.6))]
        parts += [box("cap", "stone", (6.8, y - 0.37, 1.6), (7.55, y + 0.37, 1.72))]
        parts += [ball("finial", "stone", (7.175, y, 1.93), 0.22)]
    parts += [box("south wall", "plaster", (-7.3, -9.4, 0), (-2.3, -9.0, 2.5))]
    parts += [box("south coping", "rooftile", (-7.4, -9.5, 2.5), (-2.3, -8.9, 2.66))]
    parts += [box("low wall", "brick", (2.3, -9.35, 0), (7.1, -9.0, 1.15))]
    parts += [box("low coping", "stone", (2.3, -9.41, 1.15), (7.1, -8.94, 1.26))]
    parts += [box("north wall", "brick", (3.8, 9.05, 0), (7.1, 9.35, 1.15))]
    parts += [box("north coping", "stone", (3.8, 8.99, 1.15), (7.1, 9.41, 1.26))]
    half = (2.4, 0.4, 1.95)
    gate = partial(gate_field, half=half, radius=1.45, spring=-0.05)
    parts += [Part("gate", "ashlar", gate, (0, -9.2, 1.95), half)]
    roof = (2.75, 0.8, 0.4)
    return [*parts, gable("gate roof", "rooftile", (0, -9.2, 4.3), roof)]


def arcade() -> list[Part]:
    """The west wing: seven arches on columns, a gallery behind, a sloping roof."""
    half = (0.22, 9.0, 1.15)
    shape = partial(arches_field, half=half, spacing=2.5, radius=1.0, spring=-1.15)
    parts = [Part("arcade", "ashlar", shape, (-7.0, 0, 3.35), half)]
    for k in range(8):
        y = -8.75 + 2.5 * k
        parts += [box("base", "stone", (-7.27, y - 0.27, 0), (-6.73, y + 0.27, 0.22))]
        parts += [upright("torus", "stone", (-7.0, y, 0.22), 0.12, 0.25)]
        parts += [upright("column", "drums", (-7.0, y, 0.34), 1.54, 0.20, 0.17)]
        parts += [upright("echinus", "stone", (-7.0, y, 1.88), 0.17, 0.18, 0.27)]
        parts += [box("abacus", "stone", (-7.28, y - 0.28, 2.05), (-6.72, y + 0.28, 2.2))]
    parts += [box("back wall", "gallery", (-10.2, -9.4, 0), (-9.8, 9.4, 4.6))]
    parts += [box("ceiling", "planks", (-9.8, -9.0, 4.2), (-7.2, 9.0, 4.35))]
    for y in (-9.0, 9.0):
        end = (-9.8, y - 0.4, 0) if y < 0 else (-9.8, y, 0)
        parts += [box("end", "plaster", end, (-6.75, end[1] + 0.4, 4.5))]
    parts += [box("cornice", "stone", (-7.33, -9.1, 4.42), (-6.7, 9.1, 4.58))]
    slope = turn("y", 16.5)
    parts += [box("arcade roof", "rooftile", (-10.55, -9.6, 5.05), (-6.35, 9.6, 5.2), slope)]
    for y in (-6.2, 1.25, 6.3):  # things in the gallery
        parts += [box("door frame", "stone", (-9.8, y - 0.75, 0), (-9.72, y + 0.75, 2.35))]
        parts += [box("door leaf", "door", (-9.75, y - 0.6, 0), (-9.69, y + 0.6, 2.2))]
    parts += [upright("amphora", "pot", (-9.2, -2.6, 0), 0.7, 0.22, 0.34)]
    return [*parts, upright("barrel", "barrel", (-9.2, 3.9, 0), 0.95, 0.34)]


def house() -> list[Part]:
    """The north house: two floors, shutters, steps, a tiled roof, a chimney."""
    half = (5.4, 3.0, 3.0)
    front = 9.2
    x0 = -1.6
    shape = partial(house_field, half=half)
    parts = [Part("house", "house", shape, (x0, front + half[1], half[2]), half)]
    parts += [gable("house roof", "rooftile", (x0, front + 3.0, 7.05), (5.8, 3.6, 1.05))]
    parts += [box("chimney", "brick", (x0 + 2.2, front + 2.2, 6.6), (x0 + 3.0, front + 3.0, 8.9))]
    parts += [box("plinth", "stone", (x0 - 5.45, front - 0.06, 0), (x0 - 0.8, front, 0.45))]
    parts += [box("plinth", "stone", (x0 + 0.8, front - 0.06, 0), (x0 + 5.45, front, 0.45))]
    parts += [
        box("string course", "stone", (x0 - 5.46, front - 0.07, 3.0), (x0 + 5.46, front, 3.16))
    ]
    parts += [box("eaves", "beam", (x0 - 5.7, front - 0.4, 5.86), (x0 + 5.7, front, 6.0))]
    for a, b, p, q in WINDOWS:
        x = x0 + a
        parts += [
            box("sill", "stone", (x - 0.6, front - 0.12, b - q - 0.1), (x + 0.6, front, b - q))
        ]
        for side in (-1, 1):
            centre = x + side * (p + 0.27)
            low = (centre - 0.26, front - 0.06, b - q)
            parts += [box("shutter", "shutter", low, (centre + 0.26, front, b + q))]
    for k in range(3):
        reach = 0.35 * (3 - k)
        low = (x0 - 1.1 - 0.18 * (2 - k), front - reach, 0.167 * k)
        high = (x0 + 1.1 + 0.18 * (2 - k), front, 0.167 * (k + 1))
        parts += [box("step", "stone", low, high)]
    parts += [
        box(
            "canopy",
            "rooftile",
            (x0 - 1.1, front - 0.8, 3.0),
            (x0 + 1.1, front, 3.1),
            turn("x", 14),
        )
    ]
    return parts


def fountain() -> list[Part]:
    """Basin, water, a bowl on a stem."""
    ring = partial(ring_field, inner=1.62, outer=1.85, half=0.3)
    lip = partial(ring_field, inner=1.56, outer=1.93, half=0.05)
    bowl = partial(bowl_field, radius=0.85, wall=0.04, rim=-0.38)
    return [
        upright("kerb", "radial", (0, 0, 0), 0.14, 2.35),
        Part("basin", "mosaic", ring, (0, 0, 0.42), (1.85, 1.85, 0.3)),
        Part("lip", "stone", lip, (0, 0, 0.76), (1.93, 1.93, 0.05)),
        upright("water", "water", (0, 0, 0.14), 0.46, 1.62),
        upright("stem", "drums", (0, 0, 0.5), 0.85, 0.30, 0.16),
        Part("bowl", "stone", bowl, (0, 0, 2.05), (0.9, 0.9, 0.9)),
        upright("upper stem", "stone", (0, 0, 1.25), 0.75, 0.12, 0.07),
        ball("fountain ball", "bronze", (0, 0, 2.13), 0.17),
    ]


def bench(x: float, y: float, degrees: float) -> list[Part]:
    """Bench at (x, y) that faces local -y, turned."""
    spin = turn("z", degrees)
    pieces = [((-0.85, -0.24 + 0.17 * k, 0.43), (0.85, -0.10 + 0.17 * k, 0.47)) for k in range(3)]
    pieces += [((-0.85, 0.27, 0.58 + 0.17 * k), (0.85, 0.31, 0.70 + 0.17 * k)) for k in range(2)]
    legs = [((s * 0.7 - 0.04, -0.22, 0), (s * 0.7 + 0.04, 0.26, 0.43)) for s in (-1, 1)]
    legs += [((s * 0.7 - 0.03, 0.24, 0.3), (s * 0.7 + 0.03, 0.28, 0.9)) for s in (-1, 1)]
    parts = []
    for k, (low, high) in enumerate(pieces + legs):
        middle = np.add(low, high) / 2
        shift = spin @ middle + np.array([x, y, 0.0]) - middle
        moved = [tuple(float(v) for v in np.add(corner, shift)) for corner in (low, high)]
        paint = "planks" if k < len(pieces) else "iron"
        parts += [box("bench", paint, moved[0], moved[1], spin)]  # type: ignore[arg-type]
    return parts


def tree(x: float, y: float, height: float, spread: float, seed: int, name: str) -> list[Part]:
    """Trunk and a crown of bumpy balls."""
    rng = np.random.default_rng(seed)
    bare = height - 1.5 * spread
    parts = [upright(f"{name} trunk", "bark", (x, y, 0), bare + 0.5 * spread, 0.12 * spread, 0.07)]
    for k in range(9):
        turned = k * 2.4 + rng.uniform(0, 0.5)
        out = 0.0 if k == 8 else spread * rng.uniform(0.45, 0.62)
        up = bare + spread * (1.15 if k == 8 else rng.uniform(0.35, 0.85))
        centre = (x + out * np.cos(turned), y + out * np.sin(turned), up)
        radius = spread * rng.uniform(0.42, 0.52)
        parts += [leaves(f"{name} crown", centre, radius, 0.16 * spread)]
    return parts


def furniture() -> list[Part]:
    """Benches, trees, planters, pots, crates, a lamp."""
    parts = bench(6.2, -1.9, -90.0) + bench(-3.7, 8.2, 0.0)
    parts += tree(4.7, 5.6, 5.4, 1.7, 3, "plane tree")
    parts += tree(-4.6, -6.9, 4.9, 1.5, 4, "olive")
    for x, y, r in ((4.7, 5.6, 0.85), (-4.6, -6.9, 0.8)):
        kerb = partial(ring_field, inner=r - 0.15, outer=r, half=0.15)
        parts += [Part("tree kerb", "stone", kerb, (x, y, 0.15), (r, r, 0.15))]
        parts += [upright("soil", "soil", (x, y, 0), 0.16, r - 0.15)]
    for y in (-7.0, 2.2):
        parts += [box("planter", "planks", (6.2, y - 1.0, 0), (6.8, y + 1.0, 0.5))]
        parts += [box("soil", "soil", (6.25, y - 0.95, 0.4), (6.75, y + 0.95, 0.505))]
        for k in range(4):
            paint = "flowers" if k % 2 else "leaf"
            parts += [leaves("shrub", (6.5, y - 0.72 + 0.48 * k, 0.7), 0.3, 0.07, paint)]
    for x, y in ((2.0, 8.4), (-6.1, 4.95), (-6.1, -0.05), (2.9, -8.5)):
        parts += [upright("pot", "pot", (x, y, 0), 0.5, 0.22, 0.33)]
        parts += [leaves("pot plant", (x, y, 0.75), 0.36, 0.09, "flowers" if x > 0 else "leaf")]
    for low, high, degrees in (
        ((2.75, 8.2, 0), (3.45, 8.9, 0.7), 8.0),
        ((3.55, 8.25, 0), (4.05, 8.75, 0.5), -20.0),
        ((2.9, 8.35, 0.7), (3.35, 8.8, 1.15), 31.0),
    ):
        parts += [box("crate", "crate", low, high, turn("z", degrees))]
    parts += [upright("barrel", "barrel", (-5.9, 8.3, 0), 0.95, 0.34)]
    parts += [upright("lamp foot", "iron", (4.6, -6.3, 0), 0.4, 0.14, 0.07)]
    parts += [upright("lamp post", "iron", (4.6, -6.3, 0.4), 2.5, 0.045)]
    parts += [upright("lantern", "lantern", (4.6, -6.3, 2.9), 0.4, 0.1, 0.19)]
    parts += [upright("lantern roof", "iron", (4.6, -6.3, 3.3), 0.16, 0.24, 0.03)]
    for k in range(7):  # ivy on the south wall
        centre = (-6.6 + 0.36 * k, -8.98, 2.35 - 0.33 * (k % 3))
        parts += [leaves("ivy", centre, 0.26, 0.08)]
    return parts


def cottage(x: float, y: float, size: Vector, degrees: float, paint: str) -> list[Part]:
    """A distant house."""
    spin = turn("z", degrees)
    a, b, c = size
    walls = partial(box_field, half=(a, b, c / 2))
    parts = [Part("cottage", paint, walls, (x, y, c / 2), (a, b, c / 2), spin)]
    roof = (a + 0.4, b + 0.4, 0.36 * b)
    return [*parts, gable("cottage roof", "farroof", (x, y, c + roof[2]), roof, spin)]


def distance() -> list[Part]:
    """What one sees over the walls: a village, trees, a church, hills."""
    rng = np.random.default_rng(11)
    parts: list[Part] = []
    places = [
        (4, -27, 10), (-7, -31, -15), (12, -38, 40), (-20, -26, 70), (2, -58, 0), (24, -24, -30),
        (20, -6, 80), (27, 7, 100), (34, -14, 60), (22, 21, 30), (46, 3, 95), (40, 24, 70),
        (58, -22, 20), (66, 14, 85), (12, 30, 5), (30, -48, 15), (70, 40, 40),
    ]  # fmt: skip
    for x, y, degrees in places:
        size = (rng.uniform(3.5, 5.5), rng.uniform(2.8, 3.8), rng.uniform(3.2, 6.0))
        paint = ("cottage ochre", "cottage white", "cottage rose")[int(rng.integers(3))]
        parts += cottage(x, y, size, degrees, paint)
    parts += [box("tower", "ashlar", (40, -40, 0), (45.5, -34.5, 19))]
    parts += [box("tower belt", "stone", (39.7, -40.3, 13), (45.8, -34.2, 13.6))]
    spire = (3.1, 3.1, 5.0)
    shape = partial(pyramid_field, half=spire)
    parts += [Part("spire", "farroof", shape, (42.75, -37.25, 24), spire)]
    parts += cottage(52.5, -39.5, (7.5, 4.2, 9), -8, "cottage white")
    for _ in range(34):
        turned, far = rng.uniform(-2.9, 1.25), rng.uniform(17, 85)
        x, y = far * np.cos(turned), far * np.sin(turned)
        r = rng.uniform(1.4, 2.4)
        if min(np.hypot(x - a, y - b) for a, b, _ in places) < 6.5 + r or abs(x) < 3.5:
            continue
        parts += [upright("far trunk", "bark", (x, y, 0), 2.5, 0.25)]
        parts += [leaves("far tree", (x, y, 2.2 + r), r, 0.22 * r)]
        parts += [leaves("far tree", (x + 0.6 * r, y, 2.0 + 0.6 * r), 0.6 * r, 0.15 * r)]
    for k in range(13):
        turned = 2 * np.pi * k / 13 + rng.uniform(-0.1, 0.1)
        far, radius = rng.uniform(185, 205), rng.uniform(75, 110)
        top = rng.uniform(15, 34)
        centre = (far * np.cos(turned), far * np.sin(turned), top - radius)
        shape = partial(ball_field, radius=radius)
        parts += [Part("hill", "hill", shape, centre, (radius, radius, radius))]
    return parts


PARTS: tuple[Part, ...] = (
    *ground_and_walls(),
    *arcade(),
    *house(),
    *fountain(),
    *furniture(),
    *distance(),
)

"""The toy biplane: its parts, each an exact solid in its own frame with a name and a paint.

World frame: x towards the nose, y towards the plane's left wing, z up. About 2 units wide and long.
Another shape of such parts, a cup, is made where SCENE_SHAPE says so: `make.py --shape cup`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sdf_primitives as sdf
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Vector = tuple[float, float, float]

BOUND_RADIUS = 1.25  # the whole object lies in this ball around the origin


@dataclass(frozen=True)
class Part:
    """One solid. `rotation` [3, 3] has the local axes as columns, or None for the world's axes."""

    name: str
    paint: str
    shape: Callable[[Array, Array, Array], Array]
    centre: Vector
    rotation: Array | None = None

    def local(self, points: Array) -> tuple[Array, Array, Array]:
        """World points [3, n] in this part's frame, as three arrays [n]."""
        x, y, z = (points[k] - self.centre[k] for k in range(3))
        if self.rotation is None:
            return x, y, z
        r = self.rotation
        return (
            r[0, 0] * x + r[1, 0] * y + r[2, 0] * z,
            r[0, 1] * x + r[1, 1] * y + r[2, 1] * z,
            r[0, 2] * x + r[1, 2] * y + r[2, 2] * z,
        )

    def distance(self, points: Array) -> Array:
        """Exact signed distance [n] of world points [3, n] to this part."""
        return self.shape(*self.local(points))


def turn(axis: str, degrees: float) -> Array:
    """Rotation [3, 3] about a coordinate axis, right-handed."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def along(a: Vector, b: Vector) -> tuple[float, Array]:
    """Length of a→b and a rotation [3, 3] whose third column points that way."""
    step = np.subtract(b, a)
    length = float(np.linalg.norm(step))
    w = step / length
    helper = np.eye(3)[int(np.argmin(np.abs(w)))]
    u = np.cross(helper, w)
    u /= np.linalg.norm(u)
    return length, np.stack([u, np.cross(w, u), w], axis=1)


def rod(name: str, paint: str, a: Vector, b: Vector, radius: float) -> Part:
    """Capsule from a to b."""
    length, rotation = along(a, b)
    centre = tuple(float(v) for v in (np.add(a, b) / 2))
    shape = partial(sdf.capsule, half_length=length / 2, radius=radius)
    return Part(name, paint, shape, centre, rotation)  # type: ignore[arg-type]


def cone(name: str, paint: str, a: Vector, b: Vector, radius0: float, radius1: float) -> Part:
    """Round cone from a (radius0) to b (radius1)."""
    length, rotation = along(a, b)
    shape = partial(sdf.round_cone, length=length, radius0=radius0, radius1=radius1)
    return Part(name, paint, shape, a, rotation)


def ball(name: str, paint: str, centre: Vector, radius: float) -> Part:
    """Sphere."""
    return Part(name, paint, partial(sdf.sphere, radius=radius), centre)


def ring(name: str, paint: str, centre: Vector, size: float, radius: float, turned: Array) -> Part:
    """Torus whose axis is the third column of `turned`."""
    return Part(name, paint, partial(sdf.torus, ring=size, radius=radius), centre, turned)


def slab(
    name: str,
    paint: str,
    centre: Vector,
    size: tuple[float, float, float, float],
    turned: Array | None = None,
) -> Part:
    """Plate with (half_length, radius, half_height, rounding) = size."""
    keys = ("half_length", "radius", "half_height", "rounding")
    return Part(
        name, paint, partial(sdf.plate, **dict(zip(keys, size, strict=True))), centre, turned
    )


def body() -> list[Part]:
    """Fuselage, engine, propeller, tail."""
    forward = turn("y", 90)
    upright = turn("x", 90)
    parts = [
        cone("fuselage", "fuselage", (0.42, 0, 0), (-0.86, 0, 0.06), 0.265, 0.095),
        Part(
            "cowling",
            "cowling",
            partial(sdf.tube, ring=0.275, half_length=0.09, radius=0.035),
            (0.55, 0, 0),
            forward,
        ),
        slab("firewall", "dark", (0.565, 0, 0), (0.0, 0.25, 0.037, 0.012), forward),
        cone("spinner", "gold", (0.70, 0, 0), (0.85, 0, 0), 0.085, 0.03),
        slab("stabiliser", "tailplane", (-0.80, 0, 0.09), (0.25, 0.115, 0.012, 0.018)),
        slab("fin", "fin", (-0.85, 0, 0.27), (0.085, 0.105, 0.012, 0.018), upright),
        rod("skid", "steel", (-0.76, 0, 0.0), (-0.87, 0, -0.13), 0.02),
        ball("tailwheel", "rubber", (-0.88, 0, -0.15), 0.05),
    ]
    for k in range(7):
        angle = 2 * np.pi * (k + 0.5) / 7
        c, s = float(np.cos(angle)), float(np.sin(angle))
        ends = ((0.64, 0.07 * c, 0.07 * s), (0.62, 0.195 * c, 0.195 * s))
        parts.append(rod(f"cylinder{k}", "cylinder", *ends, 0.036))
    for k in range(2):
        blade = turn("x", 38 + 180 * k) @ turn("y", 62)
        centre = tuple(float(v) for v in np.array([0.745, 0, 0]) + 0.275 * blade[:, 1])
        parts.append(slab(f"blade{k}", "propeller", centre, (0.18, 0.05, 0.004, 0.014), blade))  # type: ignore[arg-type]
    return parts


def wings() -> list[Part]:
    """Two wings, their struts, the landing gear."""
    parts = [slab("upper wing", "upper", (0.20, 0, 0.52), (0.70, 0.21, 0.014, 0.024))]
    for side in (-1, 1):
        tilt = turn("x", 4.0 * side)
        parts += [
            slab(
                f"lower wing{side}",
                f"lower{side}",
                (0.10, 0.40 * side, -0.11),
                (0.32, 0.18, 0.013, 0.022),
                tilt,
            ),
            rod(
                f"strut front{side}",
                "wood",
                (0.21, 0.64 * side, -0.09),
                (0.33, 0.64 * side, 0.52),
                0.021,
            ),
            rod(
                f"strut back{side}",
                "wood",
                (-0.01, 0.64 * side, -0.09),
                (0.09, 0.64 * side, 0.52),
                0.021,
            ),
            rod(
                f"strut cross{side}",
                "wood",
                (0.21, 0.64 * side, -0.09),
                (0.09, 0.64 * side, 0.52),
                0.017,
            ),
            rod(
                f"cabane front{side}",
                "wood",
                (0.34, 0.12 * side, 0.18),
                (0.34, 0.20 * side, 0.52),
                0.019,
            ),
            rod(
                f"cabane back{side}",
                "wood",
                (0.09, 0.12 * side, 0.15),
                (0.09, 0.20 * side, 0.52),
                0.019,
            ),
            rod(
                f"leg front{side}",
                "wood",
                (0.52, 0.12 * side, -0.17),
                (0.40, 0.20 * side, -0.50),
                0.022,
            ),
            rod(
                f"leg back{side}",
                "wood",
                (0.24, 0.12 * side, -0.17),
                (0.40, 0.20 * side, -0.50),
                0.022,
            ),
            ring(f"tyre{side}", "rubber", (0.40, 0.29 * side, -0.50), 0.095, 0.043, turn("x", 90)),
            slab(
                f"hub{side}",
                "hub",
                (0.40, 0.29 * side, -0.50),
                (0.0, 0.075, 0.016, 0.014),
                turn("x", 90),
            ),
        ]
    parts.append(rod("axle", "steel", (0.40, -0.29, -0.50), (0.40, 0.29, -0.50), 0.022))
    return parts


def pilot() -> list[Part]:
    """A bear with goggles and a scarf, in the cockpit behind a windshield."""
    x, z = -0.27, 0.425
    knots = [
        (x - 0.085, 0.05, 0.285),
        (-0.49, 0.10, 0.355),
        (-0.60, 0.085, 0.335),
        (-0.72, 0.13, 0.395),
    ]
    parts = [
        ring("coaming", "leather", (x, 0, 0.205), 0.140, 0.036, turn("y", 6)),
        ball("chest", "jacket", (x, 0, 0.215), 0.140),
        ball("head", "fur", (x, 0, z), 0.145),
        ball("muzzle", "snout", (x + 0.120, 0, z - 0.040), 0.066),
        ball("nose", "nose", (x + 0.182, 0, z - 0.020), 0.025),
        ring("collar", "collar", (x, 0, 0.288), 0.104, 0.040, turn("y", -6)),
        ring("strap", "leather", (x, 0, z + 0.030), 0.139, 0.016, turn("y", -10)),
        Part(
            "windshield",
            "glass",
            partial(sdf.box, half=(0.002, 0.085, 0.055), rounding=0.014),
            (-0.01, 0, 0.285),
            turn("y", -28),
        ),
    ]
    for side in (-1, 1):
        parts += [
            ball(f"ear{side}", "fur", (x - 0.025, 0.112 * side, z + 0.110), 0.055),
            ball(f"lens{side}", "lens", (x + 0.120, 0.058 * side, z + 0.052), 0.044),
            ring(
                f"goggle{side}",
                "gold",
                (x + 0.129, 0.058 * side, z + 0.055),
                0.046,
                0.015,
                turn("y", 72),
            ),
            ball(f"paw{side}", "fur", (x + 0.130, 0.088 * side, 0.238), 0.046),
        ]
    for k, (a, b) in enumerate(zip(knots[:-1], knots[1:], strict=True)):
        parts.append(rod(f"scarf{k}", "scarf", a, b, 0.038 - 0.002 * k))
    return parts


def cup() -> list[Part]:
    """An open thin-walled cup with a handle and a spoon on a saucer, a ball beside it.

    Walls are 0.04 thick. The foot ring seals the space between cup and saucer: no light gets in.
    """
    flat = {"half_length": 0.0, "half_height": 0.0}
    wall = partial(sdf.tube, ring=0.60, half_length=0.42, radius=0.02)
    foot = partial(sdf.tube, ring=0.34, half_length=0.05, radius=0.02)
    parts = [
        Part("wall", "cup", wall, (0.0, 0.0, 0.08)),
        Part(
            "bottom", "cup", partial(sdf.plate, radius=0.60, rounding=0.02, **flat), (0, 0, -0.34)
        ),
        Part("foot", "cup", foot, (0.0, 0.0, -0.40)),
        Part(
            "saucer",
            "saucer",
            partial(sdf.plate, radius=0.95, rounding=0.018, **flat),
            (0, 0, -0.46),
        ),
        ball("ball", "fur", (-0.42, 0.66, -0.322), 0.12),
        rod("spoon", "steel", (0.30, 0.20, -0.27), (-0.72, -0.40, 0.72), 0.024),
        ball("spoon bowl", "gold", (0.30, 0.20, -0.24), 0.08),
    ]
    turns = np.linspace(-np.pi / 2, np.pi / 2, 9)
    arc = [(float(0.60 + 0.26 * np.cos(a)), 0.0, float(0.08 + 0.26 * np.sin(a))) for a in turns]
    for k, ends in enumerate(zip(arc[:-1], arc[1:], strict=True)):
        parts.append(rod(f"handle{k}", "scarf", *ends, 0.036))
    return parts


SHAPES = {"biplane": lambda: body() + wings() + pilot(), "cup": cup}
SHAPE = os.environ.get("SCENE_SHAPE", "biplane")
PARTS: tuple[Part, ...] = tuple(SHAPES[SHAPE]())

"""The formulas behind lenses: one table of models, in three families.

Polynomial: a point v of the plane (v = r times the unit vector to it, r = tan(theta), or theta
itself where `angular`; theta: angle to the optical axis, q = |v|^2) is seen at

    v N(q) / D(q) + B(v),    N = 1 + k1 q + ... + k6 q^6,    D = 1 + d1 q + d2 q^2 + d3 q^3,
    B = (2 p1 x y + p2 (q + 2 x^2) + s1 q + s2 q^2,  2 p2 x y + p1 (q + 2 y^2) + s3 q + s4 q^2)

where B (tangential and thin prism terms) acts on v, or, where `bends_last`, on v N / D. Closed:
the distance from the axis is a function of theta with an inverse in closed form. Panoramas:
longitude and latitude. The models are COLMAP's (src/colmap/sensor/models.h), with the sources
there: Brown 1971, Fitzgibbon 2001 (division), Devernay 2001 (fov), Khomutenko 2016 (eucm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUMERATOR = ("k1", "k2", "k3", "k4", "k5", "k6")
DENOMINATOR = ("d1", "d2", "d3")
BEND = ("p1", "p2", "s1", "s2", "s3", "s4")
ROW = NUMERATOR + DENOMINATOR + BEND  # a polynomial lens as one row of numbers

Columns = Sequence[Tensor]


@dataclass(frozen=True)
class Closed:
    """A radial model in closed form, for directions with parts s across and c along the axis.

    Attributes:
        bend: (params, s, c) -> distance from the axis, and whether the lens sees the direction.
        unbend: (params, distance) -> s, c up to a common factor, and whether there is a solution.
    """

    bend: Callable[[Columns, Tensor, Tensor], tuple[Tensor, Tensor]]
    unbend: Callable[[Columns, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Model:
    """A kind of lens.

    Attributes:
        params: names in order; of a polynomial model, names of ROW.
        angular: r is theta, so that 90 degrees and more can be seen.
        bends_last: B acts on what N / D has distorted.
        closed: the formulas of a closed model.
        is_panorama: the plane is longitude and latitude.
    """

    params: tuple[str, ...] = ()
    angular: bool = False
    bends_last: bool = False
    closed: Closed | None = None
    is_panorama: bool = False


def _bend_division(params: Columns, s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    inner = c * c - 4 * params[0] * s * s
    below = c + inner.clamp(min=0.0).sqrt()
    return 2 * s / below.clamp(min=1e-30), (inner >= 0) & (below > 0)


def _unbend_division(params: Columns, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bent = params[0] * radius * radius
    return radius, 1 + bent, bent < 1  # at 1 it folds


def _bend_fov(params: Columns, s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    omega = params[0].abs().clamp(min=1e-6)  # to a tenth of a trillionth a pinhole
    return torch.atan2(2 * torch.tan(omega / 2) * s, c) / omega, c > 0


def _unbend_fov(params: Columns, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    omega = params[0].abs().clamp(min=1e-6)
    angle = (radius * omega).clamp(max=math.pi / 2)
    return torch.sin(angle), 2 * torch.tan(omega / 2) * torch.cos(angle), angle < math.pi / 2 - 1e-9


def _bend_eucm(params: Columns, s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    alpha, beta = params
    size = (beta * s * s + c * c).sqrt()
    below = alpha * size + (1 - alpha) * c
    # beyond this direction the projection is not one to one
    slope = torch.where(alpha > 0.5, 1 - alpha, alpha) / torch.where(alpha > 0.5, alpha, 1 - alpha)
    return s / below.clamp(min=1e-30), (below > 0) & (c > -slope * size)


def _unbend_eucm(params: Columns, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    alpha, beta = params
    inner = 1 - (2 * alpha - 1) * beta * radius * radius
    below = alpha * inner.clamp(min=0.0).sqrt() + (1 - alpha)
    along = (1 - beta * (alpha * radius) ** 2) / below.clamp(min=1e-30)
    return radius, along, (inner >= 0) & (below > 0)


# in the order in which COLMAP has their parameters, brown (nerfstudio's order) excepted
MODELS = {
    "pinhole": Model(),
    "brown": Model(("k1", "k2", "k3", "k4", "p1", "p2")),
    "fisheye": Model(("k1", "k2", "k3", "k4"), angular=True),
    "rational": Model(("k1", "k2", "p1", "p2", "k3", "d1", "d2", "d3")),
    "thin_prism_fisheye": Model(("k1", "k2", "p1", "p2", "k3", "k4", "s1", "s3"), angular=True),
    "rad_tan_thin_prism_fisheye": Model(
        (*NUMERATOR, "p2", "p1", "s1", "s2", "s3", "s4"), angular=True, bends_last=True
    ),
    "division": Model(("k",), closed=Closed(_bend_division, _unbend_division)),
    "fov": Model(("omega",), closed=Closed(_bend_fov, _unbend_fov)),
    "eucm": Model(("alpha", "beta"), closed=Closed(_bend_eucm, _unbend_eucm)),
    "equirectangular": Model(is_panorama=True),
    # two panoramas in one image, of the left and the right eye; ipd: their distance in scene units
    "ods": Model(("ipd",), is_panorama=True),  # the whole sphere twice, the left eye above
    "vr180": Model(("ipd",), is_panorama=True),  # the half in front twice, side by side
}


@dataclass(frozen=True)
class Polynomial:
    """Rows of polynomial lenses as columns that broadcast with points; empty: all zero."""

    ks: Columns
    ds: Columns = ()
    bend: Columns = ()

    @staticmethod
    def of(columns: Columns, n_radial: int = len(NUMERATOR + DENOMINATOR)) -> Polynomial:
        """From columns in the order of ROW, of which the first n_radial are not all zero."""
        n_k, n_all = len(NUMERATOR), len(NUMERATOR + DENOMINATOR)
        return Polynomial(columns[: min(n_radial, n_k)], columns[n_k:n_radial], columns[n_all:])

    def ratio(self, q: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """N / D and its derivative by q."""
        above, above_slope = _one_plus(self.ks, q)
        if not self.ds:
            return above, above_slope
        below, below_slope = _one_plus(self.ds, q)
        value = above / below
        return value, (above_slope - value * below_slope) / below

    def radial(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """f(r) = r N / D and f'(r)."""
        q = r * r
        value, slope = self.ratio(q)
        return r * value, value + 2 * q * slope

    def apply(self, v: Tensor) -> Tensor:
        """Where points of the plane are seen, [..., 2]."""
        x, y = v.unbind(-1)
        q = x * x + y * y
        scale = self.ratio(q)[0]
        if not self.bend:
            return v * scale[..., None] if isinstance(scale, Tensor) else v * scale
        p1, p2, s1, s2, s3, s4 = self.bend
        u = x * scale + 2 * p1 * x * y + p2 * (q + 2 * x * x) + q * (s1 + s2 * q)
        w = y * scale + 2 * p2 * x * y + p1 * (q + 2 * y * y) + q * (s3 + s4 * q)
        return torch.stack([u, w], dim=-1)

    def jacobian(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """du/dx, du/dy, dw/dx, dw/dy of `apply`, [...] each; needs `bend`."""
        x, y = v.unbind(-1)
        q = x * x + y * y
        scale, slope = self.ratio(q)
        growth = 2 * slope  # d scale / dx = growth x
        p1, p2, s1, s2, s3, s4 = self.bend
        right, down = 2 * (s1 + 2 * s2 * q), 2 * (s3 + 2 * s4 * q)
        across = x * y * growth + 2 * p1 * x + 2 * p2 * y
        return (
            scale + x * x * growth + 2 * p1 * y + 6 * p2 * x + right * x,
            across + right * y,
            across + down * x,
            scale + y * y * growth + 2 * p2 * x + 6 * p1 * y + down * y,
        )


def _one_plus(coefficients: Columns, q: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """1 + c1 q + c2 q^2 + ... and its derivative (Horner)."""
    value: Tensor | float = 0.0
    slope: Tensor | float = 0.0
    for c in reversed(coefficients):
        slope = slope * q + value
        value = value * q + c
    return 1.0 + q * value if len(coefficients) else 1.0, value + q * slope

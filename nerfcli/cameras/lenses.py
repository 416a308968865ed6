"""Lenses: how a direction in the camera frame lands on the normalised image plane, and back.

xy: normalised image coordinates, (pixel - principal) / focal; the models and their formulas are in
`lens_models`. The limit of a polynomial lens is the r up to which its distance from the axis
grows: beyond it the polynomial folds back, which no glass does, so nothing there is an image of
anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.lens_inverse import LensBank
from nerfcli.cameras.lens_models import DENOMINATOR, MODELS, NUMERATOR, ROW, Polynomial
from nerfcli.core.errors import NerfError

__all__ = ["Lens", "LensBank", "panorama"]


MOST_PARAMETER = 1e30  # beyond is damage, and products overflow
NEGLIGIBLE = 1e-100  # of a polynomial's largest coefficient: the quotient would overflow


@dataclass(frozen=True)
class Lens:
    """A lens model and its parameters, in the order of `MODELS[model].params`.

    pinhole: none. brown: k1, k2, k3, k4 (r^2, r^4, r^6, r^8) and p1, p2 (tangential), as
    nerfstudio orders and uses them; with k3 = k4 = 0 this is OpenCV's, COLMAP's and
    instant-ngp's model. fisheye: k1..k4 of OpenCV's equidistant model,
    f(theta) = theta (1 + k1 theta^2 + ... + k4 theta^8). ods, vr180: ipd, the distance of the eyes
    in scene units. The others are COLMAP's.

    Raises:
        NerfError: unknown model, wrong number of parameters, or one that is not finite.
    """

    model: str = "pinhole"
    params: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise NerfError(f"Unknown lens model {self.model!r}; known: {', '.join(MODELS)}.")
        wanted = len(MODELS[self.model].params)
        if len(self.params) != wanted:
            raise NerfError(
                f"Lens model {self.model} takes {wanted} parameters, got {len(self.params)}."
            )
        if not all(math.isfinite(p) for p in self.params):
            raise NerfError(f"Lens parameters must be finite, got {self.params}.")
        if any(abs(p) > MOST_PARAMETER for p in self.params):
            raise NerfError(f"Lens parameters are absurdly large: {self.params}.")

    @staticmethod
    def of(model: str, **named: float) -> Lens:
        """A lens by the names of its parameters, zero where left out; a pinhole if it is one."""
        lens = Lens(model, tuple(named.get(name, 0.0) for name in MODELS[model].params))
        return Lens() if lens.is_pinhole else lens

    @property
    def named(self) -> dict[str, float]:
        """The parameters by name."""
        return dict(zip(MODELS[self.model].params, self.params, strict=True))

    @property
    def row(self) -> list[float]:
        """The parameters of a polynomial lens in the places of ROW."""
        return [self.named.get(name, 0.0) for name in ROW]

    @property
    def is_pinhole(self) -> bool:
        straight = self.model in ("brown", "rational", "division") and not any(self.params)
        return self.model == "pinhole" or straight

    @property
    def is_wide(self) -> bool:
        """Whether the model can see 90 degrees off its axis, and more."""
        model = MODELS[self.model]
        return model.angular or model.closed is not None or model.is_panorama

    @property
    def is_panorama(self) -> bool:
        """Whether an image's plane is longitude and latitude."""
        return MODELS[self.model].is_panorama

    @property
    def is_stereo(self) -> bool:
        """Whether an image holds what two eyes see."""
        return self.model in ("ods", "vr180")

    @property
    def eye_distance(self) -> float:
        """Distance of the eyes in scene units; 0 where there is one."""
        return self.params[0] if self.is_stereo else 0.0

    @property
    def limit(self) -> float:
        """The r up to which a polynomial lens is monotonic; at most pi where r is an angle."""
        return _limit(self)

    def project(self, points: Tensor) -> Tensor:
        """Where points of the camera frame land. [..., 3] -> xy [..., 2].

        nan where the lens has no image of the point: behind the camera (for a wide lens: only
        beyond its limit), or beyond the limit.
        """
        x, y, z = points.unbind(-1)
        across = torch.hypot(x, y)
        model = MODELS[self.model]
        if self.is_stereo:
            raise ValueError("two eyes see a point at two places")
        if self.model == "equirectangular":
            return torch.stack([torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))], dim=-1)
        if model.closed is not None:
            radius, visible = model.closed.bend(_columns(self.params, x), across, z)
            xy = points[..., :2] * (radius / across.clamp(min=1e-30))[..., None]
        elif model.angular:
            r = torch.atan2(across, z)
            visible = r <= self.limit
            xy = self.bend(points[..., :2] * (r / across.clamp(min=1e-30))[..., None])
        else:
            xy = points[..., :2] / z[..., None]
            visible = (z > 0) & (xy.square().sum(-1) <= self.limit**2)
            xy = xy if self.is_pinhole else self.bend(xy)
        return torch.where(visible[..., None], xy, torch.nan)

    def directions(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `project`. xy [..., 2] -> unit vectors [..., 3], valid [...] bool.

        Where the lens has no solution, valid is false and the vector is the nearest that it has.
        """
        flat = xy.reshape(-1, 2)
        reach = float(torch.linalg.vector_norm(flat, dim=-1).amax()) if len(flat) else 1.0
        bank = LensBank((self,), reach)
        directions, valid = bank.directions(flat, flat.new_zeros(len(flat), dtype=torch.int64))
        return directions.reshape(*xy.shape[:-1], 3), valid.reshape(xy.shape[:-1])

    def distort(self, xy: Tensor) -> Tensor:
        """Undistorted to distorted normalised coordinates, [..., 2]; nan beyond the limit."""
        return self.project(torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1))

    def undistort(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """Distorted to undistorted coordinates, [..., 2], and whether there is a solution.

        A direction at or beyond 90 degrees has no place in the plane and counts as invalid.
        """
        directions, valid = self.directions(xy)
        z = directions[..., 2:]
        return directions[..., :2] / z.clamp(min=1e-9), valid & (z[..., 0] > 1e-9)

    def bend(self, plane: Tensor) -> Tensor:
        """Where a polynomial lens puts points of the plane, [..., 2], beyond its limit as well."""
        whole = Polynomial.of(_columns(self.row, plane))
        if not MODELS[self.model].bends_last:
            return whole.apply(plane)
        return Polynomial((), (), whole.bend).apply(Polynomial(whole.ks, whole.ds).apply(plane))


def panorama(
    size: tuple[int, int], model: str = "equirectangular"
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Focal lengths and principal point of a panorama: its plane is 2 pi wide, and pi high.

    That of an image with two of the whole sphere, one above the other (ods), is 2 pi high.
    """
    width, height = size
    high = 2 * math.pi if model == "ods" else math.pi
    return (width / (2 * math.pi), height / high), (width / 2, height / 2)


def _columns(params: Sequence[float], like: Tensor) -> list[Tensor]:
    return [like.new_tensor(p) for p in params]


def _roots(coefficients: Sequence[float] | np.ndarray) -> list[float]:
    """The real roots of a polynomial, lowest power first."""
    found = np.array(coefficients, dtype=np.float64)
    found[np.abs(found) < NEGLIGIBLE * np.abs(found).max()] = 0.0
    roots = np.polynomial.polynomial.polyroots(np.trim_zeros(found, "b"))
    return [complex(q).real for q in roots if abs(complex(q).imag) < 1e-9 * abs(q)]


@lru_cache(1024)
def _limit(lens: Lens) -> float:
    above = [1.0] + [lens.named.get(k, 0.0) for k in NUMERATOR]
    below = [1.0] + [lens.named.get(d, 0.0) for d in DENOMINATOR]
    # f = r N(q) / D(q) with q = r^2: f' D^2 = (N + 2 q N') D - 2 q N D', a polynomial in q
    rise = [(2 * i + 1) * k for i, k in enumerate(above)]
    fall = [2 * i * d for i, d in enumerate(below)]
    slope = np.convolve(rise, below) - np.convolve(above, fall)
    roots = [q for q in _roots(slope) + _roots(below) if q > 0]
    first = math.sqrt(min(roots, default=math.inf))
    return min(first, math.pi) if MODELS[lens.model].angular else first

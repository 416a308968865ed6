"""Lenses: how a direction in the camera frame lands on the normalised image plane.

xy: normalised image coordinates, (pixel - principal) / focal. r: distance from the axis, in the
undistorted plane tan(theta) for "brown", and theta itself for "fisheye", where theta is the angle
to the optical axis. f(r): its distorted image. The limit is the r up to which f grows: beyond it
the polynomial folds back, which no glass does, so nothing there is an image of anything.

A further model is one more entry of MODELS with its `profile` (the polynomial f) and, if it bends
off the radius, its part in `_bend`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nerfcli.errors import NerfError

# model -> number of parameters; see Lens for their order
MODELS = {"pinhole": 0, "brown": 6, "fisheye": 4}
N_STARTS = 512  # entries of the table that Newton's method starts from
BLOCK = 8192  # rays inverted at a time
TOLERANCE = 1e-7  # of a solution, normalised: 1e-3 pixels at a focal length of 10,000


@dataclass(frozen=True)
class Lens:
    """A lens model and its parameters.

    pinhole: none. brown: k1, k2, k3, k4 (r^2, r^4, r^6, r^8) and p1, p2 (tangential), as
    nerfstudio orders and uses them; with k3 = k4 = 0 this is OpenCV's, COLMAP's and
    instant-ngp's model. fisheye: k1..k4 of OpenCV's equidistant model,
    f(theta) = theta (1 + k1 theta^2 + ... + k4 theta^8).

    Raises:
        NerfError: unknown model, wrong number of parameters, or one that is not finite.
    """

    model: str = "pinhole"
    params: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise NerfError(f"Unknown lens model {self.model!r}; known: {', '.join(MODELS)}.")
        if len(self.params) != MODELS[self.model]:
            raise NerfError(
                f"Lens model {self.model} takes {MODELS[self.model]} parameters, "
                f"got {len(self.params)}."
            )
        if not all(math.isfinite(p) for p in self.params):
            raise NerfError(f"Lens parameters must be finite, got {self.params}.")

    @property
    def is_pinhole(self) -> bool:
        return self.model == "pinhole" or (self.model == "brown" and not any(self.params))

    @cached_property
    def limit(self) -> float:
        """The r up to which the lens is monotonic; inf for a pinhole, at most pi for a fisheye."""
        if self.is_pinhole:
            return math.inf
        # f'(r) = 1 + 3 k1 r^2 + 5 k2 r^4 + ..., a polynomial in r^2
        slope = [1.0] + [(2 * i + 3) * k for i, k in enumerate(self.params[:4])]
        roots = np.polynomial.polynomial.polyroots(np.trim_zeros(slope, "b"))
        growing = [complex(q).real for q in roots if abs(complex(q).imag) < 1e-9 * abs(q)]
        first = math.sqrt(min((q for q in growing if q > 0), default=math.inf))
        return min(first, math.pi) if self.model == "fisheye" else first

    def project(self, points: Tensor) -> Tensor:
        """Where points of the camera frame land. [..., 3] -> xy [..., 2].

        nan where the lens has no image of the point: behind the camera (for a fisheye: only
        beyond its limit), or beyond the limit.
        """
        x, y, z = points.unbind(-1)
        if self.model == "fisheye":
            planar = torch.hypot(x, y)
            r = torch.atan2(planar, z)
            bent = _profile(_columns(self.params[:4], r), r)
            xy = points[..., :2] * (bent / planar.clamp(min=1e-30))[..., None]
            visible = r <= self.limit
        else:
            xy = points[..., :2] / z[..., None]
            visible = z > 0
            if not self.is_pinhole:
                visible = visible & (xy.square().sum(-1) <= self.limit**2)
                xy = _brown(_columns(self.params, x), xy)
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


class LensBank:
    """Several lenses inverted at once: per ray only arithmetic, no loop over lenses.

    Args:
        lenses: one or more.
        reach: largest distorted radius that will be asked for.
    """

    def __init__(self, lenses: Sequence[Lens], reach: float) -> None:
        self.is_fisheye = torch.tensor([lens.model == "fisheye" for lens in lenses])
        padded = [(lens.params + (0.0,) * 6)[:6] for lens in lenses]
        self.params = torch.tensor(padded, dtype=torch.float64)
        self.is_tangential = bool(self.params[:, 4:].any())
        starts = [_starts(lens, reach) for lens in lenses]
        self.starts = torch.stack([s for s, _ in starts])  # [n_lenses, N_STARTS]
        self.reach = torch.tensor([r for _, r in starts], dtype=torch.float64)
        self.limit = torch.tensor([lens.limit for lens in lenses], dtype=torch.float64)

    def to(self, device: torch.device) -> LensBank:
        for name in ("is_fisheye", "params", "starts", "reach", "limit"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def directions(self, xy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """As Lens.directions. xy [n, 2], which [n] int64 lens -> unit [n, 3], valid [n]."""
        xy = xy.to(torch.float64)
        # blocks that stay in the cache: half the time for a whole image
        parts = [
            self._directions(xy[i : i + BLOCK], which[i : i + BLOCK])
            for i in range(0, max(len(xy), 1), BLOCK)
        ]
        return torch.cat([d for d, _ in parts]), torch.cat([v for _, v in parts])

    def _directions(self, xy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        params, limit, reach = self.params[which], self.limit[which], self.reach[which]
        bent = torch.linalg.vector_norm(xy, dim=-1)
        # the table is even in the distorted radius; between entries linear is a fine start
        place = (bent / reach).clamp(max=1.0) * (N_STARTS - 1)
        low = place.long().clamp(max=N_STARTS - 2)
        a, b = self.starts[which, low], self.starts[which, low + 1]
        r = a + (place - low) * (b - a)
        ks = params[:, :4].unbind(-1)
        for _ in range(3):  # quadratic from a start within 1e-4, slower only beside the fold
            r = (r - (_profile(ks, r) - bent) / _slope(ks, r).clamp(min=1e-3)).clamp(min=0.0)
            r = torch.minimum(r, limit)
        valid = (_profile(ks, r) - bent).abs() < TOLERANCE
        unit = xy / bent.clamp(min=1e-30)[:, None]
        plane = unit * r[:, None]
        if self.is_tangential:
            plane, solved = _newton(params, plane, xy, limit)
            valid = torch.where(self.is_fisheye[which], valid, solved)
        planar = torch.cat([plane, torch.ones_like(plane[:, :1])], dim=-1)
        planar = torch.nn.functional.normalize(planar, dim=-1)
        if not self.is_fisheye.any():
            return planar, valid
        turned = torch.cat([unit * torch.sin(r)[:, None], torch.cos(r)[:, None]], dim=-1)
        return torch.where(self.is_fisheye[which][:, None], turned, planar), valid


def _columns(params: Sequence[float], like: Tensor) -> list[Tensor]:
    return [like.new_tensor(p) for p in params]


def _profile(ks: Sequence[Tensor], r: Tensor) -> Tensor:
    """f(r) = r (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8)."""
    q = r * r
    return r * (1 + q * (ks[0] + q * (ks[1] + q * (ks[2] + q * ks[3]))))


def _slope(ks: Sequence[Tensor], r: Tensor) -> Tensor:
    """f'(r)."""
    q = r * r
    return 1 + q * (3 * ks[0] + q * (5 * ks[1] + q * (7 * ks[2] + q * 9 * ks[3])))


def _brown(params: Sequence[Tensor], xy: Tensor) -> Tensor:
    """Brown's model with radial terms up to r^8; params k1..k4, p1, p2, broadcast over [...]."""
    k1, k2, k3, k4, p1, p2 = params
    x, y = xy.unbind(-1)
    q = x * x + y * y
    radial = 1 + q * (k1 + q * (k2 + q * (k3 + q * k4)))
    u = x * radial + 2 * p1 * x * y + p2 * (q + 2 * x * x)
    v = y * radial + 2 * p2 * x * y + p1 * (q + 2 * y * y)
    return torch.stack([u, v], dim=-1)


def _newton(params: Tensor, start: Tensor, target: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Solve brown(xy) = target from `start`, with the exact Jacobian.

    params [n, 6], start, target [n, 2], limit [n] -> xy [n, 2], solved [n].
    """
    columns = params.unbind(-1)
    k1, k2, k3, k4, p1, p2 = columns
    xy = start
    for _ in range(4):
        x, y = xy.unbind(-1)
        q = x * x + y * y
        radial = 1 + q * (k1 + q * (k2 + q * (k3 + q * k4)))
        growth = 2 * (k1 + q * (2 * k2 + q * (3 * k3 + q * 4 * k4)))  # d radial / dx = growth x
        u_x = radial + x * x * growth + 2 * p1 * y + 6 * p2 * x
        u_y = x * y * growth + 2 * p1 * x + 2 * p2 * y
        v_y = radial + y * y * growth + 2 * p2 * x + 6 * p1 * y
        determinant = u_x * v_y - u_y * u_y  # v_x = u_y
        safe = torch.where(determinant.abs() < 1e-6, 1e-6, determinant)
        e_u, e_v = (_brown(columns, xy) - target).unbind(-1)
        step = torch.stack([v_y * e_u - u_y * e_v, u_x * e_v - u_y * e_u], dim=-1) / safe[:, None]
        xy = xy - step
        # Newton may jump across the fold; bring it back to where the lens is monotonic
        norm = torch.linalg.vector_norm(xy, dim=-1).clamp(min=1e-30)
        xy = xy * (limit / norm).clamp(max=1.0)[:, None]
    error = (_brown(columns, xy) - target).abs().amax(-1)
    return xy, (error < TOLERANCE) & (determinant > 0)


def _starts(lens: Lens, reach: float) -> tuple[Tensor, float]:
    """r at N_STARTS equal steps of the distorted radius, and that radius's end."""
    if lens.is_pinhole:
        top = max(reach, 1e-9)
        return torch.linspace(0.0, top, N_STARTS, dtype=torch.float64), top
    ks = torch.tensor(lens.params[:4], dtype=torch.float64).unbind()

    def f(r: float) -> float:
        return float(_profile(ks, torch.tensor(r, dtype=torch.float64)))

    high = max(reach, 1e-9)
    while high < lens.limit and f(high) < reach:
        high *= 2.0
    high = min(high, lens.limit)
    # fine enough that inverting it by interpolation leaves Newton almost nothing to do
    r = torch.linspace(0.0, high, 16 * N_STARTS, dtype=torch.float64)
    bent = _profile(ks, r)
    top = float(bent[-1])
    grid = np.linspace(0.0, top, N_STARTS)
    return torch.from_numpy(np.interp(grid, bent.numpy(), r.numpy())), top

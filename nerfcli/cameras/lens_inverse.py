"""From pixels back to directions: the inverse of every lens model, many rays at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.lens_models import BEND, DENOMINATOR, MODELS, NUMERATOR, Closed, Polynomial

N_STARTS = 512  # entries of the table that Newton's method starts from
BLOCK = 8192  # rays inverted at a time
TOLERANCE = 1e-10  # of a solution, normalised: 1e-6 pixels at a focal length of 10,000
STEEPEST = 1e3  # tangent of the steepest direction in the table: 89.94 degrees
OVERSHOOT = 4.0  # how far beyond the wanted radius a table may end before it gets too coarse
MOST_HALVINGS = 80  # of a bracket
MOST_STEPS = 32  # of the search in the plane; 20 is the most that 1200 random lenses needed
EDGE_GRID = 128, 64  # radii and directions at which the edge of a lens's image is looked for
SMALLEST_STEP = 2.0**-10  # of Newton's own: a search that needs shorter ones stands at a fold


class LensLike(Protocol):
    """What a bank needs to know of a lens; see lenses.Lens."""

    @property
    def model(self) -> str: ...
    @property
    def params(self) -> tuple[float, ...]: ...
    @property
    def row(self) -> list[float]: ...
    @property
    def limit(self) -> float: ...


class LensBank:
    """Several lenses inverted at once: per ray only arithmetic, no loop over lenses.

    Args:
        lenses: one or more.
        reach: largest distorted radius that will be asked for.
    """

    def __init__(self, lenses: Sequence[LensLike], reach: float) -> None:
        kinds = [_kind(lens) for lens in lenses]
        self.inverses: list[_Polynomials | _ClosedLenses | _Panoramas] = []
        self.kind = torch.zeros(len(lenses), dtype=torch.int64)
        self.place = torch.zeros(len(lenses), dtype=torch.int64)
        for i, name in enumerate(dict.fromkeys(kinds)):
            members = [j for j, kind in enumerate(kinds) if kind == name]
            self.kind[members], self.place[members] = i, torch.arange(len(members))
            self.inverses.append(_inverse(name, [lenses[j] for j in members], reach))

    def to(self, device: torch.device) -> LensBank:
        self.kind, self.place = self.kind.to(device), self.place.to(device)
        for inverse in self.inverses:
            for name, value in vars(inverse).items():
                if isinstance(value, Tensor):
                    setattr(inverse, name, value.to(device))
        return self

    def directions(self, xy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """As Lens.directions. xy [n, 2], which [n] int64 lens -> unit [n, 3], valid [n]."""
        xy = xy.to(torch.float64)
        if len(self.inverses) == 1:
            return _in_blocks(self.inverses[0], xy, self.place[which])
        directions = xy.new_empty(len(xy), 3)
        valid = torch.empty(len(xy), dtype=torch.bool, device=xy.device)
        for i, inverse in enumerate(self.inverses):
            mine = (self.kind[which] == i).nonzero()[:, 0]
            part = _in_blocks(inverse, xy[mine], self.place[which[mine]])
            directions[mine], valid[mine] = part
        return directions, valid


class _Polynomials:
    """Polynomial lenses: Newton along the radius from a table, then in the plane where B bends."""

    def __init__(self, lenses: Sequence[LensLike], reach: float) -> None:
        rows = torch.tensor([lens.row for lens in lenses], dtype=torch.float64)
        self.angular = torch.tensor([MODELS[lens.model].angular for lens in lenses])
        self.last = torch.tensor([MODELS[lens.model].bends_last for lens in lenses])
        self.limit = torch.tensor([lens.limit for lens in lenses], dtype=torch.float64)
        n_radial = len(NUMERATOR) + len(DENOMINATOR)
        self.first_rows, self.rows = rows.clone(), rows
        self.first_rows[:, :n_radial] = 0.0  # what is undone first where B comes last: B alone
        self.first_rows[~self.last] = 0.0
        self.rows[self.last, n_radial:] = 0.0
        starts = [_starts(lens, reach) for lens in lenses]
        self.starts = torch.stack([s for s, _ in starts])  # [n_lenses, N_STARTS]
        self.reach = torch.tensor([r for _, r in starts], dtype=torch.float64)
        self.bends = self.rows[:, n_radial:].any(-1)  # in the plane, after the radial terms
        self.bends_first = bool(self.bends.any())
        # how far out the image goes: a table that ends below what was asked for ends with the lens
        self.ends = torch.where(self.reach < reach, self.reach, math.inf)
        self.n_terms = max([i + 1 for i in range(n_radial) if rows[:, i].any()], default=0)

    @cached_property
    def edge(self) -> Tensor:
        """The distance from the axis beyond which each lens shows nothing, [n_lenses].

        Computed where a pixel is left without a ray, which few lenses do.
        """
        rows = torch.where(self.last[:, None], self.first_rows, self.rows).tolist()
        limits = torch.where(self.last, self.ends, self.limit).tolist()
        edges = [
            _edge(tuple(row), limit) if any(row[-len(BEND) :]) else end
            for row, limit, end in zip(rows, limits, self.ends.tolist(), strict=True)
        ]
        return self.ends.new_tensor(edges)

    def __call__(self, xy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        limit, angular = self.limit[which], self.angular[which]
        valid = torch.ones(len(xy), dtype=torch.bool, device=xy.device)
        target = xy
        if self.last.any():
            bend = Polynomial.of(self.first_rows[which].unbind(-1))
            target, valid = _newton(bend, xy, xy, torch.full_like(limit, math.inf))
        polynomial = Polynomial.of(self.rows[which].unbind(-1), self.n_terms)
        radius = torch.linalg.vector_norm(target, dim=-1)
        # the table is even in the distorted radius; between entries linear is a fine start
        place = (radius / self.reach[which]).clamp(max=1.0) * (N_STARTS - 1)
        low = place.long().clamp(max=N_STARTS - 2)
        a, b = self.starts[which, low], self.starts[which, low + 1]
        r = a + (place - low) * (b - a)
        for _ in range(3):  # quadratic from a start within 1e-4, slower only beside the fold
            value, slope = polynomial.radial(r)
            r = (r - (value - radius) / slope.clamp(min=1e-3)).clamp(min=0.0)
            r = torch.minimum(r, limit)
        on_axis = (polynomial.radial(r)[0] - radius).abs() < TOLERANCE
        plane = target * (r / radius.clamp(min=1e-30))[:, None]
        if not self.bends_first:
            return _unit(plane, r, angular), valid & on_axis
        bends = self.bends[which]
        bent, solved = _newton(polynomial, plane, target, limit)
        plane = torch.where(bends[:, None], bent, plane)
        r = torch.linalg.vector_norm(plane, dim=-1)
        return _unit(plane, r, angular), valid & torch.where(bends, solved, on_axis)

    def search(self, xy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Invert the few that Newton leaves unsolved: slowly, and wherever there is a solution."""
        limit, angular, bends = self.limit[which], self.angular[which], self.bends[which]
        target, valid = xy, torch.ones_like(bends)
        if self.last.any():
            anywhere = torch.full_like(limit, math.inf)
            target, valid = _search_plane(self.first_rows[which], xy, anywhere)
        radius = torch.linalg.vector_norm(target, dim=-1)
        rows, plane, solved = self.rows[which], target.clone(), torch.zeros_like(bends)
        straight = valid & ~bends & (radius <= self.ends[which] + TOLERANCE)
        lens = Polynomial.of(rows[straight].unbind(-1), self.n_terms)
        r, solved[straight] = _search_radius(lens, radius[straight], limit[straight])
        plane[straight] *= (r / radius[straight].clamp(min=1e-30))[:, None]
        plane[bends], solved[bends] = _search_plane(rows[bends], target[bends], limit[bends])
        return _unit(plane, torch.linalg.vector_norm(plane, dim=-1), angular), valid & solved


class _ClosedLenses:
    """Lenses of one closed model."""

    def __init__(self, lenses: Sequence[LensLike]) -> None:
        closed = MODELS[lenses[0].model].closed
        assert closed is not None
        self.closed: Closed = closed
        self.params = torch.tensor([lens.params for lens in lenses], dtype=torch.float64)

    def __call__(self, xy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        radius = torch.linalg.vector_norm(xy, dim=-1)
        s, c, valid = self.closed.unbend(self.params[which].unbind(-1), radius)
        across = xy * (s / radius.clamp(min=1e-30))[:, None]
        along = torch.where(radius > 1e-30, c, 1.0)[:, None]
        return torch.nn.functional.normalize(torch.cat([across, along], dim=-1), dim=-1), valid


class _Panoramas:
    """Panoramas: x is the longitude, y the latitude downwards.

    Where an image holds two, for two eyes, each has a half turn of the plane to itself.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, xy: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        longitude, latitude = xy.unbind(-1)
        if self.model == "ods":
            latitude = latitude - torch.where(latitude > 0, math.pi / 2, -math.pi / 2)
        elif self.model == "vr180":
            longitude = longitude - torch.where(longitude > 0, math.pi / 2, -math.pi / 2)
        widest = math.pi / 2 if self.model == "vr180" else math.pi
        valid = (longitude.abs() <= widest) & (latitude.abs() <= math.pi / 2)
        latitude = latitude.clamp(-math.pi / 2, math.pi / 2)
        across = torch.cos(latitude)
        x, z = across * torch.sin(longitude), across * torch.cos(longitude)
        return torch.stack([x, torch.sin(latitude), z], dim=-1), valid


def _kind(lens: LensLike) -> str:
    """Lenses of one kind are inverted together."""
    model = MODELS[lens.model]
    return lens.model if model.is_panorama or model.closed is not None else "polynomial"


def _inverse(
    kind: str, lenses: Sequence[LensLike], reach: float
) -> _Polynomials | _ClosedLenses | _Panoramas:
    if kind == "polynomial":
        return _Polynomials(lenses, reach)
    return _Panoramas(kind) if MODELS[kind].is_panorama else _ClosedLenses(lenses)


def _in_blocks(
    inverse: _Polynomials | _ClosedLenses | _Panoramas, xy: Tensor, which: Tensor
) -> tuple[Tensor, Tensor]:
    """Blocks that stay in the cache: half the time for a whole image."""
    blocks = list(zip(xy.split(BLOCK), which.split(BLOCK), strict=True))
    parts = [inverse(*block) for block in blocks]
    directions, valid = torch.cat([d for d, _ in parts]), torch.cat([v for _, v in parts])
    if isinstance(inverse, _Polynomials):
        left = (~valid).nonzero()[:, 0]
        if len(left):
            radius = torch.linalg.vector_norm(xy[left], dim=-1)
            left = left[radius <= inverse.edge[which[left]]]
        for some in left.split(BLOCK) if len(left) else ():
            found, solved = inverse.search(xy[some], which[some])
            directions[some[solved]], valid[some] = found[solved], solved
    return directions, valid


def _unit(plane: Tensor, r: Tensor, angular: Tensor) -> Tensor:
    """Points of the plane at distance r, tan(theta) or theta, as unit vectors [n, 3]."""
    flat = torch.cat([plane, torch.ones_like(plane[:, :1])], dim=-1)
    flat = torch.nn.functional.normalize(flat, dim=-1)
    if not angular.any():
        return flat
    across = plane * (torch.sin(r) / r.clamp(min=1e-30))[:, None]
    turned = torch.cat([across, torch.cos(r)[:, None]], dim=-1)
    return torch.where(angular[:, None], turned, flat)


def _newton(
    lens: Polynomial, start: Tensor, target: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve lens.apply(v) = target from `start`, with the exact Jacobian.

    start, target [n, 2], limit [n] -> v [n, 2], solved [n].
    """
    v = start
    for _ in range(4):
        v = v - _step(lens, v, target)
        # Newton may jump across the fold; bring it back to where the lens is monotonic
        norm = torch.linalg.vector_norm(v, dim=-1).clamp(min=1e-30)
        v = v * (limit / norm).clamp(max=1.0)[:, None]
    error = (lens.apply(v) - target).abs().amax(-1)
    return v, (error < TOLERANCE) & (_determinant(lens, v) > 0)


def _step(lens: Polynomial, v: Tensor, target: Tensor) -> Tensor:
    """Newton's step from v, to be subtracted. v, target [n, 2] -> [n, 2]."""
    u_x, u_y, w_x, w_y = lens.jacobian(v)
    determinant = u_x * w_y - u_y * w_x
    safe = torch.where(determinant.abs() < 1e-6, 1e-6, determinant)
    e_u, e_w = (lens.apply(v) - target).unbind(-1)
    step = torch.stack([w_y * e_u - u_y * e_w, u_x * e_w - w_x * e_u], dim=-1)
    return step / safe[:, None]


def _determinant(lens: Polynomial, v: Tensor) -> Tensor:
    """The Jacobian's determinant, [n]; negative where the image is turned over."""
    u_x, u_y, w_x, w_y = lens.jacobian(v)
    return u_x * w_y - u_y * w_x


def _search_radius(lens: Polynomial, target: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Solve f(r) = target below the limit, up to which f grows: Newton within a bracket.

    target, limit [n] -> r [n], solved [n].
    """
    r, low, high = target, torch.zeros_like(target), limit.clamp(max=STEEPEST)
    for i in range(MOST_HALVINGS):
        value, slope = lens.radial(r)
        # rounding may pass a pole: then the value is negative, or no number
        below = (value >= 0) & (value <= target) & (r <= high)
        low, high = torch.where(below, r, low), torch.where(below, high, r.minimum(high))
        step = r - (value - target) / slope
        # from far up a pole Newton crawls, so every third step halves the bracket
        is_within = (step >= low) & (step <= high) & (i % 3 != 2)
        is_solved = below & ((value - target).abs() < 0.1 * TOLERANCE)
        if bool(is_solved.all()):
            break
        r = torch.where(is_solved, r, torch.where(is_within, step, 0.5 * (low + high)))
    return r, (lens.radial(r)[0] - target).abs() < TOLERANCE


def _search_plane(rows: Tensor, target: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Solve apply(v) = target by Newton's steps from the axis, so short that none crosses a fold.

    A step counts where it comes closer to the target, within the limit, and the image there is
    not turned over. Else half of it is tried.

    rows [n, len(ROW)], target [n, 2], limit [n] -> v [n, 2], solved [n].
    """
    found = torch.zeros_like(target)
    solved = torch.zeros(len(target), dtype=torch.bool, device=target.device)
    left = torch.arange(len(target), device=target.device)
    v, scale = torch.zeros_like(target), torch.ones_like(limit)
    for _ in range(MOST_STEPS):
        if not len(left):
            break
        lens, to = Polynomial.of(rows[left].unbind(-1)), target[left]
        trial = v - scale[:, None] * _step(lens, v, to)
        before, after = (torch.linalg.vector_norm(lens.apply(p) - to, dim=-1) for p in (v, trial))
        counts = (after <= (1 - 0.25 * scale) * before) & (_determinant(lens, trial) > 0)
        counts &= torch.linalg.vector_norm(trial, dim=-1) <= limit[left]
        v = torch.where(counts[:, None], trial, v)
        scale = torch.where(counts, (2 * scale).clamp(max=1.0), 0.5 * scale)
        error = torch.where(counts, after, before)
        found[left], solved[left] = v, error < TOLERANCE
        goes_on = (error >= 0.1 * TOLERANCE) & (scale >= SMALLEST_STEP)
        left, v, scale = left[goes_on], v[goes_on], scale[goes_on]
    return found, solved


@lru_cache(1024)
def _edge(row: tuple[float, ...], limit: float) -> float:
    """The largest distance from the axis at which a lens that bends in the plane shows anything.

    The farthest image of a grid that ends where the image first turns over; infinite beside a
    pole.
    """
    r = torch.tan(torch.linspace(0.0, math.atan(min(limit, STEEPEST)), EDGE_GRID[0] + 1).double())
    turn = torch.linspace(0.0, 2 * math.pi, EDGE_GRID[1] + 1).double()[:-1]
    v = torch.stack([torch.cos(turn), torch.sin(turn)], dim=-1)[:, None] * r[:, None]
    lens = Polynomial.of(torch.tensor(row, dtype=torch.float64).unbind())
    reached = (_determinant(lens, v) > 0).long().cumprod(dim=1).bool()
    sizes = torch.linalg.vector_norm(lens.apply(v), dim=-1)[reached]
    farthest = float(sizes.nan_to_num(math.inf).amax())
    return 1.003 * farthest  # the grid may miss it by a little


def _starts(lens: LensLike, reach: float) -> tuple[Tensor, float]:
    """r at N_STARTS equal steps of the distorted radius, and that radius's end."""
    polynomial = Polynomial.of(torch.tensor(lens.row, dtype=torch.float64).unbind())

    def f(r: float) -> float:
        return float(polynomial.radial(torch.tensor(r, dtype=torch.float64))[0])

    high = reach = max(reach, 1e-9)
    while high < min(lens.limit, STEEPEST) and f(high) < reach:
        high *= 2.0
    low, high = 0.0, min(high, lens.limit)
    for _ in range(MOST_HALVINGS):  # down from a pole to where f first reaches what is asked
        if 0.0 <= f(high) <= OVERSHOOT * reach:
            break
        middle = 0.5 * (low + high)
        low, high = (middle, high) if 0.0 <= f(middle) < reach else (low, middle)
    # fine enough that inverting it by interpolation leaves Newton almost nothing to do
    angles = torch.linspace(0.0, math.atan(high), 16 * N_STARTS, dtype=torch.float64)
    r = torch.tan(angles).clamp(max=high)
    bent = polynomial.radial(r)[0]
    top = float(bent[-1])
    grid = np.linspace(0.0, top, N_STARTS)
    return torch.from_numpy(np.interp(grid, bent.numpy(), r.numpy())), top

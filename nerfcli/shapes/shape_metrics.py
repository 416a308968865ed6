"""Measure how close two sampled surfaces are, as docs/geometry.md defines.

P and Q are samples of the surfaces A (judged) and B (the truth); d_ab [n] holds the distance
from each point of P to its nearest neighbour in Q, d_ba [m] the other way round. Distances are
in the source's unit, squared ones in its square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from nerfcli.shapes.surface_samples import SurfaceSamples

PERCENTILE = 95.0


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest neighbours of a comparison in both directions.

    d_ab [n], d_ba [m]: distances to the nearest neighbour.
    cos_ab [n], cos_ba [m]: |cosine| between the normals of a point and of its neighbour, or None.
    """

    d_ab: np.ndarray
    d_ba: np.ndarray
    cos_ab: np.ndarray | None
    cos_ba: np.ndarray | None


@dataclass(frozen=True)
class TwoWay:
    """A directed measure in both directions, and how to combine the two."""

    a_to_b: float
    b_to_a: float

    @property
    def sum(self) -> float:
        return self.a_to_b + self.b_to_a

    @property
    def mean(self) -> float:
        return 0.5 * self.sum

    @property
    def max(self) -> float:
        return max(self.a_to_b, self.b_to_a)


@dataclass(frozen=True)
class FScore:
    """Shares in 0..1 at one radius: of P near Q, of Q near P, and their harmonic mean."""

    radius: float
    precision: float
    recall: float
    f_score: float


def neighbours(p: SurfaceSamples, q: SurfaceSamples) -> Neighbours:
    """Find nearest neighbours between two samples, both ways."""
    d_ab, q_of_p = KDTree(q.points).query(p.points, workers=-1)
    d_ba, p_of_q = KDTree(p.points).query(q.points, workers=-1)
    if p.normals is None or q.normals is None:
        return Neighbours(d_ab, d_ba, None, None)
    cos_ab = np.abs(np.einsum("ij,ij->i", p.normals, q.normals[q_of_p]))
    cos_ba = np.abs(np.einsum("ij,ij->i", q.normals, p.normals[p_of_q]))
    return Neighbours(d_ab, d_ba, cos_ab, cos_ba)


def chamfer(found: Neighbours) -> TwoWay:
    """Compute the mean distance to the nearest neighbour."""
    return TwoWay(float(found.d_ab.mean()), float(found.d_ba.mean()))


def chamfer_squared(found: Neighbours) -> TwoWay:
    """Compute the mean squared distance to the nearest neighbour."""
    return TwoWay(float(np.mean(found.d_ab**2)), float(np.mean(found.d_ba**2)))


def normal_distance(found: Neighbours) -> TwoWay | None:
    """Compute minus the mean |cosine| between normals: -1 each way if equal; None without them.

    Normal consistency is the negated mean of the two.
    """
    if found.cos_ab is None or found.cos_ba is None:
        return None
    return TwoWay(-float(found.cos_ab.mean()), -float(found.cos_ba.mean()))


def hausdorff(found: Neighbours) -> TwoWay:
    """Compute the largest distance; the Hausdorff distance is the larger of the two."""
    return TwoWay(float(found.d_ab.max()), float(found.d_ba.max()))


def hausdorff_95(found: Neighbours) -> TwoWay:
    """Compute the 95th percentile of the distances, linear between order statistics."""
    p_ab, p_ba = (np.percentile(d, PERCENTILE) for d in (found.d_ab, found.d_ba))
    return TwoWay(float(p_ab), float(p_ba))


def f_score(found: Neighbours, radius: float) -> FScore:
    """Compute precision, recall and F at a radius; a point at exactly the radius is near."""
    precision = float(np.mean(found.d_ab <= radius))
    recall = float(np.mean(found.d_ba <= radius))
    return FScore(radius, precision, recall, harmonic_mean(precision, recall))


def harmonic_mean(a: float, b: float) -> float:
    return 2.0 * a * b / (a + b) if a + b > 0 else 0.0


def bootstrap(
    found: Neighbours, radii: Sequence[float], n_draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Compute 95 % percentile intervals of the means by resampling with replacement.

    Each direction's points are redrawn on their own; their neighbours stay. It is the spread that
    comes from the finite sample, and does not hold the bias that the noise floor shows. Maxima
    have no valid bootstrap and are left out. Source: Efron (1979).
    """
    draws_ab = _resample_means(_columns(found.d_ab, found.cos_ab, radii), n_draws, rng)
    draws_ba = _resample_means(_columns(found.d_ba, found.cos_ba, radii), n_draws, rng)
    n = len(radii)
    intervals: dict[str, Any] = {
        "draws": n_draws,
        "level": 0.95,
        "chamfer_sum": _interval(draws_ab[:, 0] + draws_ba[:, 0]),
        "chamfer_squared_sum": _interval(draws_ab[:, 1] + draws_ba[:, 1]),
        "f_scores": [
            _interval(np.array([harmonic_mean(p, r) for p, r in zip(ab, ba, strict=True)]))
            for ab, ba in zip(draws_ab[:, 2 : 2 + n].T, draws_ba[:, 2 : 2 + n].T, strict=True)
        ],
    }
    if found.cos_ab is not None:
        mean = 0.5 * (draws_ab[:, -1] + draws_ba[:, -1])
        intervals["normal_consistency"] = _interval(mean)
    return intervals


def _columns(d: np.ndarray, cos: np.ndarray | None, radii: Sequence[float]) -> np.ndarray:
    columns = [d, d**2, *(d <= radius for radius in radii)]
    return np.column_stack(columns if cos is None else [*columns, cos]).astype(np.float64)


def _resample_means(columns: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    n = len(columns)
    counts = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(n_draws))
    return np.stack([count @ columns / n for count in counts])


def _interval(draws: np.ndarray) -> list[float]:
    return [float(value) for value in np.percentile(draws, [2.5, 97.5])]


def summary(d: np.ndarray) -> dict[str, float]:
    """Compute mean, root mean square, 95th percentile and maximum of distances."""
    return {
        "mean": float(d.mean()),
        "rms": float(np.sqrt(np.mean(d**2))),
        "percentile_95": float(np.percentile(d, PERCENTILE)),
        "max": float(d.max()),
    }


def two_way_json(value: TwoWay) -> dict[str, float]:
    return {**asdict(value), "sum": value.sum, "mean": value.mean}

"""Paired differences of two runs' scores over the same views, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.95


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Compute the mean of b - a over pairs, its standard error, and an interval by Student's t.

    The pairs are taken as independent draws.

    Args:
        a, b: at least one number each, of the same length.

    Returns:
        mean; standard_error, low and high, the ends of the 95 % interval (None for one pair); p,
        of the two-sided t-test that the mean is 0 (None for one pair, or where all differences are
        equal); n.
    """
    from scipy.stats import t

    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    n, mean = len(differences), float(differences.mean())
    found: dict[str, Any] = {"mean": mean, "standard_error": None, "low": None, "high": None}
    found |= {"p": None, "n": n}
    if n < 2:
        return found
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    reach = float(t.ppf(0.5 + 0.5 * CONFIDENCE, n - 1)) * error
    found |= {"standard_error": error, "low": mean - reach, "high": mean + reach}
    if error > 0:
        found["p"] = float(2.0 * t.sf(abs(mean) / error, n - 1))
    return found

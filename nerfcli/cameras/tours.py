"""Short tours through cameras, so that a path passes neighbours one after the other."""

from __future__ import annotations

import numpy as np

from nerfcli.cameras.cameras import Cameras

Array = np.ndarray


def pose_distances(cameras: Cameras, chosen: list[int]) -> Array:
    """How far apart poses are: position, and turning as if it moved a point in the scene."""
    positions, forwards = (v[chosen].numpy() for v in (cameras.positions, cameras.forwards))
    apart = np.linalg.norm(positions[:, None] - positions, axis=-1)
    size = float(np.median(apart)) or 1.0
    return apart + size * np.linalg.norm(forwards[:, None] - forwards, axis=-1)


def spread_out(cameras: Cameras, n: int) -> list[int]:
    """At most n cameras that are far from each other, in their own order."""
    distances = pose_distances(cameras, list(range(len(cameras))))
    chosen, nearest = [0], distances[0]
    for _ in range(min(n, len(cameras)) - 1):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[chosen[-1]])
    return sorted(chosen)


def short_order(cameras: Cameras, chosen: list[int]) -> list[int]:
    """The order of capture if it is a smooth one, else a short open tour (2-opt)."""
    distances = pose_distances(cameras, chosen)
    captured = list(range(len(chosen)))
    tour, left = captured[:1], set(captured[1:])
    while left:
        tour.append(min(left, key=lambda i: distances[tour[-1], i]))
        left.remove(tour[-1])
    _two_opt(tour, distances)
    there, short = (float(distances[o[:-1], o[1:]].sum()) for o in (captured, tour))
    return [chosen[i] for i in (captured if there < 1.5 * short else tour)]


def _two_opt(tour: list[int], distances: Array) -> None:
    """Reverse stretches of an open tour, in place, as long as that shortens it."""
    n, improved = len(tour), True
    while improved:
        improved = False
        for i in range(n - 1):
            for j in range(i + 1, n):
                first, last, gain = tour[i], tour[j], 0.0
                if i > 0:
                    gain += distances[tour[i - 1], first] - distances[tour[i - 1], last]
                if j + 1 < n:
                    gain += distances[last, tour[j + 1]] - distances[first, tour[j + 1]]
                if gain > 1e-9:
                    tour[i : j + 1] = tour[i : j + 1][::-1]
                    improved = True

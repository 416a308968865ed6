"""Measure the time of a call, and the peak rate of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

PEAK_SIZE = 1536  # of the square matrices whose product measures the machine


@dataclass(frozen=True)
class Effort:
    """Bound the time of a benchmark.

    Attributes:
        sizes: samples of a call.
        repeats: timed calls of an operation; fewer, but at least two, once they took `seconds`.
        settle_steps: training steps before the scene counts as settled.
        blocks: timed stretches of training steps; fewer, but at least two, once they took
            `block_seconds`.
    """

    sizes: tuple[int, ...] = (2**12, 2**15, 2**17)
    repeats: int = 7
    seconds: float = 2.0
    settle_steps: int = 384
    blocks: int = 5
    block_seconds: float = 12.0


FULL = Effort()
QUICK = Effort(sizes=(2**15,), repeats=3, seconds=0.5, settle_steps=128, blocks=2)


def measure(call: Callable[[], object], device: str, repeats: int, seconds: float) -> list[float]:
    """Time several calls, in seconds, after one to warm up; see `Effort`."""
    times: list[float] = []
    call()
    wait(device)
    started = time.perf_counter()
    while len(times) < 2 or (len(times) < repeats and time.perf_counter() - started < seconds):
        start = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - start)
    return times


def measure_peak(device: str) -> float:
    """Measure GFLOP/s of large float32 matrix products in torch; the best of several."""
    a, b = torch.rand(2, PEAK_SIZE, PEAK_SIZE, device=device)
    best = min(measure(partial(torch.mm, a, b), device, 7, 2.0))
    return 2 * PEAK_SIZE**3 / best / 1e9


def wait(device: str) -> None:
    """Wait until the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()

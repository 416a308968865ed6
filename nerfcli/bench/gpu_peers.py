"""Time nerfacc, where it is installed, on the same marching and compositing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from nerfcli.backends.base import Backend
from nerfcli.bench.clock import measure
from nerfcli.bench.gpu_measures import Row, Sizes, kernel_row
from nerfcli.bench.kernels import Workload
from nerfcli.core.devices import cuda_missing, is_installed


def nerfacc_missing(device: str) -> str | None:
    """Return the reason why nerfacc cannot run on `device`, or None; its kernels need CUDA."""
    if device != "cuda":
        return f"it does not run on {device}"
    return cuda_missing() if is_installed("nerfacc") else "nerfacc is not installed"


def nerfacc_rows(device: str, sizes: Sizes) -> list[Row]:
    """Time nerfacc on the rays, cells and samples of the kernels' rows."""
    effort, rows = sizes.effort, []
    for n in effort.sizes:
        for operation, call, samples in _operations(Workload(n, device)):
            times = measure(torch.no_grad()(call), device, effort.repeats, effort.seconds)
            rows.append(kernel_row("nerfacc", operation, samples, statistics.median(times)))
    return rows


def _operations(work: Workload) -> Iterator[tuple[str, Callable[[], Any], int]]:
    import nerfacc  # pyright: ignore[reportMissingImports]

    box, occupied, rays = work.grid.box, work.grid.occupied, work.rays
    low = [c - box.half_size for c in box.center]
    high = [c + box.half_size for c in box.center]
    resolution = occupied.shape[1]
    grid = nerfacc.OccGridEstimator([*low, *high], resolution=resolution, levels=1)
    grid = grid.to(work.device)
    grid.binaries = occupied.permute(0, 3, 2, 1).contiguous()  # theirs is [level, x, y, z]

    def march() -> Any:
        return grid.sampling(
            rays.origins, rays.directions, render_step_size=work.grid.steps.size,
            near_plane=0.05, far_plane=20.0,
        )  # fmt: skip

    ray_indices, t_starts, t_ends = march()
    n, n_rays = len(t_starts), len(rays)
    ours = work.march(Backend()).capacity
    if not 0.9 * ours < n < 1.1 * ours:
        raise RuntimeError(f"nerfacc marches to {n} samples, this program to {ours}")
    sigmas, rgbs = torch.rand(n, device=work.device), torch.rand(n, 3, device=work.device)

    def composite() -> Any:
        weights, _, _ = nerfacc.render_weight_from_density(
            t_starts, t_ends, sigmas, ray_indices=ray_indices, n_rays=n_rays
        )
        return nerfacc.accumulate_along_rays(
            weights, values=rgbs, ray_indices=ray_indices, n_rays=n_rays
        )

    yield "march", march, n
    yield "composite", composite, n

"""Time the operations of a backend one by one, at several sizes.

The workload resembles a scene with one object: rays from all around through the occupied shell of
a ball, and a field of the shape of a fresh run. The field is a thin fog, so no ray ends early and
every sample counts. Times are wall-clock, after a warm-up.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from nerfcli.backends.base import Backend
from nerfcli.bench.clock import Effort, measure
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Batch, Rays
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.contraction import BoxSpace
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective
from nerfcli.reference.mlp import init_mlp, mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, Steps

NET = NetSpec(GridSpec(16, 2, 17, 16, 1024))
N_OPERATIONS = 9  # rows of a size

Operation = tuple[str, Callable[[], object], int, int]  # name, call, samples, flop per sample


@dataclass(frozen=True)
class KernelRow:
    """One operation of one backend at one size."""

    backend: str
    operation: str
    samples: int
    seconds: float  # median
    spread: float  # (slowest - fastest) / median
    samples_per_second: float
    gflops: float | None  # floating-point operations of the networks alone, 1e9 a second
    peak_share: float | None  # of the rate of a large float32 matrix product here

    def as_dict(self) -> dict:
        return asdict(self)


class Workload:
    """A field, and rays that march to about n samples."""

    def __init__(self, n: int, device: str) -> None:
        self.device, g = device, torch.Generator().manual_seed(0)
        table = torch.rand(NET.grid.n_params, generator=g) * 2e-2 - 1e-2
        self.params = NetParams(
            table.to(device),
            init_mlp(NET.density_widths, g).to(device),
            init_mlp(NET.color_widths, g).to(device),
        )
        box = Box((0.0, 0.0, 0.0), 1.5)
        self.network = Network(NET, self.params, BoxSpace(box, 0.05, 20.0))
        axis = (torch.arange(128) + 0.5) / 64 - 1
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        shell = ((x**2 + y**2 + z**2).sqrt() - 0.5).abs() < 0.02
        steps = Steps(2 * box.half_size * 3**0.5 / 1024)
        self.grid = MarchingGrid(shell[None].contiguous().to(device), box, steps)
        self.rays = self._rays(256, g)
        per_ray = max(self.march(Backend()).capacity / 256, 1.0)
        n_rays = max(1, round(n / per_ray))
        self.rays = self._rays(n_rays, g)
        target, background = torch.rand(2, n_rays, 3, generator=g).to(device)
        self.batch = Batch(self.rays, target, background)
        self.unit = torch.rand(n, 3, generator=g).to(device)
        self.positions = self.network.space.from_unit(self.unit)
        directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
        self.ray_inputs = Backend().spherical_harmonics(directions.to(device))
        self.sigmas = torch.rand(4 * n + 64, generator=g).to(device)

    def _rays(self, n_rays: int, generator: torch.Generator) -> Rays:
        normal = torch.randn(2, n_rays, 3, generator=generator)
        origins = 4 * torch.nn.functional.normalize(normal[0], dim=1)
        directions = torch.nn.functional.normalize(0.05 * normal[1] - origins / 4, dim=1)
        rays = Rays(origins.to(self.device), directions.to(self.device))
        bounds = self.network.space.bounds(rays)
        self.where = (bounds, torch.full_like(bounds.t_min, 0.5), self.grid)
        return rays

    def march(self, backend: Backend) -> Samples:
        return backend.march(self.rays, *self.where)


def kernel_rows(
    name: str, backend: Backend, device: str, effort: Effort, peak: float
) -> Iterator[KernelRow]:
    """Time the operations of one backend, a row each; the caller checks its parity first.

    Args:
        peak: GFLOP/s of the machine.
    """
    for n in effort.sizes:
        for operation, call, samples, flop in operations(backend, Workload(n, device)):
            times = measure(call, device, effort.repeats, effort.seconds)
            seconds = statistics.median(times)
            rate = samples / seconds
            gflops = rate * flop / 1e9 if flop else None
            share = gflops / peak if gflops is not None else None
            spread = (max(times) - min(times)) / seconds
            yield KernelRow(name, operation, samples, seconds, spread, rate, gflops, share)


def network_flop(net: NetSpec) -> tuple[int, int]:
    """Count floating-point operations per sample: of the density network, and of both."""
    density = 2 * mlp_n_params(net.density_widths)
    return density, density + 2 * mlp_n_params(net.color_widths)


def operations(backend: Backend, work: Workload) -> Iterator[Operation]:
    """Yield the operations to time; gradients count as twice a forward pass."""
    params, n = work.params, work.positions.shape[0]
    density_flop, field_flop = network_flop(NET)
    leaves = NetParams(*(p.clone().requires_grad_() for p in params.tensors()))
    network = replace(work.network, params=leaves)
    samples = work.march(backend)
    sigmas = work.sigmas[: samples.capacity]
    rgbs = torch.rand(samples.capacity, 3, device=work.device)

    def hash_grid_backward() -> None:
        backend.hash_grid(work.unit, leaves.table, NET.grid).sum().backward()

    def radiance_backward() -> None:
        torch.stack(
            [o.sum() for o in backend.radiance(network, work.positions, work.ray_inputs)]
        ).sum().backward()

    no_grad = torch.no_grad()
    yield "hash_grid", no_grad(partial(backend.hash_grid, work.unit, params.table, NET.grid)), n, 0
    yield "hash_grid + gradient", hash_grid_backward, n, 0
    density = no_grad(partial(backend.density, work.network, work.positions))
    yield "density", density, n, density_flop
    radiance = no_grad(partial(backend.radiance, work.network, work.positions, work.ray_inputs))
    yield "radiance", radiance, n, field_flop
    yield "radiance + gradient", radiance_backward, n, 3 * field_flop
    yield "march", partial(work.march, backend), samples.capacity, 0
    composite = no_grad(partial(backend.composite, sigmas, rgbs, samples, work.batch.background))
    yield "composite", composite, samples.capacity, 0
    step, n_kept = make_training_step(backend, work, samples)
    yield "gradients + Adam", step, n_kept, 3 * field_flop
    render = partial(
        backend.render_rays, work.network, work.rays, *work.where, work.batch.background
    )
    yield "render_rays", render, samples.capacity, 0


def make_training_step(
    backend: Backend, work: Workload, samples: Samples
) -> tuple[Callable[[], None], int]:
    """Make a step from samples to new parameters, and count the samples that it keeps."""
    params = NetParams(*(p.clone() for p in work.params.tensors()))
    grads, m, v = (NetParams(*map(torch.zeros_like, params.tensors())) for _ in range(3))
    args = (replace(work.network, params=params), grads, work.batch, samples, Objective())
    config, count = AdamConfig(), 0

    def step() -> None:
        nonlocal count
        count += 1
        backend.step_gradients(*args)
        for p, g, m_, v_ in zip(*(s.tensors() for s in (params, grads, m, v)), strict=True):
            backend.adam_step(
                p, g, m_, v_, config, step=count, lr=1e-5
            )  # small: the work stays the same

    n_kept = int(backend.step_gradients(*args).n_kept)
    return step, n_kept

"""Proposals: samples by remembered densities, against loops in plain Python; every backend."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.backends.cpu.backend import CpuBackend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Rays
from nerfcli.methods.proposals import edges_by, fresh_grid
from nerfcli.reference.contraction import ContractedSpace
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.mlp import init_mlp
from nerfcli.reference.proposals import LONE, UNKNOWN, ProposalGrid, cells_at
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.sampling import Piecewise
from nerfcli.reference.volume import weights_from_density

SPACE = ContractedSpace(Box((0.1, -0.2, 0.3), 1.2), 0.1, 60.0)
RESOLUTION, N_BINS, N_SAMPLES, N_RAYS = 32, 40, 12, 60
PRIOR, PADDING = 0.3, 0.2
BACKENDS = [
    Backend(),
    pytest.param(
        CpuBackend(), marks=pytest.mark.skipif(bool(CpuBackend.why_unavailable("cpu")), reason="")
    ),
]
on_every_backend = pytest.mark.parametrize("ops", BACKENDS, ids=["torch", "cpu"])


def some_grid(seed: int = 0) -> ProposalGrid:
    """Densities of several sizes, empty cells, and cells that nothing is known of."""
    g = torch.Generator().manual_seed(seed)
    grid = fresh_grid(
        SPACE,
        edges_by(Piecewise(1.2), SPACE.near, SPACE.far, N_BINS),
        resolution=RESOLUTION,
        n_samples=N_SAMPLES,
        prior=PRIOR,
        padding=PADDING,
    )
    for cells in (grid.fine, grid.coarse):
        kind = torch.rand(len(cells), generator=g)
        values = torch.where(kind < 0.3, 0.0, torch.rand(len(cells), generator=g) ** 4 * 8)
        cells.copy_(torch.where(kind < 0.6, values, UNKNOWN))
    grid.coarse[torch.rand(len(grid.coarse), generator=g) < 0.4] = LONE
    return grid


def some_rays(seed: int = 1) -> tuple[Rays, Tensor]:
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(N_RAYS, 3, generator=g)
    origins = torch.randn(N_RAYS, 3, generator=g)
    rays = Rays(origins, directions / directions.norm(dim=1, keepdim=True))
    return rays, torch.rand(N_RAYS, generator=g)


def lone_by_hand(grid: ProposalGrid, x: list[float]) -> bool:
    i, j, k = (min(int(u * grid.resolution / 4), grid.resolution // 4 - 1) for u in unit_by_hand(x))
    n = grid.resolution // 16
    brick = ((k // 4) * n + j // 4) * n + i // 4
    return float(grid.coarse[brick * 64 + (k % 4) * 16 + (j % 4) * 4 + i % 4]) == -2.0


def unit_by_hand(x: list[float]) -> list[float]:
    half = SPACE.box.half_size
    y = [(a - c) / half for a, c in zip(x, SPACE.box.center, strict=True)]
    m = max(1.0, *(abs(v) for v in y))
    return [((2 - 1 / m) * v / m + 2) / 4 for v in y]


def density_by_hand(grid: ProposalGrid, x: list[float]) -> float:
    unit = unit_by_hand(x)
    for cells, n in ((grid.fine, grid.resolution), (grid.coarse, grid.resolution // 4)):
        i, j, k = (min(int(u * n), n - 1) for u in unit)
        brick = ((k // 4) * (n // 4) + j // 4) * (n // 4) + i // 4
        value = float(cells[brick * 64 + (k % 4) * 16 + (j % 4) * 4 + i % 4])
        if value >= 0:
            return value
    return grid.prior


def cuts_by_hand(grid: ProposalGrid, origin, direction, jitter: float, power: float) -> list[float]:
    edges = grid.edges.tolist()
    places = [a + jitter * (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    at = [[o + t * d for o, d in zip(origin, direction, strict=True)] for t in places]
    begin = next((k for k, x in enumerate(at) if not lone_by_hand(grid, x)), 0)
    edges, at = edges[begin:], at[begin:]
    n = len(at)
    light, weights, depth = 1.0, [], 0.0
    for a, b, x in zip(edges, edges[1:], at, strict=False):
        depth += min(density_by_hand(grid, x) * (b - a), 1.0)
        behind = math.exp(-depth) if depth < 10 else 0.0
        weights.append(light - behind)
        light = behind
    weights[-1] += light
    wide = [max(weights[max(i - 1, 0) : i + 2]) ** power for i in range(n)]
    share = [(1 - PADDING) * w / sum(wide) + PADDING / n for w in wide]
    cuts = [edges[0]]
    for k in range(grid.n_samples - 1):
        left, i = (k + jitter) / (grid.n_samples - 1), 0
        while i < n - 1 and left >= share[i]:
            left -= share[i]
            i += 1
        cuts.append(edges[i] + min(left / share[i], 1.0) * (edges[i + 1] - edges[i]))
    return [*cuts, edges[-1]]


@on_every_backend
@pytest.mark.parametrize("annealing", [1.0, 0.3, 0.0])
def test_samples_are_those_of_the_formula(ops: Backend, annealing: float) -> None:
    grid, (rays, jitter) = some_grid(), some_rays()
    samples = ops.propose(rays, jitter, grid, annealing)
    assert samples.ray_offsets.tolist() == [i * N_SAMPLES for i in range(N_RAYS + 1)]
    starts, ends = samples.dense(samples.t_starts), samples.dense(samples.t_ends)
    assert torch.equal(starts[:, 1:], ends[:, :-1])  # no gap: all of the ray is seen
    for r in range(N_RAYS):
        place = (rays.origins[r].tolist(), rays.directions[r].tolist(), float(jitter[r]))
        expected = torch.tensor(cuts_by_hand(grid, *place, annealing))
        got = torch.cat([starts[r], ends[r, -1:]])
        near = 2e-3 if annealing != 0.3 else 0.1  # a root makes much of a weight's last digits
        assert ((got - expected).abs() <= near * expected).all(), (r, got, expected)


@on_every_backend
def test_what_is_met_is_remembered(ops: Backend) -> None:
    """Rays through known densities: a cell takes their mean, old values move by the rate."""
    grid, (rays, jitter) = some_grid(), some_rays()
    samples = ops.propose(rays, jitter, grid)
    g = torch.Generator().manual_seed(5)
    lengths = samples.t_ends - samples.t_starts
    sigmas = torch.rand(samples.capacity, generator=g) / lengths  # none is opaque by itself
    weights = weights_from_density(sigmas, samples)
    before = replace(grid, fine=grid.fine.clone(), coarse=grid.coarse.clone())
    ops.learn_densities(rays, samples, weights, grid, 0.25)
    light = (1 - samples.dense(weights).cumsum(1) + samples.dense(weights)).view(-1)
    unit = SPACE.to_unit(samples.positions(rays))
    for new, old, n in (
        (grid.fine, before.fine, RESOLUTION),
        (grid.coarse, before.coarse, RESOLUTION // 4),
    ):
        met: dict[int, list[float]] = {}
        for cell, sigma, lit in zip(cells_at(unit, n).tolist(), sigmas, light, strict=True):
            if lit > 1e-3:
                met.setdefault(cell, []).append(float(sigma))
        expected = old.float().clone()
        for cell, values in met.items():
            mean = sum(values) / len(values)
            was = float(old[cell]) if old[cell] >= 0 else mean
            if old[cell] == LONE:
                continue
            expected[cell] = was + 0.25 * (mean - was)
        known = expected >= 0
        assert torch.equal(new < 0, ~known)
        # bfloat16 has eight bits, and a weight behind little light tells few digits
        assert torch.allclose(new[known].float(), expected[known], rtol=0.02, atol=1e-3)
        assert len(met) > 30 and (new != old).any()


def test_backends_remember_the_same_bits() -> None:
    rays, jitter = some_rays()
    grids = []
    for ops in (Backend(), CpuBackend()):
        grid = some_grid()
        samples = Backend().propose(rays, jitter, grid)
        weights = weights_from_density(torch.full((samples.capacity,), 0.2), samples)
        ops.learn_densities(rays, samples, weights, grid, 0.1)
        grids.append(grid)
    assert torch.equal(grids[0].fine, grids[1].fine)
    assert torch.equal(grids[0].coarse, grids[1].coarse)


def test_a_surface_draws_the_samples() -> None:
    """Behind a wall at distance 2 nothing is looked at but by the padding."""
    grid = some_grid()
    grid.fine.fill_(0.0)
    grid.coarse.fill_(0.0)
    n = 20000
    g = torch.Generator().manual_seed(3)
    away = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    shell = torch.tensor(SPACE.box.center) + away * (0.9 + 0.1 * torch.rand(n, 1, generator=g))
    grid.fine[cells_at(SPACE.to_unit(shell), RESOLUTION)] = 400.0
    rays = Rays(torch.tensor(SPACE.box.center).expand(8, 3).contiguous(), away[:8].contiguous())
    samples = Backend().propose(rays, torch.full((8,), 0.5), replace(grid, n_samples=40))
    mids = samples.dense(samples.t_mids)
    near_it = ((mids > 0.7) & (mids < 1.2)).float().mean()
    assert near_it > 0.75


@pytest.mark.parametrize("widest", [None, 0.05])
def test_rendering_agrees_with_its_parts(widest: float | None) -> None:
    g = torch.Generator().manual_seed(7)
    net = NetSpec(GridSpec(8, 2, 10, 4, 64), 32)
    params = NetParams(
        torch.randn(net.grid.n_params, generator=g),
        init_mlp(net.density_widths, g),
        init_mlp(net.color_widths, g),
    )
    network, grid, (rays, jitter) = Network(net, params, SPACE), some_grid(), some_rays()
    background = torch.tensor([0.2, 0.5, 0.9])
    if widest:
        rays = replace(rays, radii=widest * torch.rand(len(rays), generator=g))
    bounds = SPACE.bounds(rays)
    parts = [
        ops.render_rays(network, rays, bounds, jitter, grid, background, min_transmittance=1e-3)
        for ops in (Backend(), CpuBackend())
    ]
    assert torch.allclose(parts[0].rgb, parts[1].rgb, atol=4e-3)  # faint samples have no colour
    assert torch.allclose(parts[0].opacity, parts[1].opacity, atol=2e-3)
    assert float(parts[0].opacity.min()) > 0.05

"""The compiled CPU kernels against the reference: marching, compositing, optimising."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import (
    CPU,
    OUTPUTS,
    PAIRS,
    TORCH,
    UNIT,
    Bundle,
    assert_near,
    field,
    generator,
    kernels,  # noqa: F401
    points,
    zeros_like,
)

from nerfcli.cameras.rays import Bounds
from nerfcli.core.errors import NerfError
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid


@pytest.mark.parametrize("size", [32, 30, 128])
@pytest.mark.parametrize("n_cascades", [1, 3])
def test_march_takes_the_same_steps(n_cascades: int, size: int) -> None:
    """To the bit for equal steps, whatever is skipped on the way."""
    bundle = Bundle(300, n_cascades, size=size)
    got, want = bundle.march(CPU), bundle.march(TORCH)
    assert want.capacity > 1000
    assert torch.equal(got.ray_offsets, want.ray_offsets)
    assert torch.equal(got.t_starts, want.t_starts) and torch.equal(got.t_ends, want.t_ends)


@pytest.mark.parametrize("size", [16, 20, 32, 64])
def test_march_skips_no_finer_cascade(size: int) -> None:
    """Where only the detail cube is occupied, empty blocks of the cubes around it reach into it."""
    bundle = Bundle(300, 2, size=size)
    bundle.grid.occupied[0], bundle.grid.occupied[1] = True, False
    got, want = bundle.march(CPU), bundle.march(TORCH)
    assert want.capacity > 1000
    assert torch.equal(got.ray_offsets, want.ray_offsets)
    assert torch.equal(got.t_starts, want.t_starts)


def test_march_with_growing_steps() -> None:
    """exp and log differ in the last digit: t by a few roundings, and a middle that falls on the
    edge of a cell may count to either side of it."""
    bundle = Bundle(300, 3, 1 / 64)
    got, want = bundle.march(CPU), bundle.march(TORCH)
    same = got.ray_offsets.diff() == want.ray_offsets.diff()
    assert same.float().mean() > 0.98
    mine, theirs = same[got.ray_indices()], same[want.ray_indices()]
    assert_near(got.t_starts[mine], want.t_starts[theirs], 1e-6)
    assert_near(got.t_ends[mine], want.t_ends[theirs], 1e-6)


@pytest.mark.parametrize("n_rays", [0, 1])
def test_march_of_no_ray_and_of_a_ray_that_misses(n_rays: int) -> None:
    bundle = Bundle(n_rays)
    bundle.bounds = Bounds(torch.ones(n_rays), torch.zeros(n_rays))
    samples = bundle.march(CPU)
    assert samples.capacity == 0 and samples.ray_offsets.tolist() == [0] * (n_rays + 1)


@pytest.mark.parametrize("one_background", [False, True])
@pytest.mark.parametrize("n_rays", [0, 1, 63, 500])
def test_composite(n_rays: int, one_background: bool) -> None:
    """With padding behind the live samples that holds NaN."""
    bundle = Bundle(n_rays)
    live = bundle.march(TORCH)
    pad = torch.full((7,), float("nan"))
    samples = Samples(
        torch.cat([live.t_starts, pad]), torch.cat([live.t_ends, pad]), live.ray_offsets
    )
    g = generator(5)
    # from thin to opaque; 0.1: the depth of a ray that hits nearly nothing is 0 / 0
    sigmas = torch.cat([0.1 + torch.rand(live.capacity, generator=g) ** 4 * 4000, pad])
    rgbs = torch.cat([torch.rand(live.capacity, 3, generator=g), pad[:, None].expand(7, 3)])
    background = torch.rand(3, generator=g) if one_background else bundle.batch.background
    shapes = ((n_rays, 3), (n_rays,), (n_rays,))
    cotangents = [torch.randn(*shape, generator=g) for shape in shapes]
    results = []
    for backend in (CPU, TORCH):
        leaves = [sigmas.clone().requires_grad_(), rgbs.clone().requires_grad_()]
        pixels = backend.composite(leaves[0], leaves[1], samples, background)
        torch.autograd.backward([pixels.rgb, pixels.opacity, pixels.depth], cotangents)
        results.append((pixels, leaves))
    (got, mine), (want, theirs) = results
    for name in ("rgb", "opacity", "depth", "median_depth"):
        assert_near(getattr(got, name), getattr(want, name), OUTPUTS)
    for a, b in zip(mine, theirs, strict=True):
        assert a.grad is not None and b.grad is not None
        # the depth's slopes, (t - depth) / opacity, are 4e-7 uncertain over a small opacity on a
        # thin ray; without the depth's cotangent the difference stays below GRADIENTS
        assert_near(a.grad, b.grad, 5e-5)


@pytest.mark.parametrize("n", [1, 63, 1000, 100_001])
def test_adam_step(n: int) -> None:
    g = generator(6)
    start = [torch.randn(n, generator=g) for _ in range(5)]
    start[1][torch.rand(n, generator=g) < 0.7] = 0.0
    start[1][: n // 2] *= 1e-18  # squares that float32 cannot hold
    start[2] *= 0.1
    start[3] = start[3].square() * (torch.rand(n, generator=g) < 0.5)
    results = []
    for backend in (CPU, TORCH):
        state = [t.clone() for t in start]
        params, grads, m, v, ema = state
        config = AdamConfig(weight_decay=1e-3, ema_decay=0.9)
        backend.adam_step(params, grads, m, v, config, step=3, lr=1e-3, ema=ema)
        results.append(state)
    untouched = start[1] == 0
    for got, want, before in zip(*results, start, strict=True):
        assert_near(got, want, OUTPUTS)
        assert got is results[0][1] or torch.equal(got[untouched], before[untouched])
    assert not results[0][1].any()


def test_adam_step_by_rates() -> None:
    grads, start = torch.randn(2, 100, generator=generator(6))
    config = AdamConfig()
    rates = torch.tensor([0.1, *config.bias_corrections(7)])
    results = []
    for options in ({"rates": rates}, {"step": 7, "lr": 0.1}):
        params, (m, v) = start.clone(), torch.zeros(2, 100)
        CPU.adam_step(params, grads.clone(), m, v, config, **options)  # pyright: ignore
        results.append(params)
    assert_near(results[0], results[1], OUTPUTS)


def test_a_shape_that_the_kernels_do_not_take_goes_to_the_reference() -> None:
    spec = NetSpec(GridSpec(5, 2, 10, 4, 64), width=16)  # 10 features: not a multiple of 16
    network = field(spec, UNIT)
    positions, ray_inputs = points(63, spec)
    assert torch.equal(CPU.density(network, positions), TORCH.density(network, positions))
    got, want = (b.radiance(network, positions, ray_inputs)[1] for b in (CPU, TORCH))
    assert torch.equal(got, want)
    bundle = Bundle(63)
    samples = bundle.march(CPU)
    network = field(spec, bundle.space)
    grads = zeros_like(network)
    mine, theirs = (
        b.step_gradients(network, grads, bundle.batch, samples, Objective()) for b in (CPU, TORCH)
    )
    assert_near(mine.terms["photometric"], theirs.terms["photometric"], OUTPUTS)


def test_wrong_tensors_are_refused_by_name() -> None:
    network = field(PAIRS, UNIT)
    with pytest.raises(NerfError, match="positions must have shape"):
        CPU.density(network, torch.rand(5, 2))
    with pytest.raises(NerfError, match="positions must be float32"):
        CPU.density(network, torch.rand(5, 3, dtype=torch.float64))
    wrong = Network(PAIRS, NetParams(*[network.params.density] * 3), UNIT)
    with pytest.raises(NerfError, match="table must have shape"):
        CPU.density(wrong, torch.rand(5, 3))
    with pytest.raises(NerfError, match="ray_inputs must have shape"):
        CPU.radiance(network, torch.rand(5, 3), torch.rand(5, 3))
    bundle = Bundle(3)
    grid = MarchingGrid(bundle.grid.occupied.float(), bundle.box, bundle.grid.steps)
    with pytest.raises(NerfError, match="occupied must be bool"):
        CPU.march(bundle.rays, bundle.bounds, bundle.jitter, grid)
    flat = torch.zeros(8)
    with pytest.raises(NerfError, match="grads is written in place"):
        CPU.adam_step(flat, torch.zeros(16)[::2], flat, flat, AdamConfig(), step=1, lr=0.1)

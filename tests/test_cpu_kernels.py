"""The compiled CPU kernels against the reference: outputs and gradients, on every instruction set
that this processor has, with uninitialised memory full of NaN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from nerfcli.backends import ops_cpu
from nerfcli.backends.cpu import library
from nerfcli.backends.ops import Ops, reference
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Rays
from nerfcli.core.errors import NerfError
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import StepTerms
from nerfcli.reference.mlp import init_mlp
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Steps, intersect_box

# Largest difference over largest value. float32 on both sides, sums in another order: the error
# of a sum of 64 products is about sqrt(64) * 6e-8; gradients sum over a thousand samples.
OUTPUTS, GRADIENTS = 2e-6, 1e-5
SIZES = [0, 1, 63, 1000]
PAIRS = NetSpec(GridSpec(16, 2, 12, 8, 256))
QUADS = NetSpec(GridSpec(8, 4, 12, 8, 256), width=32, n_color_hidden=1)
SINGLES = NetSpec(GridSpec(16, 1, 10, 4, 64), width=16, n_color_hidden=3)
EIGHTS = NetSpec(GridSpec(2, 8, 10, 4, 2000), width=128)
NETS = [PAIRS, QUADS, SINGLES, EIGHTS]
NAMES = ["16x2", "8x4", "16x1", "2x8"]
CPU, TORCH = ops_cpu.load(), reference()


@pytest.fixture(autouse=True, params=["avx512", "avx2", "base"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    if not library.kernels().nerf_cpu_use(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    empty = torch.empty

    def poisoned(*size: int, **options: torch.dtype) -> Tensor:
        out = empty(*size, **options)  # pyright: ignore
        return out.fill_(float("nan") if out.is_floating_point() else 2**40)

    monkeypatch.setattr(torch, "empty", poisoned)
    yield request.param
    library.kernels().nerf_cpu_use(None)
    torch.set_num_threads(threads)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def params_of(net: NetSpec, scale: float = 0.5) -> NetParams:
    g = generator(0)
    table = torch.randn(net.grid.n_params, generator=g) * scale
    return NetParams(table, init_mlp(net.density_widths, g), init_mlp(net.color_widths, g))


def points(n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Positions, the first ones on corners of the cube, and directions."""
    g = generator(seed)
    positions = torch.rand(n, 3, generator=g)
    positions[:1], positions[1:2] = 1.0, 0.0
    return positions, torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)


def assert_near(got: Tensor, want: Tensor, limit: float) -> None:
    got, want = got.detach(), want.detach()
    assert got.shape == want.shape
    assert got.isfinite().all()
    if want.numel():
        error = ((got - want).abs().max() / want.abs().max().clamp(min=1e-20)).item()
        assert error <= limit, f"differs by {error:.2g} of the largest value, limit {limit:.2g}"


class Bundle:
    """Rays through an occupancy grid."""

    def __init__(self, n_rays: int, n_cascades: int = 1, cone: float = 0.0, size: int = 32) -> None:
        g = generator(2)
        self.box = Box((0.1, 0.0, -0.05), 1.0, n_cascades)
        origins = 4 * torch.nn.functional.normalize(torch.randn(n_rays, 3, generator=g), dim=1)
        directions = 0.15 * torch.randn(n_rays, 3, generator=g) - origins / 4
        directions[: n_rays // 8, 2] = 0.0  # along a plane of the grid
        self.rays = Rays(origins, torch.nn.functional.normalize(directions, dim=1))
        self.bounds = intersect_box(origins, self.rays.directions, self.box, 0.05, 20.0)
        self.jitter = torch.rand(n_rays, generator=g)
        shape = (n_cascades, size, size, size)
        self.occupied = torch.rand(shape, generator=g) < 0.2
        self.occupied[:, : size // 2] = False  # so that there is something to skip
        self.steps = Steps(2 * 3**0.5 / 256, cone)
        self.target, self.background = torch.rand(2, n_rays, 3, generator=g)

    def march(self, ops: Ops) -> Samples:
        rays = (self.rays.origins, self.rays.directions)
        return ops.march(*rays, *self.bounds, self.jitter, self.occupied, self.box, self.steps)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("net", NETS, ids=NAMES)
def test_density_and_radiance(net: NetSpec, n: int) -> None:
    positions, directions = points(n)
    params = params_of(net)
    assert_near(CPU.density(positions, params, net), TORCH.density(positions, params, net), OUTPUTS)
    cotangents = torch.randn(n, generator=generator(3)), torch.randn(n, 3, generator=generator(4))
    results = []
    for ops in (CPU, TORCH):
        leaves = NetParams(*(p.clone().requires_grad_() for p in params.tensors()))
        outputs = ops.radiance(positions, directions, leaves, net)
        torch.autograd.backward(outputs, cotangents)
        results.append((outputs, [p.grad for p in leaves.tensors()]))
    for got, want in zip(results[0][0], results[1][0], strict=True):
        assert_near(got, want, OUTPUTS)
    for got, want in zip(results[0][1], results[1][1], strict=True):
        assert_near(got, want, GRADIENTS)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("net", NETS, ids=NAMES)
def test_hash_grid(net: NetSpec, n: int) -> None:
    positions, _ = points(n)
    cotangents = torch.randn(n, net.grid.n_outputs, generator=generator(3))
    results = []
    for ops in (CPU, TORCH):
        table = params_of(net).table.requires_grad_()
        features = ops.hash_grid(positions, table, net.grid)
        features.backward(cotangents)
        results.append((features, table.grad))
    assert_near(results[0][0], results[1][0], OUTPUTS)
    assert_near(results[0][1], results[1][1], GRADIENTS)


@pytest.mark.parametrize("n", SIZES)
def test_spherical_harmonics(n: int) -> None:
    _, directions = points(n)
    assert_near(CPU.spherical_harmonics(directions), TORCH.spherical_harmonics(directions), OUTPUTS)


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
    bundle.occupied[0], bundle.occupied[1] = True, False
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
    bundle.bounds = torch.ones(n_rays), torch.zeros(n_rays)
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
    background = torch.rand(3, generator=g) if one_background else bundle.background
    shapes = ((n_rays, 3), (n_rays,), (n_rays,))
    cotangents = [torch.randn(*shape, generator=g) for shape in shapes]
    results = []
    for ops in (CPU, TORCH):
        leaves = [sigmas.clone().requires_grad_(), rgbs.clone().requires_grad_()]
        pixels = ops.composite(*leaves, samples, background)
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


def step(
    ops: Ops, net: NetSpec, bundle: Bundle, samples: Samples, **options: Any
) -> tuple[StepTerms, NetParams]:
    params = params_of(net)
    grads = NetParams(*(torch.zeros_like(p) for p in params.tensors()))
    where = (bundle.box, bundle.rays, samples, bundle.target, bundle.background)
    return ops.photometric_gradients(params, grads, net, *where, **options), grads


@pytest.mark.parametrize("loss", ["mse", "huber"])
@pytest.mark.parametrize("n_rays", [1, 63, 500])
@pytest.mark.parametrize("net", [PAIRS, QUADS], ids=["16x2", "8x4"])
def test_a_training_step(net: NetSpec, n_rays: int, loss: str) -> None:
    bundle = Bundle(n_rays, 2, 1 / 128)
    samples = bundle.march(TORCH)
    # 0.97: in this thin fog, so that many rays really end early
    options = {"loss": loss, "min_transmittance": 0.97}
    results = [step(o, net, bundle, samples, **options) for o in (CPU, TORCH)]
    (got, mine), (want, theirs) = results
    assert int(got.n_kept) == int(want.n_kept)
    assert 0 < int(want.n_kept) <= samples.capacity
    assert n_rays == 1 or int(want.n_kept) < samples.capacity
    assert_near(got.loss, want.loss, OUTPUTS)
    assert_near(got.mse, want.mse, OUTPUTS)
    for a, b in zip(mine.tensors(), theirs.tensors(), strict=True):
        assert_near(a, b, GRADIENTS)


def test_a_step_without_samples_or_rays() -> None:
    for n_rays in (0, 5):
        bundle = Bundle(n_rays)
        bundle.occupied[:] = False
        samples = bundle.march(CPU)
        terms, grads = step(CPU, PAIRS, bundle, samples, loss="mse")
        assert int(terms.n_kept) == 0
        assert not any(g.any() for g in grads.tensors())
        if n_rays:  # what is seen is the background
            want = (bundle.background - bundle.target).square().mean()
            assert_near(terms.loss, want, OUTPUTS)


def test_a_step_adds_to_the_gradients() -> None:
    bundle = Bundle(63)
    samples = bundle.march(CPU)
    params = params_of(PAIRS)
    _, alone = step(CPU, PAIRS, bundle, samples)
    grads = NetParams(*(g.clone() for g in alone.tensors()))
    where = (bundle.box, bundle.rays, samples, bundle.target, bundle.background)
    CPU.photometric_gradients(params, grads, PAIRS, *where)
    for total, part in zip(grads.tensors(), alone.tensors(), strict=True):
        assert part.any()
        assert_near(total, 2 * part, GRADIENTS)


def test_the_same_gradients_on_any_number_of_threads() -> None:
    bundle = Bundle(500)
    samples = bundle.march(CPU)
    results = []
    for n_threads in (1, 2, 3, 20, 1):  # 20: more threads than levels of the grid
        torch.set_num_threads(n_threads)
        terms, grads = step(CPU, PAIRS, bundle, samples)
        results.append((terms.loss, terms.mse, *grads.tensors()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("factor", [-1000.0, 1000.0])
def test_huge_log_densities_stay_finite(factor: float) -> None:
    net, bundle = PAIRS, Bundle(63)
    samples = bundle.march(CPU)
    params = params_of(net)
    params = NetParams(params.table, params.density * factor, params.color)
    grads = NetParams(*(torch.zeros_like(p) for p in params.tensors()))
    where = (bundle.box, bundle.rays, samples, bundle.target, bundle.background)
    terms = CPU.photometric_gradients(params, grads, net, *where)
    assert terms.loss.isfinite()
    assert all(g.isfinite().all() for g in grads.tensors())
    sigmas = CPU.density(points(1000)[0], params, net)
    assert sigmas.max() <= 3.3e6  # exp(15)


def test_nan_weights_show_in_the_loss() -> None:
    """A ReLU by max() would turn them to zeros, and nobody would see that training diverged."""
    bundle = Bundle(63)
    samples = bundle.march(CPU)
    params = params_of(PAIRS)
    for broken in params.tensors():
        kept = broken.clone()
        broken.fill_(float("nan"))
        grads = NetParams(*(torch.zeros_like(p) for p in params.tensors()))
        where = (bundle.box, bundle.rays, samples, bundle.target, bundle.background)
        assert CPU.photometric_gradients(params, grads, PAIRS, *where).loss.isnan()
        broken.copy_(kept)


@pytest.mark.parametrize("n_cascades", [1, 2])
@pytest.mark.parametrize("n_rays", [0, 1, 63, 3000])
def test_render_rays(n_rays: int, n_cascades: int) -> None:
    bundle = Bundle(n_rays, n_cascades)
    where = (bundle.box, bundle.rays, *bundle.bounds, bundle.jitter, bundle.occupied, bundle.steps)
    params = params_of(PAIRS, 1.5)  # clouds of very different density
    got, want = (o.render_rays(params, PAIRS, *where, torch.ones(3)) for o in (CPU, TORCH))
    # samples below a weight of 2e-4 take the mean colour of their ray: at most some 1e-3
    assert n_rays == 0 or (got.rgb - want.rgb).abs().max() < 2e-3
    assert_near(got.opacity, want.opacity, 1e-5)
    assert_near(got.depth, want.depth, 1e-4)
    close = (got.median_depth - want.median_depth).abs() < 1e-4
    assert n_rays == 0 or close.float().mean() > 0.995  # half of the opacity may fall on an edge


@pytest.mark.parametrize("n", [1, 63, 1000, 100_001])
def test_adam_step(n: int) -> None:
    g = generator(6)
    start = [torch.randn(n, generator=g) for _ in range(5)]
    start[1][torch.rand(n, generator=g) < 0.7] = 0.0
    start[1][: n // 2] *= 1e-18  # squares that float32 cannot hold
    start[2] *= 0.1
    start[3] = start[3].square() * (torch.rand(n, generator=g) < 0.5)
    results = []
    for ops in (CPU, TORCH):
        state = [t.clone() for t in start]
        params, grads, m, v, ema = state
        ops.adam_step(
            params, grads, m, v, step=3, lr=1e-3, weight_decay=1e-3, ema=ema, ema_decay=0.9
        )
        results.append(state)
    untouched = start[1] == 0
    for got, want, before in zip(*results, start, strict=True):
        assert_near(got, want, OUTPUTS)
        assert got is results[0][1] or torch.equal(got[untouched], before[untouched])
    assert not results[0][1].any()


def test_a_shape_that_the_kernels_do_not_take_goes_to_the_reference() -> None:
    net = NetSpec(GridSpec(5, 2, 10, 4, 64), width=16)  # 10 features: not a multiple of 16
    positions, directions = points(63)
    params = params_of(net)
    assert torch.equal(CPU.density(positions, params, net), TORCH.density(positions, params, net))
    got, want = (o.radiance(positions, directions, params, net)[1] for o in (CPU, TORCH))
    assert torch.equal(got, want)
    bundle = Bundle(63)
    samples = bundle.march(CPU)
    (mine, _), (theirs, _) = (step(o, net, bundle, samples) for o in (CPU, TORCH))
    assert torch.equal(mine.loss, theirs.loss)


def test_wrong_tensors_are_refused_by_name() -> None:
    params = params_of(PAIRS)
    with pytest.raises(NerfError, match="positions must have shape"):
        CPU.density(torch.rand(5, 2), params, PAIRS)
    with pytest.raises(NerfError, match="positions must be float32"):
        CPU.density(torch.rand(5, 3, dtype=torch.float64), params, PAIRS)
    with pytest.raises(NerfError, match="table must have shape"):
        CPU.density(torch.rand(5, 3), NetParams(*[params.density] * 3), PAIRS)
    bundle = Bundle(3)
    bundle.occupied = bundle.occupied.float()
    with pytest.raises(NerfError, match="occupied must be bool"):
        bundle.march(CPU)
    flat = torch.zeros(8)
    with pytest.raises(NerfError, match="grads is written in place"):
        CPU.adam_step(flat, torch.zeros(16)[::2], flat, flat, step=1, lr=0.1)

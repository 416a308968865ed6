"""The compiled training step and rendering against the reference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_cases import (
    CPU,
    EIGHTS,
    GRADIENTS,
    OUTPUTS,
    PAIRS,
    QUADS,
    SINGLES,
    SPACE_NAMES,
    SPACES,
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
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.backends.cpu import library
from nerfcli.cameras.rays import ColorMap
from nerfcli.core.errors import NerfError
from nerfcli.reference.fused import Objective, StepOut
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Steps

ALL_TERMS = Objective("huber", opacity=0.1, depth=0.2, distortion=0.3, min_transmittance=0.97)


def step(
    backend: Backend,
    network: Network,
    bundle: Bundle,
    samples: Samples,
    objective: Objective | None = None,
    **options: Any,
) -> tuple[StepOut, NetParams]:
    grads = zeros_like(network)
    batch, objective = bundle.batch, objective or Objective()
    return backend.step_gradients(network, grads, batch, samples, objective, **options), grads


def ray_inputs_of(spec: NetSpec, bundle: Bundle) -> Tensor | None:
    """Harmonics and a random embedding, where the network takes one."""
    if not spec.n_embedding:
        return None
    harmonics = TORCH.spherical_harmonics(bundle.rays.directions)
    embedding = torch.randn(len(bundle.rays), spec.n_embedding, generator=generator(4))
    return torch.cat([harmonics, embedding], 1)


def assert_same_step(
    got: tuple[StepOut, NetParams], want: tuple[StepOut, NetParams], slack: float = 1.0
) -> None:
    (mine, my_grads), (theirs, their_grads) = got, want
    assert int(mine.n_kept) == int(theirs.n_kept)
    assert mine.terms.keys() == theirs.terms.keys()
    for name, term in theirs.terms.items():
        assert_near(mine.terms[name], term, OUTPUTS * slack)
    assert_near(mine.mse, theirs.mse, OUTPUTS * slack)
    for a, b in zip(my_grads.tensors(), their_grads.tensors(), strict=True):
        assert_near(a, b, GRADIENTS * slack)
    assert (mine.weights is None) == (theirs.weights is None)
    if theirs.weights is not None:
        assert_near(mine.weights, theirs.weights, OUTPUTS * slack)
    assert (mine.ray_grads is None) == (theirs.ray_grads is None)
    if theirs.ray_grads is not None:
        for name in ("origins", "directions", "ray_inputs"):
            a, b = getattr(mine.ray_grads, name), getattr(theirs.ray_grads, name)
            assert_near(a, b, GRADIENTS * slack)


@pytest.mark.parametrize("photometric", ["mse", "huber"])
@pytest.mark.parametrize("n_rays", [1, 17, 500])
@pytest.mark.parametrize("spec", [PAIRS, QUADS], ids=["16x2", "8x4+16"])
def test_a_training_step(spec: NetSpec, n_rays: int, photometric: Any) -> None:
    bundle = Bundle(n_rays, 2, 1 / 128)
    network, samples = field(spec, bundle.space), bundle.march(TORCH)
    # 0.97: in this thin fog, so that many rays really end early
    objective = Objective(photometric, min_transmittance=0.97)
    options = {"ray_inputs": ray_inputs_of(spec, bundle)}
    got, want = (step(b, network, bundle, samples, objective, **options) for b in (CPU, TORCH))
    assert 0 < int(want[0].n_kept) <= samples.capacity
    assert n_rays == 1 or int(want[0].n_kept) < samples.capacity
    assert_same_step(got, want)


@pytest.mark.parametrize("objective", [Objective("mse", min_transmittance=0.97), ALL_TERMS])
def test_a_step_with_colour_maps(objective: Objective) -> None:
    bundle = Bundle(100, 2)
    gain, offset = torch.rand(2, 100, 3, generator=generator(5))
    color = ColorMap(0.5 + gain, offset - 0.5)
    bundle.batch = replace(bundle.batch, color=color, weight=offset[:, 0])
    network, samples = field(PAIRS, bundle.space), bundle.march(TORCH)
    got, want = (step(b, network, bundle, samples, objective) for b in (CPU, TORCH))
    assert_same_step(got, want)
    mine, theirs = got[0].color_grads, want[0].color_grads
    assert mine is not None and theirs is not None
    for a, b in zip(mine, theirs, strict=True):
        assert_near(a, b, GRADIENTS)


@pytest.mark.parametrize("space", SPACES, ids=SPACE_NAMES)
@pytest.mark.parametrize("spec", [PAIRS, EIGHTS, SINGLES], ids=["16x2", "2x8+32", "16x1"])
@pytest.mark.parametrize("cones", [False, True])
def test_a_step_with_everything(spec: NetSpec, space: Any, cones: bool) -> None:
    """Every term, weights of rays, gradients in the rays, weights of samples."""
    bundle = Bundle(200, 2)
    g = generator(7)
    depth = 4.0 * torch.rand(200, generator=g) * (torch.rand(200, generator=g) < 0.7)
    bundle.batch = replace(bundle.batch, depth=depth, weight=torch.rand(200, generator=g))
    if cones:
        bundle.widen()
    network, samples = field(spec, space, 1.5), bundle.march(TORCH)
    options = {"ray_inputs": ray_inputs_of(spec, bundle)}
    options |= {"with_weights": True, "with_ray_grads": True}
    got, want = (step(b, network, bundle, samples, ALL_TERMS, **options) for b in (CPU, TORCH))
    assert 0 < int(want[0].n_kept) < samples.capacity
    assert_same_step(got, want, 2)


@pytest.mark.parametrize("term", ["opacity", "depth", "distortion"])
def test_a_term_of_the_weights(term: str) -> None:
    bundle = Bundle(200)
    bundle.batch = replace(bundle.batch, depth=torch.rand(200, generator=generator(7)) + 3.5)
    network, samples = field(PAIRS, bundle.space, 1.5), bundle.march(TORCH)
    objective = Objective(**{term: 100.0})  # pyright: ignore
    got, want = (step(b, network, bundle, samples, objective) for b in (CPU, TORCH))
    assert want[0].terms[term] > 1e-4
    assert_same_step(got, want, 2)


def test_a_depth_term_without_depths() -> None:
    bundle = Bundle(17)
    network, samples = field(PAIRS, bundle.space), bundle.march(TORCH)
    got, want = (step(b, network, bundle, samples, Objective(depth=1.0)) for b in (CPU, TORCH))
    assert_same_step(got, want)


def test_a_step_without_samples_or_rays() -> None:
    for n_rays in (0, 5):
        bundle = Bundle(n_rays)
        bundle.grid.occupied[:] = False
        samples, network = bundle.march(CPU), field(PAIRS, bundle.space)
        options = {"with_weights": True, "with_ray_grads": True}
        out, grads = step(CPU, network, bundle, samples, Objective("mse"), **options)
        assert int(out.n_kept) == 0
        assert not any(g.any() for g in grads.tensors())
        assert out.ray_grads is not None and not out.ray_grads.origins.any()
        if n_rays:  # what is seen is the background
            want = (bundle.batch.background - bundle.batch.rgb).square().mean()
            assert_near(out.terms["photometric"], want, OUTPUTS)


def test_a_step_adds_to_the_gradients() -> None:
    bundle = Bundle(63)
    samples, network = bundle.march(CPU), field(PAIRS, bundle.space)
    _, alone = step(CPU, network, bundle, samples)
    grads = NetParams(*(g.clone() for g in alone.tensors()))
    CPU.step_gradients(network, grads, bundle.batch, samples, Objective())
    for total, part in zip(grads.tensors(), alone.tensors(), strict=True):
        assert part.any()
        assert_near(total, 2 * part, GRADIENTS)


def test_what_is_asked_for_beside_changes_no_gradient() -> None:
    bundle = Bundle(200)
    samples, network = bundle.march(CPU), field(PAIRS, bundle.space)
    _, plain = step(CPU, network, bundle, samples)
    _, more = step(CPU, network, bundle, samples, with_weights=True, with_ray_grads=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.tensors(), more.tensors(), strict=True))


def test_only_the_first_rays_count() -> None:
    bundle = Bundle(63)
    samples, network = bundle.march(CPU), field(PAIRS, bundle.space)
    n = torch.tensor(40)
    got, want = (step(b, network, bundle, samples, n_live=n) for b in (CPU, TORCH))
    assert_same_step(got, want)


def test_an_embedding_must_be_given() -> None:
    bundle = Bundle(5)
    samples, network = bundle.march(CPU), field(QUADS, bundle.space)
    with pytest.raises(NerfError, match="ray_inputs must be given"):
        step(CPU, network, bundle, samples)
    with pytest.raises(NerfError, match="ray_inputs must have shape"):
        step(CPU, network, bundle, samples, ray_inputs=torch.zeros(5, 16))


@pytest.mark.parametrize("cones", [False, True])
def test_the_same_step_on_any_number_of_threads(cones: bool) -> None:
    bundle = Bundle(500)
    if cones:
        bundle.widen()
    samples, network = bundle.march(CPU), field(PAIRS, bundle.space)
    results = []
    for n_threads in (1, 2, 3, 20, 1):  # 20: more threads than levels of the grid
        torch.set_num_threads(n_threads)
        out, grads = step(
            CPU, network, bundle, samples, ALL_TERMS, with_weights=True, with_ray_grads=True
        )
        assert out.ray_grads is not None and out.weights is not None
        rays = (out.ray_grads.origins, out.ray_grads.directions, out.ray_grads.ray_inputs)
        results.append((*out.terms.values(), out.mse, out.weights, *rays, *grads.tensors()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("factor", [-1000.0, 1000.0])
def test_huge_log_densities_stay_finite(factor: float) -> None:
    bundle = Bundle(63)
    samples, network = bundle.march(CPU), field(PAIRS, bundle.space)
    params = network.params
    params = NetParams(params.table, params.density * factor, params.color)
    out, grads = step(CPU, replace(network, params=params), bundle, samples)
    assert out.terms["photometric"].isfinite()
    assert all(g.isfinite().all() for g in grads.tensors())
    sigmas = CPU.density(Network(PAIRS, params, UNIT), points(1000, PAIRS)[0])
    assert sigmas.max() <= 3.3e6  # exp(15)


def test_nan_weights_show_in_the_loss() -> None:
    """A ReLU by max() would turn them to zeros, and nobody would see that training diverged."""
    bundle = Bundle(63)
    samples, network = bundle.march(CPU), field(PAIRS, bundle.space)
    for broken in network.params.tensors():
        kept = broken.clone()
        broken.fill_(float("nan"))
        assert step(CPU, network, bundle, samples)[0].terms["photometric"].isnan()
        broken.copy_(kept)


@pytest.mark.parametrize("n_cascades", [1, 2])
@pytest.mark.parametrize("n_rays", [0, 1, 17, 700])
def test_render_rays(n_rays: int, n_cascades: int) -> None:
    bundle = Bundle(n_rays, n_cascades)
    assert_same_pixels(bundle, PAIRS, bundle.space)


@pytest.mark.parametrize("space", SPACES, ids=SPACE_NAMES)
@pytest.mark.parametrize("cones", [False, True])
def test_render_rays_with_an_embedding(space: Any, cones: bool) -> None:
    bundle = Bundle(500, 2)
    if cones:
        bundle.widen()
    assert_same_pixels(bundle, QUADS, space)


def test_a_cone_without_width_has_the_bits_of_a_ray() -> None:
    bundle = Bundle(200)
    samples, network = bundle.march(CPU), field(PAIRS, bundle.space)
    where = (bundle.bounds, bundle.jitter, bundle.grid, torch.ones(3))
    out, grads = step(CPU, network, bundle, samples)
    pixels = CPU.render_rays(network, bundle.rays, *where)
    bundle.widen(0.0)
    same, same_grads = step(CPU, network, bundle, samples)
    assert torch.equal(out.terms["photometric"], same.terms["photometric"])
    assert all(map(torch.equal, grads.tensors(), same_grads.tensors()))
    assert torch.equal(pixels.rgb, CPU.render_rays(network, bundle.rays, *where).rgb)
    bundle.widen()
    assert not torch.equal(pixels.rgb, CPU.render_rays(network, bundle.rays, *where).rgb)


@pytest.mark.parametrize("thinner", [3.0, 20.0, 100.0, 1000.0])
def test_the_light_without_a_colour_of_its_own_is_bounded_in_fog(thinner: float) -> None:
    """No sample can be seen alone; the sum of what they stop can."""
    bundle = Bundle(40)
    spec = QUADS
    network = field(spec, bundle.space, 1.5)
    density = network.params.density.clone()
    head = density[-spec.n_geometry * spec.width :][: spec.width]  # of log density
    head.copy_(-head.abs())
    network = replace(network, params=replace(network.params, density=density))
    logs = TORCH.density(network, points(1000, spec)[0]).log()
    head.mul_(math.log(thinner) / max(float(-logs.mean()), 1e-3))
    grid = replace(bundle.grid, steps=Steps(0.004))
    where = (bundle.rays, bundle.bounds, bundle.jitter, grid, torch.zeros(3))
    inputs = ray_inputs_of(spec, bundle)
    got, want = (b.render_rays(network, *where, ray_inputs=inputs) for b in (CPU, TORCH))
    assert_near(got.opacity, want.opacity, 1e-5)
    assert (got.rgb - want.rgb).abs().max() < 2e-3 + 1e-5
    assert want.rgb.max() > 1e-4


def assert_same_pixels(bundle: Bundle, spec: NetSpec, space: Any) -> None:
    n_rays = len(bundle.rays)
    network = field(spec, space, 1.5)  # clouds of very different density
    where = (bundle.rays, bundle.bounds, bundle.jitter, bundle.grid, torch.ones(3))
    inputs = ray_inputs_of(spec, bundle)
    got, want = (b.render_rays(network, *where, ray_inputs=inputs) for b in (CPU, TORCH))
    # samples that weigh at most 2e-3 together take the mean colour of their ray
    assert n_rays == 0 or (got.rgb - want.rgb).abs().max() < 2e-3 + 1e-5
    assert_near(got.opacity, want.opacity, 1e-5)
    assert_near(got.depth, want.depth, 1e-4)
    close = (got.median_depth - want.median_depth).abs() < 1e-4
    assert n_rays == 0 or close.float().mean() > 0.995  # half of the opacity may fall on an edge


def test_unit_positions_are_those_of_the_reference_to_the_bit() -> None:
    """A step of one cell is large."""
    for space in SPACES:
        spec = replace(EIGHTS, grid=replace(EIGHTS.grid, max_resolution=2**19))
        network = field(spec, space)
        x, _ = points(1000, EIGHTS, space)
        want = TORCH.hash_grid(space.to_unit(x), network.params.table, spec.grid)
        inside = CPU.hash_grid(space.to_unit(x), network.params.table, spec.grid)
        assert_near(inside, want, OUTPUTS)
        assert_near(CPU.density(network, x), TORCH.density(network, x), OUTPUTS)


def test_the_kernels_in_use(kernels: str) -> None:  # noqa: F811
    assert library.instruction_set() == kernels

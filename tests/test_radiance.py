"""The hash-grid field against a hand composition, and at extreme densities."""

from __future__ import annotations

import math

import pytest
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.reference.contraction import BoxSpace
from nerfcli.reference.encoding import GridSpec, hash_grid, spherical_harmonics
from nerfcli.reference.mlp import mlp_layers, mlp_n_params
from nerfcli.reference.radiance import (
    MAX_LOG_DENSITY,
    NetParams,
    NetSpec,
    Network,
    density,
    radiance,
)
from nerfcli.reference.samples import Samples
from nerfcli.reference.volume import composite

NET = NetSpec(GridSpec(3, 2, 9, 4, 32), width=16)
UNIT = BoxSpace(Box((0.5, 0.5, 0.5), 0.5))  # positions are their own unit positions


def field_of(params: NetParams) -> Network:
    return Network(NET, params, UNIT)


def random_params(net: NetSpec, seed: int = 0, dtype: torch.dtype = torch.float64) -> NetParams:
    generator = torch.Generator().manual_seed(seed)

    def normal(n: int) -> torch.Tensor:
        return torch.randn(n, generator=generator, dtype=dtype) * 0.4

    return NetParams(
        normal(net.grid.n_params),
        normal(mlp_n_params(net.density_widths)),
        normal(mlp_n_params(net.color_widths)),
    )


def random_inputs(n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    directions = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return positions, directions / directions.norm(dim=1, keepdim=True)


def constant_density_params(log_density: float, net: NetSpec) -> NetParams:
    """Parameters whose log density is `log_density` everywhere, carried by the table."""
    first = torch.zeros(net.width, net.grid.n_outputs)
    first[0, 0], first[1, 0] = 1.0, -1.0  # relu(v) and relu(-v)
    last = torch.zeros(net.n_geometry, net.width)
    last[0, 0], last[0, 1] = 1.0, -1.0
    weights = torch.cat([first.ravel(), last.ravel()])
    color = random_params(net, dtype=torch.float32).color
    return NetParams(torch.full((net.grid.n_params,), log_density), weights, color)


def test_widths_of_the_default_field_suit_tensor_cores() -> None:
    net = NetSpec()
    assert net.density_widths == (32, 64, 16)
    assert net.color_widths == (32, 64, 64, 3)
    assert all(w % 16 == 0 for w in net.density_widths + net.color_widths[:-1])


def test_radiance_is_grid_then_density_mlp_then_color_mlp() -> None:
    params = random_params(NET)
    positions, directions = random_inputs(20)
    w1, w2 = mlp_layers(params.density, NET.density_widths)
    c1, c2, c3 = mlp_layers(params.color, NET.color_widths)
    network = field_of(params)
    sigmas, rgbs = radiance(network, positions, spherical_harmonics(directions))
    features = hash_grid(positions, params.table, NET.grid)
    for i in range(20):
        geometry = w2 @ (w1 @ features[i]).clamp(min=0)
        harmonics = spherical_harmonics(directions[i : i + 1])[0]
        hidden = (c1 @ torch.cat([geometry, harmonics])).clamp(min=0)
        rgb = 1 / (1 + torch.exp(-(c3 @ (c2 @ hidden).clamp(min=0))))
        assert sigmas[i].item() == pytest.approx(math.exp(geometry[0].item()), rel=1e-12)
        torch.testing.assert_close(rgbs[i], rgb)
    assert torch.equal(density(network, positions), sigmas)


def test_only_color_depends_on_direction() -> None:
    params = random_params(NET)
    positions, directions = random_inputs(5)
    both = (spherical_harmonics(d) for d in (directions, -directions))
    there, back = (radiance(field_of(params), positions, inputs) for inputs in both)
    assert torch.equal(there[0], back[0])
    assert (there[1] - back[1]).abs().max() > 1e-3


def test_gradients_match_finite_differences() -> None:
    params = random_params(NET)
    positions, directions = random_inputs(6)
    inputs_of_rays = spherical_harmonics(directions)
    # only touched entries of the table: the numeric Jacobian costs two passes per parameter
    touched = torch.zeros(NET.grid.n_params, dtype=torch.bool)
    leaf = params.table.clone().requires_grad_()
    features = hash_grid(positions, leaf, NET.grid).square().sum()
    touched |= torch.autograd.grad(features, leaf)[0] != 0
    index = touched.nonzero().squeeze(1)[:40]

    def field(entries: torch.Tensor, w: torch.Tensor, c: torch.Tensor):
        table = params.table.index_put((index,), entries)
        return radiance(field_of(NetParams(table, w, c)), positions, inputs_of_rays)

    inputs = (params.table[index], params.density, params.color)
    assert torch.autograd.gradcheck(
        field, tuple(p.clone().requires_grad_() for p in inputs), fast_mode=True
    )


@pytest.mark.parametrize("log_density", [-100.0, -30.0, 0.0, 14.9, 15.1, 30.0, 88.0, 100.0])
def test_density_and_gradients_are_finite_at_extremes(log_density: float) -> None:
    params = constant_density_params(log_density, NET)
    leaves = NetParams(*(p.clone().requires_grad_() for p in params.tensors()))
    positions, directions = (v.float() for v in random_inputs(8))
    sigmas, rgbs = radiance(field_of(leaves), positions, spherical_harmonics(directions))
    expected = math.exp(min(log_density, MAX_LOG_DENSITY))
    # the trilinear weights sum to 1 within 2e-7, which 100 of log density makes 2e-5
    torch.testing.assert_close(sigmas, torch.full((8,), expected), rtol=1e-4, atol=1e-40)
    edges = torch.linspace(0, 1, 5).expand(2, 5)
    pixels = composite(sigmas, rgbs, Samples.from_edges(edges), torch.ones(3))
    outputs = (pixels.rgb, pixels.opacity, pixels.depth, pixels.median_depth)
    assert all(o.isfinite().all() for o in outputs)
    total = pixels.rgb.sum() + pixels.depth.sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, leaves.tensors()))


def test_gradient_passes_the_clamp() -> None:
    leaves = NetParams(*(p.requires_grad_() for p in constant_density_params(20.0, NET).tensors()))
    sigmas = density(field_of(leaves), torch.full((1, 3), 0.4))
    (grad,) = torch.autograd.grad(sigmas.sum(), leaves.table)
    # d sigma / d (log density) is the clamped value itself; the weights of a level sum to 1
    assert grad.sum().item() == pytest.approx(math.exp(MAX_LOG_DENSITY), rel=1e-5)


def test_field_of_no_positions() -> None:
    positions, directions = (v[:0] for v in random_inputs(1))
    network = field_of(random_params(NET))
    sigmas, rgbs = radiance(network, positions, spherical_harmonics(directions))
    assert sigmas.shape == (0,) and rgbs.shape == (0, 3)

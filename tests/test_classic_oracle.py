"""Method `classic` against an independent implementation of the 2020 paper.

The oracle is written from the paper and the authors' description in another style: torch.nn
modules with their own encoding, numpy's interp for the inverse CDF, a cumulated product of
(1 - alpha) for the light. It shares with the project the weights, the rays and the random
numbers, and (the project's documented deviations) unit directions and a finite last interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Rays
from nerfcli.core.config import ClassicConfig, Config
from nerfcli.core.settings import load_config
from nerfcli.methods import classic
from nerfcli.methods.classic import ClassicField
from nerfcli.reference.encoding import frequency_encoding
from nerfcli.reference.mlp import classic_layer_widths, classic_mlp, init_classic
from nerfcli.reference.params import ParamSet

TOLERANCE = 1e-5  # the bound that the method promises
NEAR, FAR = 2.0, 6.0


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


class Gamma(nn.Module):
    """The positional encoding, one function after another."""

    def __init__(self, n_frequencies: int) -> None:
        super().__init__()
        self.functions = [lambda v: v]
        for power in range(n_frequencies):
            for wave in (torch.sin, torch.cos):
                self.functions.append(lambda v, f=2**power, wave=wave: wave(f * v))

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return torch.cat([function(v) for function in self.functions], -1)


class PaperNetwork(nn.Module):
    """Figure 7 of the paper."""

    def __init__(self, width: int, n_layers: int = 8, skip: int = 4) -> None:
        super().__init__()
        self.gamma_x, self.gamma_d, self.skip = Gamma(10), Gamma(4), skip
        ins = [63] + [width + 63 if i == skip else width for i in range(n_layers - 1)]
        linears = [nn.Linear(n, width) for n in ins]
        self.points, self.linears = nn.ModuleList(linears), linears
        self.alpha, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.view, self.rgb = nn.Linear(width + 27, width // 2), nn.Linear(width // 2, 3)

    def forward(self, x: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = h = self.gamma_x(x)
        for i, layer in enumerate(self.points):
            h = layer(h).clamp(min=0)
            if i == self.skip:  # after the fifth layer
                h = torch.cat([encoded, h], -1)
        sigma = self.alpha(h)[..., 0]
        h = self.view(torch.cat([self.feature(h), self.gamma_d(d)], -1)).clamp(min=0)
        return sigma, 1 / (1 + torch.exp(-self.rgb(h)))

    def named(self) -> dict[str, nn.Linear]:
        """Its layers under the project's names."""
        trunk = {f"trunk.{i}": layer for i, layer in enumerate(self.linears)}
        heads = {"sigma": self.alpha, "feature": self.feature}
        return trunk | heads | {"color.0": self.view, "color.1": self.rgb}

    def load(self, params: dict[str, torch.Tensor]) -> PaperNetwork:
        for name, layer in self.named().items():
            layer.weight.data = params[f"{name}.weight"].detach().double().clone()
            layer.bias.data = params[f"{name}.bias"].detach().double().clone()
        return self

    def gradients(self) -> dict[str, torch.Tensor]:
        grads = {}
        for name, layer in self.named().items():
            grads[f"{name}.weight"], grads[f"{name}.bias"] = (
                gradient(layer.weight),
                gradient(layer.bias),
            )
        return grads


def paper_pass(network: PaperNetwork, rays: Rays, t: torch.Tensor, background: torch.Tensor):
    """One pass: rgb [n_rays, 3], interval edges and weights as numpy arrays."""
    middles = (t[:, 1:] + t[:, :-1]) / 2
    first, last = torch.full_like(t[:, :1], NEAR), torch.full_like(t[:, :1], FAR)
    edges = torch.cat([first, middles, last], 1)
    points = rays.origins[:, None, :] + rays.directions[:, None, :] * t[:, :, None]
    raw, rgb = network(points, rays.directions[:, None, :].expand_as(points))
    alpha = 1 - torch.exp(-raw.clamp(min=0) * edges.diff(dim=1))
    light = torch.cat([torch.ones_like(first), 1 - alpha], 1).cumprod(1)
    weights = alpha * light[:, :-1]
    color = (weights[..., None] * rgb).sum(1) + light[:, -1:] * background
    return color, edges.detach().numpy(), weights.detach().numpy()


def paper_render(networks: list[PaperNetwork], rays: Rays, jitter, u, background: torch.Tensor):
    """Both passes of section 5.2. jitter, u: numpy [n_rays, n_coarse], [n_rays, n_fine]."""
    (coarse, fine), n = networks, jitter.shape[1]
    t = NEAR + (np.arange(n) + jitter) * (FAR - NEAR) / n
    coarse_rgb, edges, weights = paper_pass(coarse, rays, torch.tensor(t), background)
    drawn = np.empty_like(u)
    for i in range(len(u)):
        pdf = weights[i] + 1e-5
        cdf = np.concatenate([[0.0], np.cumsum(pdf / pdf.sum())])
        drawn[i] = np.interp(u[i], cdf, edges[i])
    both = np.sort(np.concatenate([t, drawn], 1), 1)
    return coarse_rgb, paper_pass(fine, rays, torch.tensor(both), background)[0]


@pytest.fixture
def float64() -> Iterator[None]:
    """2^9 x turns float32's rounding of a position into 1e-4 of a wave; compare without it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def lively(params: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The same weights with random biases, dense enough that rays are partly stopped."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, value in params.items():
        if name.endswith("bias"):
            value = torch.rand(value.shape, generator=generator) - 0.4
        if name.endswith("sigma.weight"):
            value = value * 8
        result[name] = value.clone().requires_grad_()
    return result


def some_rays(n: int) -> Rays:
    generator = torch.Generator().manual_seed(21)
    origins = torch.randn(n, 3, generator=generator)
    origins = 4 * origins / origins.norm(dim=1, keepdim=True)
    directions = torch.randn(n, 3, generator=generator) * 0.5 - origins
    return Rays(origins, directions / directions.norm(dim=1, keepdim=True))


def some_field(width: int, n_coarse: int, n_fine: int) -> ClassicField:
    own = ClassicConfig(width=width, n_coarse=n_coarse, n_fine=n_fine)
    config = Config("classic", classic=own)
    scene: Any = SimpleNamespace(box=Box((0.0, 0.0, 0.0), 1.5), near=NEAR, far=FAR)
    field = ClassicField.create(config, scene, Backend(), torch.Generator().manual_seed(5))
    field.params = ParamSet(lively(field.params, 6))
    return field


def part(params: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in params.items() if k.startswith(f"{name}.")}


def test_the_papers_network_has_as_many_parameters() -> None:
    assert sum(p.numel() for p in PaperNetwork(256).parameters()) == 595_844


def test_full_network_agrees_in_float32() -> None:
    """8 x 256 in float32 on the same points, outputs and every gradient."""
    params = init_classic(classic_layer_widths(), torch.Generator().manual_seed(1))
    params = lively(params, 2)
    oracle = PaperNetwork(256).double().load(params)
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(64, 3, generator=generator) * 3 - 1.5
    d = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator), dim=1)
    raw, rgb = classic_mlp(frequency_encoding(x, 10), frequency_encoding(d, 4), params)
    # the frequencies are powers of two, so float32 points give the same angles to both
    expected_raw, expected_rgb = oracle(x.double(), d.double())
    scale = expected_raw.abs().max()
    assert (raw - expected_raw).abs().max() <= TOLERANCE * scale
    assert (rgb - expected_rgb).abs().max() <= TOLERANCE
    cotangent = torch.randn(64, 4, generator=generator)
    ((raw * cotangent[:, 0]).sum() + (rgb * cotangent[:, 1:]).sum()).backward()
    terms = expected_raw * cotangent[:, 0], expected_rgb * cotangent[:, 1:]
    (terms[0].sum() + terms[1].sum()).backward()
    for name, want in oracle.gradients().items():
        error = (gradient(params[name]).double() - want).norm() / want.norm()
        assert error <= TOLERANCE, name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("white", [True, False])
def test_both_passes_agree_in_outputs_and_gradients(random: bool, white: bool) -> None:
    n_rays, n_coarse, n_fine = 9, 16, 24
    field, rays = some_field(32, n_coarse, n_fine), some_rays(n_rays)
    background = torch.ones(3) if white else torch.linspace(0, 1, 3 * n_rays).reshape(-1, 3)
    generator = torch.Generator().manual_seed(7)
    drawn = classic.Jitter.draw(n_rays, field.config, generator) if random else None
    coarse, fine = field.render_coarse_fine(rays, background, drawn)

    jitter = np.full((n_rays, n_coarse), 0.5)
    u = np.tile((np.arange(n_fine) + 0.5) / n_fine, (n_rays, 1))
    if random:
        twin = torch.Generator().manual_seed(7)
        jitter = torch.rand(n_rays, n_coarse, generator=twin).numpy()
        u = torch.rand(n_rays, n_fine, generator=twin).numpy()
    networks = [PaperNetwork(32).load(part(field.params, name)) for name in ("coarse", "fine")]
    expected = paper_render(networks, rays, jitter, u, background)
    assert 0.1 < coarse.opacity.mean() < 0.999  # neither empty nor a wall
    for got, want in zip((coarse.rgb, fine.rgb), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)

    target = torch.rand(n_rays, 3, generator=torch.Generator().manual_seed(8))
    for first, second in ((coarse.rgb, fine.rgb), expected):
        ((first - target).square().mean() + (second - target).square().mean()).backward()
    for name, network in zip(("coarse", "fine"), networks, strict=True):
        for layer, want in network.gradients().items():
            got = gradient(field.params[f"{name}.{layer}"])
            assert want.norm() > 0
            torch.testing.assert_close(got, want, atol=1e-9, rtol=TOLERANCE)


def test_float32_render_stays_close_to_the_oracle() -> None:
    """What a run really computes, with float32 positions: good to a tenth of an 8-bit level."""
    field, rays = some_field(32, 32, 32), some_rays(20)
    pixels = field.render_rays(rays, torch.ones(3))
    networks = [PaperNetwork(32).double().load(part(field.params, n)) for n in ("coarse", "fine")]
    exact = Rays(rays.origins.double(), rays.directions.double())
    jitter = np.full((20, 32), 0.5)
    u = np.tile((np.arange(32) + 0.5) / 32, (20, 1))
    with torch.no_grad():
        _, expected = paper_render(networks, exact, jitter, u, torch.ones(3, dtype=torch.float64))
    # 2^9 * 4e-7 of rounding in a position is 2e-4 of a wave
    assert (pixels.rgb.double() - expected).abs().max() < 0.1 / 255


def test_the_fine_network_sees_all_192_points_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    field, rays = some_field(16, 64, 128), some_rays(3)
    seen: dict[str, torch.Tensor] = {}
    network = field.network

    def spy(name: str, positions: torch.Tensor, *rest: torch.Tensor):
        seen[name] = positions
        return network(name, positions, *rest)

    monkeypatch.setattr(field, "network", spy)
    drawn = classic.Jitter.draw(3, field.config, torch.Generator().manual_seed(0))
    field.render_coarse_fine(rays, torch.ones(3), drawn)
    assert seen["coarse"].shape == (3 * 64, 3) and seen["fine"].shape == (3 * 192, 3)
    offsets = seen["fine"].reshape(3, 192, 3) - rays.origins[:, None]
    t = (offsets * rays.directions[:, None]).sum(-1)
    assert (t.diff(dim=1) >= -1e-5).all()  # float32 dot product
    assert t.min() >= NEAR - 1e-5 and t.max() <= FAR + 1e-5
    assert not seen["fine"].requires_grad  # no gradient through the sampling
    coarse_t = ((seen["coarse"].reshape(3, 64, 3) - rays.origins[:, None])
                * rays.directions[:, None]).sum(-1)  # fmt: skip
    distance = (coarse_t[:, :, None] - t[:, None]).abs().amin(-1)
    assert distance.max() < 1e-5  # the coarse points are among them


def test_importance_points_gather_where_the_coarse_network_sees_matter() -> None:
    """A coarse density that fills only z in (-0.2, 0.2) draws most fine points there."""
    field = some_field(16, 64, 128)
    calls: list[torch.Tensor] = []

    def wall(name: str, positions: torch.Tensor, directions: torch.Tensor, noise=None):
        calls.append(positions)
        sigmas = torch.where(positions[:, 2].abs() < 0.2, 50.0, 0.0)
        return sigmas, torch.full_like(positions, 0.5)

    field.network = wall  # type: ignore[method-assign]
    rays = Rays(torch.tensor([[0.0, 0.0, -4.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    _, fine = field.render_coarse_fine(rays, torch.ones(3), None)
    near_wall = (calls[1][:, 2].abs() < 0.3).sum().item()
    assert near_wall > 120  # nearly all of the 128, and a few of the 64
    assert fine.depth.item() == pytest.approx(3.8, abs=0.05)
    assert math.isclose(fine.opacity.item(), 1.0, abs_tol=1e-5)


@pytest.mark.usefixtures("float64")
def test_gradients_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 rays in parts of 4, 4 and 1, against one loss over the same random samples."""
    field, rays = some_field(32, 16, 24), some_rays(9)
    monkeypatch.setattr(classic, "rays_at_once", lambda config: 4)
    target = torch.rand(9, 3, generator=torch.Generator().manual_seed(8))
    background = torch.ones(3)
    for p in field.params.values():
        p.requires_grad_()
    drawn = classic.Jitter.draw(9, field.config, torch.Generator().manual_seed(7))
    got = classic.gradients(field, rays, target, background, drawn)

    coarse, fine = (p.rgb for p in field.render_coarse_fine(rays, background, drawn))
    fine_loss = (fine - target).square().mean()
    loss = (coarse - target).square().mean() + fine_loss
    loss.backward()
    # float64 sums in another order
    torch.testing.assert_close(got[0], loss.detach(), atol=0, rtol=1e-12)
    torch.testing.assert_close(got[1], fine_loss.detach(), atol=0, rtol=1e-12)
    for (name, p), g in zip(field.params.items(), got[2], strict=True):
        assert p.grad is not None and p.grad.norm() > 0, name
        torch.testing.assert_close(g, p.grad, atol=1e-15, rtol=1e-9)


def test_the_full_network_goes_in_parts_and_a_small_one_at_once() -> None:
    full = load_config("classic")
    full = dataclasses.replace(full, classic=dataclasses.replace(full.classic, width=256))
    assert 128 <= classic.rays_at_once(full) <= 256
    assert classic.rays_at_once(load_config("classic-small")) >= 1024

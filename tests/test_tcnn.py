"""The tiny-cuda-nn backend's glue, on modules that stand in for `tinycudann`.

The stand-ins compute with the reference from tiny-cuda-nn's own parameter layout: one flat
tensor, outputs of a network padded to 16. They cannot show that the real library has it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from nerfcli.backends import tcnn
from nerfcli.backends.base import Backend
from nerfcli.backends.tcnn import TcnnBackend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Batch, Rays
from nerfcli.core.errors import NerfError
from nerfcli.reference import encoding, mlp, radiance
from nerfcli.reference.contraction import BoxSpace
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, Steps, march
from nerfcli.reference.volume import composite

SPACE = BoxSpace(Box((0.0, 0.0, 0.0), 1.0), 0.1, 10.0)
NET = NetSpec(GridSpec(8, 2, 9, 4, 32), width=16)


class HalfParameters(torch.autograd.Function):
    """The library's way back: gradients of parameters are 128 times as large, in half precision."""

    @staticmethod
    def forward(ctx, params: Tensor) -> Tensor:
        return params.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (128 * grad).half().float() / 128


class HalfOutputs(torch.autograd.Function):
    """And those of outputs arrive in half precision."""

    @staticmethod
    def forward(ctx, outputs: Tensor) -> Tensor:
        return outputs.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.half().float()


class Encoding(torch.nn.Module):
    def __init__(self, n_inputs: int, config: dict[str, Any]) -> None:
        super().__init__()
        assert (n_inputs, config["otype"]) == (3, "HashGrid")
        finest = config["base_resolution"] * config["per_level_scale"] ** (config["n_levels"] - 1)
        self.spec = GridSpec(
            config["n_levels"],
            config["n_features_per_level"],
            config["log2_hashmap_size"],
            config["base_resolution"],
            round(finest),
        )
        self.params = torch.nn.Parameter(torch.zeros(self.spec.n_params))

    def forward(self, x: Tensor) -> Tensor:
        return encoding.hash_grid(x, self.params, self.spec)


class Network(torch.nn.Module):
    rounds = False  # whether gradients are those of half precision

    def __init__(self, n_inputs: int, n_outputs: int, config: dict[str, Any]) -> None:
        super().__init__()
        assert config["otype"] == "FullyFusedMLP" and n_inputs % 16 == 0
        hidden = [config["n_neurons"]] * config["n_hidden_layers"]
        self.n_outputs, self.widths = n_outputs, (n_inputs, *hidden, -(-n_outputs // 16) * 16)
        self.params = torch.nn.Parameter(torch.zeros(mlp.mlp_n_params(self.widths)))

    def forward(self, x: Tensor) -> Tensor:
        assert self.params.shape == (mlp.mlp_n_params(self.widths),)
        if not Network.rounds:
            return mlp.mlp(x, self.params, self.widths)[:, : self.n_outputs]
        y = mlp.mlp(x, HalfParameters.apply(self.params), self.widths)
        return HalfOutputs.apply(y[:, : self.n_outputs])


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("tinycudann")
    module.Encoding, module.Network = Encoding, Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    yield
    tcnn._grid_module.cache_clear()
    tcnn._network_module.cache_clear()


def params_of(seed: int = 0) -> NetParams:
    generator = torch.Generator().manual_seed(seed)
    sizes = (NET.grid.n_params, *map(mlp.mlp_n_params, (NET.density_widths, NET.color_widths)))
    return NetParams(*(torch.randn(n, generator=generator) * 0.4 for n in sizes))


def positions(n: int) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(1))


def assert_same_gradients(got: Tensor, want: Tensor, mine: NetParams, right: NetParams) -> None:
    a = torch.autograd.grad(got.sum(), mine.tensors(), allow_unused=True)
    b = torch.autograd.grad(want.sum(), right.tensors(), allow_unused=True)
    for x, y in zip(a, b, strict=True):
        if y is not None:
            assert x is not None
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("n", [0, 1, 63])
def test_field_and_gradients_are_the_references(n: int) -> None:
    x, mine, right = positions(n), params_of(), params_of()
    for params in (mine, right):
        for p in params.tensors():
            p.requires_grad_()
    ray_inputs = torch.randn(n, 16, generator=torch.Generator().manual_seed(2))
    mine_network, right_network = (radiance.Network(NET, p, SPACE) for p in (mine, right))
    got = TcnnBackend().radiance(mine_network, x, ray_inputs)
    want = radiance.radiance(right_network, x, ray_inputs)
    torch.testing.assert_close(got, want)
    weights = torch.arange(3.0)
    assert_same_gradients(
        (got[1] * weights).sum() + got[0].sum(),
        (want[1] * weights).sum() + want[0].sum(),
        mine,
        right,
    )
    torch.testing.assert_close(TcnnBackend().density(mine_network, x), want[0])


def test_a_density_beyond_the_clamp_keeps_its_gradient() -> None:
    geometry = torch.tensor([[20.0], [1.0]], requires_grad=True)
    sigmas = tcnn._sigmas(geometry)
    (grad,) = torch.autograd.grad(sigmas.sum(), geometry)
    want = torch.tensor([radiance.MAX_LOG_DENSITY, 1.0]).exp()
    torch.testing.assert_close(sigmas, want)
    torch.testing.assert_close(grad[:, 0], want)


def test_a_network_of_an_unpadded_input_goes_to_torch() -> None:
    widths = (6, 16, 3)
    weights, x = mlp.init_mlp(widths), positions(6).repeat(1, 2)
    assert torch.equal(TcnnBackend().mlp(x, weights, widths), mlp.mlp(x, weights, widths))
    assert not tcnn._network_module.cache_info().currsize


def test_a_step_and_a_picture_are_the_references() -> None:
    params = params_of()
    origins = torch.tensor([[-3.0, 0.1, 0.2], [0.1, 3.0, 0.2], [0.0, 0.0, 9.0]])
    goal = torch.tensor([[0.2, 0.1, 0.0]])
    rays = Rays(origins, torch.nn.functional.normalize(goal - origins, dim=1))
    bounds, jitter = SPACE.bounds(rays), torch.full((3,), 0.5)
    grid = MarchingGrid(torch.ones(1, 4, 4, 4, dtype=torch.bool), SPACE.box, Steps(0.1))
    samples = march(rays, bounds, jitter, grid)
    batch, objective = Batch(rays, positions(3), torch.ones(3, 3)), Objective(min_transmittance=0.1)
    network, results = radiance.Network(NET, params, SPACE), []
    for backend in (TcnnBackend(), Backend()):
        grads = NetParams(*(torch.zeros_like(p) for p in params.tensors()))
        out = backend.step_gradients(network, grads, batch, samples, objective)
        pixels = backend.render_rays(
            network, rays, bounds, jitter, grid, batch.background, min_transmittance=0.1
        )
        results.append((out.loss(objective), out.mse, out.n_kept, *grads.tensors(), pixels.rgb))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_in_half_precision_neither_vanish_nor_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch as large as in training, of pixels far off and of pixels that are almost right."""
    monkeypatch.setattr(Network, "rounds", True)
    n, params = 20000, params_of()
    network = radiance.Network(NET, params, SPACE)
    origins = 3 * torch.nn.functional.normalize(positions(n) - 0.5, dim=1)
    rays = Rays(origins, -origins / 3)
    edges = torch.tensor([2.5, 3.0, 3.5]).expand(n, 3)
    samples, background = Samples.from_edges(edges), torch.ones(n, 3)
    want = NetParams(*(torch.zeros_like(p) for p in params.tensors()))
    got = NetParams(*(torch.zeros_like(p) for p in params.tensors()))
    inputs = encoding.spherical_harmonics(rays.directions).repeat_interleave(2, 0)
    sigmas, rgbs = radiance.radiance(network, samples.positions(rays), inputs)
    rendered = composite(sigmas, rgbs, samples, background).rgb
    for target in (torch.zeros(n, 3), rendered - 0.001):
        for backend, grads in ((Backend(), want), (TcnnBackend(), got)):
            for g in grads.tensors():
                g.zero_()
            batch = Batch(rays, target, background)
            backend.step_gradients(network, grads, batch, samples, Objective("mse"))
        for a, b in zip(got.tensors()[1:], want.tensors()[1:], strict=True):
            assert float((a - b).norm() / b.norm()) < 0.01  # ten bits, less among the subnormal


def test_a_library_with_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoding, "__init__", lambda self, *_: _with_params(self, 7))
    with pytest.raises(NerfError, match=r"has 7 parameters for the grid.*another --backend"):
        TcnnBackend().hash_grid(positions(4), params_of().table, NET.grid)


def _with_params(module: torch.nn.Module, n: int) -> None:
    torch.nn.Module.__init__(module)
    module.params = torch.nn.Parameter(torch.zeros(n))


def test_a_library_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcnn, "is_installed", lambda name: True)
    monkeypatch.setattr(tcnn, "cuda_missing", lambda: None)
    assert TcnnBackend.why_unavailable("cuda") is None
    monkeypatch.setitem(sys.modules, "tinycudann", None)  # importing it fails
    assert "cannot be imported" in str(TcnnBackend.why_unavailable("cuda"))


def test_without_the_library_the_reason_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcnn, "is_installed", lambda name: False)
    reason = str(TcnnBackend.why_unavailable("cuda"))
    assert "git+https://github.com/NVlabs/tiny-cuda-nn" in reason and "nvcc" in reason
    assert TcnnBackend.why_unavailable("cpu") == "it does not run on cpu"
    monkeypatch.setattr(tcnn, "is_installed", lambda name: True)
    monkeypatch.setattr(tcnn, "cuda_missing", lambda: "no GPU")
    assert TcnnBackend.why_unavailable("cuda") == "no GPU"

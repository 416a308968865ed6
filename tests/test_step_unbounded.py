"""What a step of an unbounded scene has besides: curved distances, and gradients that fade."""

from __future__ import annotations

import pytest
import torch
from step_cases import SPACES, some_network
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.backends.cpu.backend import CpuBackend
from nerfcli.cameras.rays import Batch, Rays
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective, render_samples, step_gradients
from nerfcli.reference.losses import distortion_loss, mse
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Piecewise
from nerfcli.reference.volume import weights_from_density

N_RAYS, N = 20, 12
CURVE = 0.8
OBJECTIVES = {
    "curve": Objective(distortion=0.3, curve=CURVE),
    "fade": Objective(full_from=1.2),
    "both": Objective(distortion=0.3, curve=CURVE, full_from=2.0, opacity=0.1),
}


def some_step() -> tuple[Network, Batch, Samples]:
    network = some_network(SPACES["contraction"], NetSpec(GridSpec(16, 2, 12, 4, 256), 64))
    params = NetParams(*(p.float().contiguous() for p in network.params.tensors()))
    g = torch.Generator().manual_seed(3)
    away = torch.nn.functional.normalize(torch.randn(N_RAYS, 3, generator=g), dim=1)
    rays = Rays(torch.rand(N_RAYS, 3, generator=g) - 0.5, away)
    edges = torch.sort(torch.rand(N_RAYS, N + 1, generator=g) * 4 + 0.05, dim=1).values
    batch = Batch(rays, torch.rand(N_RAYS, 3, generator=g), torch.rand(N_RAYS, 3, generator=g))
    return Network(network.spec, params, network.space), batch, Samples.from_edges(edges)


@pytest.mark.skipif(bool(CpuBackend.why_unavailable("cpu")), reason="no compiled kernels")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_compiled_step_agrees(name: str) -> None:
    network, batch, samples = some_step()
    grads, terms = [], []
    for ops in (Backend(), CpuBackend()):
        own = NetParams(*(torch.zeros_like(p) for p in network.params.tensors()))
        out = ops.step_gradients(network, own, batch, samples, OBJECTIVES[name])
        grads.append(own.tensors())
        terms.append(out.terms)
    assert terms[0].keys() == terms[1].keys()
    for key in terms[0]:
        torch.testing.assert_close(terms[0][key], terms[1][key], rtol=1e-4, atol=1e-6)
    for a, b in zip(*grads, strict=True):
        assert float((a - b).abs().max()) < 1e-4 * float(a.abs().max())


def test_distortion_is_taken_in_the_spacing() -> None:
    """Against the double sum of mip-NeRF 360, eq. 15, over s."""
    _, _, samples = some_step()
    g = torch.Generator().manual_seed(4)
    weights = weights_from_density(torch.rand(samples.capacity, generator=g), samples)

    def s(t: Tensor) -> list[list[float]]:
        return [
            [0.5 * x / CURVE if x < CURVE else 1 - 0.5 * CURVE / x for x in row]
            for row in samples.dense(t).tolist()
        ]

    total = 0.0
    rows = zip(s(samples.t_starts), s(samples.t_ends), samples.dense(weights).tolist(), strict=True)
    for low, high, w in rows:
        middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        total += (
            sum(w[i] * w[j] * abs(middle[i] - middle[j]) for i in range(N) for j in range(N))
            + sum(w[i] ** 2 * (high[i] - low[i]) for i in range(N)) / 3
        )
    got = float(distortion_loss(weights, samples, 1.0, spacing=Piecewise(CURVE)))
    assert got == pytest.approx(total / N_RAYS, rel=1e-4)


def test_gradients_fade_with_the_square_of_the_distance() -> None:
    """One sample a ray: its gradient is that of the plain step, times (t / full_from)^2."""
    network, batch, _ = some_step()
    t = torch.full((1, 2), 0.3)
    t[0, 1] = 0.5  # the middle is at 0.4
    one = Batch(batch.rays[:1], batch.rgb[:1], batch.background[:1])
    grads = {}
    for full in (0.0, 1.6, 0.4, 0.2):
        own = NetParams(*(torch.zeros_like(p) for p in network.params.tensors()))
        objective = Objective("mse", full_from=full)
        step_gradients(Backend(), network, own, one, Samples.from_edges(t), objective)
        grads[full] = own
    for plain, faded in zip(grads[0.0].tensors(), grads[1.6].tensors(), strict=True):
        torch.testing.assert_close(faded, plain / 16, rtol=1e-4, atol=1e-9)
    for full in (0.4, 0.2):  # from there on it is whole
        for plain, whole in zip(grads[0.0].tensors(), grads[full].tensors(), strict=True):
            torch.testing.assert_close(whole, plain)


def test_fading_changes_no_pixel() -> None:
    network, batch, samples = some_step()
    plain, faded = (
        render_samples(Backend(), network, batch.rays, samples, None, batch.background, 1e-4, full)
        for full in (0.0, 3.0)
    )
    torch.testing.assert_close(plain.pixels.rgb, faded.pixels.rgb)
    assert float(mse(plain.pixels.rgb, batch.rgb)) > 0

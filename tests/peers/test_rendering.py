"""Volume rendering, loss terms and encodings beside nerfacc and nerfstudio."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nerfcli.reference.encoding import GridLevel, grid_index, spherical_harmonics
from nerfcli.reference.losses import distortion_loss
from nerfcli.reference.samples import Samples
from nerfcli.reference.volume import composite, weights_from_density

pytestmark = pytest.mark.peers
N_RAYS, N_SAMPLES = 512, 64


def peer(module: str, package: str) -> Any:
    return pytest.importorskip(module, reason=f"the peer, {package}, is not installed")


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Interval edges, densities from fog to walls, and colours."""
    draw = torch.Generator().manual_seed(seed)
    edges = torch.rand(N_RAYS, N_SAMPLES + 1, generator=draw).sort(dim=1).values * 4 + 2
    sigmas = torch.exp(torch.randn(N_RAYS, N_SAMPLES, generator=draw) * 3 - 1)
    sigmas[: N_RAYS // 8] = 0.0
    return edges, sigmas, torch.rand(N_RAYS, N_SAMPLES, 3, generator=draw)


def test_rendering_is_nerfaccs() -> None:
    nerfacc = peer("nerfacc", "nerfacc")
    edges, sigmas, rgbs = scene()
    white = torch.ones(3)
    mine = sigmas.clone().requires_grad_()
    pixels = composite(mine.reshape(-1), rgbs.reshape(-1, 3), Samples.from_edges(edges), white)
    starts, ends = edges[:, :-1], edges[:, 1:]
    theirs = sigmas.clone().requires_grad_()
    weights, _, _ = nerfacc.render_weight_from_density(starts, ends, theirs)
    opacity = nerfacc.accumulate_along_rays(weights)
    rgb = nerfacc.accumulate_along_rays(weights, rgbs) + (1 - opacity) * white
    depth = nerfacc.accumulate_along_rays(weights, ((starts + ends) / 2)[..., None])
    depth = (depth / opacity.clamp(min=1e-10))[:, 0]
    assert (pixels.rgb - rgb).abs().max() < 2e-6
    assert (pixels.opacity - opacity[:, 0]).abs().max() < 2e-6
    assert (pixels.depth - depth).abs().max() < 2e-5  # of up to 6
    cotangent = torch.rand(N_RAYS, 3, generator=torch.Generator().manual_seed(1))
    (ours,) = torch.autograd.grad((pixels.rgb * cotangent).sum(), mine)
    (other,) = torch.autograd.grad((rgb * cotangent).sum(), theirs)
    assert (ours - other).abs().max() < 2e-6 * other.abs().max().clamp(min=1.0)


def test_distortion_is_nerfstudios() -> None:
    losses = peer("nerfstudio.model_components.losses", "nerfstudio")
    edges, sigmas, _ = scene()
    edges, samples = edges.double(), Samples.from_edges(edges.double())
    weights = weights_from_density(sigmas.double().reshape(-1), samples)
    theirs = losses.lossfun_distortion(edges, samples.dense(weights)).mean()
    assert float(distortion_loss(weights, samples, 1.0)) == pytest.approx(float(theirs), rel=1e-9)


def test_harmonics_are_nerfstudios_without_the_condon_shortley_phase() -> None:
    maths = peer("nerfstudio.utils.math", "nerfstudio")
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(4096, 3, generator=draw, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    orders = torch.tensor([m for degree in range(4) for m in range(-degree, degree + 1)])
    phase = torch.where(orders % 2 == 0, 1.0, -1.0)
    theirs = maths.components_from_spherical_harmonics(4, directions)
    assert (spherical_harmonics(directions) - phase * theirs).abs().max() < 1e-7  # its constants


def test_hashes_are_nerfstudios() -> None:
    encodings = peer("nerfstudio.field_components.encodings", "nerfstudio")
    draw = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 2049, (10_000, 3), generator=draw)
    grid = encodings.HashEncoding(num_levels=1, log2_hashmap_size=19, implementation="torch")
    theirs = grid.hash_fn(corners[:, None])[:, 0]
    level = GridLevel(2047.0, 2048, 0, 2**19, True)
    assert torch.equal(grid_index(corners, level), theirs)

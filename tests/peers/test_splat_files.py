"""Splat files as plyfile and gsply read them, and splats as gsplat draws them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analytic_field import sphere_cameras

from nerfcli.extraction.splat_render import Gaussians, render_splats
from nerfcli.reference.encoding import spherical_harmonics
from nerfcli.shapes.splat_files import Splats, load_splats, save_splats

pytestmark = pytest.mark.peers


def peer(module: str) -> Any:
    return pytest.importorskip(module, reason=f"the peer, {module}, is not installed")


@pytest.fixture(scope="module")
def splats() -> Splats:
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(50, 4))
    return Splats(
        rng.normal(size=(50, 3)).astype(np.float32).astype(np.float64),
        rng.normal(size=(50, 3)).astype(np.float32),
        rng.normal(0.0, 0.2, (50, 16, 3)).astype(np.float32),
        rng.normal(size=50).astype(np.float32),
        rng.normal(-3.0, 0.5, (50, 3)).astype(np.float32),
        (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).astype(np.float32),
    )


def test_plyfile_reads_the_columns(splats: Splats, tmp_path: Path) -> None:
    plyfile = peer("plyfile")
    save_splats(splats, tmp_path / "s.ply")
    vertex = plyfile.PlyData.read(tmp_path / "s.ply")["vertex"]
    assert np.array_equal(vertex["x"], splats.positions[:, 0])
    assert np.array_equal(vertex["f_rest_16"], splats.harmonics[:, 2, 1])  # the second of green
    assert np.array_equal(vertex["opacity"], splats.logits)
    assert np.array_equal(vertex["rot_0"], splats.quaternions[:, 0])


def test_gsply_reads_a_ply_and_an_spz(splats: Splats, tmp_path: Path) -> None:
    gsply = peer("gsply")
    save_splats(splats, tmp_path / "s.ply")
    found = gsply.plyread(tmp_path / "s.ply")
    assert np.array_equal(found.means, splats.positions)
    assert np.array_equal(found.sh0, splats.harmonics[:, 0])
    assert np.array_equal(np.reshape(found.shN, (50, 15, 3)), splats.harmonics[:, 1:])
    assert np.array_equal(found.scales, splats.log_scales)
    assert np.array_equal(found.quats, splats.quaternions)
    save_splats(splats, tmp_path / "s.spz")
    again = load_splats(tmp_path / "s.spz")
    assert np.abs(again.positions - splats.positions).max() < 1e-6
    assert np.abs(again.harmonics - splats.harmonics).max() < 0.02
    assert np.abs(again.log_scales - splats.log_scales).max() <= 1 / 32 + 1e-6
    assert np.abs((again.quaternions * splats.quaternions).sum(axis=1)).min() > 0.999


def test_gsplat_draws_splats_alike(splats: Splats) -> None:
    """Its reference in PyTorch: the harmonics, and a splat's image before it is cut into tiles."""
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")
    positions = torch.from_numpy(splats.positions).float()
    sh = torch.from_numpy(splats.harmonics)
    directions = torch.nn.functional.normalize(positions, dim=-1)
    ours = torch.einsum("nk,nkc->nc", spherical_harmonics(directions), sh)
    assert torch.allclose(gsplat._spherical_harmonics(3, directions, sh), ours, atol=1e-5)

    cameras = sphere_cameras(4, size=40)
    w2c = torch.linalg.inv(torch.cat([cameras.c2w[1], torch.eye(4)[3:].double()]))[None].float()
    focal, principal = cameras.focal[1].tolist(), cameras.principal[1].tolist()
    k = torch.tensor([[focal[0], 0, principal[0]], [0, focal[1], principal[1]], [0, 0, 1]])[None]
    scales = torch.from_numpy(splats.log_scales).exp()
    quaternions = torch.from_numpy(splats.quaternions)
    covars, _ = gsplat._quat_scale_to_covar_preci(quaternions, scales, compute_preci=False)
    found = gsplat._fully_fused_projection(positions, covars, w2c, k.float(), 40, 40)
    _, centers, _, conics, _ = found
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    for i in range(10):
        dx, dy = x - centers[0, i, 0], y - centers[0, i, 1]
        a, b, c = conics[0, i]
        alpha = 0.5 * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
        one = replace(
            splats[np.array([i])],
            logits=np.zeros(1, np.float32),
            harmonics=np.zeros((1, 16, 3), np.float32),
        )
        image = render_splats(Gaussians.of(one), cameras, 1, torch.zeros(3), 0.1)
        assert torch.allclose(image[:, 0].reshape(40, 40), 0.5 * alpha, atol=2e-4)

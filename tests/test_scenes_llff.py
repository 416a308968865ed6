"""LLFF's poses_bounds.npy: columns, sizes, bounds, splits, faults; the published fern."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import sphere_c2w
from nerfcli.core.errors import NerfError
from nerfcli.scenes import load_scene, load_views, read_source

WIDTH, HEIGHT, FOCAL = 24, 16, 30.0
NEAR, FAR = 2.5, 6.0


def table(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of poses_bounds.npy by its definition, and the OpenGL poses that they state."""
    rows, poses = [], []
    for i in range(n):
        right, up, back, center = sphere_c2w(i, n)[:3].T
        poses.append(np.stack([right, up, back, center], axis=1))
        down = -up
        block = np.stack([down, right, back, center, [HEIGHT, WIDTH, FOCAL + i]], axis=1)
        rows.append([*block.ravel(), NEAR + 0.01 * i, FAR])
    return np.array(rows), np.stack(poses)


def capture(root: Path, n: int = 10, folder: str = "images", scale: float = 1.0) -> np.ndarray:
    rows, poses = table(n)
    np.save(root / "poses_bounds.npy", rows)
    (root / folder).mkdir()
    for i in range(n):
        size = (round(WIDTH * scale), round(HEIGHT * scale))
        Image.new("RGB", size, (20 * i, 0, 0)).save(root / folder / f"IMG_{i:03d}.png")
    return poses


def test_columns_bounds_and_split(tmp_path: Path) -> None:
    poses = capture(tmp_path)
    source = read_source(tmp_path)
    assert source.kind == "llff"
    # the camera looks along -back of OpenGL's frame, +z of ours
    want = poses * np.array([1.0, -1.0, -1.0, 1.0])
    np.testing.assert_allclose([frame.c2w for frame in source.frames], want, atol=1e-12)
    assert [frame.focal for frame in source.frames] == [(FOCAL + i,) * 2 for i in range(10)]
    assert source.frames[0].principal == (WIDTH / 2, HEIGHT / 2)
    assert source.frames[3].bounds == pytest.approx((NEAR + 0.03, FAR))
    scene = load_scene(tmp_path)
    assert scene.splits["test"] == (0, 8)
    scale = scene.scene_from_source.scale
    assert scene.near == pytest.approx(0.5 * NEAR * scale)
    # the unit ball lies at 3 to 5: the outer cube holds all that is seen between the bounds
    outer = scene.box.outer_half_size / scale
    assert outer > 2 and scene.far / scale > FAR


def test_images_at_an_eighth_divide_the_focal_length_by_their_real_ratio(tmp_path: Path) -> None:
    capture(tmp_path, folder="images_2", scale=0.5)
    frame = read_source(tmp_path).frames[2]
    assert (frame.size, frame.focal, frame.principal) == ((12, 8), (16.0, 16.0), (6.0, 4.0))


def test_rows_follow_the_sorted_names(tmp_path: Path) -> None:
    """img10 sorts before img2: by characters, as LLFF does, not by numbers."""
    capture(tmp_path, 11)
    for i, path in enumerate(sorted((tmp_path / "images").iterdir())):
        path.rename(tmp_path / "images" / f"img{i}.png")
    source = read_source(tmp_path)
    assert [f.name for f in source.frames][:3] == [f"images/img{i}.png" for i in (0, 1, 10)]
    assert [f.focal[0] for f in source.frames] == [FOCAL + i for i in range(11)]
    views = load_views(load_scene(tmp_path), [2])
    assert int(views.pixels[0, 0]) == 200  # the picture of img10


def test_float32_and_column_order_of_the_array(tmp_path: Path) -> None:
    capture(tmp_path)
    want = read_source(tmp_path)
    rows = np.load(tmp_path / "poses_bounds.npy")
    np.save(tmp_path / "poses_bounds.npy", np.asfortranarray(rows.astype(np.float32)))
    got = read_source(tmp_path)
    for a, b in zip(got.frames, want.frames, strict=True):
        np.testing.assert_allclose(a.c2w, b.c2w, atol=1e-6)  # float32


def test_faults_are_named(tmp_path: Path) -> None:
    capture(tmp_path)
    path = tmp_path / "poses_bounds.npy"
    rows, data = np.load(path), path.read_bytes()
    extra = tmp_path / "images/extra.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(extra)
    with pytest.raises(NerfError, match="10 rows, .*images holds 11 images"):
        load_scene(tmp_path)
    extra.unlink()
    path.write_bytes(data[:-8])
    with pytest.raises(NerfError, match="truncated or damaged: 10 rows take 1360 bytes"):
        load_scene(tmp_path)
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'")
    with pytest.raises(NerfError, match="not a NumPy file with a table"):
        load_scene(tmp_path)
    np.save(path, rows[:, :15])
    with pytest.raises(NerfError, match=r"17 columns .* got 10 x 15"):
        load_scene(tmp_path)
    for change, message in (
        ((0, np.nan), r"row 3 \(IMG_003\.png\) has values that are not finite"),
        ((16, 0.1), "bounds must be positive and ascending, got 2.53 and 0.1"),
        ((14, -5.0), "focal length -5"),
        ((4, 0.0), "height 0 and width 24"),
        ((0, 5.0), "not orthonormal"),
        ((9, 99.0), "the shapes differ"),
    ):
        spoiled = rows.copy()
        spoiled[3, change[0]] = change[1]
        np.save(path, spoiled)
        with pytest.raises(NerfError, match=message):
            load_scene(tmp_path)


def test_no_known_format_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NerfError) as caught:
        load_scene(tmp_path)
    for word in ("transforms_train.json", "transforms.json", "cameras.bin", "sparse", "poses_b"):
        assert word in str(caught.value)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(NerfError, match="is no scene; give a folder"):
        load_scene(tmp_path / "notes.txt")


@pytest.mark.skipif("NERF_DATA" not in os.environ, reason="NERF_DATA names no folder of scenes")
def test_the_fern() -> None:
    root = Path(os.environ["NERF_DATA"]) / "fern"
    scene = load_scene(root)
    assert (scene.kind, len(scene.names)) == ("llff", 20)
    assert scene.splits["test"] == (0, 8, 16)
    assert scene.cameras.size[0].tolist() == [504, 378]
    assert float(scene.cameras.focal[0, 0]) == pytest.approx(3260.526 / 8, abs=1e-3)
    # all cameras face the same way, and what they face lies within the box
    assert (scene.cameras.forwards @ scene.cameras.forwards.T > 0.9).all()
    ahead = scene.cameras.positions + scene.cameras.forwards * scene.scene_from_source.scale * 25
    assert (ahead.abs() < scene.box.outer_half_size).all()


def test_the_box_holds_what_is_seen_between_the_bounds(tmp_path: Path) -> None:
    capture(tmp_path)
    scene = load_scene(tmp_path)
    for depth in (NEAR + 0.1, 0.5 * (NEAR + FAR)):
        points = scene.cameras.positions + scene.cameras.forwards * (
            depth * scene.scene_from_source.scale
        )
        assert (points.abs() <= scene.box.outer_half_size + 1e-9).all()
    assert torch.isfinite(scene.cameras.c2w).all()

"""Equirectangular photos: views are cut out exactly, and their poses found as a rig."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from spoiled import noise

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress, ignore_update
from nerfcli.prepare import PrepareOptions, prepare_scene
from nerfcli.prepare.panoramas import N_VIEWS, cut_panoramas, cut_view, view_rotations, view_side
from nerfcli.prepare.photos import Photo
from nerfcli.scenes import read_source


def panorama_rays(width: int) -> np.ndarray:
    """Longitude grows to the right, latitude downwards. [width / 2, width, 3], OpenCV"""
    longitude = 2 * math.pi * ((np.arange(width) + 0.5) / width - 0.5)
    latitude = math.pi * ((np.arange(width // 2) + 0.5) / (width // 2) - 0.5)
    lon, lat = np.meshgrid(longitude, latitude)
    return np.stack([np.sin(lon) * np.cos(lat), np.sin(lat), np.cos(lon) * np.cos(lat)], -1)


def smooth(directions: np.ndarray) -> np.ndarray:
    """A colour for each direction, without an edge anywhere, in uint8."""
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.round(127.5 + 110 * np.sin(3 * unit + 2 * unit[..., [1, 2, 0]])).astype(np.uint8)


def test_a_view_is_what_a_pinhole_there_would_see() -> None:
    pixels = torch.from_numpy(smooth(panorama_rays(512)))
    side = view_side(512)
    x, y = np.meshgrid(np.arange(side) + 0.5 - side / 2, np.arange(side) + 0.5 - side / 2)
    local = np.stack([x, y, np.full_like(x, side / 2)], -1)  # a focal length of half the side
    for rotation in view_rotations():
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0
        view = cut_view(pixels, rotation, side).numpy().astype(int)
        assert np.abs(view - smooth(local @ rotation.T)).max() <= 2


def test_the_views_look_all_around_upright() -> None:
    """Their sideways axes are level, and every direction but those near the poles is in one."""
    rotations = view_rotations()
    assert len(rotations) == N_VIEWS
    assert np.abs(rotations[:, 1, 0]).max() < 1e-12
    assert (rotations[:, 1, 1] > 0.5).all()
    assert rotations[0, 1, 2] < 0 < rotations[-1, 1, 2]  # y points down: up first, then down
    rays = panorama_rays(180)
    rays = rays[np.abs(rays[..., 1]) < math.sin(math.radians(68))]
    local = np.einsum("kji,nj->kni", rotations, rays)
    inside = (local[..., 2] > 0) & (np.abs(local[..., :2]).max(-1) < local[..., 2])
    assert inside.any(0).all()


def test_only_whole_panoramas_are_cut(tmp_path: Path) -> None:
    for photo in (Photo("a.jpg", (64, 48), False, ()), Photo("a.jpg", (64, 32), True, ())):
        with pytest.raises(NerfError, match="equirectangular: a.jpg"):
            cut_panoramas(tmp_path, [photo], tmp_path / "out", ignore_update)
    for name in ("a.jpg", "b/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 32)).save(tmp_path / name)
    photos = [Photo(name, (64, 32), False, ()) for name in ("a.jpg", "b/a.jpg")]
    views = cut_panoramas(tmp_path, photos, tmp_path / "out", ignore_update)
    assert len({view.name for view in views}) == 2 * N_VIEWS
    assert all((tmp_path / "out" / view.name).is_file() for view in views)


@pytest.mark.slow
def test_panoramas_find_their_places(tmp_path: Path) -> None:
    """In a room of noise: the eight views of each stay one rig, and the rigs stand right."""
    pytest.importorskip("pycolmap")
    size = np.array([3.0, 1.5, 2.5])
    places = np.array([[0.4 * i, 0.15 * (i % 2), 0.3 * math.sin(i)] for i in range(4)])
    (tmp_path / "photos").mkdir()
    rays = panorama_rays(1024).reshape(-1, 3)
    for i, place in enumerate(places):
        reach = ((np.sign(rays) * size - place) / np.where(rays == 0, 1e-9, rays)).min(1)
        grey = noise(place + reach[:, None] * rays)
        colour = np.stack([grey, 0.8 * grey + 0.1, 1.0 - grey], -1).reshape(512, 1024, 3)
        Image.fromarray(np.round(colour * 255).astype(np.uint8)).save(
            tmp_path / "photos" / f"{i}.png"
        )
    progress = Progress("quiet", None, "", "")
    options = PrepareOptions(lens="equirectangular")
    record = prepare_scene(tmp_path / "photos", tmp_path / "out", options, progress, lambda: False)
    assert record["registered"] == record["images"] == 4 * N_VIEWS
    source = read_source(tmp_path / "out")
    poses = {frame.name: frame.c2w for frame in source.frames}
    centres = []
    for i in range(4):
        views = [poses[name] for name in sorted(poses) if name.endswith(f"_{i}.jpg")]
        centres.append(views[0][:, 3])
        for view, rotation in zip(views, view_rotations(), strict=True):
            np.testing.assert_allclose(view[:, 3], views[0][:, 3], atol=1e-6)
            between = view_rotations()[0].T @ rotation
            np.testing.assert_allclose(views[0][:, :3].T @ view[:, :3], between, atol=1e-6)
    found = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    true = np.linalg.norm(np.diff(places, axis=0), axis=1)
    np.testing.assert_allclose(found / found[0], true / true[0], rtol=0.03)
    assert all(frame.lens.is_pinhole for frame in source.frames)

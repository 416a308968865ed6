"""Held-out views that cannot be read are found before training, at hardly any cost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import images, load_scene
from nerfcli.scenes.held_out import ensure_complete, ensure_held_out, odd_shapes


@pytest.fixture
def scene(ball: Path, tmp_path: Path) -> Path:
    """A copy of the tiny scene to spoil; it has two test views."""
    return Path(shutil.copytree(ball, tmp_path / "scene"))


def noise(path: Path, kind: str) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=kind)
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_a_file_that_is_cut_off_is_told_from_a_whole_one(tmp_path: Path, kind: str) -> None:
    path = noise(tmp_path / f"image.{kind.lower()}", kind)
    ensure_complete(path)
    whole = path.read_bytes()
    for rest in (len(whole) - 40, len(whole) // 2, 5, 0):
        path.write_bytes(whole[:rest])
        with pytest.raises(NerfError, match="corrupt|cannot be read"):
            ensure_complete(path)


def test_a_file_that_ends_in_zeros_is_told(tmp_path: Path) -> None:
    """As a download leaves it whose length was set first."""
    path = noise(tmp_path / "image.png", "PNG")
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + bytes(len(whole) - 2000))
    with pytest.raises(NerfError, match="corrupt"):
        ensure_complete(path)


def test_what_cameras_put_behind_an_image_is_no_fault(tmp_path: Path) -> None:
    path = noise(tmp_path / "image.jpg", "JPEG")
    path.write_bytes(path.read_bytes() + b"SEFT and other words")
    ensure_complete(path)
    assert images.read_image(path).shape == (40, 40, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_whole_files_are_not_decoded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "read_image", lambda path: pytest.fail("it is decoded"))
    ensure_complete(noise(tmp_path / "image", kind))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def enlarge(path: Path) -> None:
    Image.open(path).resize((24, 24)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "r_9.png is corrupt or truncated"),
        (Path.unlink, "r_9.png does not exist"),
        (enlarge, "r_9.png has 24x24 pixels after downscaling, expected 16x16; it has changed"),
    ],
)
def test_a_spoiled_test_view_is_named(
    scene: Path, spoil: Callable[[Path], None], message: str
) -> None:
    loaded = load_scene(scene)
    ensure_held_out(loaded)
    spoil(scene / "test" / "r_9.png")
    with pytest.raises(NerfError, match=f"{message}.*held-out view"):
        ensure_held_out(loaded)


def test_downscaled_and_turned_images_have_the_right_size(scene: Path) -> None:
    path = scene / "test" / "r_9.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (33, 16)).save(path, exif=exif)
    loaded = load_scene(scene, SceneConfig(downscale=2))
    assert loaded.cameras.size[-1].tolist() == [16, 8]
    ensure_held_out(loaded)
    assert images.image_header(path)[3]
    loaded.cameras.size[-1] = loaded.cameras.size[-1].flip(0)
    ensure_held_out(loaded)


def test_a_test_view_of_another_shape_is_remarked_on(scene: Path) -> None:
    assert odd_shapes(load_scene(scene)) is None
    path = scene / "test" / "r_8.png"
    enlarge(path)
    assert odd_shapes(load_scene(scene)) is None  # the same view in more pixels
    Image.open(path).resize((24, 25)).save(path)
    assert odd_shapes(load_scene(scene)) is None  # within the rounding of a downscaling
    Image.open(path).resize((16, 24)).save(path)
    remark = odd_shapes(load_scene(scene))
    assert remark is not None and "16x16" in remark and "r_8.png (16x24)" in remark

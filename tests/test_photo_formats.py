"""HEIC, AVIF and raw photos: read where their package is there, and always named."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, features

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.prepare import PrepareOptions, pipeline, prepare_scene, sfm
from nerfcli.prepare.photos import find_photos, take_photos
from nerfcli.scenes.images import image_header, read_image

SMOOTH = np.linspace(30, 220, 32, dtype=np.uint8)[None, :, None].repeat(24, 0).repeat(3, 2)


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)


def write_heic(path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0110] = "Phone"
    Image.fromarray(SMOOTH).save(path, format="HEIF", quality=95, exif=exif.tobytes())


def test_heic_is_read_where_its_package_is_there(tmp_path: Path) -> None:
    write_heic(tmp_path / "a.HEIC")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.HEIC").read_bytes())  # a wrong name
    for name in ("a.HEIC", "b.jpg"):
        assert image_header(tmp_path / name)[:2] == (32, 24)
        assert np.abs(read_image(tmp_path / name).numpy().astype(int) - SMOOTH).max() < 12
    taken, failed = take_photos(tmp_path, ["a.HEIC"], tmp_path / "out")
    assert ([photo.name for photo in taken], failed) == (["a.jpg"], {})
    assert "Phone" in taken[0].exif
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (32, 24))
        assert image.getexif()[0x0110] == "Phone"


@pytest.mark.parametrize(
    ("name", "extra"), [("a.heic", "heic"), ("a.HEIF", "heic"), ("a.DNG", "raw")]
)
def test_without_its_package_a_photo_is_named_with_the_way_out(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("pillow_heif", monkeypatch)
    without("rawpy", monkeypatch)
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    for read in (image_header, read_image):
        with pytest.raises(NerfError, match=rf"{name} is .*'nerfcli\[{extra}\]'"):
            read(tmp_path / name)
    (tmp_path / "b.jpg").write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(NerfError, match=r"b\.jpg is HEIC.*'nerfcli\[heic\]'"):
        read_image(tmp_path / "b.jpg")


def test_photos_that_cannot_be_read_are_never_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 HEIC photos and 26 JPEG ones; the other way round, nothing is begun."""
    pytest.importorskip("pycolmap")
    without("pillow_heif", monkeypatch)
    photos, notes = tmp_path / "photos", []
    photos.mkdir()
    for i in range(30):
        if i % 8 != 3:
            Image.fromarray(SMOOTH).save(photos / f"IMG_{i}.JPG")
        else:
            (photos / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (photos / "light.exr").write_bytes(b"")
    monkeypatch.setattr(Progress, "note", lambda self, text: notes.append(text))
    monkeypatch.setattr(sfm, "extract_features", lambda *a, **k: 1 / 0)
    progress = Progress("quiet", None, "", "")
    with pytest.raises(ZeroDivisionError):
        prepare_scene(photos, tmp_path / "out", PrepareOptions(), progress, lambda: False)
    assert notes[0] == "1 file (.exr) cannot be read; convert them to PNG"
    assert "4 of 30 photos cannot be read (.heic needs" in notes[1]
    assert "4 images left out: IMG_3.HEIC cannot be read" in notes[2]
    assert "pip install 'nerfcli[heic]'" in notes[1]
    assert pipeline.photos.find_photos(photos)[3] == "IMG_3.HEIC"
    for i in range(8, 30):
        (photos / f"IMG_{i}.JPG").unlink(missing_ok=True)
    for i in range(30, 40):
        (photos / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(NerfError, match="14 of 21 photos cannot be read"):
        prepare_scene(photos, tmp_path / "new", PrepareOptions(), progress, lambda: False)
    assert not (tmp_path / "new").exists()


def test_a_photo_beside_its_raw_or_heic_is_taken_once(tmp_path: Path) -> None:
    for name in ("a.CR2", "a.JPG", "b.heic", "b.jpg", "c.heic", "d.png"):
        (tmp_path / name).write_bytes(b"")
    notes: list[str] = []
    assert find_photos(tmp_path, notes.append) == ["a.JPG", "b.jpg", "c.heic", "d.png"]
    assert notes == ["2 photos are there twice; as .CR2 they are left out"]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / "a.avif", quality=95)
    assert np.abs(read_image(tmp_path / "a.avif").numpy().astype(int) - SMOOTH).max() < 12
    taken, _ = take_photos(tmp_path, ["a.avif"], tmp_path / "out")
    assert [photo.name for photo in taken] == ["a.png"]


def test_raw_photos_are_developed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would read the small picture that cameras put in front."""

    class Raw:
        def __enter__(self) -> Raw:
            return self

        def __exit__(self, *error: object) -> None: ...

        def postprocess(self, use_camera_wb: bool) -> np.ndarray:
            assert use_camera_wb
            return SMOOTH

    monkeypatch.setitem(sys.modules, "rawpy", SimpleNamespace(imread=lambda path: Raw()))
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    exif[0x8769] = {0x920A: 35.0}
    Image.new("RGB", (4, 3)).save(tmp_path / "a.dng", format="JPEG", exif=exif.tobytes())
    assert (read_image(tmp_path / "a.dng").numpy() == SMOOTH).all()
    taken, failed = take_photos(tmp_path, ["a.dng"], tmp_path / "out")
    assert ([photo.name for photo in taken], failed) == (["a.jpg"], {})
    assert taken[0].exif[1] == "Camera" and float(taken[0].exif[3]) == 35.0
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.getexif().get_ifd(0x8769)[0x920A] == 35.0

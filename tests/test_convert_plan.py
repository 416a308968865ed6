"""nerf convert: its plan, what it refuses, and what goes along with images."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_convert_ngp import SIZE, scene

from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.cli import main
from nerfcli.core.errors import NerfError
from nerfcli.scenes import load_scene, read_source
from nerfcli.scenes.images import exif_turn
from nerfcli.scenes.writers import lenses as writers_lenses
from nerfcli.scenes.writers import undistort
from nerfcli.scenes.writers.convert import WriteOptions, plan_scene, write_scene
from nerfcli.scenes.writers.lenses import state_lenses
from nerfcli.scenes.writers.unsupported import TARGETS

RATIONAL = Lens.of("rational", k1=0.05, d1=0.02)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *map(str, words)])
    assert isinstance(stopped.value.code, int)
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize(
    ("target", "undistorted", "mode"), [("colmap", True, "RGB"), ("llff", False, "L")]
)
def test_the_exif_orientation_goes_along(
    tmp_path: Path, orientation: int, turn: int, target: str, undistorted: bool, mode: str
) -> None:
    """It tells where up is. Grey images become PNG in LLFF."""
    lens = Lens.of("brown", k1=0.1) if undistorted else Lens()
    source = scene(tmp_path / "s", lens, lens, suffix=".jpg")
    tags = Image.Exif()
    tags[0x0112] = orientation
    for frame in source.frames:
        assert frame.image is not None
        Image.new(mode, SIZE, 99).save(frame.image, exif=tags)
    (tmp_path / "new").mkdir()
    write_scene(source, tmp_path / "new", WriteOptions(target, undistort=undistorted))
    for frame in read_source(tmp_path / "new").frames:
        assert frame.image is not None and frame.image.suffix == ".png"
        assert exif_turn(frame.image, frame.size) == turn


@pytest.mark.parametrize("k1", [-1e9, -1e7])
@pytest.mark.parametrize(
    ("target", "undistorted"), [("colmap", True), ("llff", True), ("llff", False)]
)
def test_a_blind_lens_is_named(tmp_path: Path, k1: float, target: str, undistorted: bool) -> None:
    blind = Lens.of("brown", k1=k1)
    source = scene(tmp_path / "s", Lens(), blind, blind)
    said = "the lens of 1.png has a ray for none of its 24x16 pixels .*with 1 other image"
    with pytest.raises(NerfError, match=said):
        plan_scene(source, WriteOptions(target, undistort=undistorted))


def test_a_view_of_absurd_size_is_refused(tmp_path: Path) -> None:
    source = scene(tmp_path / "s", Lens.of("brown", k1=1e20))
    with pytest.raises(NerfError, match=r"0\.png cannot be undistorted: its camera is absurd"):
        plan_scene(source, WriteOptions("llff", undistort=True))


@pytest.mark.parametrize("target", TARGETS)
def test_a_single_image_is_converted(tmp_path: Path, target: str) -> None:
    (tmp_path / "new").mkdir()
    source = scene(tmp_path / "s", Lens())
    write_scene(source, tmp_path / "new", WriteOptions(target, dataparser=True))
    frames = read_source(tmp_path / "new").frames  # Blender's splits list it each
    assert len({frame.image for frame in frames}) == 1


@pytest.mark.parametrize("words", [("--to", "nerfstudio"), ("--to", "llff", "--undistort")])
def test_each_camera_is_looked_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    source = scene(tmp_path / "s", *[RATIONAL] * 3)
    frames = [replace(f, focal=(20.0 + i, 20.0 + i)) for i, f in enumerate(source.frames)]
    (tmp_path / "colmap").mkdir()
    source = replace(source, frames=tuple(frames))
    write_scene(source, tmp_path / "colmap", WriteOptions("colmap"))
    seen: Counter[object] = Counter()
    fit, choose = writers_lenses.fit_lenses, undistort._pinhole

    def count_fits(cameras, *others):  # noqa: ANN001, ANN002, ANN202
        seen.update(cameras)
        return fit(cameras, *others)

    def count_views(camera, crop):  # noqa: ANN001, ANN202
        seen[camera] += 1
        return choose(camera, crop)

    monkeypatch.setattr(writers_lenses, "fit_lenses", count_fits)
    monkeypatch.setattr(undistort, "_pinhole", count_views)
    code, _, err = run(capsys, tmp_path / "colmap", *words, "--out", tmp_path / "new")
    assert code == 0, err
    assert sorted(seen.values()) == [1, 1, 1]
    assert "plan" not in err


def test_many_cameras_show_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nerfcli.cli import convert

    source = scene(tmp_path / "s", *[RATIONAL] * 3)
    frames = [replace(f, focal=(20.0 + i, 20.0 + i)) for i, f in enumerate(source.frames)]
    (tmp_path / "colmap").mkdir()
    source = replace(source, frames=tuple(frames))
    write_scene(source, tmp_path / "colmap", WriteOptions("colmap"))
    monkeypatch.setattr(convert, "MANY_CAMERAS", 3)
    words = ("--to", "llff", "--undistort", "--progress", "json", "--out", tmp_path / "new")
    _, _, err = run(capsys, tmp_path / "colmap", *words)
    assert '"description": "plan"' in err and '"total": 3' in err


@pytest.mark.parametrize("target", ["transforms", "instant-ngp", "llff"])
def test_a_panorama_is_not_written_as_a_lens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """Beside other images nerfstudio has no model for it, and its nearest is far off."""
    source = scene(tmp_path / "s", Lens(), Lens("equirectangular"))
    focal, principal = panorama(SIZE)
    frames = (source.frames[0], replace(source.frames[1], focal=focal, principal=principal))
    (tmp_path / "colmap").mkdir()
    write_scene(replace(source, frames=frames), tmp_path / "colmap", WriteOptions("colmap"))
    words = (tmp_path / "colmap", "--to", target, "--out", tmp_path / "new")
    code, _, err = run(capsys, *words)
    assert code == 2 and not (tmp_path / "new").exists()
    assert f"{target} has no lens like that of 1.png (equirectangular)" in err
    assert "--undistort resamples such images" in err
    code, _, err = run(capsys, *words, "--undistort")
    assert code == 0, err


@pytest.mark.parametrize("target", ["blender", "colmap", "transforms"])
def test_a_source_without_training_views_loses_its_split(tmp_path: Path, target: str) -> None:
    """Our readers, and others, refuse lists without training views."""
    source = scene(tmp_path / "s", *[Lens()] * 9, split="test")
    plan = plan_scene(source, WriteOptions(target))
    assert [item.detail for item in plan.lost if item.what == "splits"] == [
        "which images are for test, for no image is for training"
    ]
    (tmp_path / "new").mkdir()
    write_scene(source, tmp_path / "new", WriteOptions(target))
    splits = load_scene(tmp_path / "new").splits
    assert (len(splits["train"]), len(splits["test"])) == (7, 2)


def test_a_fitted_lens_takes_the_model_of_the_exact_ones(tmp_path: Path) -> None:
    """So that nerfstudio, which reads one model for all, reads it."""
    fisheye, prism = Lens.of("fisheye", k1=0.1), Lens.of("thin_prism_fisheye", k1=0.05, s1=0.01)
    prism = replace(prism, params=tuple(v or 1e-3 for v in prism.params))
    for i, pair in enumerate(((fisheye, RATIONAL), (RATIONAL, fisheye), (fisheye, prism))):
        source = scene(tmp_path / str(i), *pair)
        stated, fits = state_lenses(source.frames, "transforms")
        assert sum(fit is not None for fit in fits) == 1
        models = {frame.lens.model for frame in stated}
        assert len(models) == 1 and models <= {"fisheye", "rad_tan_thin_prism_fisheye"}


def test_a_far_lens_keeps_its_own_model(tmp_path: Path) -> None:
    source = scene(tmp_path / "s", Lens("equirectangular"), Lens.of("brown", k1=0.1))
    focal, principal = panorama(SIZE)
    frames = (replace(source.frames[0], focal=focal, principal=principal), source.frames[1])
    _, fits = state_lenses(frames, "transforms")
    assert fits[1] is None and fits[0] is not None and fits[0].is_useless


def test_photos_that_become_png_need_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nerfcli.cli import convert

    source = scene(tmp_path / "s", Lens(), Lens(), suffix=".webp")
    (tmp_path / "colmap").mkdir()
    write_scene(source, tmp_path / "colmap", WriteOptions("colmap"))
    needed = 2 * convert.PNG_BYTES * SIZE[0] * SIZE[1]
    usage = convert.shutil.disk_usage(tmp_path)
    for free, code in ((needed - 1, 2), (needed, 0)):
        monkeypatch.setattr(
            convert.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free)
        )
        words = ("--link", "--to", "instant-ngp", "--out", tmp_path / "new")
        assert run(capsys, tmp_path / "colmap", *words)[0] == code
    table = json.loads((tmp_path / "new/transforms.json").read_text())
    assert np.all([frame["file_path"].endswith(".png") for frame in table["frames"]])

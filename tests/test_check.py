"""`nerf check` on a sound scene, and on the same scene spoilt in every usual way."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from spoiled import SOUND, SPOILERS, scenes_with_masks, spoil, write_textured_scene

from conftest import ROOT, Nerf
from nerfcli.check import SceneCheck, check_few_views, check_source, write_corrected
from nerfcli.check.scene_check import judge_scene
from nerfcli.cli import main
from nerfcli.core.config import SceneConfig
from nerfcli.core.progress import Progress
from nerfcli.matching.matching import MatchedScene, match_scene
from nerfcli.methods import METHODS
from nerfcli.scenes import load_scene, read_source
from nerfcli.scenes.build import scene_from_source

# Features are found to about half a pixel, a tenth of the error of a wrong pose.
TYPICAL = 0.5
QUIET = Progress("quiet", None, "", "")
REAL = ("fern", "can", "fox", "pc_tower", "lego")


def check(path: Path) -> SceneCheck:
    return check_source(read_source(path), QUIET)


def faults(result: SceneCheck) -> dict[str, str]:
    return {finding.what: finding.text for finding in result.report.faults}


@pytest.fixture(scope="module")
def textured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textured_scene(tmp_path_factory.mktemp("check") / "textured")


@pytest.fixture(scope="module")
def matched(textured: Path) -> MatchedScene:
    """The images, matched once: most spoilers change poses only."""
    return match_scene(scene_from_source(read_source(textured), SceneConfig(holdout=0)), QUIET)


def judge(path: Path, matched: MatchedScene, method: str | None = None) -> SceneCheck:
    source = read_source(path)
    return judge_scene(source, scene_from_source(source, SceneConfig(holdout=0)), matched, method)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_scene_is_sound(
    name: str, textured: Path, matched: MatchedScene, tmp_path: Path
) -> None:
    result = judge(spoil(textured, tmp_path / "copy", SOUND[name]), matched)
    assert faults(result) == {}
    assert result.report.measures["residual_px"] < TYPICAL
    assert result.report.measures["agreeing_pairs"] == 1.0
    assert result.outliers == ()


@pytest.mark.parametrize("name", SPOILERS)
def test_every_spoilt_scene_is_caught_and_named(
    name: str, textured: Path, matched: MatchedScene, tmp_path: Path
) -> None:
    change, what, words = SPOILERS[name]
    copy = spoil(textured, tmp_path / "copy", change)
    result = check(copy) if name == "half-size" else judge(copy, matched)
    found = faults(result)
    assert what in found
    assert words in found[what]
    assert len(found) == 1


@pytest.mark.parametrize(
    "name", ["flipped", "w2c", "w2c-opencv", "transposed", "focal", "swapped", "one-pose"]
)
def test_the_fixed_scene_is_sound(
    name: str, textured: Path, matched: MatchedScene, tmp_path: Path
) -> None:
    copy = spoil(textured, tmp_path / "copy", SPOILERS[name][0])
    (tmp_path / "fixed").mkdir()
    changes = write_corrected(judge(copy, matched), tmp_path / "fixed")
    assert changes
    fixed, true = read_source(tmp_path / "fixed"), read_source(textured)
    poses = {frame.name: frame for frame in true.frames}
    if name == "one-pose":  # the true pose of one view is unknown: it is left out
        assert {frame.name for frame in fixed.frames} == set(poses) - {"images/v_5.png"}
    for frame in fixed.frames:
        np.testing.assert_allclose(frame.c2w, poses[frame.name].c2w, atol=1e-9)
        # the focal lengths that are tried are 5 % apart
        assert frame.focal[0] == pytest.approx(poses[frame.name].focal[0], rel=0.03)


def test_a_fault_with_a_cure_names_the_command(
    textured: Path,
    matched: MatchedScene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = spoil(textured, tmp_path / "my copy", SPOILERS["one-pose"][0])
    result = judge(copy, matched)
    monkeypatch.setattr("nerfcli.check.check_source", lambda *args, **options: result)
    for words, shown in (([], True), (["--quiet"], False)):
        with pytest.raises(SystemExit) as ended:
            main(["check", str(copy), *words])
        assert ended.value.code == 3
        command = f"nerf check '{copy}' --fix --out 'my copy-fixed'"
        assert (command in capsys.readouterr().out) is shown


def test_one_exchange_names_both_images(
    textured: Path, matched: MatchedScene, tmp_path: Path
) -> None:
    result = judge(spoil(textured, tmp_path / "copy", SPOILERS["swapped"][0]), matched)
    assert sorted(result.swapped) == [(3, 8), (8, 3)]


@pytest.mark.parametrize(("inverted", "expected"), [(False, set()), (True, {"masks-inverted"})])
def test_polarity_of_masks(inverted: bool, expected: set[str], tmp_path: Path) -> None:
    result = check(scenes_with_masks(tmp_path / "scene", inverted=inverted))
    assert set(faults(result)) == expected


def test_scale_of_depth_images(tmp_path: Path, matched: MatchedScene) -> None:
    scene = write_textured_scene(tmp_path / "scene", depth=True)
    good = judge(scene, matched)
    assert faults(good) == {}
    # the median of thousands of points; rounding to millimetres and the grid of pixels are less
    assert good.report.measures["depth / geometry"] == pytest.approx(1.0, abs=0.02)
    table = json.loads((scene / "transforms.json").read_text())
    table["depth_unit_scale_factor"] = 0.01
    (scene / "transforms.json").write_text(json.dumps(table))
    found = faults(judge(scene, matched))
    assert set(found) == {"depth-scale"}
    assert "10" in found["depth-scale"]


def test_faults_of_images(textured: Path, tmp_path: Path) -> None:
    copy = spoil(textured, tmp_path / "copy", SOUND["as-is"])
    images = copy / "images"
    (images / "v_2.png").write_bytes((images / "v_2.png").read_bytes()[:2000])
    (images / "v_6.png").write_bytes((images / "v_11.png").read_bytes())
    with Image.open(images / "v_9.png") as image:
        image.resize((40, 30)).resize(image.size).save(images / "v_9.png")
    with Image.open(images / "v_4.png") as image:
        image.point(lambda value: value * 0.6).save(images / "v_4.png")
    result = check(copy)
    named = {f.what: f.views for f in result.report.findings}
    assert named["unreadable"] == ("images/v_2.png",)
    assert set(named["duplicate"]) == {"images/v_6.png", "images/v_11.png"}
    assert named["blurred"] == ("images/v_9.png",)
    assert "images/v_4.png" in named["exposure"]


def test_a_box_that_holds_nothing(textured: Path, matched: MatchedScene, tmp_path: Path) -> None:
    def shrink(folder: Path, table: dict) -> None:
        table |= {"scale": 8.0, "offset": [0.5, 0.5, 0.5], "aabb_scale": 1}

    found = faults(judge(spoil(textured, tmp_path / "copy", shrink), matched, "hashgrid"))
    assert "box" in found


def test_only_near_bounds_a_method_without_a_box(
    textured: Path, matched: MatchedScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = replace(METHODS["hashgrid"], name="unbounded", is_unbounded=True)
    monkeypatch.setitem(METHODS, "unbounded", places)
    source = read_source(textured)
    scene = scene_from_source(source, SceneConfig(holdout=0))
    box = replace(scene.box, half_size=1e-3 * scene.box.half_size)
    far = judge_scene(source, replace(scene, box=box, far=1e-6 + scene.near), matched)
    assert faults(far) == {}
    assert "scene.box" not in far.report.to_text()
    assert far.report.measures["method_name"] == "unbounded"
    assert "the photos show what lies behind" in far.report.to_text()
    near = judge_scene(source, replace(scene, near=1e3), matched)
    assert "nearer than near" in faults(near)["bounds"]
    found = faults(judge_scene(source, replace(scene, far=1e-6 + scene.near), matched, "hashgrid"))
    assert "farther than far" in found["bounds"]


def test_training_checks_a_few_views_first(textured: Path, tmp_path: Path) -> None:
    flipped = spoil(textured, tmp_path / "flipped", SPOILERS["flipped"][0])
    assert check_few_views(load_scene(textured), seconds=math.inf) == []
    found = check_few_views(load_scene(flipped), seconds=math.inf)
    assert [(f.level, f.what) for f in found] == [("warning", "convention")]


def test_the_command(textured: Path, tmp_path: Path, nerf: Nerf) -> None:
    flipped = spoil(textured, tmp_path / "flipped", SPOILERS["flipped"][0])
    before = sorted(path.name for path in flipped.rglob("*"))
    done = nerf(
        *("check", flipped, "--json", "--quiet", "--fix", "--out", "fixed"),
        *("--picture", "check.png"),
        code=3,
    )
    value = json.loads(done.stdout)
    assert done.stderr == ""
    assert value["sound"] is False
    assert [f["what"] for f in value["findings"] if f["level"] == "fault"] == ["convention"]
    assert sorted(path.name for path in flipped.rglob("*")) == before
    with Image.open(tmp_path / "check.png") as image:
        assert image.size == (1440, 800)
        assert len(image.getcolors(1 << 20) or ()) >= 5  # paper, ink, points, cameras, box
    assert faults(check(tmp_path / "fixed")) == {}


def test_a_scene_without_a_cure_is_still_reported(
    textured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fixed"
    words = ["check", str(textured), "--views", "3", "--fix", "--out", str(out), "--json"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 3
    value = json.loads(capsys.readouterr().out)
    assert (value["sound"], value["fixed"]) == (True, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoilt", [b"", b"no array", None])
def test_depth_that_cannot_be_read(
    tmp_path: Path, matched: MatchedScene, spoilt: bytes | None
) -> None:
    scene = write_textured_scene(tmp_path / "scene", depth=True)
    table = json.loads((scene / "transforms.json").read_text())
    path = scene / "d.npy"
    if spoilt is None:
        np.save(path, np.ones(5))
    else:
        path.write_bytes(spoilt)
    table["frames"][0]["depth_file_path"] = "d.npy"
    (scene / "transforms.json").write_text(json.dumps(table))
    assert "d.npy cannot be read" in faults(judge(scene, matched))["unreadable"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "does not exist"),
        (["scene", "--fix"], "--out"),
        (["scene", "--out", "x"], "--fix"),
        (["scene", "--picture", "a.jpg"], "PNG"),
        (["scene", "--views", "1"], "--views"),
        (["scene", "--fix", "--out", "scene"], "--out"),
        (["scene", "--fix", "--out", "."], "no name of its own"),
        (["scene", "--picture", "scene/images/v_0.png"], "is an image of the scene"),
    ],
)
def test_bad_use_gives_one_message(
    words: list[str],
    message: str,
    textured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "scene").symlink_to(textured)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["check", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def real_scene(name: str) -> Path:
    data = os.environ.get("NERF_DATA")
    if not data or not (Path(data) / name).is_dir():
        pytest.skip("NERF_DATA does not name the folder of the real scenes")
    return Path(data) / name


@pytest.mark.slow
def test_the_bundled_scene_has_no_warning() -> None:
    report = check(ROOT / "datasets" / "biplane").report
    assert {finding.level for finding in report.findings} <= {"note"}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_scenes_are_sound(name: str) -> None:
    result = check(real_scene(name))
    assert faults(result) == {}
    # their README measured 0.2 to 0.5 px with another matcher
    assert 0.1 < result.report.measures["residual_px"] < 0.6


MATCHED: dict[str, MatchedScene] = {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fox", "pc_tower", "lego"])
@pytest.mark.parametrize("fault", SPOILERS)
def test_spoilt_real_scenes_are_caught(name: str, fault: str, tmp_path: Path) -> None:
    if (name, fault) == ("lego", "half-size"):
        pytest.skip("an angle of view holds for images of any size: such a copy is sound")
    if fault == "text-order" and name != "lego":
        pytest.skip("names of equal length sort the same as text and as numbers")
    scene = real_scene(name)
    if name not in MATCHED:
        same = read_source(spoil(scene, tmp_path / "same", SOUND["as-is"]))
        MATCHED[name] = match_scene(scene_from_source(same, SceneConfig(holdout=0)), QUIET)
    change, what, words = SPOILERS[fault]
    copy = spoil(scene, tmp_path / "copy", change)
    found = faults(check(copy) if fault == "half-size" else judge(copy, MATCHED[name]))
    assert what in found
    assert words in found[what]


@pytest.mark.slow
@pytest.mark.parametrize("inverted", [False, True])
def test_masks_from_alpha(inverted: bool, tmp_path: Path) -> None:
    """lego on white, with its alpha as masks (black = ignored)."""
    table = json.loads((real_scene("lego") / "transforms_train.json").read_text())
    (tmp_path / "masks").mkdir()
    for frame in table["frames"][::2]:
        name = Path(frame["file_path"]).name + ".png"
        with Image.open(real_scene("lego") / "train" / name) as image:
            paper = Image.new("RGB", image.size, (255, 255, 255))
            paper.paste(image, mask=image.getchannel("A"))
            alpha = np.array(image.getchannel("A")) > 0
        paper.save(tmp_path / name)
        Image.fromarray(((alpha != inverted) * 255).astype(np.uint8)).save(
            tmp_path / "masks" / name
        )
        frame |= {"file_path": name, "mask_path": f"masks/{name}"}
    table["frames"] = table["frames"][::2]
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    assert set(faults(check(tmp_path))) == ({"masks-inverted"} if inverted else set())


def test_a_lens_that_leaves_no_pixel_is_reported(
    textured: Path, matched: MatchedScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nerfcli.check.scene_check.find_blind_lenses", lambda scene, views: [1])
    result = judge(textured, matched)
    (fault,) = result.report.faults
    assert (fault.what, fault.views) == ("lens", result.scene.names[1:2])
    assert f"the lens of {result.scene.names[1]} has a ray for none of its" in fault.text

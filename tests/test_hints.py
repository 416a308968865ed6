"""A command that is given the wrong thing says what it is, and which command was meant."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT
from nerfcli.cli import main
from nerfcli.cli.check import fix_command
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import EXTRAS
from nerfcli.core.progress import Progress
from nerfcli.core.text import command
from nerfcli.prepare import PrepareOptions, pipeline, prepare_scene

Refuse = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """Run a command in tmp_path that exits with 2, and return its one message."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        messages = [line for line in err.splitlines() if line.startswith("nerf: ")]
        assert (end.value.code, out, len(messages)) == (2, "", 1), err
        return messages[0]

    return run


def write_run(path: Path, scene: Path) -> Path:
    """The records of a run, without weights."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text('method = "hashgrid"\n')
    source = {"given": str(scene), "resolved": str(scene.resolve())}
    (path / "scene.json").write_text(json.dumps({"name": scene.name, "data_source": source}))
    files = {part: f"{part}-5.safetensors" for part in ("model", "optimizer")}
    budget = {"total_steps": 5, "n_plans": 0, "seconds": 0.0}
    state = {"format": 2, "files": files, "step": 5, "seconds": 1.0, "budget": budget}
    (path / "state.json").write_text(json.dumps(state))
    return path


@pytest.fixture
def place(tmp_path: Path, ball: Path) -> Path:
    """A scene `chair` and its two runs; photos, a video and a shape file."""
    shutil.copytree(ball, tmp_path / "chair")
    for n in (1, 2):
        run = write_run(tmp_path / "runs" / f"chair-{n}", tmp_path / "chair")
        os.utime(run / "state.json", (n, n))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{i}.jpg")
    (tmp_path / "walk.mp4").write_bytes(b"x")
    (tmp_path / "a.ply").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("verb", ["render", "eval", "export", "info"])
@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("chair", ["chair is a scene (Blender), not a run", "newest run is runs/chair-2"]),
        ("photos", ["a folder of photos, not a run", "nerf prepare photos --out scene"]),
        ("runs", ["a folder of runs", "runs/chair-2"]),
        ("runs/chair-1/scene.json", ["a file of run runs/chair-1"]),
        ("walk.mp4", ["a video, not a run", "nerf prepare walk.mp4"]),
        ("chairs-1", ["no such run: chairs-1; did you mean runs/chair-1?"]),
        ("zebra", ["no such run: zebra", "`nerf runs`"]),
        ("runs/chair", ["did you mean runs/chair-2?"]),
    ],
)
def test_a_run_is_wanted(
    place: Path, refused: Refuse, verb: str, word: str, messages: list[str]
) -> None:
    if verb == "export" and Path(place / word).is_file():
        return  # export takes shape files
    message = refused(verb, word)
    assert all(text in message for text in messages), message


def test_the_name_of_a_run_finds_it(place: Path, refused: Refuse) -> None:
    """It is opened, and found to have no weights."""
    assert "runs/chair-1/model-5.safetensors is missing" in refused("info", "chair-1")
    resumed = refused("train", "--resume", "chair-1", "--steps", 5)
    assert "runs/chair-1/model-5.safetensors is missing" in resumed


def test_a_scene_without_a_run_is_to_be_trained(place: Path, refused: Refuse) -> None:
    shutil.rmtree(place / "runs")
    assert "Train it: nerf train chair." in refused("render", "chair")


@pytest.mark.parametrize("run", ["runs/chair-1", "chair-1"])
@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "RUN"], "Go on with it: nerf train --resume runs/chair-1. Its scene anew"),
        (["check", "RUN"], "Its scene is "),
        (["convert", "RUN", "--to", "colmap", "--out", "o"], "nerf export runs/chair-1 --to cam"),
        (["eval", "runs/chair-2", "--scene", "RUN"], "Its scene is "),
    ],
)
def test_a_scene_is_wanted(
    place: Path, refused: Refuse, run: str, words: list[str], meant: str
) -> None:
    message = refused(*(run if word == "RUN" else word for word in words))
    assert "runs/chair-1 is a run, not a scene." in message
    assert meant in message
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "chiar"], "did you mean chair?"),
        (["train", "walk.mp4"], "is a video, not a scene. Find its cameras"),
        (["train", "runs/chair-1/config.toml"], "is a file of run runs/chair-1"),
        (["prepare", "runs/chair-1", "--out", "o"], "is a run, not photos"),
        (["compare", "runs/chair-1", "a.ply"], "is a run and a.ply is none: name two runs"),
    ],
)
def test_other_things_are_wanted(
    place: Path, refused: Refuse, words: list[str], meant: str
) -> None:
    assert meant in refused(*words)


def test_a_data_set_is_no_place_for_pictures(place: Path, refused: Refuse, ball: Path) -> None:
    before = sorted(place.rglob("*"))
    assert "--out chair is a data set" in refused("render", "chair-1", "--out", "chair")
    assert "not empty (r_0.png)" in refused("render", "chair-1", "--out", "chair/train")
    assert "is a data set" in refused("export", "chair-1", "--to", "cameras", "--out", "chair")
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--faces", 50], "--faces needs the package fast-simplification"),
        (["--texture", 64], "--texture needs the package xatlas"),
        (["--fit"], "--fit needs the package fast-simplification"),
        (["--to", "points", "--faces", 50], "--faces belongs to --to mesh, not points."),
        (["--to", "points", "--no-fill"], "--no-fill belongs to --to mesh or voxels or sdf"),
        (["--planes", 8], "--planes belongs to --to mpi, not mesh."),
    ],
)
def test_what_an_export_needs_is_seen_before_its_work(
    refused: Refuse, monkeypatch: pytest.MonkeyPatch, words: list[object], message: str
) -> None:
    for module in ("fast_simplification", "xatlas"):
        monkeypatch.setitem(sys.modules, module, None)
    got = refused("export", "no-such-run", *words)
    assert message in got
    assert ("pip install 'nerfcli[mesh]'" in got) == ("needs" in message)


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package, extra in EXTRAS.values():
        named = project["optional-dependencies"][extra]
        assert any(line.startswith(f"{package}>=") for line in named), package


def prepare(photos: str, out: Path, **options: object) -> dict:
    quiet = Progress("quiet", None, "", "")
    made = PrepareOptions(**options)  # pyright: ignore[reportArgumentType]
    return prepare_scene(Path(photos), out, made, quiet, lambda: False)


def test_a_failed_prepare_does_not_refuse_the_next(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycolmap")
    monkeypatch.chdir(place)
    (place / "empty").mkdir()
    out = place / "out"
    with pytest.raises(NerfError, match="holds 0 images"):
        prepare("empty", out)
    assert not out.exists()
    monkeypatch.setattr(pipeline.sfm, "extract_features", fail)
    with pytest.raises(NerfError, match="no model"):
        prepare("photos", out)
    shutil.copytree(place / "photos", place / "others")
    (place / "others" / "2.jpg").rename(place / "others" / "new.jpg")
    for words in ({"lens": "opencv"}, {"lens": "radial"}):  # another source and option, and so on
        with pytest.raises(NerfError, match="no model"):
            prepare("others", out, **words)
        assert sorted(os.listdir(out / "images")) == ["0.jpg", "1.jpg", "new.jpg"]


def fail(*args: object, **options: object) -> None:
    raise NerfError("no model.")


def test_prepare_names_what_its_folder_holds(place: Path, refused: Refuse) -> None:
    pytest.importorskip("pycolmap")
    work = place / "out" / ".prepare"
    work.mkdir(parents=True)
    (work / "options.json").write_text(json.dumps({"from": "/cam/other", "frames": 150}))
    message = refused("prepare", "photos", "--out", "out")
    assert "a scene begun from /cam/other, not from photos" in message
    assert "nerf prepare /cam/other --out out" in message
    words = {"from": "/cam/the other", "lens": "opencv", "undistort": True, "masks": None}
    (work / "options.json").write_text(json.dumps({"frames": 150, "pyramid": 0, **words}))
    again = "nerf prepare '/cam/the other' --out out --lens opencv --undistort."
    assert f"Go on with that one: {again}" in refused("prepare", "photos", "--out", "out")
    assert f"Go on with it: {again}" in refused("train", "out")
    (work / "options.json").write_text(json.dumps({"from": "/cam/other", "frames": 150}))
    assert "Go on with it: nerf prepare /cam/other --out out" in refused("train", "out")
    assert "Go on with it: nerf prepare /cam/other --out out" in refused("render", "out")


@pytest.mark.parametrize("word", ["c**r", "ch*", "chai?", "[c]hair", "**"])
def test_a_name_is_no_pattern(place: Path, refused: Refuse, word: str) -> None:
    message = refused("render", word)
    assert f"no such run: {word}; " in message
    assert "did you mean runs/chair-2?" not in message


def test_a_cure_repeats_what_was_given(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    given = {"--alpha": "ignore", "--method": "auto", "--skip-bad-frames": True, "--views": 300}
    cure = fix_command(Path("chair"), {**given, "--images": Path("my photos")})
    words = "--alpha ignore --skip-bad-frames --images 'my photos'"
    assert cure == f"nerf check chair --fix --out chair-fixed {words}"
    (place / "chair-fixed").mkdir()
    assert fix_command(Path("chair"), {}) == "nerf check chair --fix --out chair-fixed-2"
    monkeypatch.chdir(place / "chair")
    assert fix_command(Path(), {}).endswith(f"--out {command(place / 'chair-fixed-2')}")
    assert command("nerf check", Path("-x")) == "nerf check ./-x"


def test_a_fixed_scene_replaces_nothing(place: Path, refused: Refuse) -> None:
    (place / "old").mkdir()
    (place / "old" / "conversion.json").write_text("{}")
    message = refused("check", "chair", "--fix", "--out", "old")
    assert "--out old is not empty" in message and "--overwrite" not in message

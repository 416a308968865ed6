"""What a scene shows, and the method that is chosen by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nerfcli.methods as methods_module
from conftest import sphere_c2w, sphere_image
from nerfcli.cameras.lenses import Lens
from nerfcli.cli import main
from nerfcli.core.config import Config, HashGridConfig, SceneConfig, UnboundedConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.settings import load_config
from nerfcli.methods import METHODS, choose_method, hashgrid_method
from nerfcli.methods.classic_trainer import CLASSIC
from nerfcli.methods.unbounded_trainer import UNBOUNDED
from nerfcli.scenes import Scene, load_scene
from nerfcli.scenes.build import scene_from_source
from nerfcli.scenes.capture import capture_of
from nerfcli.scenes.source import OPENGL_COLUMNS, Frame, Points, Source

N = 12
TURNED = np.diag([-1.0, 1.0, -1.0, 1.0])  # a camera that looks the other way


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with a method for places, whatever else there is."""
    places = replace(METHODS["hashgrid"], name="unbounded", is_unbounded=True)
    # a dictionary of its own: taking out and putting back would change the order
    monkeypatch.setattr(methods_module, "METHODS", {**METHODS, "unbounded": places})


def scene_of(poses: Sequence[np.ndarray], points: np.ndarray | None = None) -> Scene:
    """A scene of cameras without photos; poses [4, 4] are in OpenGL's frame."""
    frames = tuple(
        Frame(
            f"{i:03}",
            (pose * OPENGL_COLUMNS)[:3],
            (20.0, 20.0),
            (8.0, 8.0),
            (16, 16),
            Lens("pinhole"),
            None,
        )
        for i, pose in enumerate(poses)
    )
    source = Source(
        "test", Path(), "test", frames, points=None if points is None else Points(points)
    )
    return scene_from_source(source, SceneConfig(holdout=0))


def write_photos(folder: Path, background: str) -> Path:
    """The ball's photos as nerfstudio has them: RGBA, or RGB on a plain or a busy background."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    behind = {"white": np.full((16, 16, 3), 255, np.uint8), "busy": noise}
    frames = []
    for i in range(N):
        pose = sphere_c2w(i, N)
        rgba = sphere_image(pose)
        if background in behind:
            rgba = np.where(rgba[..., 3:] > 0, rgba[..., :3], behind[background])
        Image.fromarray(rgba).save(folder / f"{i:03}.png")
        frames.append({"file_path": f"{i:03}.png", "transform_matrix": pose.tolist()})
    table = {"fl_x": 20.0, "fl_y": 20.0, "cx": 8.0, "cy": 8.0, "w": 16, "h": 16, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    "background, kind, reason, method",
    [
        ("transparent", "object", "transparent background", "hashgrid"),
        ("white", "object", "plain background", "hashgrid"),
        ("busy", "around", "look at one place", "unbounded"),
    ],
)
def test_what_the_photos_show_behind_the_ball_chooses_the_method(
    tmp_path: Path, background: str, kind: str, reason: str, method: str
) -> None:
    scene = load_scene(write_photos(tmp_path / "scene", background))
    assert capture_of(scene).kind == kind
    name, why = choose_method(Config(), scene)
    assert name == method and reason in why


def test_cameras_that_look_outwards_or_one_way_are_places() -> None:
    around = [sphere_c2w(i, N) for i in range(N)]
    row = [np.eye(4) for _ in range(N)]
    for i, pose in enumerate(row):
        pose[:2, 3] = [0.1 * (i % 4), 0.1 * (i // 4)]
    cases = {"outward": [pose @ TURNED for pose in around], "forward": row}
    for kind, poses in cases.items():
        scene = scene_of(poses)
        assert capture_of(scene).kind == kind
        assert choose_method(Config(), scene)[0] == "unbounded"
        faced = kind == "forward"
        own = UNBOUNDED.resolve(Config(), scene, "cpu").unbounded
        assert own.space == ("perspective" if faced else "contraction")
        spread = CLASSIC.resolve(Config(), scene, "cpu").classic.spacing
        assert spread == ("disparity" if faced else "linear")
        stated = replace(Config(), unbounded=UnboundedConfig(space="contraction"))
        assert UNBOUNDED.resolve(stated, scene, "cpu").unbounded.space == "contraction"


def test_the_reason_says_how_much_lies_beyond() -> None:
    points = np.random.default_rng(0).normal(size=(200, 3))
    points[:50] *= 20.0
    reason = capture_of(scene_of([sphere_c2w(i, N) for i in range(N)], points)).reason
    assert "% of the sparse points lie beyond" in reason


def test_places_take_the_hash_grid_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of([sphere_c2w(i, N) for i in range(N)])
    only = {name: method for name, method in METHODS.items() if name != "unbounded"}
    monkeypatch.setattr(methods_module, "METHODS", only)
    name, why = choose_method(Config(), scene)
    assert name == "hashgrid" and why


def test_what_the_user_says_is_taken() -> None:
    scene = scene_of([sphere_c2w(i, N) for i in range(N)])
    assert choose_method(Config("classic"), scene) == ("classic", "")
    assert choose_method(Config(hashgrid=HashGridConfig(n_levels=4)), scene) == ("hashgrid", "")
    name, why = choose_method(Config(scene=SceneConfig(cascades=2)), scene)
    assert name == "hashgrid" and "scene.cascades" in why


def test_a_key_of_one_methods_table_chooses_that_method(tmp_path: Path) -> None:
    assert load_config(sets=["hashgrid.n_levels=16"]).method == "hashgrid"  # the default value
    assert load_config(sets=["classic.n_fine=16"]).method == "classic"
    assert load_config(sets=["train.steps=5"]).method is None
    file = tmp_path / "own.toml"
    file.write_text("[classic]\nn_fine = 16\n")
    assert load_config(file=file).method == "classic"
    with pytest.raises(NerfError, match="two methods; choose one with --method hashgrid or"):
        load_config(sets=["hashgrid.n_levels=4", "classic.n_fine=16"])
    with pytest.raises(NerfError, match="the method is classic, which does not read"):
        load_config(sets=["hashgrid.n_levels=4"], flags={"method": "classic"})


def test_train_and_info_say_the_method_and_why(
    ball: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nerf(*words: object) -> tuple[str, str]:
        with pytest.raises(SystemExit) as end:
            main([*map(str, words)])
        assert end.value.code == 0
        return capsys.readouterr()

    monkeypatch.setitem(hashgrid_method.N_SAMPLES, "cpu", 512)
    monkeypatch.setitem(hashgrid_method.LOG2_TABLE_SIZE, "cpu", 10)
    run = tmp_path / "run"
    out, err = nerf("train", ball, "--out", run, "--steps", 1, "--device", "cpu", "--json")
    value = json.loads(out)
    assert value["method"] == "hashgrid"
    assert "transparent background" in value["method_reason"]
    assert f"method hashgrid: {value['method_reason']}" in err
    assert f"method hashgrid ({value['method_reason']})" in nerf("info", run)[0]
    out, err = nerf("train", ball, "--resume", "--out", run, "--steps", 1, "--json")
    assert json.loads(out)["method_reason"] == value["method_reason"]

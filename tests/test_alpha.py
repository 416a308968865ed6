"""What alpha means: nothing is there, or ignore the pixel; stated, or by what images show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import SIZE, write_blender_scene
from nerfcli.check.judge_alpha import judge_alpha, measure_uncovered
from nerfcli.cli import main
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import Scene, load_scene, load_views, read_source, views_bytes
from nerfcli.scenes.build import scene_from_source

Change = Callable[[int, np.ndarray], np.ndarray]


def repaint(folder: Path, change: Change) -> Path:
    """The ball's scene with each image changed: view, [h, w, 4] -> [h, w, 3 or 4]."""
    write_blender_scene(folder)
    for i, path in enumerate(sorted(folder.glob("t*/*.png"))):
        Image.fromarray(change(i, np.array(Image.open(path)))).save(path)
    return folder


def with_passer_by(i: int, pixels: np.ndarray) -> np.ndarray:
    """An opaque photo, of which alpha leaves out a strip: a person, somewhere else each time."""
    pixels[..., 3] = 255
    start = (3 * i) % SIZE
    pixels[2:, start : start + 3, 3] = 0
    return pixels


def only_some(change: Change) -> Change:
    """Drop the alpha channel of every third image."""
    return lambda i, pixels: change(i, pixels) if i % 3 else pixels[..., :3].copy()


def as_it_is(i: int, pixels: np.ndarray) -> np.ndarray:
    return pixels


def cut_in_half(i: int, pixels: np.ndarray) -> np.ndarray:
    """Leave one half of the ball, not the same one in each view; larger, so that pixels carve."""
    pixels = pixels.repeat(4, axis=0).repeat(4, axis=1)
    middle = 2 * SIZE
    pixels[:, slice(0, middle) if i % 2 else slice(middle, None), 3] = 0
    return pixels


def test_ignored_alpha_is_a_mask(tmp_path: Path) -> None:
    folder = repaint(tmp_path / "scene", with_passer_by)
    scene = load_scene(folder, SceneConfig(alpha="ignore"))
    assert (scene.has_alpha, scene.alpha_ignored, scene.background) == (False, True, "black")
    views = load_views(scene, [0, 1])
    assert not views.has_alpha  # no silhouettes, and so no hull
    assert views.usable is not None
    usable = np.zeros((2, SIZE, SIZE), bool)
    usable.reshape(-1)[views.usable.numpy()] = True
    for i, name in enumerate(scene.names[:2]):
        stored = np.array(Image.open(folder / name))
        assert np.array_equal(usable[i], stored[..., 3] == 255)
        assert np.array_equal(views.image(i).numpy(), stored[..., :3])
    assert views_bytes(scene, [0]) == SIZE * SIZE * (3 + 4)
    halved = load_views(load_scene(folder, SceneConfig(alpha="ignore", downscale=2)), [0])
    blocks = (np.array(Image.open(folder / scene.names[0]))[..., 3] == 255).reshape(8, 2, 8, 2)
    assert halved.usable is not None
    assert halved.usable.tolist() == blocks.all(axis=(1, 3)).reshape(-1).nonzero()[0].tolist()


def test_a_scene_keeps_what_alpha_means(tmp_path: Path) -> None:
    scene = load_scene(
        repaint(tmp_path / "scene", with_passer_by), SceneConfig(alpha="ignore")
    ).to_json()
    assert Scene.from_json(scene).alpha_ignored
    del scene["alpha_ignored"]  # as in runs of before
    assert not Scene.from_json(scene).alpha_ignored


@pytest.mark.parametrize(
    ("change", "ignored", "said"),
    [
        (as_it_is, False, "the others count as opaque"),
        (with_passer_by, True, "it counts as a mask"),
        (lambda i, pixels: np.maximum(pixels, [0, 0, 0, 255]).astype(np.uint8), True, "a mask"),
    ],
)
def test_mixed_sets_are_decided_by_what_they_show(
    tmp_path: Path, change: Change, ignored: bool, said: str
) -> None:
    folder = repaint(tmp_path / "scene", only_some(change))
    scene = load_scene(folder)
    assert (scene.has_alpha, scene.alpha_ignored) == (not ignored, ignored)
    assert any("6 of 10 images have an alpha channel" in n and said in n for n in scene.notes)
    for alpha in ("ignore", "transparent"):
        scene = load_scene(folder, SceneConfig(alpha=alpha))
        assert scene.alpha_ignored is (alpha == "ignore")
        assert not any("alpha channel" in note for note in scene.notes)
    without = [i for i, name in enumerate(scene.names) if Image.open(folder / name).mode == "RGB"]
    assert len(without) == 4
    assert (load_views(scene, without).pixels[:, 3] == 255).all()  # they count as opaque


def test_cameras_without_an_image_do_not_make_a_set_mixed(ball: Path) -> None:
    source = read_source(ball)
    first = replace(source.frames[0], image=None, has_alpha=False)
    scene = scene_from_source(replace(source, frames=(first, *source.frames[1:])), SceneConfig())
    assert scene.has_alpha and not any("alpha" in note for note in scene.notes)


def test_a_mixed_set_that_could_be_either_is_refused(tmp_path: Path) -> None:
    def bottom(i: int, pixels: np.ndarray) -> np.ndarray:
        pixels[-2:, :, 3] = 255  # the object reaches the lower border
        return pixels

    folder = repaint(tmp_path / "scene", only_some(bottom))
    with pytest.raises(NerfError, match=r"--alpha transparent .*--alpha ignore"):
        load_scene(folder)
    assert load_scene(folder, SceneConfig(alpha="transparent")).has_alpha


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (as_it_is, None),
        (with_passer_by, "looks like a mask"),
        (cut_in_half, "silhouettes contradict each other"),
    ],
)
def test_check_warns_where_alpha_looks_like_a_mask(
    tmp_path: Path, change: Change, words: str | None
) -> None:
    source = read_source(repaint(tmp_path / "scene", change))
    findings = judge_alpha(source, scene_from_source(source, SceneConfig()), True)
    assert [f.what for f in findings] == ([] if words is None else ["alpha-mask"])
    assert words is None or (words in findings[0].text and "--alpha ignore" in findings[0].text)
    ignored = scene_from_source(source, SceneConfig(alpha="ignore"))
    assert judge_alpha(source, ignored, True) == []


def test_sound_silhouettes_cover_all_that_is_opaque(ball: Path) -> None:
    assert measure_uncovered(read_source(ball)) < 0.01


def test_a_run_keeps_its_meaning_of_alpha(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = repaint(tmp_path / "scene", only_some(with_passer_by))
    small = ["--set", "hashgrid.n_samples=256", "--set", "hashgrid.log2_table_size=8"]
    fresh = ["train", str(folder), "--out", "run", "--steps", "1", "--backend", "torch", *small]
    assert exit_code(*fresh, "--device", "cpu", "--quiet") == 0, capsys.readouterr().err
    scene = json.loads((tmp_path / "run" / "scene.json").read_text())
    assert scene["alpha_ignored"] and not scene["has_alpha"]
    assert exit_code("eval", "run", "--no-images", "--quiet") == 0, capsys.readouterr().err
    again = ["train", "--resume", "run", "--steps", "2", "--quiet", "--alpha"]
    assert exit_code(*again, "transparent") == 2
    assert "run run has scene.alpha = 'ignore'" in capsys.readouterr().err
    assert exit_code(*again, "ignore") == 0, capsys.readouterr().err
    assert exit_code("check", str(folder), "--alpha", "maybe") == 2
    assert "--alpha must be one of ignore, transparent, or auto" in capsys.readouterr().err


def exit_code(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0)


def test_images_that_all_look_masked_are_doubted_in_a_line(tmp_path: Path) -> None:
    folder = repaint(tmp_path / "scene", with_passer_by)
    (note,) = [n for n in load_scene(folder).notes if "--alpha ignore" in n]
    assert "alpha counts as empty space, though" in note
    assert not load_scene(folder, SceneConfig(alpha="transparent")).notes

"""Camera paths, crops and exposures of a page: what is saved is what the commands read."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from analytic_field import analytic_model, ball, density_of, sphere_cameras

from nerfcli.cameras.key_frames import fly_through
from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.core.errors import NerfError
from nerfcli.engine.crop import crop_text, moved, read_crop
from nerfcli.engine.run_folders import BEGUN, clear, is_begun
from nerfcli.scenes.own_path import write_own_path
from nerfcli.scenes.path_frames import KnownFrames, move_cameras
from nerfcli.scenes.read_path import read_path
from nerfcli.scenes.scene import Similarity
from nerfcli.view import page as page_module
from nerfcli.view.bands import aim, paint_rows
from nerfcli.view.camera_path import CameraPath, Key
from nerfcli.view.crop_panel import crop_of, slider_numbers
from nerfcli.view.look import Look, fitted, with_bars
from nerfcli.view.page import Page
from nerfcli.view.painter import Canvas
from nerfcli.view.path_panel import PathPanel
from nerfcli.view.run_files import AlreadyThere, save_in_run, saved_in_run

TURNED = Similarity(0.5, ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), (0.1, 0.0, 0.2))
CAMERAS = sphere_cameras(4, size=24)


def some_path(n: int = 4, **values: Any) -> CameraPath:
    keys = [Key(c2w, math.radians(40 + 5 * i)) for i, c2w in enumerate(CAMERAS.c2w[:n])]
    return CameraPath(TURNED, keys, size=(64, 36), seconds=0.5, fps=20.0, **values)


@pytest.mark.parametrize("is_loop", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_film_of_a_saved_path_is_the_preview(tmp_path: Path, n: int, is_loop: bool) -> None:
    path = some_path(n, is_loop=is_loop)
    file = save_in_run(tmp_path, "paths", "flight", path.text())
    found = read_path(file, KnownFrames(), (8, 8))
    assert (found.are, found.fps, found.n_frames, found.is_loop) == ("keys", 20.0, 10, is_loop)
    flown = fly_through(found.cameras, 10, is_loop=is_loop)
    flown, film = move_cameras(flown, TURNED), path.film()
    torch.testing.assert_close(flown.c2w, film.c2w, atol=1e-9, rtol=0)
    torch.testing.assert_close(flown.focal, film.focal, atol=1e-9, rtol=0)
    assert flown.size.tolist() == film.size.tolist() == [[64, 36]] * 10
    torch.testing.assert_close(film.c2w[0], CAMERAS.c2w[0], atol=1e-6, rtol=0)


def test_a_loaded_path_is_the_one_that_was_saved() -> None:
    path, other = some_path(is_loop=True), CameraPath(TURNED)
    other.take("flight.json", path.text().encode())
    assert (other.size, other.fps, other.is_loop) == (path.size, path.fps, True)
    assert other.n_frames == path.n_frames
    torch.testing.assert_close(other.film().c2w, path.film().c2w, atol=1e-9, rtol=0)
    assert [key.fov for key in other.keys] == pytest.approx([key.fov for key in path.keys])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\x00", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "no path of this program"),
        (b'{"format": "nerf camera path", "version": 1, "key_frames": []}', "key_frames"),
        (b'{"format": "nerf camera path", "version": 1, "key_frames": [{}]}', "camera_to_world"),
    ],
)
def test_a_file_that_is_no_path_is_refused(content: bytes, words: str) -> None:
    path = some_path()
    with pytest.raises(NerfError, match=words):
        path.take("flight.json", content)
    assert len(path.keys) == 4


def test_a_path_that_would_lose_something_is_refused(tmp_path: Path) -> None:
    file, path = tmp_path / "flight.json", CameraPath(Similarity())
    write_own_path(file, CAMERAS, fps=30, is_loop=False)
    with pytest.raises(NerfError, match="not key frames"):
        path.take(file.name, file.read_bytes())
    bent = replace(CAMERAS[[0]], lenses=(Lens("fisheye", (0.1, 0.0, 0.0, 0.0)),))
    write_own_path(file, bent, fps=30, is_loop=False, key_frames=1)
    with pytest.raises(NerfError, match="distortion"):
        path.take(file.name, file.read_bytes())


def test_key_frames_are_edited() -> None:
    path = CameraPath(TURNED)

    def fovs() -> list[float]:
        return [key.fov for key in path.keys]

    for angle in (1.0, 2.0, 3.0):
        path.add(Key(CAMERAS.c2w[0], angle))
    assert (fovs(), path.chosen) == ([1.0, 2.0, 3.0], 2)
    path.move(1)  # there is none after it
    path.move(-1)
    assert (fovs(), path.chosen) == ([1.0, 3.0, 2.0], 1)
    path.add(Key(CAMERAS.c2w[0], 4.0))
    assert (fovs(), path.chosen) == ([1.0, 3.0, 4.0, 2.0], 2)
    path.replace(Key(CAMERAS.c2w[0], 5.0))
    path.set_fov(6.0)
    assert fovs() == [1.0, 3.0, 6.0, 2.0]
    path.chosen = 3
    path.delete()
    assert (fovs(), path.chosen) == ([1.0, 3.0, 6.0], 2)
    path.clear()
    path.delete()
    path.move(1)
    assert (path.keys, path.chosen) == ([], 0)
    with pytest.raises(NerfError, match="no key frame"):
        path.text()


@pytest.mark.parametrize(
    "name", ["", "a/b", "../a", "a.b", ".", "a b", "-a", "a\\b", "a\n", "a" * 65]
)
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NerfError, match="name"):
        save_in_run(tmp_path, "paths", name, "{}")
    assert not list(tmp_path.iterdir())


def test_what_was_saved_is_replaced_only_where_that_is_meant(tmp_path: Path) -> None:
    run = tmp_path / "run"
    file = save_in_run(run, "paths", "flight", "1")
    assert file == run / "paths" / "flight.json"
    with pytest.raises(AlreadyThere, match="flight.json is there already"):
        save_in_run(run, "paths", "flight", "2")
    assert file.read_text() == "1"
    save_in_run(run, "paths", "flight", "2", replace=True)
    assert file.read_text() == "2"
    assert saved_in_run(run, "paths") == {"flight": file}
    (run / "crops").symlink_to(tmp_path)
    with pytest.raises(NerfError, match="out of the run"):
        save_in_run(run, "crops", "box", "{}")
    victim = tmp_path / "victim"
    (run / "paths" / "link.json").symlink_to(victim)
    with pytest.raises(AlreadyThere):
        save_in_run(run, "paths", "link", "{}")
    save_in_run(run, "paths", "link", "{}", replace=True)
    assert not victim.exists()


def test_a_saved_crop_is_the_one_in_the_page(tmp_path: Path) -> None:
    model = analytic_model(lambda points: density_of(ball(points)), similarity=TURNED)
    half = math.sqrt(0.5)
    crop = crop_of(model.scene, (0.2, 0.1, 0.0), (half, 0.0, 0.0, half), (1.0, 2.0, 3.0))
    file = save_in_run(tmp_path, "crops", "box", crop_text(crop))
    read = read_crop(str(file))
    for name in ("center", "half", "rotation"):
        assert getattr(read, name) == pytest.approx(getattr(crop, name), abs=1e-12)
    shown = moved(read, TURNED)  # what the page draws: about its centre, sizes by the scale
    assert shown.center == pytest.approx((0.2, 0.1, 0.0))
    assert shown.half == pytest.approx((0.25, 0.5, 0.75))
    assert np.reshape(shown.rotation, (3, 3))[:, 0] == pytest.approx([0.0, 1.0, 0.0])


@pytest.mark.parametrize("side", [2.004, 0.013, 1234.5, 1e-5])
def test_sliders_of_a_box_hold_the_scene_in_few_digits(side: float) -> None:
    step, first, most = slider_numbers(side)
    assert side <= first <= side + step and 3 * side <= most <= 3 * side + step
    assert side / 1000 < step <= side / 100


def test_a_picture_of_another_ratio_gets_bars_and_stays_as_it_is() -> None:
    wide = np.full((36, 64, 3), 200, np.uint8)
    for size in ((400, 400), (400, 100), (64, 36), (300, 201)):
        framed = with_bars(wide, size)
        height, width = framed.shape[:2]
        assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
        rows, columns = framed.max((1, 2)) > 0, framed.max((0, 2)) > 0
        assert (rows.sum(), columns.sum()) == (36, 64)
        assert framed[rows][:, columns].min() == 200
    assert fitted(CAMERAS[[0]], (12, 100)).size.tolist() == [[12, 12]]
    assert fitted(CAMERAS[[0]], (1000, 1000)).size.tolist() == [[24, 24]]


def test_saved_paths_outlive_the_run_that_is_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in ("renders", "paths"):
        save_in_run(run, folder, "flight", "1")
    (run / "scene.json").write_text("{}")
    (run / "config.toml").write_text("")
    clear(run)
    assert [path.name for path in run.iterdir() if path.is_dir()] == ["paths"]
    (run / BEGUN).touch()  # the process was killed here
    assert is_begun(run)


@pytest.mark.parametrize("lens", [Lens(), Lens("fisheye", (0.0,) * 4), Lens("equirectangular")])
def test_error_through_any_lens_leaves_masked_pixels_out(lens: Lens) -> None:
    model = analytic_model(lambda points: density_of(ball(points)))
    cameras = replace(CAMERAS[[0]], lenses=(lens,))
    if lens.is_panorama:
        focal, principal = panorama((24, 12), lens.model)
        cameras = replace(
            cameras,
            focal=torch.tensor([focal], dtype=torch.float64),
            principal=torch.tensor([principal], dtype=torch.float64),
            size=torch.tensor([[24, 12]]),
        )
    width, height = cameras.size[0].tolist()
    photo = np.full((height, width, 4), 255, np.uint8)
    photo[: height // 2, :, 3] = 0
    look = Look(cameras, "error", photo=photo, page_size=(100, 30))
    aimed = aim(model, look, model.scene)
    canvas = Canvas(look)
    canvas.take(paint_rows(model, look, aimed, (0, height), (0, width)))
    upper, lower = canvas.colors[: height // 2], canvas.colors[height // 2 :]
    assert (upper == upper[0, 0]).all() and (lower != upper[0, 0]).any()
    picture = canvas.picture(is_final=True)
    ratio = picture.colors.shape[1] / picture.colors.shape[0]
    assert ratio == pytest.approx(100 / 30, rel=0.05)
    assert picture.depth is not None and picture.depth.max() < 0.1  # lines are hidden


def test_a_film_that_is_left_stays_left() -> None:
    """Also where its player was about to show a frame."""
    panel: Any = object.__new__(PathPanel)
    panel._lock, panel._film = threading.RLock(), ["a frame"]
    panel.path, panel.player = SimpleNamespace(fps=30.0), SimpleNamespace(plays=True)
    panel.player.stop = lambda: setattr(panel.player, "plays", False)
    wish = SimpleNamespace(film="an earlier frame")
    change = lambda film: setattr(wish, "film", film)  # noqa: E731
    panel.page = SimpleNamespace(is_open=True, wish=wish, change=change)
    leaving = threading.Thread(target=panel._leave)

    class Time:
        max = 5.0

        @property
        def value(self) -> float:
            return 0.0

        @value.setter
        def value(self, _: float) -> None:  # the player is here while the user ends the film
            leaving.start()
            leaving.join(0.2)

    panel.time = Time()
    panel._show_frame(0)
    leaving.join(30.0)
    assert wish.film is None and not panel._show_frame(0)


def test_changes_from_several_threads_are_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(wish: Any, **values: Any) -> Any:
        time.sleep(0.002)
        return replace(wish, **values)

    monkeypatch.setattr(page_module, "replace", slow)
    client: Any = SimpleNamespace(camera=SimpleNamespace(image_width=0, image_height=0))
    page = Page(client, ())
    changes: list[dict[str, Any]] = [{"mode": "depth"}, {"height": 500}, {"split": 0.25}]
    threads = [threading.Thread(target=lambda c=c: page.change(**c)) for c in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert (page.wish.mode, page.wish.height, page.wish.split) == ("depth", 500, 0.25)

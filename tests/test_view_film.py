"""The tools of a page in a real browser, on a trained run: path, crop, photos."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser, find_browser, wait_for
from PIL import Image

from conftest import SMALL, Nerf
from nerfcli.engine.crop import read_crop
from nerfcli.engine.image_metrics import psnr
from nerfcli.engine.render import load_model
from nerfcli.engine.runs import Run
from nerfcli.scenes import load_scene
from nerfcli.view.camera_path import CameraPath
from nerfcli.view.page import Page
from nerfcli.view.sources import RunSource
from nerfcli.view.turns import Turns
from nerfcli.view.viewer import open_viewer

pytestmark = pytest.mark.slow
pytest.importorskip("viser")


@pytest.fixture
def opened(nerf: Nerf, ball: Path, tmp_path: Path) -> Iterator[tuple[Browser, Page, Path]]:
    """A browser that shows a page of a trained run, with made up exposure codes."""
    if find_browser() is None:
        pytest.skip("there is no Chromium here")
    place = tmp_path / "run"
    nerf("train", ball, "--out", place, "--steps", "150", *SMALL)
    run = Run.open(place)
    model, scene = load_model(run, "torch", "cpu", lambda _: None), load_scene(ball)
    codes = 0.1 * torch.arange(6.0 * len(scene.cameras)).view(-1, 6)
    source = RunSource("run", model, scene, Turns(), path=place, learned=codes)
    viewer = open_viewer([source])
    try:
        with Browser((900, 700)) as browser:
            browser.open(viewer.url)
            page = wait_for(lambda: next(iter(viewer.pages.values()), None))
            yield browser, page, place
            assert not browser.errors
    finally:
        viewer.close()


def final_picture(page: Page, do: Any) -> np.ndarray:
    """The next finished picture after something was done."""
    came, kept, show = threading.Event(), [], page.painter.show

    def keep(picture: Any) -> None:
        show(picture)
        if picture.is_final:
            kept.append(picture.colors)
            came.set()

    page.painter.show = keep
    try:
        do()
        assert came.wait(60.0)
    finally:
        page.painter.show = show
    return kept[-1]


def wait_for_input(browser: Browser, value: str) -> None:
    script = f"[...document.querySelectorAll('input')].some(e => e.value === '{value}')"
    wait_for(lambda: browser.run(script))


def test_the_film_of_a_page_is_the_one_that_render_makes(
    opened: tuple[Browser, Page, Path], nerf: Nerf, tmp_path: Path
) -> None:
    browser, page, place = opened
    browser.click("Drawn over it")
    browser.click("Cameras")  # a drag must not end in a click on one
    browser.click("Drawn over it")
    browser.click("Camera path")
    browser.click("Add key frame")
    wait_for_input(browser, "1 of 1")
    for n, end in ((2, (460, 420)), (3, (520, 300))):
        before = page.own_camera((2, 2)).c2w
        browser.drag((400, 400), end)
        wait_for(lambda before=before: not torch.equal(page.own_camera((2, 2)).c2w, before))
        browser.click("Add key frame")
        wait_for_input(browser, f"{n} of {n}")
    browser.click("Save in the run")
    file = place / "paths" / "path.json"
    wait_for(lambda: f"--path {file}" in browser.run("document.body.textContent"))
    browser.click("Play")
    wait_for(lambda: page.wish.film is not None)
    shown = page.wish.film
    browser.click("Stop")
    wait_for(lambda: page.wish.film is None)
    assert shown is not None

    path = CameraPath(page.scene.scene_from_source)
    path.take(file.name, file.read_bytes())
    away = (path.film().c2w - shown.c2w).abs().amax((1, 2))
    index = int(away.argmin())
    assert len(path.keys) == 3 and away[index] < 1e-6
    framed = final_picture(page, lambda: page.change(film=shown))
    look = page.look()
    assert look is not None
    width, height = look.size
    left, top = (framed.shape[1] - width) // 2, (framed.shape[0] - height) // 2
    own = framed[top : top + height, left : left + width]
    assert min(width, height) > 100 and framed.size > own.size == 3 * width * height
    out = tmp_path / "frame.png"
    size = f"{width}x{height}"
    nerf("render", place, "--path", file, "--frame", index, "--resolution", size, "--out", out)
    with Image.open(out) as image:
        rendered = np.asarray(image.convert("RGB"))
    assert rendered.std() > 20
    assert psnr(own / 255.0, rendered / 255.0) > 35.0


def test_photos_and_a_crop(opened: tuple[Browser, Page, Path], nerf: Nerf) -> None:
    browser, page, place = opened
    trained = page.scene.splits["train"]
    browser.click("colour")
    browser.click("error")
    wait_for(lambda: page.wish.mode == "error")
    first = page.wish.camera
    assert first in trained
    name = Path(page.scene.names[first]).name
    wait_for(lambda: f"Against {name}." in browser.run("document.body.innerText"))
    browser.click("Next")
    wait_for(lambda: page.wish.camera == trained[(trained.index(first) + 1) % len(trained)])
    browser.click("Previous")
    wait_for(lambda: page.wish.camera == first)
    browser.click("error")
    browser.click("colour")
    wait_for(lambda: "Against" not in browser.run("document.body.innerText"))
    assert (look := page.look()) is not None
    torch.testing.assert_close(look.cameras.c2w, page.own_camera((2, 2)).c2w)

    browser.click("Mean of the photos")
    browser.click(f"3: {Path(page.scene.names[trained[2]]).name}")
    wait_for(lambda: page.wish.color is not None)
    codes = page.sources[0].codes()
    assert page.wish.color is not None and codes is not None
    expected = codes[trained[2], :3].exp()
    torch.testing.assert_close(page.wish.color.gain[0], expected)

    browser.click("Picture")
    browser.click("Crop box")
    browser.click("Crop")
    wait_for(lambda: page.wish.crop is not None)
    browser.click("Save in the run")
    file = place / "crops" / "crop.json"
    wait_for(lambda: f"--crop {file}" in browser.run("document.body.textContent"))
    assert page.wish.crop is not None
    assert read_crop(str(file)).half == pytest.approx(page.wish.crop.half)

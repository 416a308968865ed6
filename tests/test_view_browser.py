"""The viewer in a real browser."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analytic_field import analytic_model, ball, density_of, sphere_cameras
from browser import Browser, find_browser, wait_for
from PIL import Image

from nerfcli.view.sources import RunSource
from nerfcli.view.turns import Turns
from nerfcli.view.viewer import open_viewer

pytestmark = pytest.mark.slow
pytest.importorskip("viser")

CAMERAS = sphere_cameras(5, size=200)
MODEL = analytic_model(lambda points: density_of(ball(points)), cameras=CAMERAS)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A browser that shows the viewer's page, and the viewer."""
    if find_browser() is None:
        pytest.skip("there is no Chromium here")
    viewer = open_viewer([RunSource("a", MODEL, MODEL.scene, Turns())], token="a-secret")
    try:
        with Browser() as browser:
            browser.open(viewer.url)
            wait_for(lambda: viewer.pages)
            yield browser, viewer
    finally:
        viewer.close()


def picture(browser: Browser, folder: Path) -> np.ndarray:
    """The left part of the window, where the picture is."""
    path = folder / "shot.png"
    browser.screenshot(path)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        return np.asarray(image.convert("RGB"))[160:, : image.width * 2 // 3].astype(int)


def colorful(pixels: np.ndarray) -> float:
    """The share of pixels that are not grey: the ball's are coloured, cameras are few pixels."""
    return float((np.ptp(pixels, axis=-1) > 40).mean())


def test_the_page_shows_the_field_and_follows_the_mouse(page: Any, tmp_path: Path) -> None:
    browser, _ = page
    wait_for(lambda: colorful(picture(browser, tmp_path)) > 0.02)
    before = picture(browser, tmp_path)
    browser.drag((400, 350), (560, 300))
    wait_for(lambda: np.abs(picture(browser, tmp_path) - before).mean() > 3)
    assert not browser.errors
    # everything comes from the server: nothing else is asked for
    outside = [url for url in browser.requests if not url.startswith(("data:", "blob:"))]
    assert outside and all("127.0.0.1" in url for url in outside)

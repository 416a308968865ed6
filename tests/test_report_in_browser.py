"""A report in a real browser: it loads nothing but itself, and its slider moves."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser, wait_for
from PIL import Image

from conftest import SMALL, write_blender_scene
from nerfcli.cli import main

pytestmark = pytest.mark.slow
VIEWS = "document.querySelectorAll('details.view')"
SLIDER = f"{VIEWS}[1].querySelector('.slider')"


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("no chromium on this machine")
    pytest.importorskip("websockets", reason="needs websockets")
    with Browser() as browser:
        yield browser


def open_page(tab: Browser, path: Path, width: int = 1000) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
             deviceScaleFactor=1, mobile=False)  # fmt: skip
    tab.open(path.resolve().as_uri())


def press(tab: Browser, key: str, number: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                 windowsVirtualKeyCode=number)  # fmt: skip


def picture(tab: Browser, box: dict[str, float]) -> np.ndarray:
    data = tab.call("Page.captureScreenshot", clip={**box, "scale": 1})["data"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), np.float32)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with report.html and compare.html of two runs."""
    folder = tmp_path_factory.mktemp("pages")
    scene = write_blender_scene(folder / "ball")
    here = ["--backend", "torch", "--device", "cpu", "--quiet"]
    for words in (
        ["train", str(scene), "--out", str(folder / "a"), "--steps", "150", *here, *SMALL],
        ["train", str(scene), "--out", str(folder / "b"), "--steps", "2", *here, *SMALL],
        ["eval", str(folder / "a"), *here],
        ["eval", str(folder / "b"), *here],
        ["compare", str(folder / "a"), str(folder / "b"), "--out", str(folder / "compare.html")],
    ):
        with pytest.raises(SystemExit, match="0"):
            main(words)
    shutil.copy(folder / "a" / "report.html", folder / "report.html")
    return folder


@pytest.mark.parametrize("name", ["report.html", "compare.html"])
def test_a_page_opens_without_a_request_and_its_slider_moves(
    tab: Browser, pages: Path, name: str
) -> None:
    tab.requests.clear()
    open_page(tab, pages / name)
    assert tab.run(f"{VIEWS}.length") == 2
    tab.run(f"{VIEWS}[0].open = false")
    tab.run(f"{VIEWS}[1].querySelector('summary').focus()")
    press(tab, "Enter", 13, "\r")  # a view opens by the keyboard
    assert tab.run(f"{VIEWS}[1].open")
    wait_for(lambda: tab.run(f"{SLIDER}.hidden") is False)
    wait_for(lambda: tab.run(f"[...{SLIDER}.querySelectorAll('img')].every(i => i.naturalWidth)"))
    tab.run(f"{SLIDER}.scrollIntoView()")
    where = "(r => ({x: r.x, y: r.y, width: r.width, height: r.height}))"
    box = tab.run(f"{where}({SLIDER}.getBoundingClientRect())")
    assert box["width"] > 20
    clip = box | {"y": box["y"] + tab.run("scrollY")}
    middle = box["y"] + 0.5 * box["height"]

    def drag(start: float, end: float) -> float:
        places = [(box["x"] + share * box["width"], middle) for share in (start, end)]
        tab.drag(places[0], places[1])
        return float(tab.run(f"{SLIDER}.querySelector('input').value"))

    left, left_picture = drag(0.5, 0.1), picture(tab, clip)
    right, right_picture = drag(0.1, 0.9), picture(tab, clip)
    assert left == pytest.approx(10, abs=3) and right == pytest.approx(90, abs=3)
    width = left_picture.shape[1]
    inner = slice(round(0.2 * width), round(0.8 * width))  # shows one picture, then the other
    assert np.abs(left_picture - right_picture)[:, inner].mean() > 2
    press(tab, "ArrowLeft", 37)
    assert float(tab.run(f"{SLIDER}.querySelector('input').value")) < right
    asked = [url for url in tab.requests if not url.startswith("data:")]
    assert asked == [(pages / name).resolve().as_uri()] and tab.errors == []


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("name", ["report.html", "compare.html"])
def test_a_page_fits_its_window(tab: Browser, pages: Path, name: str, width: int) -> None:
    open_page(tab, pages / name, width)
    assert tab.run("document.documentElement.scrollWidth") <= width

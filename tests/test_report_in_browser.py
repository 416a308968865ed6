"""A report in a real browser: it loads nothing but itself, and its slider moves."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import SMALL, write_blender_scene
from nerfcli.cli import main

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")


class Tab:
    """A tab of a browser, over its DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)
        self.requests: list[str] = []

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression in the page, in the end a promise's."""
        sent = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in sent, sent
        return sent["result"].get("value")

    def open(self, path: Path, width: int = 1000) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.run("new Promise(done => { const ask = () => document.readyState === 'complete' && "
                 "location.protocol === 'file:' ? done() : setTimeout(ask, 20); ask() })")  # fmt: skip

    def picture(self, box: dict[str, float]) -> np.ndarray:
        data = self.send("Page.captureScreenshot", clip={**box, "scale": 1})["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), np.float32)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    client = pytest.importorskip("websockets.sync.client", reason="needs websockets")
    home = tmp_path_factory.mktemp("browser")
    process = subprocess.Popen(
        [browser, *FLAGS, f"--user-data-dir={home}", "--remote-debugging-port=0", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        place = home / "DevToolsActivePort"
        for _ in range(600):
            if place.is_file() and place.read_text().count("\n"):
                break
            time.sleep(0.1)
        port = place.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        address = pages[0]["webSocketDebuggerUrl"]
        with client.connect(address, max_size=None, origin=None) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Network", "Runtime"):
                tab.send(f"{domain}.enable")
            yield tab
    finally:
        process.kill()
        process.wait()


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
    tab: Tab, pages: Path, name: str
) -> None:
    tab.requests.clear()
    tab.open(pages / name)
    views = "document.querySelectorAll('details.view')"
    assert tab.run(f"{views}.length") == 2
    tab.run(f"{views}[0].open = false")
    tab.run(f"{views}[1].querySelector('summary').focus()")
    for kind in ("keyDown", "keyUp"):  # a view opens by the keyboard
        tab.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                 windowsVirtualKeyCode=13)  # fmt: skip
    assert tab.run(f"{views}[1].open")
    tab.run(f"{views}[1].querySelector('.slider').scrollIntoView()")
    tab.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    tab.run("Promise.all([...document.images].filter(i => i.src).map(i => i.decode()))")
    where = "((r) => ({x: r.x, y: r.y, width: r.width, height: r.height}))"
    box = tab.run(f"{where}({views}[1].querySelector('.slider').getBoundingClientRect())")
    assert box["width"] > 20
    clip = box | {"y": box["y"] + tab.run("scrollY")}

    def drag_to(share: float) -> float:
        x, y = box["x"] + share * box["width"], box["y"] + 0.5 * box["height"]
        for kind in ("mousePressed", "mouseMoved", "mouseReleased"):
            tab.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        tab.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return float(tab.run(f"{views}[1].querySelector('.slider input').value"))

    left, left_picture = drag_to(0.1), tab.picture(clip)
    right, right_picture = drag_to(0.9), tab.picture(clip)
    assert left == pytest.approx(10, abs=3) and right == pytest.approx(90, abs=3)
    width = left_picture.shape[1]
    middle = slice(round(0.2 * width), round(0.8 * width))  # shows one picture, then the other
    assert np.abs(left_picture - right_picture)[:, middle].mean() > 2
    for kind in ("keyDown", "keyUp"):
        tab.send("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft",
                 windowsVirtualKeyCode=37)  # fmt: skip
    assert float(tab.run(f"{views}[1].querySelector('.slider input').value")) < right
    asked = [url for url in tab.requests if not url.startswith("data:")]
    assert asked == [(pages / name).resolve().as_uri()]


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("name", ["report.html", "compare.html"])
def test_a_page_fits_its_window(tab: Tab, pages: Path, name: str, width: int) -> None:
    tab.open(pages / name, width)
    assert tab.run("document.documentElement.scrollWidth") <= width

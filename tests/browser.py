"""Headless Chromium over its DevTools protocol, for tests of pages."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0  # seconds: the machine may be busy


def find_browser() -> str | None:
    """The path of Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


FIND = """(() => {
    const named = e => e.textContent.trim() === TEXT && e.children.length < 2 || e.value === TEXT;
    const seen = e => e.checkVisibility() && !e.closest('[aria-hidden=true]');
    const found = [...document.querySelectorAll('button, input, div, label, p, span')]
        .filter(e => named(e) && seen(e)).pop();
    if (!found) return null;
    found.scrollIntoView({block: 'center'});
    const box = found.getBoundingClientRect();
    const place = [box.x + box.width / 2, box.y + box.height / 2];
    const top = document.elementFromPoint(...place);
    return top && (found.contains(top) || top.contains(found)) ? place : null;
})()"""


class Browser:
    """A browser with one page. Use it as a context manager."""

    def __init__(self, size: tuple[int, int] = (1200, 800)) -> None:
        self.size = size
        self.requests: list[str] = []  # of all addresses that the page asked for
        self.errors: list[str] = []  # exceptions in the page
        self._number = 0

    def __enter__(self) -> Browser:
        from websockets.sync.client import connect

        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        program = find_browser()
        assert program is not None
        self._process = subprocess.Popen(
            [
                *(program, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage"),
                *("--enable-unsafe-swiftshader", "--use-angle=swiftshader", "--mute-audio"),
                *("--no-first-run", "--disable-extensions", "--remote-debugging-port=0"),
                f"--window-size={self.size[0]},{self.size[1]}",
                *(f"--user-data-dir={self._home.name}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        told = Path(self._home.name, "DevToolsActivePort")
        wait_for(lambda: told.is_file() and told.read_text().count("\n") >= 1)
        port = told.read_text().split()[0]
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        self._socket = connect(pages[0]["webSocketDebuggerUrl"], max_size=2**28)
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._home.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE))
            if message.get("id") == self._number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        wait_for(lambda: self.run("document.readyState") == "complete")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            raise AssertionError(str(result["exceptionDetails"])[:500])
        return result["result"].get("value")

    def draw(self) -> None:
        """Wait until the page was drawn anew."""
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.call("Runtime.evaluate", expression=f"{frames}.then(() => 1)", awaitPromise=True)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def mouse(self, kind: str, x: float, y: float) -> None:
        """mousePressed, mouseMoved or mouseReleased, of the left button."""
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1
        )

    def click(self, text: str) -> None:
        """Click the innermost element that is seen and has this text, or this value."""
        find = FIND.replace("TEXT", json.dumps(text))
        place, n_same = wait_for(lambda: self.run(find), what=text), 0
        while n_same < 2:  # folders open and close by and by, and a busy browser draws seldom
            time.sleep(0.15)
            self.draw()
            before, place = place, wait_for(lambda: self.run(find), what=text)
            n_same = n_same + 1 if place == before else 0
        self.mouse("mousePressed", *place)
        self.mouse("mouseReleased", *place)

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 10) -> None:
        self.mouse("mousePressed", *start)
        for i in range(1, steps + 1):
            x, y = (a + (b - a) * i / steps for a, b in zip(start, end, strict=True))
            self.mouse("mouseMoved", x, y)
        self.mouse("mouseReleased", *end)


def wait_for(
    condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "a condition"
) -> Any:
    """Wait until a condition holds, and return what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")

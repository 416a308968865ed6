"""The camera path editor of a page: key frames, the film through them, its file."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.view.camera_path import (
    LEAST_SECONDS,
    MOST_FPS,
    MOST_PIXELS,
    MOST_SECONDS,
    CameraPath,
    Key,
)
from nerfcli.view.path_player import Player
from nerfcli.view.run_files import saved_in_run
from nerfcli.view.save_controls import SaveControls
from nerfcli.view.scenery import LINE, quaternion_of

if TYPE_CHECKING:
    import viser

    from nerfcli.cameras.cameras import Cameras
    from nerfcli.view.page import Page

FOLDER = "paths"  # in the run
NONE: str = "none yet"
CHOOSE: str = "..."
COLOR, CHOSEN = (30, 150, 90), (240, 120, 30)
MOST_DRAWN = 400  # places of the path that the line joins
SMALL, LARGE = 5.0, 150.0  # field of view, degrees


def add_path_editor(page: Page) -> None:
    """Let the user make a camera path, look at its film and save it."""
    PathPanel(page)


class PathPanel:
    """The controls of one page's path.

    Handlers run in several threads of viser's, so they hold a lock.
    """

    def __init__(self, page: Page) -> None:
        self.page, self.path = page, CameraPath(page.scene.scene_from_source)
        self.player = Player(self._show_frame, self._leave)
        self._lock = threading.RLock()
        self._film: Cameras | None = None  # of the path as it is
        self._pose = np.zeros((1, 3, 4))  # of the page's camera when a film was begun
        self._drawn: list[Any] = []
        gui = page.client.gui
        with gui.add_folder("Camera path", expand_by_default=False):
            self._add_key_controls(gui)
            self._add_film_controls(gui)
            self.saving = SaveControls(
                page, FOLDER, "path", self.path.text, _command, self._list_saved
            )
            self._add_loading(gui)
        page.client.camera.on_update(lambda _: self._leave_if_moved())
        self._refresh()

    def _add_key_controls(self, gui: viser.GuiApi) -> None:
        add = gui.add_button("Add key frame")
        self.menu = gui.add_dropdown("Key frame", (NONE,))
        first = gui.add_button_group("", ("Go to", "Replace", "Delete"))
        second = gui.add_button_group("", ("Earlier", "Later", "Clear"))
        self.fov = gui.add_slider("View angle", SMALL, LARGE, 0.5, 50.0)
        add.on_click(lambda _: self._edit(lambda: self.path.add(self._present())))
        actions: dict[str, Callable[[], None]] = {
            "Replace": lambda: self.path.replace(self._present()),
            "Delete": self.path.delete,
            "Earlier": lambda: self.path.move(-1),
            "Later": lambda: self.path.move(1),
            "Clear": self.path.clear,
        }

        def press(group: Any) -> None:
            if group.value == "Go to":
                self._go_to_chosen()
            else:
                self._edit(actions[group.value])

        first.on_click(lambda _: press(first))
        second.on_click(lambda _: press(second))
        self._on_user(self.menu, lambda: self._choose(self.menu.options.index(self.menu.value)))
        self._on_user(
            self.fov, lambda: self._edit(lambda: self.path.set_fov(math.radians(self.fov.value)))
        )

    def _add_film_controls(self, gui: viser.GuiApi) -> None:
        path = self.path
        self.loop = gui.add_checkbox("Loop", path.is_loop)
        self.seconds = gui.add_number(
            "Seconds", path.seconds, min=LEAST_SECONDS, max=MOST_SECONDS, step=0.1
        )
        self.fps = gui.add_number("Frames/s", path.fps, min=1.0, max=MOST_FPS, step=1.0)
        self.size = gui.add_vector2(
            "Size", path.size, min=(16, 16), max=(MOST_PIXELS, MOST_PIXELS), step=2
        )
        self.time = gui.add_slider("Time", 0.0, path.seconds, 0.01, 0.0)
        buttons = gui.add_button_group("Film", ("Play", "Stop"))
        for control in (self.loop, self.seconds, self.fps, self.size):
            self._on_user(control, lambda: self._edit(self._take_film_controls))
        self._on_user(self.time, self._scrub)
        buttons.on_click(lambda _: self._play() if buttons.value == "Play" else self._leave())

    def _add_loading(self, gui: viser.GuiApi) -> None:
        self.saved = gui.add_dropdown("Load", (CHOOSE,))
        upload = gui.add_upload_button("Load a file", mime_type="application/json,.json")
        self._on_user(self.saved, self._load_saved)
        self._list_saved()

        @upload.on_upload
        def _(_: Any) -> None:
            self._load(upload.value.name, lambda: upload.value.content)

    def _on_user(self, control: Any, action: Callable[[], None]) -> None:
        """Call back where the user sets a control, not where the panel does."""

        @control.on_update
        def _(event: Any) -> None:
            if event.client is not None:
                action()

    @contextmanager
    def _faults_told(self, title: str) -> Iterator[None]:
        try:
            yield
        except NerfError as fault:
            self.page.notify(title, str(fault), is_fault=True)

    def _present(self) -> Key:
        """The page's own camera, as a key frame."""
        pose = self.page.own_camera((2, 2)).c2w[0]
        return Key(pose, float(self.page.client.camera.fov))

    def _edit(self, action: Callable[[], None]) -> None:
        """Change the path, and show what it is now."""
        with self._lock:
            self.player.stop()
            action()
            self._refresh()
        self._leave()

    def _choose(self, index: int) -> None:
        with self._lock:
            self.path.chosen = max(min(index, len(self.path.keys) - 1), 0)
            self._refresh()

    def _take_film_controls(self) -> None:
        self.path.is_loop = self.loop.value
        self.path.seconds = min(max(self.seconds.value, LEAST_SECONDS), MOST_SECONDS)
        self.path.fps = min(max(self.fps.value, 1.0), MOST_FPS)
        width, height = (min(max(round(v), 16), MOST_PIXELS) for v in self.size.value)
        self.path.size = width, height

    def _go_to_chosen(self) -> None:
        if self.path.keys:
            self._leave()
            key = self.path.keys[self.path.chosen]
            pose = key.c2w.numpy()
            self.page.go_to(pose[:, 3], quaternion_of(pose[:, :3]), key.fov)

    # the film

    def _play(self) -> None:
        with self._lock:
            film = self._film
            if film is None:
                return
            n, first = len(film), self._index_of_time()
            first = 0 if first >= n - 1 else first
            self._pose = self._page_pose()
            self.player.play(n, self.path.fps, first, is_loop=self.path.is_loop)

    def _scrub(self) -> None:
        with self._lock:
            self.player.stop()
            self._pose = self._page_pose()
            self._show(self._index_of_time())

    def _index_of_time(self) -> int:
        return min(round(self.time.value * self.path.fps), self.path.n_frames - 1)

    def _show_frame(self, index: int) -> bool:
        """Show a frame of the film that plays, with its time."""
        with self._lock:  # whoever ends the film waits, and has the last word
            if not self.page.is_open or not self.player.plays:
                return False
            self.time.value = min(index / self.path.fps, self.time.max)
            return self._show(index)

    def _show(self, index: int) -> bool:
        film = self._film
        if film is None or index >= len(film):
            return False
        self.page.change(film=film[index])
        return True

    def _leave(self) -> None:
        """End the film: the page shows its own camera again."""
        with self._lock:
            self.player.stop()
            if self.page.wish.film is not None:
                self.page.change(film=None)

    def _leave_if_moved(self) -> None:
        if self.page.wish.film is not None and not np.allclose(self._page_pose(), self._pose):
            self._leave()

    def _page_pose(self) -> np.ndarray:
        return self.page.own_camera((2, 2)).c2w.numpy()

    # files

    def _list_saved(self) -> None:
        run = self.page.sources[0].path
        names = () if run is None else saved_in_run(run, FOLDER)
        self.saved.options = (CHOOSE, *names)
        self.saved.visible = bool(names)

    def _load_saved(self) -> None:
        run = self.page.sources[0].path
        file = None if run is None else saved_in_run(run, FOLDER).get(self.saved.value)
        if file is not None:
            self._load(file.name, file.read_bytes)

    def _load(self, name: str, read: Callable[[], bytes]) -> None:
        with self._faults_told("Not loaded"), self._lock:
            try:
                content = read()
            except OSError as error:
                raise NerfError(f"{name} cannot be read: {error.strerror}.") from error
            self.path.take(name, content)
            self._refresh()
        self._leave()

    # what is seen of the path

    def _refresh(self) -> None:
        """Let controls and lines show what the path is."""
        path = self.path
        self._film = path.film() if path.keys else None
        self.menu.options = [f"{i} of {len(path.keys)}" for i in range(1, len(path.keys) + 1)] or [
            NONE
        ]
        self.menu.value = self.menu.options[path.chosen]
        if path.keys:
            self.fov.value = min(max(math.degrees(path.keys[path.chosen].fov), SMALL), LARGE)
        self.fov.disabled = not path.keys
        self.loop.value, self.seconds.value, self.fps.value = path.is_loop, path.seconds, path.fps
        self.size.value = path.size
        self.time.max = path.seconds
        self.time.value = min(self.time.value, path.seconds)
        self._draw()

    def _draw(self) -> None:
        for node in self._drawn:
            node.remove()
        self._drawn = []
        path, nodes = self.path, self.page.client.scene
        if not path.keys:
            return
        reach = self.page.scene.box.half_size
        if len(path.keys) > 1:
            n = min(MOST_DRAWN, 40 * len(path.keys))
            places = path.film(n).positions.numpy().astype(np.float32)
            if path.is_loop:
                places = np.concatenate([places, places[:1]])
            pairs = np.stack([places[:-1], places[1:]], axis=1)
            how: Any = {"thickness": LINE, "thickness_units": "screen"}
            self._drawn.append(nodes.add_line_segments("/path/line", pairs, COLOR, **how))
        for index, key in enumerate(path.keys):
            self._drawn.append(self._draw_key(index, key, reach))

    def _draw_key(self, index: int, key: Key, reach: float) -> Any:
        pose, (width, height) = key.c2w.numpy(), self.path.size
        frustum = self.page.client.scene.add_camera_frustum(
            f"/path/key-{index}",
            key.fov,
            width / height,
            scale=reach / 12,
            thickness=LINE,
            thickness_units="screen",
            color=CHOSEN if index == self.path.chosen else COLOR,
            wxyz=quaternion_of(pose[:, :3]),
            position=pose[:, 3],
        )
        frustum.on_click(lambda _: self._choose(index))
        return frustum


def _command(run: str, file: str) -> str:
    return f"nerf render {run} --path {file}"

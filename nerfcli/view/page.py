"""A page that somebody has open: its camera, its controls, its painter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import ColorMap
from nerfcli.core.errors import NerfError
from nerfcli.engine.evaluate import read_photo
from nerfcli.engine.render import to_uint8
from nerfcli.methods.base import background_of
from nerfcli.scenes import Scene
from nerfcli.view.look import MODES, Look, fitted, free_camera
from nerfcli.view.painter import Painter, Picture
from nerfcli.view.sources import Source

if TYPE_CHECKING:
    import viser

MOST_PIXELS = 2048  # of a side of a picture
NOTIFIED = 10.0  # seconds that a message stays
QUALITY = {False: 60, True: 90}  # of JPEG, while it is unfinished and when it is final


@dataclass(frozen=True, eq=False)
class Wish:
    """What a page's controls say; the rest of a look is its camera.

    Attributes:
        height: of a picture at rest, pixels at most.
        camera: index of the training camera that `error` looks through.
        film: a camera that is shown instead of the page's own, as a film has it.
    """

    mode: str = "colour"
    height: int = 1080
    crop: Crop | None = None
    color: ColorMap | None = None
    split: float = 0.5
    has_lines: bool = False
    camera: int | None = None
    film: Cameras | None = None


class Page:
    """One client.

    Attributes:
        client: viser's handle. sources: what is shown, one or two to compare.
        wish: what the controls say; `change` sets it. watchers: called after each change.
        folder: of the controls of the picture, open for panels.
    """

    def __init__(self, client: viser.ClientHandle, sources: Sequence[Source]) -> None:
        self.client, self.sources, self.wish = client, sources, Wish()
        self._wishing = threading.RLock()
        self.watchers: list[Callable[[], None]] = []
        self.painter = Painter(sources, self._show, self._tell)
        self._photo: tuple[int, np.ndarray] | None = None
        self._told: str | None = None

    @property
    def scene(self) -> Scene:
        """The first source's; the page's world is its scene space."""
        return self.sources[0].scene

    def open(self, panels: Sequence[Callable[[Page], None]]) -> None:
        """Make the controls, and paint whatever the camera looks at.

        A panel that fails is told in the page, which goes on without it.
        """
        self._add_basics()
        self.client.camera.on_update(lambda _: self.refresh())
        self.painter.start()
        self.refresh()
        for panel in panels:  # after the first picture: the photos of many cameras take a while
            try:
                panel(self)
            except Exception as error:
                self._tell(repr(error))

    @property
    def is_open(self) -> bool:
        return self.painter.is_open

    def close(self) -> None:
        self.painter.stop()

    def change(self, **values: Any) -> None:
        """Set parts of the wish and paint it."""
        with self._wishing:  # controls call from several threads
            self.wish = replace(self.wish, **values)
        for watcher in self.watchers:
            watcher()
        self.refresh()

    def refresh(self) -> None:
        """Paint what camera and controls say now."""
        with self._wishing:  # the last look painted is that of the last wish
            look = self.look()
            if look is not None:
                self.painter.look_at(look)

    def look(self) -> Look | None:
        """What the page wants to see; None: it has no size yet."""
        camera, wish = self.client.camera, self.wish
        width, height = camera.image_width, camera.image_height
        if width <= 0 or height <= 0:
            return None
        scale = min(1.0, wish.height / height, MOST_PIXELS / width, MOST_PIXELS / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        others, photo = wish.film, None
        if others is None and wish.mode == "error" and wish.camera is not None:
            others, photo = self.scene.cameras[wish.camera], self._load_photo(wish.camera)
        cameras = self.own_camera(size) if others is None else fitted(others, size)
        rest = wish.crop, wish.color, photo, wish.split
        if others is not None:
            return Look(cameras, wish.mode, *rest, page_size=size)
        with_depth = wish.has_lines or wish.crop is not None
        return Look(cameras, wish.mode, *rest, with_depth=with_depth)

    def own_camera(self, size: tuple[int, int]) -> Cameras:
        """Where the page stands; with the field of view from top to bottom that it shows."""
        camera = self.client.camera
        return free_camera(np.asarray(camera.position), rotation_of(camera.wxyz), camera.fov, size)

    def go_to(self, position: Any, wxyz: Any, fov: float) -> None:
        """Move the page's camera."""
        camera = self.client.camera
        with self.client.atomic():
            camera.position, camera.wxyz, camera.fov = position, wxyz, fov

    def nearest_camera(self) -> int | None:
        """The training camera with a photo nearest to the page's; None: there are no photos."""
        known = self.cameras_with_photos()
        if not known:
            return None
        here = torch.as_tensor(np.array(self.client.camera.position))
        away = (self.scene.cameras.positions[known] - here).norm(dim=1)
        return known[int(away.argmin())]

    def cameras_with_photos(self) -> list[int]:
        """The training cameras whose photos are here."""
        scene = self.scene
        return [i for i in scene.splits["train"] if (p := scene.image_paths[i]) and p.is_file()]

    def _load_photo(self, index: int) -> np.ndarray | None:
        if self._photo is None or self._photo[0] != index:
            background = background_of(self.scene, "cpu")
            try:
                colors, usable = read_photo(self.scene, index, background)
            except NerfError as fault:
                self._tell(str(fault))
                return None
            alpha = np.ones(colors.shape[:2]) if usable is None else usable
            self._photo = index, to_uint8(np.dstack([colors, alpha]))
        return self._photo[1]

    def _show(self, picture: Picture) -> None:
        self.client.scene.set_background_image(
            picture.colors,
            format="jpeg",
            jpeg_quality=QUALITY[picture.is_final],
            depth=picture.depth,
        )
        self.client.flush()
        self._told = None

    def _tell(self, fault: str) -> None:
        """Say in the page what the renderer says; once, until it paints again."""
        if fault != self._told:
            self._told = fault
            self.notify("Something failed", fault, is_fault=True)

    def notify(self, title: str, text: str, *, is_fault: bool = False) -> None:
        """Show a message for some seconds."""
        self.client.add_notification(
            title, text, auto_close_seconds=NOTIFIED, color="red" if is_fault else None
        )

    def _add_basics(self) -> None:
        gui = self.client.gui
        self.folder = gui.add_folder("Picture")
        with self.folder:
            mode = gui.add_dropdown("Show", MODES)
            height = gui.add_slider(
                "Height at rest", min=240, max=MOST_PIXELS, step=16, initial_value=self.wish.height
            )
            split = None
            if len(self.sources) == 2:
                for side, source in zip(("Left", "Right"), self.sources, strict=True):
                    gui.add_text(side, source.name, disabled=True)
                split = gui.add_slider("Left | right", 0.0, 1.0, 0.01, self.wish.split)

        @mode.on_update
        def _(_: Any) -> None:
            nearest = self.nearest_camera() if mode.value == "error" else None
            if mode.value == "error" and nearest is None:
                self.notify(
                    "No photos", "The photos of this run are not here, so nothing to compare with."
                )
            self.change(mode=mode.value, camera=nearest)

        height.on_update(lambda _: self.change(height=int(height.value)))
        if split is not None:
            slider = split
            slider.on_update(lambda _: self.change(split=slider.value))


def rotation_of(wxyz: Any) -> np.ndarray:
    """A unit quaternion (w, x, y, z) as a matrix [3, 3]."""
    from scipy.spatial.transform import Rotation

    w, x, y, z = wxyz
    return Rotation.from_quat([x, y, z, w]).as_matrix()

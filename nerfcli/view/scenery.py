"""What is drawn over the picture: cameras with their photos, the box, sparse points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from nerfcli.scenes import Scene

if TYPE_CHECKING:
    import viser

    from nerfcli.view.page import Page

THUMBNAIL = 160  # pixels of the longer side of a photo in its frustum
MOST_FRUSTA = 300  # evenly spaced ones, where there are more cameras
MOST_POINTS = 100_000
FRUSTUM = 0.05  # length, of the cameras' distance from the middle
APART = 0.5  # and of the distance of a camera's nearest neighbour, at most
LINE = 1.5  # pixels
COLORS = {"train": (70, 130, 200), "val": (220, 160, 60), "test": (210, 80, 80)}
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
EDGES = [(i, j) for i in range(8) for j in range(i) if abs(CORNERS[i] - CORNERS[j]).sum() == 2]


class Scenery:
    """Cameras, box and points of a scene; thumbnails of the photos are read once for all pages."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._thumbnails: dict[int, np.ndarray | None] = {}
        self._length = _frustum_length(scene)

    def add_to(self, page: Page) -> None:
        """Draw everything for a page, with controls for what of it is seen."""
        gui, nodes, scene = page.client.gui, page.client.scene, self.scene
        # cameras close to each other, as of a walk, would stand in the way
        is_crowded = self._length < FRUSTUM * _reach(scene)
        frame = nodes.add_frame("/cameras", show_axes=False, visible=not is_crowded)
        parts: dict[str, Any] = {"Cameras": frame}
        frusta: dict[int, Any] = {}
        for split, indices in scene.splits.items():
            for index in some(indices, MOST_FRUSTA):
                frusta[index] = self._draw_camera(page, split, index)
        camera = page.client.camera
        camera.on_update(lambda _: self.clear_view(frusta, camera.position))
        self.clear_view(frusta, camera.position)
        parts["Box"] = _draw_box(nodes, scene)
        if scene.points is not None and len(scene.points):
            points = scene.points[:: max(1, math.ceil(len(scene.points) / MOST_POINTS))].numpy()
            size = scene.box.half_size / 300
            parts["Points"] = nodes.add_point_cloud(
                "/points", points, (150, 150, 150), point_size=size, visible=False
            )
        with gui.add_folder("Drawn over it", expand_by_default=False):
            boxes = [gui.add_checkbox(name, node.visible) for name, node in parts.items()]

        def redraw(_: Any = None) -> None:
            for box, node in zip(boxes, parts.values(), strict=True):
                node.visible = box.value
            page.change(has_lines=any(box.value for box in boxes))

        for box in boxes:
            box.on_update(redraw)
        redraw()

    def clear_view(self, frusta: dict[int, Any], position: Any) -> None:
        """Hide the cameras in which a page's camera stands: their photos would cover the field.

        Args:
            frusta: handles by index of the camera. position: [3], scene space.
        """
        indices = list(frusta)
        away = self.scene.cameras.positions[indices].numpy() - np.asarray(position)
        for index, is_outside in zip(
            indices, np.linalg.norm(away, axis=1) > self._length, strict=True
        ):
            if frusta[index].visible != bool(is_outside):
                frusta[index].visible = bool(is_outside)

    def _draw_camera(self, page: Page, split: str, index: int) -> Any:
        pose = self.scene.cameras.c2w[index].numpy()
        width, height = self.scene.cameras.size[index].tolist()
        fov, wxyz = field_of_view(self.scene, index), quaternion_of(pose[:, :3])
        if index not in self._thumbnails:
            self._thumbnails[index] = _thumbnail(self.scene, index)
        handle = page.client.scene.add_camera_frustum(
            f"/cameras/{split}-{index}",
            fov,
            width / height,
            scale=self._length,
            thickness=LINE,
            thickness_units="screen",
            color=COLORS.get(split, (128, 128, 128)),
            image=self._thumbnails[index],
            wxyz=wxyz,
            position=pose[:, 3],
        )

        @handle.on_click
        def _(_: Any) -> None:
            page.go_to(pose[:, 3], wxyz, fov)

        return handle


def place_first_camera(server: viser.ViserServer, scene: Scene) -> None:
    """Let a new page begin at a training camera that is usual for the scene, towards the middle."""
    chosen = first_camera(scene)
    position = scene.cameras.positions[chosen].numpy()
    center = np.array(scene.box.center)
    forward = scene.cameras.forwards[chosen].numpy()
    ahead = max(float((center - position) @ forward), 0.1 * scene.box.half_size)
    server.initial_camera.position = tuple(position.tolist())
    server.initial_camera.look_at = tuple((position + ahead * forward).tolist())
    server.initial_camera.up = up_of(scene)
    server.initial_camera.fov = field_of_view(scene, chosen)


def first_camera(scene: Scene) -> int:
    """The first training camera, or the first of all."""
    trained = scene.splits.get("train", ())
    return trained[0] if trained else 0


def field_of_view(scene: Scene, index: int) -> float:
    """From top to bottom, radians; of a panorama or fisheye that of a usual lens."""
    if scene.cameras.lenses[index].is_wide:
        return math.radians(60.0)
    height, focal = float(scene.cameras.size[index, 1]), float(scene.cameras.focal[index, 1])
    return 2.0 * math.atan(0.5 * height / focal)


def some(indices: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly spaced."""
    return list(indices[:: max(1, math.ceil(len(indices) / most))])


def up_of(scene: Scene) -> tuple[float, float, float]:
    """Which way is up in scene space."""
    return (0.0, 0.0, 1.0) if scene.upright is None else tuple(scene.upright.up.tolist())


def _frustum_length(scene: Scene) -> float:
    """A length that shows cameras without hiding each other, scene units."""
    places = scene.cameras.positions
    reach = _reach(scene)
    some_places = places[:: max(1, len(places) // MOST_FRUSTA)]
    apart = torch.cdist(some_places, some_places).fill_diagonal_(math.inf).amin(1)
    known = apart[apart.isfinite() & (apart > 1e-3 * reach)]
    near = float(known.median()) if len(known) else math.inf
    return max(min(FRUSTUM * reach, APART * near), 1e-3 * reach)


def _reach(scene: Scene) -> float:
    """How far the cameras are from the middle."""
    away = scene.cameras.positions - scene.cameras.positions.new_tensor(scene.box.center)
    return max(float(away.norm(dim=1).median()), scene.box.half_size)


def _thumbnail(scene: Scene, index: int) -> np.ndarray | None:
    path = scene.image_paths[index]
    if path is None or not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            rgba = image.convert("RGBA")
            back = Image.new("RGBA", rgba.size, scene.background)
            return np.asarray(Image.alpha_composite(back, rgba).convert("RGB"))
    except (OSError, ValueError):  # formats that only the readers of scenes know
        return None


def _draw_box(nodes: viser.SceneApi, scene: Scene) -> Any:
    center, half = np.array(scene.box.center), scene.box.half_size
    corners = CORNERS * half + center
    lines = np.array([[corners[i], corners[j]] for i, j in EDGES], np.float32)
    return nodes.add_line_segments(
        "/box", lines, (230, 170, 40), thickness=half / 200, visible=False
    )


def quaternion_of(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """A rotation matrix [3, 3] as a unit quaternion (w, x, y, z)."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return float(w), float(x), float(y), float(z)

"""Draw a check: cameras, box and matched points from above and from the side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.rotations import mean_up, perpendicular
from nerfcli.check.scene_check import SceneCheck
from nerfcli.core.files import replacing
from nerfcli.core.text import quantity

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

PANEL, MARGIN, HEAD, FOOT = 720, 24, 40, 40  # pixels
PAPER, INK, POINT = (255, 255, 255), (40, 44, 52), (150, 156, 168)
CAMERA, OUTLIER, BOX, OUTER = (38, 110, 200), (214, 48, 49), (224, 148, 40), (240, 205, 150)
MAX_POINTS = 20000
ONE_WAY = 0.5  # length of the mean viewing direction from which views look the same way
LEVEL = 0.1  # largest part along the vertical of an axis that counts as level

Project = Callable[[Tensor], list[tuple[float, float]]]


def draw_check(check: SceneCheck, path: Path) -> None:
    """Draw a check into a PNG file.

    Raises:
        NerfError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (2 * PANEL, HEAD + PANEL + FOOT), PAPER)
    right, front, up = torch.from_numpy(choose_axes(check))
    n_cameras = quantity(len(check.cameras), "camera")
    n_points = quantity(len(check.points), "matched point")
    titles = (
        f"{check.scene.name} from above: {n_cameras}, {n_points}",
        f"{check.scene.name} from the side{_describe_right(check, front)}",
    )
    pen = ImageDraw.Draw(image)
    for column, (title, axes) in enumerate(zip(titles, ((right, front), (front, up)), strict=True)):
        image.paste(_draw_panel(check, torch.stack(axes)), (column * PANEL, HEAD))
        pen.text((column * PANEL + MARGIN, 14), title, fill=INK)
    pen.line([(PANEL, 0), (PANEL, HEAD + PANEL)], fill=POINT)
    _draw_legend(pen, check)
    with replacing(path) as aside:
        image.save(aside, format="PNG")


def choose_axes(check: SceneCheck) -> np.ndarray:
    """Choose the directions right, front and up of the two views, in the source's frame.

    The front is where the views look, if they look the same way. Otherwise it is the long side of
    what they show, and along an axis of the box where one is level.

    Returns:
        [3, 3], orthonormal rows.
    """
    cameras, up = check.cameras, mean_up(check.cameras.c2w.numpy())
    if check.scene.upright is not None and not check.hypothesis.fault:  # else poses were wrong
        up = np.array(check.scene.upright.up)
    level = np.eye(3) - np.outer(up, up)
    ahead = level @ cameras.forwards.mean(0).numpy()
    if np.linalg.norm(ahead) < ONE_WAY:
        ahead = _longest(check.points.numpy() @ level, perpendicular(up))
        axes = [axis for axis in np.eye(3) if abs(axis @ up) < LEVEL]
        if axes:
            ahead = level @ max(axes, key=lambda axis: abs(axis @ ahead))
    front = ahead / np.linalg.norm(ahead)
    return np.stack([np.cross(front, up), front, up])


def _longest(points: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Return the direction along which points [k, 3] spread most; few points have none."""
    if len(points) < 3:
        return otherwise
    near = points - np.median(points, axis=0)
    reach = np.linalg.norm(near, axis=1)
    near = near[reach <= np.quantile(reach, 0.9)]  # far ones would choose it alone
    return np.linalg.eigh(near.T @ near)[1][:, -1]


def _describe_right(check: SceneCheck, front: Tensor) -> str:
    looked = float(check.cameras.forwards.mean(0) @ front)
    return "; the views look to the right" if looked > ONE_WAY else ""


def _draw_panel(check: SceneCheck, axes: Tensor) -> Image.Image:
    """Draw one view in an image of its own, beyond which nothing reaches."""
    from PIL import Image, ImageDraw

    panel = Image.new("RGB", (PANEL, PANEL), PAPER)
    pen = ImageDraw.Draw(panel)
    cameras, points, names = check.cameras, check.points, check.scene.names
    cubes = _list_cubes(check)
    shown = points[:: max(len(points) // MAX_POINTS, 1)]
    middle, scale = _fit_view(cameras.positions, shown, cubes[0], axes)

    def project(xyz: Tensor) -> list[tuple[float, float]]:
        flat = (xyz @ axes.T - middle) * scale
        flat = flat * flat.new_tensor([1.0, -1.0]) + PANEL / 2
        return [(x, y) for x, y in flat.tolist()]

    pen.point([p for p in project(shown) if max(map(abs, p)) < 2 * PANEL], fill=POINT)
    for cube, colour in reversed(list(zip(cubes, (BOX, OUTER), strict=False))):
        dots = project(cube)
        for a in range(8):
            for bit in (1, 2, 4):
                if not a & bit:
                    pen.line([dots[a], dots[a | bit]], fill=colour)
    size = 14 / scale
    for i in range(len(cameras)):
        colour = OUTLIER if i in check.outliers else CAMERA
        _draw_camera(pen, project, cameras.c2w[i], size, colour)
        if i in check.outliers:
            pen.text(project(cameras.positions[i : i + 1])[0], f"  {names[i]}", fill=OUTLIER)
    return panel


def _draw_camera(
    pen: ImageDraw.ImageDraw,
    project: Project,
    pose: Tensor,
    size: float,
    colour: tuple[int, int, int],
) -> None:
    """Draw a small pyramid that opens in the viewing direction."""
    local = torch.tensor(
        [[0, 0, 0], [-0.6, -0.4, 1], [0.6, -0.4, 1], [0.6, 0.4, 1], [-0.6, 0.4, 1]],
        dtype=torch.float64,
    )
    dots = project(local * size @ pose[:, :3].T + pose[:, 3])
    for i in range(1, 5):
        pen.line([dots[0], dots[i]], fill=colour)
        pen.line([dots[i], dots[1 + i % 4]], fill=colour)


def _draw_legend(pen: ImageDraw.ImageDraw, check: SceneCheck) -> None:
    """Say what the colours mean, in a line below the views."""
    unbounded = "detail cube" in check.report.measures
    entries = [(CAMERA, "camera: opens where it looks"), (POINT, "point that views share")]
    entries.append((BOX, "detail cube" if unbounded else "box"))
    if len(_list_cubes(check)) > 1:
        entries.append((OUTER, "outermost cube of the box"))
    if check.outliers:
        entries.insert(1, (OUTLIER, "camera whose pose contradicts the others"))
    x, y = float(MARGIN), HEAD + PANEL + FOOT // 2
    pen.line([(0, HEAD + PANEL), (2 * PANEL, HEAD + PANEL)], fill=POINT)
    for colour, text in entries:
        pen.rectangle([x, y - 5, x + 10, y + 5], fill=colour)
        pen.text((x + 18, y), text, fill=INK, anchor="lm")
        x += 18 + pen.textlength(text) + 32


def _list_cubes(check: SceneCheck) -> list[Tensor]:
    """List the 8 corners of the inner and, if it is used, the outer cube, in the source's frame."""
    box, source_from_scene = check.scene.box, check.scene.scene_from_source.inverse()
    signs = torch.tensor(
        [[1.0 if c & bit else -1.0 for bit in (1, 2, 4)] for c in range(8)], dtype=torch.float64
    )
    halves = [box.half_size]
    if box.n_cascades > 1 and "detail cube" not in check.report.measures:
        halves.append(box.outer_half_size)
    return [source_from_scene.apply(signs * half + signs.new_tensor(box.center)) for half in halves]


def _fit_view(
    positions: Tensor, points: Tensor, cube: Tensor, axes: Tensor
) -> tuple[Tensor, float]:
    """Return the middle and the pixels per unit that show cameras, inner cube and most points."""
    parts = [positions @ axes.T, cube @ axes.T]
    low = torch.stack([p.amin(0) for p in parts]).amin(0)
    high = torch.stack([p.amax(0) for p in parts]).amax(0)
    if len(points):
        flat = points @ axes.T
        reach = (high - low).max()  # far points must not shrink everything else to a dot
        low = torch.maximum(flat.quantile(0.02, dim=0), low - reach).minimum(low)
        high = torch.minimum(flat.quantile(0.98, dim=0), high + reach).maximum(high)
    extent = float((high - low).max().clamp(min=1e-9))
    return (low + high) / 2, (PANEL - 2 * MARGIN) / extent

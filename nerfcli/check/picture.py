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

if TYPE_CHECKING:
    from PIL import ImageDraw

PANEL, MARGIN, HEAD = 720, 24, 40  # pixels
PAPER, INK, POINT = (255, 255, 255), (40, 44, 52), (150, 156, 168)
CAMERA, OUTLIER, BOX = (38, 110, 200), (214, 48, 49), (224, 148, 40)
MAX_POINTS = 20000


def draw_check(check: SceneCheck, path: Path) -> None:
    """Draw a check into a PNG file.

    Raises:
        NerfError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (2 * PANEL, PANEL + HEAD), PAPER)
    pen = ImageDraw.Draw(image)
    up = mean_up(check.cameras.c2w.numpy())
    front = perpendicular(up)
    axes = np.stack([np.cross(front, up), front, up])
    right, front, up = torch.from_numpy(axes)
    for column, (title, axes) in enumerate(
        (("from above", (right, front)), ("from the side", (right, up)))
    ):
        _draw_panel(pen, check, torch.stack(axes), column * PANEL, title)
    pen.line([(PANEL, 0), (PANEL, PANEL + HEAD)], fill=POINT)
    with replacing(path) as aside:
        image.save(aside, format="PNG")


def _draw_panel(
    pen: ImageDraw.ImageDraw, check: SceneCheck, axes: Tensor, left: int, title: str
) -> None:
    cameras, points = check.cameras, check.points
    cubes, names = _list_corners(check), check.scene.names
    shown = points[:: max(len(points) // MAX_POINTS, 1)]
    middle, scale = _fit_view(cameras.positions, shown, cubes[0], axes)

    def project(xyz: Tensor) -> list[tuple[float, float]]:
        flat = (xyz @ axes.T - middle) * scale
        flat = flat * flat.new_tensor([1.0, -1.0]) + flat.new_tensor(
            [left + PANEL / 2, HEAD + PANEL / 2]
        )
        return [(x, y) for x, y in flat.tolist() if abs(x - left - PANEL / 2) < 4 * PANEL]

    inside = [p for p in project(shown) if left < p[0] < left + PANEL and p[1] > HEAD]
    pen.point(inside, fill=POINT)
    for cube in cubes:
        dots = project(cube)
        for a in range(8):
            for bit in (1, 2, 4):
                if not a & bit and len(dots) == 8:
                    pen.line([dots[a], dots[a | bit]], fill=BOX)
    size = 14 / scale
    for i in range(len(cameras)):
        colour = OUTLIER if i in check.outliers else CAMERA
        _draw_camera(pen, cameras.c2w[i], size, colour, project)
        if i in check.outliers:
            pen.text(project(cameras.positions[i : i + 1])[0], f"  {names[i]}", fill=OUTLIER)
    pen.rectangle([left, 0, left + PANEL - 1, HEAD], fill=PAPER)
    legend = f"{check.scene.name} {title}: {len(cameras)} cameras, {len(points)} points, box"
    pen.text((left + MARGIN, 14), legend, fill=INK)


def _draw_camera(
    pen: ImageDraw.ImageDraw,
    pose: Tensor,
    size: float,
    colour: tuple[int, int, int],
    project: Callable[[Tensor], list[tuple[float, float]]],
) -> None:
    """Draw a small pyramid that opens in the viewing direction."""
    local = torch.tensor(
        [[0, 0, 0], [-0.6, -0.4, 1], [0.6, -0.4, 1], [0.6, 0.4, 1], [-0.6, 0.4, 1]],
        dtype=torch.float64,
    )
    dots = project(local * size @ pose[:, :3].T + pose[:, 3])
    if len(dots) == 5:
        for i in range(1, 5):
            pen.line([dots[0], dots[i]], fill=colour)
            pen.line([dots[i], dots[1 + i % 4]], fill=colour)


def _list_corners(check: SceneCheck) -> list[Tensor]:
    """List the 8 corners of the inner and of the outer cube, in the source's frame."""
    box, source_from_scene = check.scene.box, check.scene.scene_from_source.inverse()
    signs = torch.tensor(
        [[1.0 if c & bit else -1.0 for bit in (1, 2, 4)] for c in range(8)], dtype=torch.float64
    )
    halves = dict.fromkeys((box.half_size, box.outer_half_size))
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

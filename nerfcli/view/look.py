"""What a viewer's page wants to see, and the cameras that show it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rays import ColorMap

MODES = ("colour", "depth", "opacity", "normals", "error")


@dataclass(frozen=True, eq=False)
class Look:
    """A view that a page wants to see.

    Attributes:
        cameras: one camera, in the scene space of the first run; its size is that of the picture
            at rest.
        mode: one of MODES.
        crop: nothing is shown outside; in source units.
        color: what an exposure code makes of the field's colours, gain and offset [3].
        photo: [height, width, 3 or 4] uint8, what `error` compares with, but where alpha is 0.
        split: the share of the width that the first of two runs gets.
        with_depth: whether the picture carries its depth, so that lines are hidden behind it.
        page_size: the camera is not the page's own: the picture is shown in the middle of a page
            of this width and height, and nothing is drawn over it.
    """

    cameras: Cameras
    mode: str = "colour"
    crop: Crop | None = None
    color: ColorMap | None = None
    photo: np.ndarray | None = None
    split: float = 0.5
    with_depth: bool = False
    page_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height at rest."""
        width, height = self.cameras.size[0].tolist()
        return width, height

    def sized(self, n_pixels: float) -> Look:
        """The same view with so many pixels at most."""
        width, height = self.size
        scale = min(1.0, math.sqrt(max(n_pixels, 1.0) / (width * height)))
        return self if scale == 1.0 else replace(self, cameras=self.cameras.scaled(scale))


def free_camera(
    position: np.ndarray, rotation: np.ndarray, fov: float, size: tuple[int, int]
) -> Cameras:
    """Make a pinhole camera.

    Args:
        position: [3]. rotation: [3, 3], its axes as columns, OpenCV. fov: from top to bottom,
            radians. size: width and height in pixels.
    """
    width, height = size
    focal = 0.5 * height / math.tan(0.5 * fov)
    pose = np.concatenate([rotation, np.reshape(position, (3, 1))], axis=1)
    double = torch.float64
    return Cameras(
        torch.tensor(pose[None], dtype=double),
        torch.tensor([[focal, focal]], dtype=double),
        torch.tensor([[width / 2, height / 2]], dtype=double),
        torch.tensor([[width, height]]),
        (Lens(),),
    )


def fitted(cameras: Cameras, size: tuple[int, int]) -> Cameras:
    """The same view, not larger than width and height."""
    width, height = cameras.size[0].tolist()
    return cameras.scaled(min(1.0, size[0] / width, size[1] / height))


def with_bars(colors: np.ndarray, page_size: tuple[int, int]) -> np.ndarray:
    """Give a picture [height, width, 3] the page's ratio of width to height, by black bars."""
    height, width = colors.shape[:2]
    ratio = page_size[0] / page_size[1]
    whole = max(width, round(height * ratio)), max(height, round(width / ratio))
    canvas = np.zeros((whole[1], whole[0], 3), np.uint8)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    canvas[top : top + height, left : left + width] = colors
    return canvas

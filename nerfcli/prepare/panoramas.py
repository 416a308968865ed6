"""Cut equirectangular photos into perspective views: a rig of pinholes with one centre."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample

from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.core.progress import Update
from nerfcli.prepare.photos import QUALITY, Photo

# Two rings of four views of 90 degrees overlap, and leave out little but the zenith and the
# nadir, where the one who carries the camera is seen.
PITCHES, STEPS = (30.0, -30.0), 4
N_VIEWS = len(PITCHES) * STEPS


def view_rotations() -> np.ndarray:
    """Return the views' orientations, [N_VIEWS, 3, 3] float64: OpenCV view to OpenCV panorama."""
    turns = []
    for ring, pitch in enumerate(PITCHES):
        for step in range(STEPS):
            yaw = 2 * math.pi * (step + ring / len(PITCHES)) / STEPS
            turns.append(_turn_y(yaw) @ _turn_x(math.radians(pitch)))
    return np.stack(turns)


def view_side(width: int) -> int:
    """Return the side of the square views, whose middle is as fine as the panorama. Pixels."""
    return max(2 * round(width / (2 * math.pi)), 2)


def cut_view(pixels: Tensor, rotation: np.ndarray, side: int) -> Tensor:
    """Cut a view of 90 degrees out of a panorama, bilinear.

    Args:
        pixels: [height, width, 3] uint8, equirectangular. rotation: [3, 3] view to panorama.

    Returns:
        [side, side, 3] uint8.
    """
    height, width = pixels.shape[:2]
    x = (torch.arange(side, dtype=torch.float64) + 0.5) / (side / 2) - 1
    rays = torch.stack(
        [x.expand(side, side), x[:, None].expand(side, side), torch.ones(side, side)]
    )
    directions = torch.einsum("ij,jyx->yxi", torch.from_numpy(rotation), rays.double())
    focal, principal = panorama((width, height))
    place = Lens("equirectangular").project(directions) * torch.tensor(focal)
    place += torch.tensor(principal, dtype=torch.float64)
    # a column more at either side: the panorama goes on where it ends
    wide = torch.cat([pixels[:, -1:], pixels, pixels[:, :1]], dim=1).movedim(-1, 0)[None].float()
    place[..., 0] = (place[..., 0] + 1) / (width + 2)
    place[..., 1] /= height
    grid = (2 * place - 1)[None].float()
    cut = grid_sample(wide, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut[0].movedim(0, -1).round().clamp(0, 255).to(torch.uint8)


def cut_panoramas(folder: Path, taken: Sequence[Photo], out: Path, update: Update) -> list[Photo]:
    """Write the views of all panoramas to `out`, as view_0/NAME.jpg and so on; keep those there.

    Returns:
        The views, panorama by panorama.

    Raises:
        NerfError: an image is not twice as wide as high, or has transparency.
    """
    side = view_side(taken[0].size[0])
    rotations, views = view_rotations(), []
    for i, photo in enumerate(taken):
        width, height = photo.size
        if photo.has_alpha or abs(width - 2 * height) > 2:
            what = "has transparency" if photo.has_alpha else f"is {width}x{height}, not 2:1"
            raise NerfError(f"--lens equirectangular: {photo.name} {what}.")
        name = PurePosixPath(photo.name.replace("/", "_")).with_suffix(".jpg")
        names = [f"view_{k}/{i:04d}_{name}" for k in range(N_VIEWS)]
        if not all((out / name).exists() for name in names):
            with Image.open(folder / photo.name) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB")))
            for name, rotation in zip(names, rotations, strict=True):
                view = Image.fromarray(cut_view(pixels, rotation, side).numpy())
                with replacing(out / name) as aside:
                    view.save(aside, quality=QUALITY, subsampling=0)
        views += [Photo(name, (side, side), False, ()) for name in names]
        update(i + 1)
    return views


def _turn_x(angle: float) -> np.ndarray:
    """Turn about the x axis: a positive angle looks up, against OpenCV's y."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _turn_y(angle: float) -> np.ndarray:
    """Turn about the y axis: a positive angle looks to the right."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])

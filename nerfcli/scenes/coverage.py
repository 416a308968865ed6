"""Find the cells of nested cubes that the frames of cameras touch.

No photo says anything about the others. A frame is the image rectangle without masked pixels and
those that the lens has no ray for, between near and far. Every test errs towards seen: by the
sphere around a cell, and by a bin of directions (a degree or two) around lenses and masks. Cells
are split from coarse to fine: one that lies wholly within a frame is seen with all its parts,
and a frame that does not touch it is not asked again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.scenes.image_cache import read_usable, usable_pixels
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.views import Views

COARSEST = 16  # cells along a side on the first level, at most
ROUNDING = 1.02  # of a cell's size: single precision, far away in the outermost cube
FEW_MAPS = 4  # of directions: where there are more, they are coarser
BLOCKS = (200, 64)  # of pixels along a side, whose middles stand for a frame's directions
SIDE = (256, 48)  # bins along a side of a face of a map
REACH = 0.3  # radians: what is farther from a frame's edge counts as that far


@dataclass(frozen=True, eq=False)
class Directions:
    """How far directions lie from a frame's edge: a cube map in the camera's frame.

    Attributes:
        side: bins along a side of a face.
        outside: [6 side^2] radians from a bin to the nearest usable pixel, at least.
        inside: [6 side^2] radians from a bin to the nearest that is not, at least.
    """

    side: int
    outside: Tensor
    inside: Tensor

    def bins(self, local: Tensor) -> Tensor:
        """The bin of each direction [n, 3] of any length."""
        size = local.abs()
        major = size.argmax(-1, keepdim=True)
        along = local.gather(1, major)
        across = [local.gather(1, (major + k) % 3) for k in (1, 2)]
        u, v = ((x / along.abs().clamp(min=1e-30) + 1) * (self.side / 2) for x in across)
        row, column = (x.long().clamp_(0, self.side - 1) for x in (v, u))
        face = 2 * major + (along < 0)
        return ((face * self.side + row) * self.side + column)[:, 0]


@dataclass(frozen=True, eq=False)
class Frame:
    """What one camera sees.

    Attributes:
        camera: it alone. near, far: distances from it.
        planes: [k, 3] unit normals in its frame, of the sides of a pinhole's pyramid.
        directions: where the frame is more than its planes.
    """

    camera: Cameras
    near: float
    far: float
    planes: Tensor
    directions: Directions | None = None

    def test(self, points: Tensor, center: Tensor, half: float) -> tuple[Tensor, Tensor]:
        """Whether cubes touch the frame, and whether they lie within. [n, 3] -> bool [n], [n].

        Args:
            points: middles of the cubes, relative to `center`. half: half of their side.
        """
        c2w = self.camera.c2w[0]
        turn, start = c2w[:, :3], (c2w[:, 3] - center) @ c2w[:, :3]
        radius = math.sqrt(3) * half
        # the distance is of the difference: a sum of squares would cancel
        local = torch.addmm(-start.to(points), points, turn.to(points))
        distance = local.norm(dim=1)
        touched = (distance + radius >= self.near) & (distance - radius <= self.far)
        within = (distance - radius >= self.near) & (distance + radius <= self.far)
        if len(self.planes):
            normals = self.planes @ turn.T
            depth = local @ self.planes.T.to(points)
            reach = (half * normals.abs().sum(1)).to(points)
            touched &= (depth + reach).amin(1) >= 0
            within &= (depth - reach).amin(1) >= 0
        if self.directions is not None:
            # of the cone around the sphere; the camera may lie in it
            angle = torch.asin((radius / distance.clamp(min=1e-30)).clamp(max=1.0))
            bins = self.directions.bins(local)
            touched &= (self.directions.outside[bins] <= angle) | (distance <= radius)
            within &= (self.directions.inside[bins] > angle) & (distance > radius)
        return touched, within


def seen_cells(
    scene: Scene, box: Box, resolution: int, views: Views | None = None, *, masked: bool = True
) -> Tensor:
    """Find the cells that a training camera's frame touches.

    Args:
        box: the cubes. resolution: cells along a side of each.
        views: some of the training images, whose masks need not be read again.
        masked: whether masked pixels see nothing; the files of masks are needed.

    Returns:
        [n_cascades, R, R, R] bool, indexed [cascade, z, y, x].
    """
    frames = training_frames(scene, views, masked=masked)
    center = torch.tensor(box.center, dtype=torch.float64)
    halves = [box.half_size * 2**c for c in range(box.n_cascades)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cubes = pool.map(lambda half: _seen_in_cube(frames, center, half, resolution), halves)
        return torch.stack(list(cubes))


def training_frames(scene: Scene, views: Views | None, *, masked: bool) -> list[Frame]:
    """The frames of the training cameras; those without a usable pixel are left out."""
    cameras = scene.cameras
    resident = {} if views is None else {int(c): i for i, c in enumerate(views.cameras)}

    def key(i: int) -> object:
        """What cameras with equal directions share; None: planes are enough."""
        if masked and (scene.alpha_ignored or scene.mask_paths[i] is not None):
            return i
        if cameras.lenses[i].is_pinhole and scene.crop_radius == 0:
            return None
        numbers = torch.cat([cameras.focal[i], cameras.principal[i], cameras.size[i]])
        return (cameras.lenses[i], *numbers.tolist())

    keys = {i: key(i) for i in scene.splits["train"]}
    firsts = {k: i for i, k in reversed(keys.items()) if k is not None}
    coarse = len(firsts) > FEW_MAPS

    def make(i: int) -> Directions | None:
        if views is not None and i in resident and masked:
            usable = views.usable_of(resident[i])
        else:
            usable = read_usable(scene, i) if masked else usable_pixels(scene, i, masked=False)
        return map_directions(cameras[i], usable, SIDE[coarse], BLOCKS[coarse])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        maps = dict(zip(firsts, pool.map(make, firsts.values()), strict=True))
    return [
        Frame(cameras[i], scene.near, scene.far, _pyramid(cameras[i]), maps.get(k))
        for i, k in keys.items()
        if k is None or maps[k] is not None
    ]


def _pyramid(camera: Cameras) -> Tensor:
    """Unit normals of the four planes that bound a pinhole's frame; none for another lens."""
    if not camera.lenses[0].is_pinhole:
        return torch.zeros(0, 3, dtype=torch.float64)
    (fx, fy), (cx, cy) = camera.focal[0].tolist(), camera.principal[0].tolist()
    width, height = camera.size[0].tolist()
    planes = [[fx, 0, cx], [-fx, 0, width - cx], [0, fy, cy], [0, -fy, height - cy]]
    normals = torch.tensor(planes, dtype=torch.float64)
    return normals / normals.norm(dim=1, keepdim=True)


def map_directions(
    camera: Cameras, usable: Tensor | None, side: int, n_blocks: int
) -> Directions | None:
    """Map how far directions lie from the frame of one camera; None: it has no usable pixel.

    Args:
        usable: [height * width] bool; None: all pixels.
        side: bins along a side of a face. n_blocks: of pixels, along a side of the image.
    """
    from scipy.spatial import KDTree

    some, whole, middles, slack = _blocks(camera, usable, n_blocks)
    if not some.any():
        return None
    whole[0] = whole[-1] = whole[:, 0] = whole[:, -1] = False  # their neighbours may be outside
    seen = middles[some]
    centers, radius = _bin_centers(side)
    slack += radius
    # the cone around the frame: outside of it, and far from it, bins need no search
    axis = seen.mean(0) / max(float(np.linalg.norm(seen.mean(0))), 1e-9)
    cone = math.acos(max(-1.0, float((seen @ axis).min()))) + slack
    outside = np.clip(np.arccos(np.clip(centers @ axis, -1, 1)) - cone, 0, None)
    inside = np.zeros(len(centers))
    near = np.flatnonzero(outside < REACH)

    def angles(targets: np.ndarray) -> np.ndarray:
        """To the nearest target, cut beyond 2 * REACH; inf where there is none. [len(near)]"""
        if not len(targets):
            return np.full(len(near), np.inf)
        chord, _ = KDTree(targets).query(centers[near], distance_upper_bound=2 * REACH)
        return 2 * np.arcsin(np.minimum(np.nan_to_num(chord, posinf=2 * REACH), 2.0) / 2)

    to_seen, to_unseen, to_whole = angles(seen), angles(middles[~whole]), angles(middles[whole])
    outside[near] = np.maximum(outside[near], np.minimum(to_seen - slack, REACH))
    room = np.clip(to_unseen - slack, 0, REACH)
    inside[near] = np.where(to_whole < to_unseen, room, 0)
    return Directions(side, torch.from_numpy(outside).float(), torch.from_numpy(inside).float())


def _blocks(
    camera: Cameras, usable: Tensor | None, n_blocks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Split an image into blocks of pixels.

    Returns:
        some, whole [rows, columns] bool: any, all of its pixels may be used; middles
        [rows, columns, 3], the direction of each block's middle; slack, how many radians a
        block's corner is from its middle, at most.
    """
    width, height = camera.size[0].tolist()
    step = max(1, math.ceil(max(width, height) / n_blocks))
    columns, rows = (math.ceil(n / step) for n in (width, height))
    keep = np.ones((height, width), bool) if usable is None else usable.numpy()
    padded = np.zeros((2, rows * step, columns * step), bool)
    padded[0, :height, :width] = keep.reshape(height, width)
    padded[1] = True
    padded[1, :height, :width] = padded[0, :height, :width]
    blocks = padded.reshape(2, rows, step, columns, step)
    some, whole = blocks[0].any((1, 3)), blocks[1].all((1, 3))
    y, x = (torch.arange(n + 1, dtype=torch.float64) * step for n in (rows, columns))
    grid = _directions(camera, x.clamp(max=width), y.clamp(max=height))
    corners = [grid[i : rows + i, j : columns + j] for i in (0, 1) for j in (0, 1)]
    middles = _directions(camera, (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2)
    for corner in corners:  # at the rim of a lens a corner stands for a block
        middles = np.where(np.isnan(middles), corner, middles)
    some, whole = (blocks & ~np.isnan(middles[..., 0]) for blocks in (some, whole))
    gaps = [np.linalg.norm(corner - middles, axis=-1)[some] for corner in corners]
    chord = float(np.nanmax([0.0, *np.concatenate(gaps)]))
    return some, whole, np.nan_to_num(middles), 2 * math.asin(min(chord, 2.0) / 2)


def _directions(camera: Cameras, x: Tensor, y: Tensor) -> np.ndarray:
    """Unit vectors [len(y), len(x), 3] of pixel positions in the camera's frame.

    nan where the lens has none.
    """
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    plane = (grid - camera.principal[0]) / camera.focal[0]
    directions, valid = camera.lenses[0].directions(plane)
    return torch.where(valid[..., None], directions, torch.nan).numpy()


def _bin_centers(side: int) -> tuple[np.ndarray, float]:
    """Unit vectors [6 side^2, 3] of the bins of a cube map, and how far a corner is at most."""
    axis = (np.arange(side) + 0.5) * (2 / side) - 1
    v, u = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    centers = np.empty((6, side * side, 3))
    for face in range(6):
        major = face // 2
        centers[face, :, major] = 1.0 - 2.0 * (face % 2)
        centers[face, :, (major + 1) % 3], centers[face, :, (major + 2) % 3] = u, v
    centers = centers.reshape(-1, 3)
    return centers / np.linalg.norm(centers, axis=1, keepdims=True), math.sqrt(2) / side


def _seen_in_cube(frames: Iterable[Frame], center: Tensor, half: float, resolution: int) -> Tensor:
    """The cells of one cube that a frame touches, [R, R, R] bool, indexed [z, y, x]."""
    size = 1  # cells of the grid along a side of a cell of this level
    while math.ceil(resolution / size) > COARSEST:
        size *= 2
    frames = list(frames)
    n = math.ceil(resolution / size)
    seen = torch.zeros((n, n, n), dtype=torch.bool)
    parts = [torch.arange(n**3)] * len(frames)
    while True:
        known, cell = seen.view(-1), 2 * half / resolution * size
        for k, frame in enumerate(frames):
            cells = parts[k] = parts[k][~known[parts[k]]]
            if not len(cells):
                continue
            points = (_places(cells, n) + 0.5) * cell - half
            touched, within = frame.test(points, center, ROUNDING * cell / 2)
            known[cells[touched if size == 1 else within]] = True
            parts[k] = cells[touched & ~within]
        if size == 1:
            return seen
        parts = [_places(part[~known[part]], n) for part in parts]
        size //= 2
        n = math.ceil(resolution / size)
        for dim in range(3):
            seen = seen.repeat_interleave(2, dim).narrow(dim, 0, n)
        seen = seen.contiguous()
        parts = [_split(part, n) for part in parts]


def _places(cells: Tensor, n: int) -> Tensor:
    """Where flat indices lie in a cube of n cells a side: x, y, z. [m] -> [m, 3]."""
    return torch.stack([cells % n, cells // n % n, cells // n**2], dim=1)


def _split(parents: Tensor, n: int) -> Tensor:
    """Flat indices of the eight parts of cells [m, 3], in a cube of n cells a side."""
    corners = torch.cartesian_prod(*[torch.arange(2)] * 3)
    x, y, z = (2 * parents[:, None] + corners).reshape(-1, 3).unbind(-1)
    inside = (x < n) & (y < n) & (z < n)
    return (x + n * (y + n * z))[inside]

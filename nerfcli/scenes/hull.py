"""Carve the visual hull from the silhouettes of RGBA views (Laurentini 1994).

A cell is empty if a view has the sphere around it in the image and shows only transparent pixels
there. This takes one look-up in a map of the distance from each pixel to the nearest that is
opaque, masked, or outside of the image. A view that alone would carve much of what two views leave
may be blank or have a wrong pose: it carves only where another view agrees.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.views import Views

SOLO_SHARE = 0.05  # of what two views leave: a view that alone carves more needs another to agree,
# and of few views one that carves more than its part, 1 / n; sound views carve half of that
TRUST_CELLS = 32  # along a side, to find these views, and contradictions
WELL_SEEN = 0.5  # of the views have a cell in the image: if no such cell is opaque, poses are wrong
AGREED = 0.9  # of the views that have a cell in the image show it opaque, if the box is to hold it
LEAST_SHARE = 1e-4  # of the cells: a smaller hull means that poses and alpha do not belong together
OPAQUE = 3  # of 255: lower alpha is noise of the matting
MAX_SIDE = 400  # silhouettes are reduced to this many pixels; conservative, and enough for 128^3
MAX_VIEWS = 100  # more hardly carve further
COARSEST = 16  # cells along a side on the first level
LENS_SAMPLES = 33  # along a side of the image, to measure the stretch of a lens
LENS_MARGIN = 1.2  # for the space between the samples
CHUNK = 16384  # cells at a time: they stay in the cache, and torch starts no threads of its own


@dataclass(frozen=True)
class Silhouette:
    """The distance map of one view.

    Attributes:
        camera: of the view.
        room: [(height + 2) * (width + 2)] uint8, radius of the transparent square around each
            reduced pixel, within the image; the image has a border of zeros.
        clearance: as room, but what lies outside of the image counts as transparent.
        width, height: of the reduced silhouette.
        reduction: pixels of the image per pixel of the silhouette, along a side.
        matrix: [4, 3] float32; a scene point times it is (x, y, 1) times depth, in reduced pixels
            counted from the border's corner; for a pinhole.
        stretch: radius of a footprint in reduced pixels, times depth, per unit of radius.
        outline: [m, 3] float64, unit directions in scene space of rays around what is opaque.
        border: share of the image's outermost pixels that is opaque.
    """

    camera: Cameras
    room: Tensor
    clearance: Tensor
    width: int
    height: int
    reduction: int
    matrix: Tensor
    stretch: float
    outline: Tensor
    border: float

    def place(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each point's index in `room`, and its depth. [m, 3] -> [m], [m]."""
        if self.camera.lenses[0].is_pinhole:
            x, y, z = torch.addmm(self.matrix[3], points, self.matrix[:3]).unbind(-1)
            before = z.clamp(min=1e-6)  # points behind the camera land far outside
            x, y = x / before, y / before
        else:
            xy, z = self.camera.project(0, points)
            x, y = (xy / self.reduction + 1).nan_to_num(nan=0.0).unbind(-1)
        # the border, which has no room, stands for everything outside
        x = x.clamp_(0, self.width + 1.5).int()
        y = y.clamp_(0, self.height + 1.5).int()
        return y * (self.width + 2) + x, z

    def is_empty(self, points: Tensor, radius: float) -> Tensor:
        """Whether only transparent pixels lie behind each sphere. [m, 3] -> [m] bool."""
        return self._is_clear(*self.place(points), radius, self.room)

    def is_opaque(self, points: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """Whether the middle of each sphere is in the image, and an opaque pixel behind it, too.

        [m, 3] -> bool [m], [m].
        """
        index, z = self.place(points)
        y, x = index // (self.width + 2), index % (self.width + 2)
        inside = (x > 0) & (x <= self.width) & (y > 0) & (y <= self.height) & (z > 0)
        return inside, inside & ~self._is_clear(index, z, radius, self.clearance)

    def _is_clear(self, index: Tensor, z: Tensor, radius: float, room: Tensor) -> Tensor:
        # z - radius: the nearest depth of the sphere
        return room.index_select(0, index) * (z - radius) > radius * self.stretch


Silhouettes = list[Silhouette]


def visual_hull(
    scene: Scene,
    views: Views,
    box: Box,
    resolution: int,
    silhouettes: Silhouettes | None = None,
    *,
    trust_all: bool = False,
) -> Tensor:
    """Find the cells of the detail cube of `box` that the views do not show to be empty.

    Args:
        views: RGBA views of the scene. resolution: cells along a side.
        silhouettes: of the views; None: made here.
        trust_all: whether each view may carve alone.

    Returns:
        [resolution] * 3 bool, indexed [z, y, x]. A cell that no view has in its image is occupied.
    """
    silhouettes = silhouettes or silhouettes_of(scene, views)
    votes = [2] * len(silhouettes) if trust_all else count_votes(silhouettes, box)
    x, y, z = carve(silhouettes, box, resolution, votes).unbind(-1)
    occupied = torch.zeros((resolution,) * 3, dtype=torch.bool)
    occupied[z, y, x] = True
    return occupied


def is_plausible(hull: Tensor) -> bool:
    """Whether enough cells are left for silhouettes and poses to belong together."""
    return float(hull.sum()) >= LEAST_SHARE * hull.numel()


def contradict_each_other(silhouettes: Silhouettes, box: Box) -> bool:
    """Whether poses and silhouettes do not belong together.

    Some of the cells that many views have in the image must be left, and opaque in nearly all of
    these views. Where no cell is in many images, nothing can be said.
    """
    n, least = TRUST_CELLS, max(2, math.ceil(WELL_SEEN * len(silhouettes)))
    axis = torch.arange(n)
    x, y, z = carve(silhouettes, box, n, count_votes(silhouettes, box)).unbind(-1)
    left = torch.zeros((n, n, n), dtype=torch.bool)
    left[x, y, z] = True
    n_seen, n_opaque = count_views(silhouettes, torch.cartesian_prod(axis, axis, axis), box, n)
    well = n_seen >= least
    if not well.any():
        return False
    agreed = left.view(-1) & well & (n_opaque >= AGREED * n_seen)
    return int(agreed.sum()) < max(LEAST_SHARE * int(well.sum()), 1)


def silhouettes_of(scene: Scene, views: Views) -> Silhouettes:
    """Make the distance maps of up to MAX_VIEWS views, spread over the whole capture."""
    # steps of the golden ratio: the first few views always spread over the whole capture
    golden = (math.sqrt(5) - 1) / 2
    order = sorted(range(len(views)), key=lambda i: i * golden % 1)[:MAX_VIEWS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda view: _silhouette(scene, views, view), order))


def _silhouette(scene: Scene, views: Views, view: int) -> Silhouette:
    alpha, usable = views.image(view)[..., -1].numpy(), views.usable_of(view)
    reduction = math.ceil(max(alpha.shape) / MAX_SIDE)
    clear = _reduce(alpha, reduction) < OPAQUE
    opaque = ~clear
    if usable is not None:  # a masked pixel shows nothing, not even emptiness
        kept = usable.numpy().reshape(alpha.shape)
        clear = _reduce(np.where(kept, alpha, np.uint8(255)), reduction) < OPAQUE
        opaque = _reduce(np.where(kept, alpha, np.uint8(0)), reduction) >= OPAQUE
    height, width = clear.shape
    room, clearance = (_distances(np.pad(clear, 1, constant_values=c)) for c in (False, True))
    camera = scene.cameras[int(views.cameras[view])]
    focal, principal, size = camera.focal[0], camera.principal[0], camera.size[0]
    # |d(x/z)| <= |d| sqrt(1 + (x/z)^2) / z for a shift d of a point
    slope = torch.maximum(principal, size - principal) / focal
    stretch = float((focal * torch.sqrt(1 + slope**2)).max()) / reduction
    if not camera.lenses[0].is_pinhole:
        stretch = _lens_stretch(camera) / reduction
    return Silhouette(
        camera,
        room,
        clearance,
        width,
        height,
        reduction,
        _matrix(camera, reduction),
        stretch,
        _outline(camera, opaque, reduction),
        float(np.concatenate([opaque[[0, -1]].ravel(), opaque[:, [0, -1]].ravel()]).mean()),
    )


def _reduce(alpha: np.ndarray, reduction: int) -> np.ndarray:
    """Take the most opaque of each block of pixels; a remainder counts as outside of the image."""
    height, width = (side // reduction for side in alpha.shape)
    blocks = alpha[: height * reduction, : width * reduction]
    return blocks.reshape(height, reduction, width, reduction).max(axis=(1, 3))


def _outline(camera: Cameras, opaque: np.ndarray, reduction: int) -> Tensor:
    """Direct rays at the first and the last opaque pixel of each row, [m, 3] in scene space."""
    rows = np.flatnonzero(opaque.any(axis=1))
    first = opaque[rows].argmax(axis=1)
    last = opaque.shape[1] - 1 - opaque[rows, ::-1].argmax(axis=1)
    xy = np.stack([np.concatenate([first, last]), np.concatenate([rows, rows])], axis=1)
    pixels = torch.from_numpy((xy + 0.5) * reduction)
    plane, lens = (pixels - camera.principal[0]) / camera.focal[0], camera.lenses[0]
    if lens.is_pinhole:
        directions = torch.nn.functional.pad(plane, (0, 1), value=1.0)
    else:
        directions, valid = lens.directions(plane)
        directions = directions[valid]
    return torch.nn.functional.normalize(directions, dim=-1) @ camera.c2w[0, :, :3].T


def _distances(clear: np.ndarray) -> Tensor:
    """Compute the radius of the square of true pixels around each, flat uint8; 255 at most."""
    from scipy.ndimage import distance_transform_cdt

    if clear.all():
        return torch.full((clear.size,), 255, dtype=torch.uint8)
    distances = np.asarray(distance_transform_cdt(clear, metric="chessboard"))
    # one less than the distance, because a centre lies anywhere in its own pixel
    return torch.from_numpy((np.clip(distances, 1, 256) - 1).astype(np.uint8).reshape(-1))


def _lens_stretch(camera: Cameras) -> float:
    """Bound how many pixels a point at depth 1 moves by when it shifts by one unit."""
    lens, share = camera.lenses[0], torch.linspace(0, 1, LENS_SAMPLES, dtype=torch.float64)
    pixels = torch.cartesian_prod(share, share) * camera.size[0]
    directions, valid = lens.directions((pixels - camera.principal[0]) / camera.focal[0])
    ahead = directions[valid & (directions[:, 2] > 0)]  # only these carve
    step = 1e-5 * torch.eye(3, dtype=torch.float64)
    plus, minus = (lens.project(ahead[:, None] + s * step) for s in (1, -1))
    slopes = (plus - minus).nan_to_num() / 2e-5 * camera.focal[0]  # [m, 3, 2]
    norms = slopes.norm(dim=1).amax(-1) * ahead[:, 2]  # in x or in y: room is a chessboard's
    return LENS_MARGIN * float(norms.amax()) if len(norms) else math.inf


def _matrix(camera: Cameras, reduction: int) -> Tensor:
    """Compose the map from the scene to reduced pixels, transposed; the border adds one."""
    fx, fy = (camera.focal[0] / reduction).tolist()
    cx, cy = (camera.principal[0] / reduction + 1).tolist()
    intrinsic = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    rotation = intrinsic @ camera.c2w[0, :, :3].T
    shift = -rotation @ camera.positions[0]
    return torch.cat([rotation.T, shift[None]]).to(torch.float32)


def count_views(
    silhouettes: Silhouettes, cells: Tensor, box: Box, resolution: int
) -> tuple[Tensor, Tensor]:
    """Count the views that have each cell [m, 3] in the image, and that show it opaque. [m], [m]"""
    points, radius = _centers(cells, box, resolution), math.sqrt(3) * box.half_size / resolution
    n_seen, n_opaque = torch.zeros(2, len(cells))
    for silhouette in silhouettes:
        seen, opaque = silhouette.is_opaque(points, radius)
        n_seen += seen
        n_opaque += opaque
    return n_seen, n_opaque


def count_votes(silhouettes: Silhouettes, box: Box) -> list[int]:
    """Count 2 for each view that may carve alone, 1 for one that needs another to agree."""
    cells = carve(silhouettes, box, TRUST_CELLS, [1] * len(silhouettes))
    points, radius = _centers(cells, box, TRUST_CELLS), math.sqrt(3) * box.half_size / TRUST_CELLS
    most = max(SOLO_SHARE, 1 / max(len(silhouettes), 1)) * len(cells)
    return [1 if int(s.is_empty(points, radius).sum()) > most else 2 for s in silhouettes]


def carve(silhouettes: Silhouettes, box: Box, resolution: int, votes: Sequence[int]) -> Tensor:
    """Carve from coarse to fine: split only the cells that survive a level.

    Args:
        votes: of each view; two of them carve a cell.

    Returns:
        The surviving cells of the finest level, [m, 3] int64: x, y, z.
    """
    levels = [resolution]
    while levels[0] % 2 == 0 and levels[0] > COARSEST:
        levels.insert(0, levels[0] // 2)
    axis = torch.arange(levels[0])
    cells = torch.cartesian_prod(axis, axis, axis)
    corners = torch.cartesian_prod(*[torch.arange(2)] * 3)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for level in levels:
            if level != levels[0]:
                cells = (2 * cells[:, None] + corners).reshape(-1, 3)
            points = _centers(cells, box, level)
            radius = math.sqrt(3) * box.half_size / level  # of the sphere around a cell

            def find_survivors(part: Tensor, radius: float = radius) -> Tensor:
                index = torch.arange(len(part))
                against = torch.zeros(len(part), dtype=torch.uint8)
                for silhouette, n_votes in zip(silhouettes, votes, strict=True):
                    against += n_votes * silhouette.is_empty(part, radius).to(torch.uint8)
                    keep = (against < 2).nonzero()[:, 0]
                    if len(keep) < len(part):
                        part, index, against = (
                            values.index_select(0, keep) for values in (part, index, against)
                        )
                return index

            kept = list(pool.map(find_survivors, points.split(CHUNK)))
            cells = torch.cat([cells[i * CHUNK + index] for i, index in enumerate(kept)])
    return cells


def _centers(cells: Tensor, box: Box, resolution: int) -> Tensor:
    """Compute the middles of cells in scene space, [m, 3] float32."""
    side = 2 * box.half_size / resolution
    return (cells + 0.5) * side + (torch.tensor(box.center) - box.half_size)

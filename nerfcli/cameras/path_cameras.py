"""The cameras along a path: their poses, lenses, sizes and pace."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.cameras.rotations import look_at, perpendicular
from nerfcli.cameras.splines import between
from nerfcli.cameras.upright import Upright, find_upright, straighten

Array = np.ndarray
CAMERAS = ("perspective", "equirectangular", "ods", "vr180")
IPD = 0.064  # metres between the eyes, as nerfstudio has it
DENSE = 32  # places a frame at which the length of a path is measured
LEAST_DENSE, MOST_DENSE = 1024, 16384


def stand_upright(cameras: Cameras, upright: Upright | None) -> tuple[Cameras, Array]:
    """Return the cameras with their images upright, and the upward direction [3]."""
    upright = upright or find_upright(cameras.c2w.numpy())
    return straighten(cameras, upright.turns), upright.up


def pinholes(cameras: Cameras, c2w: Array) -> Cameras:
    """Put pinholes with the median intrinsics of `cameras` at `c2w` [n, 3, 4]."""
    size = cameras.size.double().quantile(0.5, dim=0).round()
    relative = (cameras.focal / cameras.size).quantile(0.5, dim=0)
    if any(lens.is_wide for lens in cameras.lenses):  # 90 degrees of its view
        relative = relative * max(1.0, 0.5 / float(relative[0]))
    return Cameras(
        torch.from_numpy(np.ascontiguousarray(c2w)),
        (relative * size).repeat(len(c2w), 1),
        (size / 2).repeat(len(c2w), 1),
        size.to(torch.int64).repeat(len(c2w), 1),
        (Lens(),) * len(c2w),
    )


def even_phases(
    positions: Callable[[Array], Array], n_frames: int, *, is_closed: bool = True
) -> Array:
    """Choose phases [n] from 0 to 2 pi at which a path has gone equal lengths.

    Args:
        positions: phases [m] -> [m, 3].
        is_closed: the last frame is one step before the first; else it is the path's end.
    """
    count = min(max(DENSE * n_frames, LEAST_DENSE), MOST_DENSE)
    phases = np.linspace(0.0, 2 * math.pi, count + 1)
    steps = np.linalg.norm(np.diff(positions(phases), axis=0), axis=-1)
    way = np.concatenate([[0.0], steps.cumsum()])
    shares = np.arange(n_frames) / max(n_frames if is_closed else n_frames - 1, 1)
    if way[-1] <= 1e-12 * (1 + np.abs(positions(phases[:1])).max()):  # it stays where it is
        return 2 * math.pi * shares
    return np.interp(shares * way[-1], way, phases)


def with_size(cameras: Cameras, size: tuple[int, int]) -> Cameras:
    """Give images another width and height; they show as much from top to bottom."""
    wanted = torch.tensor(size).expand_as(cameras.size)
    ratio = (wanted[:, 1:] / cameras.size[:, 1:]).double()
    moved = (cameras.principal - cameras.size / 2) * ratio
    focal, principal = cameras.focal * ratio, wanted / 2 + moved
    for i, lens in enumerate(cameras.lenses):
        if lens.is_panorama:
            pair = panorama(size, lens.model)
            focal[i], principal[i] = (torch.tensor(v, dtype=torch.float64) for v in pair)
    return Cameras(cameras.c2w, focal, principal, wanted.clone(), cameras.lenses)


def with_fov(cameras: Cameras, degrees: float) -> Cameras:
    """Give pinholes another field of view from top to bottom."""
    was = cameras.size[:, 1:] / (2 * cameras.focal[:, 1:])
    ratio = was / math.tan(math.radians(degrees) / 2)
    return Cameras(
        cameras.c2w, cameras.focal * ratio, cameras.principal, cameras.size, cameras.lenses
    )


def panorama_intrinsics(
    model: str, size: tuple[int, int], ipd: float, *, is_whole: bool = False
) -> Intrinsics:
    """Make the intrinsics of a panorama.

    Args:
        model: equirectangular, ods or vr180. ipd: in the units of the poses.
        size: of what one eye sees, or of the `is_whole` image.
    """
    width, height = size
    if not is_whole:
        size = {"ods": (width, 2 * height), "vr180": (2 * width, height)}.get(model, size)
    lens = Lens(model, () if model == "equirectangular" else (ipd,))
    return Intrinsics(size, *panorama(size, model), lens)


def as_panoramas(
    cameras: Cameras, kind: str, up: Array, ipd: float, size: tuple[int, int] | None = None
) -> Cameras:
    """Look all around from the places of `cameras`, with a level horizon.

    Args:
        kind: equirectangular, ods or vr180. up: [3]. ipd: between the eyes, scene units.
        size: width and height of what one eye sees; None: as high as the images.
    """
    if size is None:
        height = int(cameras.size[0, 1])
        size = (height if kind == "vr180" else 2 * height, height)
    camera = panorama_intrinsics(kind, size, ipd)
    positions, forwards = cameras.positions.numpy(), cameras.forwards.numpy()
    flat = forwards - (forwards @ up)[:, None] * up
    length = np.linalg.norm(flat, axis=-1, keepdims=True)
    flat = np.where(length > 1e-6, flat / np.maximum(length, 1e-12), perpendicular(up))
    n = len(cameras)
    return Cameras(
        torch.from_numpy(look_at(positions, positions + flat, up)),
        torch.tensor([camera.focal] * n, dtype=torch.float64),
        torch.tensor([camera.principal] * n, dtype=torch.float64),
        torch.tensor([camera.size] * n),
        (camera.lens,) * n,
    )


def resample(cameras: Cameras, n_frames: int, *, is_loop: bool) -> Cameras:
    """Make a path of cameras of one kind longer or shorter; between them it goes straight on."""
    n = len(cameras)
    if n == n_frames or n == 1:
        return cameras[[min(i, n - 1) for i in range(n_frames)]]
    rows = [*range(n), 0] if is_loop else list(range(n))
    closed = cameras[rows]
    shares = np.arange(n_frames) / max(n_frames if is_loop else n_frames - 1, 1)
    places = shares * (len(rows) - 1)
    first = np.minimum(places.astype(np.int64), len(rows) - 2)
    share = torch.from_numpy(places - first)[:, None]
    focal = (1 - share) * closed.focal[first] + share * closed.focal[first + 1]
    c2w = torch.from_numpy(between(closed.c2w.numpy(), shares))
    chosen = closed[first.tolist()]
    return Cameras(c2w, focal, chosen.principal, chosen.size, chosen.lenses)

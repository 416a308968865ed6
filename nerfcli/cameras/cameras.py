"""Cameras: poses, intrinsics and lenses of many views, and the rays through their pixels.

Camera frame: OpenCV, +x right, +y down, +z forwards. Pixel centres lie at +0.5. c2w maps the
camera frame to scene space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.lenses import Lens, LensBank
from nerfcli.cameras.rays import Rays

TABLE_BYTES = 64 * 2**20  # limit for the tables of camera-frame directions, all lenses together
TABLE_BYTES_ON_CUDA = 2**30
MASK_BYTES = 64 * 2**20  # limit for what is kept of valid pixels: 43 kinds of 12 megapixels
ROUNDING = 1e-9  # share of the positions' size below which a length is taken for zero
# Radius of a pixel's cone in distances of neighbouring rays: a disc that spreads as a square pixel
# does (mip-NeRF 2021, section 3.1).
CONE_RADIUS = 2 / 12**0.5


@dataclass(frozen=True)
class Cameras:
    """Cameras of a scene, or of a path through it.

    Attributes:
        c2w: [n, 3, 4] float64, camera to scene, rotations orthonormal.
        focal: [n, 2] float64, fx and fy in pixels.
        principal: [n, 2] float64, cx and cy in pixels; (width / 2, height / 2) is the middle.
        size: [n, 2] int64, width and height in pixels.
        lenses: one per camera.
    """

    c2w: Tensor
    focal: Tensor
    principal: Tensor
    size: Tensor
    lenses: tuple[Lens, ...]

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int]) -> Cameras:
        """The chosen cameras, as Cameras also for a single one."""
        chosen = range(len(self))[index] if isinstance(index, int | slice) else index
        chosen = [chosen] if isinstance(chosen, int) else list(chosen)
        rows = torch.tensor(chosen, dtype=torch.int64)
        lenses = tuple(self.lenses[i] for i in chosen)
        return Cameras(
            self.c2w[rows], self.focal[rows], self.principal[rows], self.size[rows], lenses
        )

    @property
    def positions(self) -> Tensor:
        """Camera centres in scene space, [n, 3]."""
        return self.c2w[:, :, 3]

    @property
    def forwards(self) -> Tensor:
        """Optical axes in scene space, [n, 3], unit length."""
        return self.c2w[:, :, 2]

    def kind(self, camera: int) -> tuple[Lens | float, ...]:
        """Lens, intrinsics and size: cameras of one kind have the same rays in their own frame."""
        numbers = torch.cat([self.focal[camera], self.principal[camera], self.size[camera]])
        return (self.lenses[camera], *numbers.tolist())

    def scaled(self, scale: float) -> Cameras:
        """The same views at another resolution; sizes are rounded, intrinsics follow the ratio."""
        size = (self.size * scale).round().to(torch.int64).clamp(min=1)
        ratio = size / self.size.to(torch.float64)
        return Cameras(self.c2w, self.focal * ratio, self.principal * ratio, size, self.lenses)

    def rays(self, pixels: Tensor, with_radii: bool = False) -> Rays:
        """Rays through pixel centres.

        Args:
            pixels: [n_rays, 3] int64: camera, x, y.
            with_radii: fill in the radii of the cones.

        Returns:
            Rays on the device of `pixels`. Where a lens has no solution for a pixel the ray is
            the nearest that it has; `valid_pixels` tells which.
        """
        tables = self.ray_tables(pixels.device)
        camera, x, y = (column.contiguous() for column in pixels.unbind(-1))
        local = tables.directions(camera, x, y)
        axes = tables.axes.index_select(0, camera)  # twice as fast as a batched matmul on a CPU
        directions = axes[:, 0] * local[:, :1]
        directions.addcmul_(axes[:, 1], local[:, 1:2]).addcmul_(axes[:, 2], local[:, 2:])
        origins = tables.positions.index_select(0, camera)
        if tables.has_eyes:
            eyes = tables.eyes(camera, x, y, local)
            origins = origins + (axes.transpose(1, 2) @ eyes[:, :, None])[:, :, 0]
        radii = tables.radii(camera, x, y, local) if with_radii else None
        return Rays(origins, directions, local[:, 2].contiguous(), camera.to(torch.int32), radii)

    def image_rays(self, camera: int, device: str = "cpu", with_radii: bool = False) -> Rays:
        """Rays of all pixels of one camera, row after row, [height * width], on `device`."""
        grid = self._grid(camera, device)
        tables = self.ray_tables(grid[0].device)
        local = tables.directions(*grid)
        directions = local @ tables.axes[camera]
        origins = tables.positions[camera].expand(local.shape[0], 3).contiguous()
        if tables.has_eyes:
            origins = origins + tables.eyes(*grid, local) @ tables.axes[camera]
        cameras = torch.full_like(grid[0], camera, dtype=torch.int32)
        radii = tables.radii(*grid, local) if with_radii else None
        return Rays(origins, directions, local[:, 2].contiguous(), cameras, radii)

    def rays_by_lookup(self, device: torch.device) -> bool:
        """Whether `rays` only gathers and multiplies there, and inverts no lens on the way."""
        tables = self.ray_tables(device)
        return tables.is_pinhole or tables.table is not None

    def valid_pixels(self, camera: int) -> Tensor:
        """Whether the lens has a ray for each pixel of a camera, [height * width] bool."""
        n_pixels = int(self.size[camera].prod())
        if self.lenses[camera].is_pinhole:
            return torch.ones(n_pixels, dtype=torch.bool)
        kept = self._masks.setdefault(self.kind(camera), _Mask())
        with kept.lock:  # threads read images of one kind at once: the first looks, the others wait
            if kept.bits is not None:
                bits = np.unpackbits(kept.bits, count=n_pixels)
                return torch.from_numpy(bits.view(np.bool_))
            valid = self._find_valid(camera)
            held = sum(m.bits.nbytes for m in list(self._masks.values()) if m.bits is not None)
            if held + n_pixels // 8 <= MASK_BYTES:
                kept.bits = np.packbits(valid.numpy())
        return valid

    def _find_valid(self, camera: int) -> Tensor:
        """As `valid_pixels`, without what is kept."""
        width, height = self.size[camera].tolist()
        _, x, y = self._grid(camera)
        # a lens covers a disc around its axis, so where the whole border has rays, all pixels do
        border = (x == 0) | (x == width - 1) | (y == 0) | (y == height - 1)
        if self._solve(camera, x[border], y[border])[1].all():
            return torch.ones(width * height, dtype=torch.bool)
        return self._solve(camera, x, y)[1]

    def has_rays(self, camera: int) -> bool:
        """Whether the lens has a ray for any pixel of a camera; quick where it has."""
        if self.lenses[camera].is_pinhole:
            return True
        last = self.size[camera].to(torch.float64) - 1
        nearest = (self.principal[camera] - 0.5).clamp(min=0.0).minimum(last).round()
        solved = self._solve(camera, nearest[:1], nearest[1:])[1]  # the pixel next to the axis
        return bool(solved) or bool(self.valid_pixels(camera).any())

    def project(self, camera: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where scene points land in one camera's image.

        Args:
            points: [m, 3] in scene space.

        Returns:
            xy [m, 2] in pixels, nan where the lens has no image of the point, and z_depth [m]
            along the optical axis, negative behind the camera; both in the dtype of `points`.
        """
        c2w = self.c2w[camera].to(points)
        local = (points - c2w[:, 3]) @ c2w[:, :3]
        xy = self.lenses[camera].project(local)
        pixels = xy * self.focal[camera].to(points) + self.principal[camera].to(points)
        return pixels, local[:, 2]

    def _solve(self, camera: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        xy = torch.stack([x, y], dim=-1) + 0.5 - self.principal[camera]
        return self.lenses[camera].directions(xy / self.focal[camera])

    def _grid(self, camera: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        width, height = self.size[camera].tolist()
        rows, columns = (torch.arange(n, device=device) for n in (height, width))
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        x, y = x.reshape(-1), y.reshape(-1)
        return torch.full_like(x, camera), x, y

    @cached_property
    def _masks(self) -> dict[tuple[Lens | float, ...], _Mask]:
        return {}

    @cached_property
    def _by_device(self) -> dict[torch.device, RayTables]:
        return {}

    def ray_tables(self, device: torch.device) -> RayTables:
        """What `rays` gathers from, on `device`."""
        if device not in self._by_device:
            self._by_device[device] = RayTables(self, device)
        return self._by_device[device]


class _Mask:
    """The valid pixels of one kind of camera, as bits once they have been found."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.bits: np.ndarray | None = None


def common_focus(cameras: Cameras) -> tuple[Tensor, float] | None:
    """The point nearest to all optical axes, and the median depth at which cameras see it.

    None where there is no such point: one camera, axes that are almost parallel, or cameras that
    look away from it.
    """
    return meeting_point(cameras.positions, cameras.forwards)


def meeting_point(origins: Tensor, axes: Tensor) -> tuple[Tensor, float] | None:
    """The point [3] nearest to all lines, and the median distance along them, or None.

    Least squares with outliers weighted down.

    Args:
        origins, axes: [n, 3] float64, points and unit directions of the lines.
    """
    if len(origins) < 2:
        return None
    weights = torch.ones(len(origins), dtype=torch.float64)
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    focus = origins.mean(0)
    for _ in range(10):  # iteratively reweighted: a stray camera must not drag the focus along
        system = (weights[:, None, None] * across).sum(0)
        eigenvalues = torch.linalg.eigvalsh(system)
        if float(eigenvalues[0]) < 1e-3 * float(eigenvalues[-1]):
            return None
        right = (weights[:, None, None] * across @ origins[:, :, None]).sum(0)[:, 0]
        focus = torch.linalg.solve(system, right)
        miss = (across @ (focus - origins)[:, :, None])[:, :, 0].norm(dim=-1)
        weights = 1.0 / (miss + miss.median() + 1e-9)
    depths = ((focus - origins) * axes).sum(-1)
    if float((depths > 0).double().mean()) < 0.8:
        return None
    depth = float(depths[depths > 0].median())
    return (focus, depth) if depth > ROUNDING * float(origins.abs().max()) else None


class RayTables:
    """What the hot loop gathers from: float32 poses, and directions per kind of camera.

    Cameras with the same lens, intrinsics and size are of one kind. Per kind, either nothing is
    needed (pinhole), or a table holds the direction of each pixel, or, if the tables would pass
    TABLE_BYTES, each ray inverts its lens.
    """

    def __init__(self, cameras: Cameras, device: torch.device) -> None:
        keys = [cameras.kind(i) for i in range(len(cameras))]
        kinds = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        firsts = [keys.index(key) for key in kinds]
        axes = cameras.c2w[:, :, :3].transpose(1, 2)  # [n, 3, 3]: the camera's x, y, z in the scene
        self.axes = axes.to(device, torch.float32).contiguous()
        self.positions = cameras.positions.to(device, torch.float32).contiguous()
        self.kind = torch.tensor([kinds[key] for key in keys], device=device)
        focal, principal = cameras.focal[firsts], cameras.principal[firsts]
        self.focal, self.principal = focal.to(device), principal.to(device)
        # what x and y of a pixel are multiplied by and start from, of a pinhole; float32 is exact
        # enough here: at most 1e-4 pixels for a 4000-pixel image
        plane = torch.cat([1.0 / focal, (0.5 - principal) / focal], dim=1)
        self.plane = plane.to(device, torch.float32)
        self.sizes = cameras.size[firsts].to(device)
        self.widths = self.sizes[:, 0]
        lenses = [cameras.lenses[i] for i in firsts]
        self.is_pinhole = all(lens.is_pinhole for lens in lenses)
        # pixels of one eye, so that neighbours are of one eye, too; that of a mono image sees all
        parts = [[1 + (lens.model == "vr180"), 1 + (lens.model == "ods")] for lens in lenses]
        self.halves = self.sizes // torch.tensor(parts, device=device)
        self.half_ipd = torch.tensor([lens.eye_distance / 2 for lens in lenses], device=device)
        self.has_eyes = bool(self.half_ipd.any())
        self.table: Tensor | None = None
        if self.is_pinhole:
            return
        corners = torch.maximum(cameras.principal, cameras.size - cameras.principal)
        reach = float(torch.linalg.vector_norm(corners / cameras.focal, dim=-1).amax())
        self.bank = LensBank(lenses, reach).to(device)
        areas = cameras.size[firsts].prod(-1)
        self.starts = torch.cat([areas.new_zeros(1), areas.cumsum(0)[:-1]]).to(device)
        room = TABLE_BYTES_ON_CUDA if device.type == "cuda" else TABLE_BYTES
        if int(areas.sum()) * 3 * 4 <= room:
            grids = [[v.to(device) for v in cameras._grid(i)] for i in firsts]
            self.table = torch.cat([self.directions(*grid) for grid in grids])

    def directions(self, camera: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Unit vectors in the camera frame, [n, 3] float32."""
        kind = self.kind.index_select(0, camera) if len(self.widths) > 1 else self.kind[:1]
        if self.table is not None:
            return self.table.index_select(0, self.starts[kind] + y * self.widths[kind] + x)
        if not self.is_pinhole:
            pixels = torch.stack([x, y], dim=-1) + 0.5
            plane = (pixels - self.principal[kind]) / self.focal[kind]
            return self.bank.directions(plane, kind.expand(len(x)))[0].to(torch.float32)
        plane = self.plane[kind]
        u = torch.addcmul(plane[:, 2], x.to(torch.float32), plane[:, 0])
        v = torch.addcmul(plane[:, 3], y.to(torch.float32), plane[:, 1])
        z = torch.rsqrt(torch.addcmul(torch.addcmul(v.new_ones(1), u, u), v, v))
        return torch.stack([u * z, v * z, z], dim=-1)

    def eyes(self, camera: Tensor, x: Tensor, y: Tensor, local: Tensor) -> Tensor:
        """Where each pixel's eye is in the camera frame, [n, 3] float32.

        local: `directions` of the same pixels. The eyes of ods turn with the column: they stand
        across its direction (Ishiguro et al. 1992). Those of vr180 stay.
        """
        kind = self.kind.index_select(0, camera)
        halves, sizes = self.halves[kind], self.sizes[kind]
        turns = halves[:, 1] < sizes[:, 1]
        is_right = torch.where(turns, 2 * y >= sizes[:, 1], 2 * x >= sizes[:, 0])
        shift = self.half_ipd[kind] * torch.where(is_right, 1.0, -1.0)
        sine, cosine = local[:, 0], local[:, 2]
        flat = torch.hypot(sine, cosine).clamp(min=1e-12)
        right = torch.where(turns, cosine / flat, 1.0)
        ahead = torch.where(turns, -sine / flat, 0.0)
        return torch.stack([shift * right, torch.zeros_like(shift), shift * ahead], dim=-1)

    def radii(self, camera: Tensor, x: Tensor, y: Tensor, local: Tensor) -> Tensor:
        """Radii of pixels' cones per unit of distance, [n] float32.

        local: `directions` of the same pixels, [n, 3]. Of the neighbours across and down, the mean
        distance counts; at the far borders they are those on the other side.
        """
        kind = self.kind.index_select(0, camera)
        right, down = (
            torch.where((v + 1 < n) & ((v + 1) % half != 0), v + 1, v - 1)
            for v, n, half in zip((x, y), self.sizes[kind].T, self.halves[kind].T, strict=True)
        )
        across = (self.directions(camera, right, y) - local).norm(dim=-1)
        along = (self.directions(camera, x, down) - local).norm(dim=-1)
        return (across + along) * (0.5 * CONE_RADIUS)

"""Multi-plane images: the view of a camera, split into planes of depth (Zhou et al. 2018).

A plane k stands for a range of depths along the optical axis. Its pixel has the colour and the
opacity of the part of the ray in that range. Composited from far to near, the planes give the
rendered picture exactly; seen from the side, they shift against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Rays
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.engine.render import render_rays
from nerfcli.extraction.source_field import SourceField
from nerfcli.methods.grid_field import GridField
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, intersect_box
from nerfcli.reference.volume import composite

ROWS = 1 << 13  # rays at a time
TAILS = 0.002  # share of the light in front of the first plane, and behind the last


@dataclass(frozen=True, eq=False)
class PlaneImages:
    """images [k, height, width, 4] uint8, straight alpha, nearest plane first.

    depths: [k], along the optical axis, in source units. focal: fx in pixels.
    """

    images: np.ndarray
    depths: np.ndarray
    focal: float


def plane_images(
    source: SourceField, cameras: Cameras, index: int, n_planes: int, progress: Progress
) -> PlaneImages:
    """Split one view into planes at equal steps of 1 / depth.

    Raises:
        NerfError: the view sees nothing.
    """
    field = source.model.field
    rays = cameras.image_rays(index, with_radii=field.needs_radii)
    parts = [rays[start : start + ROWS] for start in range(0, len(rays), ROWS)]
    near, far = _depth_range(source, parts)
    edges = 1.0 / np.linspace(1.0 / near, 1.0 / far, n_planes + 1)
    middles = 2.0 / (1.0 / edges[1:] + 1.0 / edges[:-1])
    layers = []
    for done, part in enumerate(parts, start=1):
        layers.append(_layers(source, part, torch.from_numpy(edges[1:-1]).float()))
        progress.update(done, total=len(parts))
    width, height = cameras.size[index].tolist()
    rgba = torch.cat(layers).reshape(height, width, n_planes, 4).permute(2, 0, 1, 3)
    images = np.round(rgba.numpy() * 255.0).astype(np.uint8)
    return PlaneImages(images, middles / source.scale, float(cameras.focal[index, 0]))


def _samples(source: SourceField, rays: Rays) -> tuple[Samples, Tensor, Tensor, Tensor]:
    """Sample rays: samples, densities, colours, and depths along the optical axis."""
    field, box = source.model.field, source.cells_box
    if isinstance(field, GridField):
        bounds, grid = field.bounds(rays), field.sample_grid
    else:
        bounds = intersect_box(rays, box, field.near, field.far)
        grid = MarchingGrid(source.cells, box, source.steps)
    samples = grid.sample(field.ops, rays, bounds, torch.full_like(bounds.t_min, 0.5))
    ray = samples.ray_indices()
    with torch.no_grad():
        sigmas, rgbs = field.radiance(samples.positions(rays, ray), rays.directions[ray])
    assert rays.z_scale is not None  # rays of a camera have it
    return samples, sigmas, rgbs, samples.t_mids * rays.z_scale[ray]


def _depth_range(source: SourceField, parts: list[Rays]) -> tuple[float, float]:
    """Find the depths between which all but TAILS of the light stops, from every 4th ray."""
    depths, weights = [], []
    for part in parts:
        some = part[torch.arange(0, len(part), 4)]
        pixels = render_rays(source.model, some, background=torch.zeros(3))
        assert some.z_scale is not None
        depths.append(pixels.median_depth * some.z_scale)
        weights.append(pixels.opacity)
    depth, weight = torch.cat(depths).numpy(), torch.cat(weights).numpy()
    order = np.argsort(depth)
    total = np.cumsum(weight[order])
    if not total[-1] > 0:
        raise NerfError("the view sees nothing of the field. Choose another --view.")
    low, high = np.searchsorted(total / total[-1], [TAILS, 1.0 - TAILS])
    step = source.step
    return float(depth[order[low]]) - step, float(depth[order[min(high, len(order) - 1)]]) + step


def _layers(source: SourceField, rays: Rays, edges: Tensor) -> Tensor:
    """Composite the parts of rays between inner edges [k - 1]: RGBA [n_rays, k, 4], straight."""
    samples, sigmas, rgbs, depths = _samples(source, rays)
    n_planes = len(edges) + 1
    # a ray's samples come in the order of depth, so each plane's are neighbours in the list
    row = samples.ray_indices() * n_planes + torch.bucketize(depths, edges)
    counts = torch.bincount(row, minlength=len(rays) * n_planes)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    split = Samples(samples.t_starts, samples.t_ends, offsets)
    pixels = composite(sigmas, rgbs, split, torch.zeros(3))
    colors = pixels.rgb / pixels.opacity.clamp(min=1e-6)[:, None]
    rgba = torch.cat([colors.clamp(0.0, 1.0), pixels.opacity[:, None]], dim=1)
    return rgba.reshape(len(rays), n_planes, 4)


def write_planes(planes: PlaneImages, folder: Path, page: str) -> list[Path]:
    """Write plane_000.png (the nearest) ..., planes.json, and a self-contained index.html."""
    from nerfcli.core.files import write_json, write_text
    from nerfcli.scenes.images import write_png

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, image in enumerate(planes.images):
        files.append(folder / f"plane_{k:03d}.png")
        write_png(files[-1], image)
    write_text(folder / "index.html", page)
    write_json(folder / "planes.json", {
        "order": "nearest first", "depth": "along the optical axis", "focal": planes.focal,
        "planes": [{"file": file.name, "depth": float(depth)}
                   for file, depth in zip(files, planes.depths, strict=True)],
    })  # fmt: skip
    return [folder / "index.html", folder / "planes.json", *files]

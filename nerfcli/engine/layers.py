"""The layers of a rendered view: colour, depth, normals and opacity, as numbers.

rgb, rgba: sRGB-encoded, as the photos are; rgba has straight alpha. Depths: along the ray or along
the optical axis, in the source's units, 0 where nothing is hit. normal: unit vectors in the
source's axes, 0 where nothing is hit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Rays
from nerfcli.core.errors import NerfError
from nerfcli.engine.render import Model, as_image
from nerfcli.engine.render_files import DEPTH_KINDS, ESTIMATORS, suffixes
from nerfcli.reference.samples import Pixels

View = dict[str, np.ndarray]
SEEN = 1.0 / 255.0  # opacity below which a pixel shows nothing
LEAST_OPACITY = 1e-4  # by which colours are divided at least
MOST = 65535  # of 16 bits
BEYOND = 8.0  # times as far as the far side of the detail cube: so far 16 bits reach at most


@dataclass(frozen=True)
class DepthScale:
    """How depth is measured and shown over a path, in source units.

    Attributes:
        kind: of DEPTH_KINDS. limits: near and far of the colours. step: a unit of a 16-bit PNG.
    """

    kind: str
    limits: tuple[float, float]
    step: float

    def to_uint16(self, depth: np.ndarray) -> np.ndarray:
        """Round depth [...] to 16 bits; what is too far becomes the greatest number."""
        return np.clip(np.round(depth / self.step), 0, MOST).astype(np.uint16)

    def record(self, layer: str, kind: str) -> dict[str, object]:
        """Say in a sidecar what the numbers in a layer's files mean: value * scale is the depth."""
        files = {
            ".png": {"dtype": "uint16", "scale": self.step, "saturated": MOST},
            ".npy": {"dtype": "float32", "scale": 1.0},
            ".exr": {"dtype": "float32", "scale": 1.0, "channel": "Z"},
        }
        return {
            "kind": "z" if self.kind == "z" else "euclidean",
            "estimator": ESTIMATORS[layer],
            "unit": "source units",
            "invalid": 0,
            "files": {suffix: files[suffix] for suffix in suffixes(layer, kind)},
        }


def depth_scale(model: Model, cameras: Cameras, kind: str = "distance") -> DepthScale:
    """Choose the colours and the 16-bit unit of depth for a path.

    The colours span the detail cube. The unit is 1, 2 or 5 times a power of ten, so that the
    numbers reach as far as rays do, or BEYOND the detail cube.

    Raises:
        NerfError: an unknown kind, or depth along the axis of a lens that looks sideways, too.
    """
    if kind not in DEPTH_KINDS:
        raise NerfError(f"--depth: unknown kind {kind!r}; known: {', '.join(DEPTH_KINDS)}.")
    if kind == "z" and any(lens.is_wide for lens in cameras.lenses):
        raise NerfError("--depth z: a panorama or fisheye lens also looks backwards; use distance.")
    units = model.scene.scene_from_source.scale
    limits = depth_limits(model, cameras)
    farthest = min(BEYOND * limits[1], max(model.field.far / units, limits[1]))
    least = farthest / MOST
    power = 10.0 ** math.floor(math.log10(least))
    step = next(n for n in (1, 2, 5, 10, 20) if n * power >= least) * power
    return DepthScale(kind, limits, float(f"{step:.1e}"))


def depth_limits(model: Model, cameras: Cameras) -> tuple[float, float]:
    """Nearest and farthest distance to the detail cube over a path, in source units."""
    box = model.scene.box
    center = torch.tensor(box.center, dtype=torch.float64)
    distance = (cameras.c2w[:, :, 3] - center).norm(dim=1)
    near = float((distance - 1.2 * box.half_size).clamp(min=0.0).min())
    far = float((distance + 1.2 * box.half_size).max())
    units = model.scene.scene_from_source.scale
    return near / units, far / units


def layers_of(
    model: Model,
    cameras: Cameras,
    index: int,
    pixels: Pixels,
    save: tuple[str, ...],
    scale: DepthScale,
    *,
    exact: bool,
) -> View:
    """Turn what one camera's rays see into layers, no more than `save` needs.

    A GPU's copies take their time. With anything but rgb, opacity is there, too.

    Args:
        exact: colours as float32; else in 8 bits.

    Returns:
        [h, w, 3 or 4] uint8 or float32 for rgb and rgba, else float32.
    """
    view: dict[str, Tensor] = {}
    if "rgb" in save:
        view["rgb"] = _colors(pixels.rgb, exact)
    if "rgba" in save:
        view["rgba"] = _colors(straight(pixels, model.background), exact)
    if set(save) & set(ESTIMATORS):
        seen = pixels.opacity >= SEEN
        axis = 1.0
        if scale.kind == "z":
            axis = cameras.image_rays(index, model.device).z_scale
            assert axis is not None  # rays of a camera have it
        units = model.scene.scene_from_source.scale
        for layer, depth in (("depth", pixels.depth), ("median-depth", pixels.median_depth)):
            if layer in save:
                view[layer] = torch.where(seen, depth * axis / units, 0.0)
    if "normal" in save:
        view["normal"] = normals(model, cameras, index, pixels)
    if save != ("rgb",):
        view["opacity"] = pixels.opacity
    return {layer: as_image(values, cameras, index) for layer, values in view.items()}


def straight(pixels: Pixels, background: Tensor) -> Tensor:
    """Colours without the background, and opacity: [n_rays, 4], not multiplied by alpha."""
    alpha = pixels.opacity[:, None]
    own = pixels.rgb - (1.0 - alpha) * background
    return torch.cat([own / alpha.clamp(min=LEAST_OPACITY), alpha], dim=1).clamp(0.0, 1.0)


def _colors(colors: Tensor, exact: bool) -> Tensor:
    colors = colors.clamp(0.0, 1.0)
    return colors if exact else (colors * 255.0).round().to(torch.uint8)


OFFSETS = (-1.5, -0.5, 0.5, 1.5)  # steps around the median depth at which normals are taken
THIN = 0.01  # optical depth of a sample that counts as nothing
CHUNK = 1 << 15  # pixels whose normals are taken at once


def normals(model: Model, cameras: Cameras, index: int, pixels: Pixels) -> Tensor:
    """Take the normals of a view from the gradient of the density: [n_rays, 3], source axes.

    Central differences at a few places around the median depth, weighted as volume rendering
    weighs them. They are as wide as a sample or as a pixel there, whichever is more.
    """
    return normals_of(model, cameras.image_rays(index, model.device, True), pixels)


def normals_of(model: Model, radii: Rays, pixels: Pixels) -> Tensor:
    """Take the normals where rays, which have radii, see something: [n_rays, 3], source axes."""
    seen = (pixels.opacity >= SEEN).nonzero()[:, 0]
    out = torch.zeros(len(radii), 3, device=pixels.depth.device)
    rotation = out.new_tensor(model.scene.scene_from_source.rotation)
    for part in seen.split(CHUNK):
        out[part] = _normals(model, radii[part], pixels.median_depth[part]) @ rotation
    return out


def _normals(model: Model, rays: Rays, t: Tensor) -> Tensor:
    """Normals [n, 3] in scene space, of unit length, at about the distances t [n]."""
    assert rays.radii is not None
    step = torch.maximum(_step_at(model, t), 2.0 * rays.radii * t)
    places = t[:, None] + step[:, None] * step.new_tensor(OFFSETS)
    points = rays.at(places).reshape(-1, 3)
    length = step.repeat_interleave(len(OFFSETS))
    alphas = 1.0 - torch.exp(-model.field.density(points) * length)
    alphas = alphas.view(len(t), -1)
    light = torch.cumprod(1.0 - alphas, dim=1)
    weights = alphas * torch.cat([torch.ones_like(light[:, :1]), light[:, :-1]], dim=1)
    thin = THIN / length

    def log_density(points: Tensor) -> Tensor:
        # it has the same direction, and is nearly straight where density falls by orders of size
        return torch.log(torch.maximum(model.field.density(points), thin))

    gradient = torch.zeros_like(points)
    for axis in range(3):
        shift = torch.zeros_like(points)
        shift[:, axis] = length
        gradient[:, axis] = log_density(points - shift) - log_density(points + shift)
    unit = torch.nn.functional.normalize(gradient, dim=-1).view(len(t), -1, 3)
    return torch.nn.functional.normalize((weights[..., None] * unit).sum(1), dim=-1)


def _step_at(model: Model, t: Tensor) -> Tensor:
    """Length of a sample at distance t of a ray, scene units."""
    steps = model.field.steps
    return steps.t_from_s(steps.s_from_t(t) + 1.0) - t

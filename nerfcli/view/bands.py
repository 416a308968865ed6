"""A band of a picture: rays, the field, and the colours of what was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Rays
from nerfcli.engine.layers import SEEN, depth_limits, normals_of
from nerfcli.engine.pictures import depth_colors, normal_colors, ramp_colors
from nerfcli.engine.render import Model, render_rays, to_uint8
from nerfcli.reference.samples import Pixels
from nerfcli.scenes import Scene
from nerfcli.view.look import Look

FARTHEST = 160.0  # of the depth that a page takes, scene units
DEPTH_STEP = 256e-5  # the lowest of the three bytes that carry it stays zero, so it packs fast
WORST = 0.25  # error of a channel that has the brightest colour

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Band:
    """Rows and columns of a picture.

    Attributes:
        rows, columns: first, and the one after the last.
        colors: [rows, columns, 3] uint8. depth: [rows, columns] or None.
    """

    rows: Span
    columns: Span
    colors: np.ndarray
    depth: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Aim:
    """The camera of a picture in the space of a model, and the rays of all its pixels.

    unit: what a unit of the model's space is in that of the look.
    """

    cameras: Cameras
    rays: Rays
    unit: float


def aim(model: Model, look: Look, base: Scene) -> Aim:
    """Make the rays of a look, once for all bands.

    Args:
        base: the scene whose space the look's camera is in; the model's own may be another one of
            the same source.
    """
    cameras = moved(look.cameras, base, model.scene)
    with_radii = look.mode == "normals" or model.field.needs_radii
    unit = base.scene_from_source.scale / model.scene.scene_from_source.scale
    return Aim(cameras, cameras.image_rays(0, model.device, with_radii), unit)


def paint_rows(model: Model, look: Look, aimed: Aim, rows: Span, columns: Span) -> Band:
    """Paint a part of a picture.

    Raises:
        NerfError: as for `render_rays`.
    """
    cameras, (width, height) = aimed.cameras, look.size
    rays = aimed.rays[_places(width, rows, columns, model.device)]
    needs_radii = model.field.needs_radii
    pixels = render_rays(model, rays if needs_radii else replace(rays, radii=None))
    shape = rows[1] - rows[0], columns[1] - columns[0]
    colors = _colors(model, look, cameras, rays, pixels)
    if look.mode == "error" and look.photo is not None:
        colors = _error(colors.reshape(*shape, 3), look.photo, (width, height), rows, columns)
    depth = None
    if look.with_depth:
        assert rays.z_scale is not None  # rays of a camera have it
        ahead = pixels.median_depth * rays.z_scale * aimed.unit
        far = torch.where(pixels.opacity > 0.5, ahead, FARTHEST)
        far = (far.clamp(max=FARTHEST) / DEPTH_STEP).round() * DEPTH_STEP
        depth = far.cpu().numpy().astype(np.float32).reshape(shape)
    return Band(rows, columns, colors.reshape(*shape, 3), depth)


def moved(cameras: Cameras, base: Scene, scene: Scene) -> Cameras:
    """The same cameras in the space of another scene of the same source."""
    if base.scene_from_source == scene.scene_from_source:
        return cameras
    in_source = base.scene_from_source.inverse().apply_c2w(cameras.c2w)
    return replace(cameras, c2w=scene.scene_from_source.apply_c2w(in_source))


def _places(width: int, rows: Span, columns: Span, device: str) -> Tensor | slice:
    if columns == (0, width):
        return slice(rows[0] * width, rows[1] * width)
    across = torch.arange(*columns, device=device)
    return (torch.arange(*rows, device=device)[:, None] * width + across).reshape(-1)


def _colors(model: Model, look: Look, cameras: Cameras, rays: Rays, pixels: Pixels) -> np.ndarray:
    """[n, 3] uint8 of the look's mode; `error` gets plain colours."""
    opacity = pixels.opacity.clamp(0.0, 1.0)
    if look.mode == "depth":
        limits = depth_limits(model, cameras)
        depth = pixels.median_depth / model.scene.scene_from_source.scale
        seen = torch.where(opacity >= SEEN, depth, 0.0)
        return to_uint8(depth_colors(seen.cpu().numpy(), opacity.cpu().numpy(), limits))
    if look.mode == "opacity":
        return to_uint8(opacity.cpu().numpy())[:, None].repeat(3, axis=1)
    if look.mode == "normals":
        return normal_colors(normals_of(model, rays, pixels).cpu().numpy())
    rgb = pixels.rgb
    if look.color is not None:
        rgb = rgb * look.color.gain.to(rgb) + look.color.offset.to(rgb)
    return to_uint8(rgb.cpu().numpy())


def _error(
    colors: np.ndarray, photo: np.ndarray, size: tuple[int, int], rows: Span, columns: Span
) -> np.ndarray:
    """How far colours are from a photo [h, w, 3 or 4] of any size: the mean of the channels."""
    if photo.shape[:2] != size[::-1]:
        photo = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX))
    part = photo[rows[0] : rows[1], columns[0] : columns[1]].astype(np.float64)
    off = np.abs(colors - part[..., :3]).mean(axis=-1) / 255.0
    if part.shape[-1] == 4:
        off = np.where(part[..., 3] > 127, off, 0.0)
    return to_uint8(ramp_colors(np.clip(off / WORST, 0.0, 1.0)))

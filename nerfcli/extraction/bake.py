"""Colour a mesh from the field, as seen from outside along the normals.

A short ray starts in front of the surface, against the normal, and ends behind it. Its colour is
divided by its opacity. The result is what a camera straight above sees, highlights included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from nerfcli.cameras.rays import Rays
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import missing
from nerfcli.engine.render import render_rays
from nerfcli.extraction.rasterize import covered_pixels
from nerfcli.extraction.source_field import SourceField
from nerfcli.shapes.types import Mesh, unit

IN_FRONT = 3.0  # samples between the start of a ray and the surface, and again behind it
SEEN = 0.02  # opacity below which a ray has no colour of its own
MAX_FACES = 400_000  # of an atlas: cutting a larger one takes many minutes
GUTTER = 4  # texels around each chart that take its colour, so that filtering finds no gap


@dataclass(frozen=True, eq=False)
class Texture:
    """uv [v, 2] in [0, 1], (0, 0) the lower left; image [size, size, 3] uint8, top row first."""

    uv: np.ndarray
    image: np.ndarray


def surface_colors(source: SourceField, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Render sRGB [n, 3] float32 in [0, 1] of points with outward unit normals, source frame.

    A ray that meets nothing takes the colour of the field at the point itself.
    """
    reach = IN_FRONT * source.step
    field, black = source.reaching(2.0 * reach), torch.zeros(3)
    outward = source.directions_to_scene(normals)
    places = source.to_scene(points)
    parts = [torch.zeros(0, 3)]
    chunk = field.rays_per_chunk
    for start in range(0, len(points), chunk):
        n, at = outward[start : start + chunk], places[start : start + chunk]
        rays = Rays(at + reach * n, -n)
        pixels = render_rays(source.model, rays, field=field, background=black)
        colors = pixels.rgb / pixels.opacity.clamp(min=SEEN)[:, None]
        dim = (pixels.opacity < SEEN).nonzero()[:, 0]
        if len(dim):
            with torch.no_grad():
                colors[dim] = field.radiance(at[dim], -n[dim])[1]
        parts.append(colors.clamp(0.0, 1.0))
    return torch.cat(parts).numpy()


def color_mesh(mesh: Mesh, source: SourceField) -> Mesh:
    """Give each vertex a colour."""
    colors = surface_colors(source, mesh.vertices, mesh.vertex_normals)
    return Mesh(mesh.vertices, mesh.faces, colors)


def texture_mesh(mesh: Mesh, source: SourceField, size: int) -> tuple[Mesh, Texture]:
    """Cut the surface into charts and bake a square texture of `size` texels a side.

    Returns:
        The mesh with vertices repeated along the seams of the charts, and its texture.

    Raises:
        NerfError: the package xatlas is missing, or the mesh has too many faces for an atlas.
    """
    try:
        import xatlas  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing("xatlas", "--texture") from error
    if len(mesh.faces) > MAX_FACES:
        raise NerfError(
            f"--texture: {len(mesh.faces):,} faces are too many for an atlas; thin the mesh by "
            f"--faces {MAX_FACES // 4}, or lower --resolution."
        )
    atlas = xatlas.Atlas()
    normals = mesh.vertex_normals
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32),
                   normals.astype(np.float32))  # fmt: skip
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = size, GUTTER, True
    options.bruteForce = False
    atlas.generate(pack_options=options)
    origin, faces, uv = atlas[0]
    origin, faces = origin.astype(np.int64), faces.astype(np.int64)
    mesh = Mesh(mesh.vertices[origin], faces)
    image = _bake(mesh, normals[origin], uv.astype(np.float64), source, size)
    return mesh, Texture(uv.astype(np.float64), image)


def _bake(
    mesh: Mesh, normals: np.ndarray, uv: np.ndarray, source: SourceField, size: int
) -> np.ndarray:
    """Render the colour of each texel [size, size, 3] uint8, top row first."""
    image = np.zeros((size * size, 3), dtype=np.float32)
    known = np.zeros(size * size, dtype=bool)
    pixels = np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1) * size
    for part in covered_pixels(pixels[mesh.faces], size, size):
        corners = mesh.faces[part.face]
        points = np.einsum("nk,nkd->nd", part.weights, mesh.vertices[corners])
        outward = unit(np.einsum("nk,nkd->nd", part.weights, normals[corners]))
        image[part.pixel] = surface_colors(source, points, outward)
        known[part.pixel] = True
    if not known.any():
        raise NerfError(f"--texture {size}: no texel lies on the surface. Give a larger one.")
    # all other texels take their nearest neighbour; only the gutter needs it
    nearest = distance_transform_edt(
        ~known.reshape(size, size), return_distances=False, return_indices=True
    )
    row, column = np.asarray(nearest)
    image = image.reshape(size, size, 3)[row, column]
    return np.round(image * 255.0).astype(np.uint8)

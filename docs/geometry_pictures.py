"""Draw docs/images/fit_weights.png: too little, the default and too much of each loss weight.

The target is a cloud of 4,000 noisy points on a block with a knob; every mesh starts as the same
sphere around it. Run from the repository: python docs/geometry_pictures.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nerfcli.shapes.fit import FitWeights, fit_mesh
from nerfcli.shapes.surface import surface_of
from nerfcli.shapes.surface_samples import sample_surface
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, unit

OUT = Path(__file__).parent / "images" / "fit_weights.png"
NOISE = 0.012  # standard deviation of the points, in units of a block 1.6 wide
SIZE = 300  # pixels of one picture
VIEW = np.array([[0.8, -0.6, 0.0], [0.25, 0.33, -0.91], [-0.55, -0.73, -0.41]])  # right, down, away
LEVELS = {  # too little, too much
    "normal": (0.0, 0.03),
    "edge": (0.0, 3.0),
    "smoothness": (0.0, 1e-3),
    "laplacian": (0.0, 30.0),
}


def block_with_knob() -> Mesh:
    """A box with rounded edges and a ball on top, from its signed distance on a grid."""
    axis = np.linspace(-1.2, 1.2, 61)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    point = np.stack([x, y, z + 0.3], axis=-1)
    over = np.abs(point) - [0.75, 0.55, 0.45]
    box = np.linalg.norm(np.maximum(over, 0), axis=-1) + np.minimum(over.max(axis=-1), 0) - 0.05
    knob = np.linalg.norm(point - [0.2, 0.0, 0.8], axis=-1) - 0.4
    values = np.minimum(box, knob).astype(np.float32)
    mesh = surface_of("block", SdfGrid(values, np.full(3, -1.2), np.full(3, 0.04)))
    assert isinstance(mesh, Mesh)
    return mesh


def noisy_points(mesh: Mesh, n: int) -> PointCloud:
    rng = np.random.default_rng(0)
    samples = sample_surface(mesh, n, rng)
    assert samples.normals is not None
    points = samples.points + NOISE * rng.standard_normal((n, 3))
    return PointCloud(points, unit(samples.normals + 0.2 * rng.standard_normal((n, 3))))


def drawn(mesh: Mesh) -> Image.Image:
    """Flat shading with edges, far faces first, four pixels averaged to one."""
    scale = 2 * SIZE
    seen = mesh.vertices @ VIEW.T
    pixels = seen[:, :2] * scale / 2.9 + scale / 2
    image = Image.new("RGB", (scale, scale), "white")
    pen = ImageDraw.Draw(image)
    normals = mesh.face_normals @ VIEW.T
    light = np.clip(normals @ np.array([-0.4, -0.6, -0.7]), 0, 1) * 0.75 + 0.25
    order = np.argsort(-seen[mesh.faces, 2].mean(axis=1))
    for face in order[normals[order, 2] < 0]:
        shade = tuple(int(c * light[face]) for c in (150, 185, 225))
        corners = [tuple(xy) for xy in pixels[mesh.faces[face]]]
        pen.polygon(corners, fill=shade, outline=tuple(int(0.75 * c) for c in shade))
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def main() -> None:
    target = noisy_points(block_with_knob(), 4_000)
    plain = FitWeights()

    def fitted(weights: FitWeights) -> Image.Image:
        return drawn(fit_mesh(target, weights=weights, steps=60, edge_length=0.045))

    middle = fitted(plain)
    sheet = Image.new("RGB", (3 * SIZE, len(LEVELS) * (SIZE + 18)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, (little, much)) in enumerate(LEVELS.items()):
        default = getattr(plain, name)
        for column, value in enumerate((little, default, much)):
            top = row * (SIZE + 18)
            one = fitted(replace(plain, **{name: value})) if value != default else middle
            sheet.paste(one, (column * SIZE, top + 18))
            kind = ("too little", "default", "too much")[column]
            pen.text((column * SIZE + 10, top + 4), f"{name} {value:g}: {kind}", fill="black")
    OUT.parent.mkdir(exist_ok=True)
    sheet.quantize(64).save(OUT, optimize=True)


if __name__ == "__main__":
    main()

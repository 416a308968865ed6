"""Pictures of docs/representations.md: python docs/representation_pictures.py RUN

RUN is a run of datasets/biplane. Everything shown is written by `nerf export` and read back from
its files; nothing else is drawn.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from nerfcli.cameras.cameras import Cameras
from nerfcli.engine.runs import Run
from nerfcli.extraction.rasterize import covered_pixels
from nerfcli.scenes.scene import Scene
from nerfcli.shapes.mesh_files import load_shape
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, VoxelGrid

IMAGES = Path(__file__).parent / "images"
SIZE = 320
VIEW = 28  # training view of all pictures
LIGHT = np.array([0.35, -0.45, 0.82])
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2.0
CUBE = np.array([
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
])  # fmt: skip


def export(run: Path, folder: Path, kind: str, name: str, *words: object) -> Path:
    out = folder / name
    command = [sys.executable, "-m", "nerfcli", "export", run, "--to", kind, "--out", out, *words]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return out


def visible_faces(mesh: Mesh, cameras: Cameras, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest face at each pixel of a camera's picture, by z-buffer.

    Returns:
        face [height * width], -1 where there is none, and its barycentric weights [.., 3].
    """
    import torch

    width, height = cameras.size[index].tolist()
    xy, z = (v.numpy() for v in cameras.project(index, torch.from_numpy(mesh.vertices)))
    faces = np.flatnonzero((z[mesh.faces] > 1e-9).all(axis=1))
    best = np.full(width * height, np.inf)
    found = np.full(width * height, -1)
    shares = np.zeros((width * height, 3))
    for part in covered_pixels(xy[mesh.faces[faces]], width, height):
        face = faces[part.face]
        # weights in the picture, to weights in space: 1 / z is linear in the picture
        scaled = part.weights / z[mesh.faces[face]]
        depth = 1.0 / scaled.sum(axis=1)
        np.minimum.at(best, part.pixel, depth)
        wins = depth == best[part.pixel]
        found[part.pixel[wins]] = face[wins]
        shares[part.pixel[wins]] = scaled[wins] * depth[wins, None]
    return found, shares


def shaded(mesh: Mesh, cameras: Cameras, color: np.ndarray | None = None) -> np.ndarray:
    """A picture of a mesh in its colours, or in one colour under a light; antialiased."""
    large = cameras.scaled(2.0)
    face, weights = visible_faces(mesh, large, 0)
    width, height = large.size[0].tolist()
    light = 0.35 + 0.65 * np.clip(mesh.face_normals[face] @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    if color is None and mesh.vertex_colors is not None:
        corners = mesh.vertex_colors[mesh.faces[face]]
        rgb = np.einsum("nk,nkc->nc", weights, corners)
    else:
        rgb = light[:, None] * (np.array([0.85, 0.83, 0.8]) if color is None else color)
    rgb = np.where((face >= 0)[:, None], rgb, 1.0).reshape(height // 2, 2, width // 2, 2, 3)
    return rgb.mean(axis=(1, 3))


def dots(cloud: PointCloud, cameras: Cameras, n: int) -> np.ndarray:
    """Some of the points, two pixels wide, near ones over far ones."""
    import torch

    assert cloud.colors is not None
    chosen = np.random.default_rng(0).choice(len(cloud.points), n, replace=False)
    xy, z = (v.numpy() for v in cameras.project(0, torch.from_numpy(cloud.points[chosen])))
    width, height = cameras.size[0].tolist()
    picture = np.ones((height, width, 3))
    for i in np.argsort(-z):
        x, y = (int(v) for v in np.floor(xy[i]))
        if 0 <= x < width - 1 and 0 <= y < height - 1:
            picture[y : y + 2, x : x + 2] = cloud.colors[chosen[i]]
    return picture


def cubes(grid: VoxelGrid) -> Mesh:
    """A cube for each voxel inside."""
    assert grid.colors is not None
    index = np.argwhere(grid.values >= grid.threshold)
    centers = grid.origin + grid.spacing * index
    vertices = (centers[:, None] + CORNERS * grid.spacing).reshape(-1, 3)
    faces = (8 * np.arange(len(index))[:, None, None] + CUBE).reshape(-1, 3)
    mesh = Mesh(vertices, faces)
    light = 0.45 + 0.55 * np.clip(mesh.face_normals @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    # a vertex of its own for each corner of each face, so that faces are flat
    colors = grid.colors[tuple(index.T)].repeat(len(CUBE), axis=0) * light[:, None]
    flat = Mesh(vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3))
    return replace(flat, vertex_colors=colors.repeat(3, axis=0).astype(np.float32))


def slice_of(grid: SdfGrid) -> np.ndarray:
    """Distances in the plane y = 0: blue inside, orange outside, a line every tenth of a unit."""
    middle = round(float(-grid.origin[1] / grid.spacing[1]))
    values = grid.values[:, middle].T[::-1]
    picture = Image.fromarray(values).resize((SIZE, round(SIZE * len(values) / values.shape[1])),
                                             Image.Resampling.BILINEAR)  # fmt: skip
    values = np.array(picture)
    warm, cold = np.array([0.98, 0.72, 0.42]), np.array([0.25, 0.45, 0.8])
    fade = np.exp(-4.0 * np.abs(values))[..., None]
    rgb = np.where((values > 0)[..., None], warm, cold) * (0.55 + 0.45 * fade)
    rgb[np.abs(values) % 0.1 < 0.008] *= 0.75
    rgb[np.abs(values) < 0.008] = 0.0
    return padded(rgb)


def padded(rgb: np.ndarray) -> np.ndarray:
    out = np.ones((SIZE, SIZE, 3))
    top = (SIZE - len(rgb)) // 2
    out[top : top + len(rgb)] = rgb[:SIZE]
    return out


def sheet(path: Path, pictures: list[np.ndarray], columns: int) -> None:
    """Pictures side by side, in 128 colours: small files."""
    rows = [np.concatenate(pictures[i : i + columns], axis=1)
            for i in range(0, len(pictures), columns)]  # fmt: skip
    whole = np.round(np.clip(np.concatenate(rows), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(whole).quantize(128).save(path, optimize=True)
    print(path, path.stat().st_size)


def over_white(path: Path, size: int) -> np.ndarray:
    rgba = np.asarray(Image.open(path).convert("RGBA").resize((size, size))) / 255.0
    return rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:]


def main(run: Path) -> None:
    scene = Scene.from_json(Run.open(run).scene_json)
    cameras = scene.cameras[[scene.splits["train"][VIEW]]]
    cameras = cameras.scaled(SIZE / int(cameras.size.max()))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        mesh = load_shape(export(run, folder, "mesh", "mesh.ply"))
        points = load_shape(export(run, folder, "points", "points.ply"))
        voxels = load_shape(export(run, folder, "voxels", "voxels.npz", "--resolution", 64))
        sdf = load_shape(export(run, folder, "sdf", "sdf.npz", "--resolution", 64))
        assert isinstance(mesh, Mesh) and isinstance(points, PointCloud)
        assert isinstance(voxels, VoxelGrid) and isinstance(sdf, SdfGrid)
        plain = replace(mesh, vertex_colors=None)
        sheet(IMAGES / "representations.png", [
            shaded(plain, cameras), shaded(mesh, cameras), dots(points, cameras, 60_000),
            shaded(cubes(voxels), cameras), slice_of(sdf), frusta(run, folder, plain, cameras),
        ], 3)  # fmt: skip
        planes = export(run, folder, "mpi", "mpi", "--view", VIEW, "--planes", 12)
        views = export(run, folder, "views", "views", "--views", 16)
        listed = sorted(planes.glob("plane_*.png"))[1:11:2]
        sheet(IMAGES / "planes_and_views.png", [
            *(over_white(path, 192) for path in listed),
            *(over_white(views / "train" / f"r_{i}.png", 192) for i in (1, 4, 7, 10, 12)),
        ], 5)  # fmt: skip


def frusta(run: Path, folder: Path, mesh: Mesh, cameras: Cameras) -> np.ndarray:
    """The mesh among the pyramids of the cameras, from further away."""
    pyramids = load_shape(export(run, folder, "cameras", "cameras") / "frusta.ply")
    assert isinstance(pyramids, Mesh)
    n = len(mesh.vertices)
    blue = np.tile([0.2, 0.45, 0.8], (len(pyramids.vertices), 1))
    colors = np.concatenate([np.full((n, 3), 0.6), blue])
    both = Mesh(
        np.concatenate([mesh.vertices, pyramids.vertices]),
        np.concatenate([mesh.faces, pyramids.faces + n]),
        colors.astype(np.float32),
    )
    back = cameras.c2w.clone()
    back[:, :, 3] -= 9.0 * back[:, :, 2]
    return shaded(both, replace(cameras, c2w=back))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

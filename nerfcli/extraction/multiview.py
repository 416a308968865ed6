"""Export views of a field on a sphere, and the cameras of a run, for other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rotations import look_at, mean_up, perpendicular
from nerfcli.core.progress import Progress
from nerfcli.engine.render import Model, as_image, render_image, to_uint8
from nerfcli.extraction.visibility import spread_directions
from nerfcli.scenes.build import source_from_scene
from nerfcli.scenes.images import write_png
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.writers.blender import write_blender
from nerfcli.scenes.writers.transforms import write_transforms
from nerfcli.scenes.writers.unsupported import Unsupported, list_unsupported
from nerfcli.shapes.mesh_files import save_shape
from nerfcli.shapes.types import Mesh

TEST_EVERY = 8  # of the views on the sphere, for the test split


def sphere_cameras(cameras: Cameras, box: Box, n: int) -> Cameras:
    """Spread n pinhole cameras evenly over a sphere around the focus of the training cameras.

    Their distance is the median of the training cameras. Their intrinsics are those of the first,
    with the principal point in the middle. Up is the mean up of the training cameras.
    """
    found = common_focus(cameras)
    focus = np.array(box.center) if found is None else found[0].numpy()
    radius = float((cameras.positions - torch.from_numpy(focus)).norm(dim=1).median())
    up = mean_up(cameras.c2w.numpy())
    right = perpendicular(up)
    outward = spread_directions(n) @ np.stack([right, np.cross(up, right), up])
    c2w = look_at(focus + radius * outward, focus, up)
    size = cameras.size[:1].expand(n, 2).clone()
    focal = cameras.focal[:1, :1].expand(n, 2).clone()
    return Cameras(torch.from_numpy(c2w), focal, size / 2.0, size, (Lens(),) * n)


def write_views(
    model: Model, cameras: Cameras, folder: Path, progress: Progress
) -> tuple[list[Path], list[Unsupported]]:
    """Write renderings and poses in the Blender layout: a scene that can be trained on.

    PNGs have straight alpha, poses are in the source's frame. Every TEST_EVERY-th view belongs to
    the test split.

    Returns:
        The transforms files, and what they cannot hold of the cameras or the box.
    """
    splits: dict[str, list[int]] = {"train": [], "test": []}
    names = []
    for i in range(len(cameras)):
        split = "test" if i % TEST_EVERY == TEST_EVERY - 1 else "train"
        names.append(f"{split}/r_{len(splits[split])}.png")
        splits[split].append(i)
        (folder / split).mkdir(parents=True, exist_ok=True)
        write_png(folder / names[i], to_uint8(_rgba(model, cameras, i)))
        progress.update(i + 1, total=len(cameras))
    nothing = (None,) * len(cameras)
    scene = replace(
        model.scene,
        names=tuple(names),
        cameras=cameras,
        image_paths=nothing,
        mask_paths=nothing,
        alpha_paths=nothing,
        splits={split: tuple(indices) for split, indices in splits.items()},
        crop_radius=0.0,
    )
    source = source_from_scene(scene)
    box = None if source.keep_frame else source.box  # readers guess the usual one
    return write_blender(source.frames, names, folder, box), list_unsupported(source, "blender")


def write_cameras(scene: Scene, folder: Path) -> tuple[list[Path], list[Unsupported]]:
    """Write the cameras of a run as transforms.json, and as pyramids that a viewer shows.

    Images are named as seen from the scene's folder.

    Returns:
        The files, and what transforms.json cannot hold of the scene.
    """
    source = source_from_scene(scene)
    nothing = [None] * len(scene.names)
    write_transforms(source, scene.names, nothing, nothing, folder)
    save_shape(frusta(scene), folder / "frusta.ply")
    files = [folder / "transforms.json", folder / "frusta.ply"]
    return files, list_unsupported(source, "transforms")


def frusta(scene: Scene, share: float = 0.1) -> Mesh:
    """Make a pyramid for each camera, its apex at the camera's centre; source frame.

    share: height of a pyramid as a share of the median distance to the box's centre.
    """
    cameras = scene.cameras
    distance = (cameras.positions - torch.tensor(scene.box.center).double()).norm(dim=1)
    depth = share * float(distance.median()) / scene.scene_from_source.scale
    poses = scene.scene_from_source.inverse().apply_c2w(cameras.c2w).numpy()
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    faces = np.array([[0, 2, 1], [0, 3, 2], [0, 4, 3], [0, 1, 4], [1, 2, 3], [1, 3, 4]])
    vertices = []
    for i in range(len(cameras)):
        plane = (corners * cameras.size[i] - cameras.principal[i]) / cameras.focal[i]
        local = np.column_stack([depth * plane.numpy(), np.full(4, depth)])
        local = np.concatenate([np.zeros((1, 3)), local])
        vertices.append(local @ poses[i, :3, :3].T + poses[i, :3, 3])
    numbers = 5 * np.arange(len(cameras))[:, None, None] + faces
    return Mesh(np.concatenate(vertices), numbers.reshape(-1, 3))


def _rgba(model: Model, cameras: Cameras, index: int) -> np.ndarray:
    """Render a view: [height, width, 4] in [0, 1], straight alpha."""
    pixels = render_image(model, cameras, index)
    rest = (1.0 - pixels.opacity)[:, None] * model.background
    colors = ((pixels.rgb - rest) / pixels.opacity.clamp(min=1e-3)[:, None]).clamp(0.0, 1.0)
    rgba = torch.cat([colors, pixels.opacity[:, None]], dim=1)
    return as_image(rgba, cameras, index)

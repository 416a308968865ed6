"""Views of a field on a sphere, and the cameras of a run, as files that others read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rotations import look_at, mean_up, perpendicular
from nerfcli.core.errors import NerfError
from nerfcli.core.files import write_json
from nerfcli.core.progress import Progress
from nerfcli.engine.render import Model, as_image, render_image, to_uint8
from nerfcli.extraction.visibility import spread_directions
from nerfcli.scenes.images import write_png
from nerfcli.scenes.scene import Scene, Similarity
from nerfcli.shapes.types import Mesh

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # from our camera axes to those of the files
TEST_EVERY = 8  # of the views on the sphere, for the test split
LENS_KEYS = {"brown": ("k1", "k2", "k3", "k4", "p1", "p2"), "fisheye": ("k1", "k2", "k3", "k4")}


def sphere_cameras(cameras: Cameras, box: Box, n: int) -> Cameras:
    """n pinholes spread evenly over a sphere, looking at what the training cameras look at.

    Their distance is the training cameras' median, their intrinsics are those of the first one
    with the principal point in the middle. Upwards is the cameras' mean own up.
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


def write_views(model: Model, cameras: Cameras, folder: Path, progress: Progress) -> list[Path]:
    """Renderings and poses in the Blender layout, source frame: a scene that can be trained on.

    PNGs have straight alpha. Every TEST_EVERY-th view belongs to the test split.
    """
    width, height = cameras.size[0].tolist()
    angle = 2.0 * math.atan(0.5 * width / float(cameras.focal[0, 0]))
    frames: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    poses = _source_poses(cameras, model.scene.scene_from_source) @ OPENGL
    for i in range(len(cameras)):
        split = "test" if i % TEST_EVERY == TEST_EVERY - 1 else "train"
        name = f"{split}/r_{len(frames[split])}"
        (folder / split).mkdir(parents=True, exist_ok=True)
        write_png(folder / f"{name}.png", to_uint8(_rgba(model, cameras, i)))
        frames[split].append({"file_path": f"./{name}", "transform_matrix": poses[i].tolist()})
        progress.update(i + 1, total=len(cameras))
    files = []
    for split, listed in frames.items():
        if listed:
            files.append(folder / f"transforms_{split}.json")
            value = {"camera_angle_x": angle, "w": width, "h": height, "frames": listed}
            write_json(files[-1], value)
    return files


def transforms_json(scene: Scene) -> dict[str, Any]:
    """The cameras of a run as nerfstudio's transforms.json, in the source's frame.

    Names are those of the images as seen from the scene's folder.

    Raises:
        NerfError: lenses of two kinds, which the format cannot say.
    """
    cameras = scene.cameras
    models = {"fisheye" if lens.model == "fisheye" else "brown" for lens in cameras.lenses}
    if len(models) > 1:
        raise NerfError("the run mixes fisheye and other lenses; transforms.json holds one kind.")
    poses = _source_poses(cameras, scene.scene_from_source) @ OPENGL
    frames = []
    for i, name in enumerate(scene.names):
        (fx, fy), (cx, cy) = cameras.focal[i].tolist(), cameras.principal[i].tolist()
        width, height = cameras.size[i].tolist()
        lens = cameras.lenses[i]
        coefficients = dict(zip(LENS_KEYS.get(lens.model, ()), lens.params, strict=False))
        frames.append(
            {"file_path": name, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": width,
             "h": height, **coefficients, "transform_matrix": poses[i].tolist()}
        )  # fmt: skip
    names = {
        f"{split}_filenames": [scene.names[i] for i in indices]
        for split, indices in scene.splits.items()
        if indices
    }
    kind = "OPENCV_FISHEYE" if models == {"fisheye"} else "OPENCV"
    return {"camera_model": kind, **names, "frames": frames}


def frusta(scene: Scene, share: float = 0.1) -> Mesh:
    """A pyramid for each camera, its apex at the centre; source frame.

    share: height of a pyramid as a share of the median distance to the box's centre.
    """
    cameras = scene.cameras
    distance = (cameras.positions - torch.tensor(scene.box.center).double()).norm(dim=1)
    depth = share * float(distance.median()) / scene.scene_from_source.scale
    poses = _source_poses(cameras, scene.scene_from_source)
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


def _source_poses(cameras: Cameras, scene_from_source: Similarity) -> np.ndarray:
    """c2w [n, 4, 4] in the source's frame, our camera axes."""
    c2w = scene_from_source.inverse().apply_c2w(cameras.c2w).numpy()
    bottom = np.broadcast_to([[[0.0, 0.0, 0.0, 1.0]]], (len(c2w), 1, 4))
    return np.concatenate([c2w, bottom], axis=1)


def _rgba(model: Model, cameras: Cameras, index: int) -> np.ndarray:
    """[height, width, 4] in [0, 1], straight alpha."""
    pixels = render_image(model, cameras, index)
    rest = (1.0 - pixels.opacity)[:, None] * model.background
    colors = ((pixels.rgb - rest) / pixels.opacity.clamp(min=1e-3)[:, None]).clamp(0.0, 1.0)
    rgba = torch.cat([colors, pixels.opacity[:, None]], dim=1)
    return as_image(rgba, cameras, index)

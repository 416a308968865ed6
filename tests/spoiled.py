"""A small textured scene from closed forms, and the usual ways to spoil a scene.

A ball on a floor, both coloured by the same solid noise, so that every view shows the same marks.
Spoilers work on any transforms.json or Blender folder, so real scenes go through the same ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from nerfcli.cameras.rotations import look_at

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
WIDTH, HEIGHT, FOCAL = 240, 180, 220.0
N_VIEWS = 14


def opengl_pose(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """OpenGL camera-to-world [4, 4], z up."""
    pose = look_at(eye[None], target, np.array([0.0, 0.0, 1.0]))[0]
    return np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]]) @ FLIP


def arc(n: int = N_VIEWS, step: float = 0.16) -> list[np.ndarray]:
    """Cameras on an uneven arc around the ball, as a hand would hold them."""
    poses = []
    for i in range(n):
        angle = step * i
        distance, height = 4.0 + 0.3 * np.sin(1.7 * i), 1.6 + 0.5 * np.cos(2.3 * i)
        eye = np.array([distance * np.cos(angle), distance * np.sin(angle), height])
        target = np.array([0.15 * np.sin(3 * i), 0.15 * np.cos(5 * i), 0.0])
        poses.append(opengl_pose(eye, target))
    return poses


def noise(points: np.ndarray) -> np.ndarray:
    """Solid noise in [0, 1] at points [n, 3]: two octaves of interpolated random values."""
    from scipy.ndimage import map_coordinates

    table = np.random.default_rng(0).random((48, 48, 48))
    value = np.zeros(len(points))
    for frequency, weight in ((9.0, 0.65), (23.0, 0.35)):
        coordinates = (points * frequency + 500.0).T
        value += weight * map_coordinates(table, coordinates, order=1, mode="grid-wrap")
    return value


def picture(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours [h, w, 3] uint8 and z-depth [h, w] (0: none) of the scene from an OpenGL pose."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    local = np.stack([(x - WIDTH / 2) / FOCAL, -(y - HEIGHT / 2) / FOCAL, -np.ones_like(x)], -1)
    direction = local.reshape(-1, 3) @ pose[:3, :3].T
    origin = pose[:3, 3]
    a, b = (direction**2).sum(1), direction @ origin
    inside = b**2 - a * (origin @ origin - 1.0)
    ball = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    floor = np.where(
        direction[:, 2] < 0, (-1.0 - origin[2]) / np.minimum(direction[:, 2], -1e-9), np.inf
    )
    t = np.minimum(ball, floor)
    hit = np.isfinite(t) & (t < 14.0)
    points = origin + np.where(hit, t, 1.0)[:, None] * direction
    grey = noise(points)
    colour = np.stack([grey, 0.8 * grey + 0.1, 1.0 - grey], -1)
    colour[~hit] = 0.9
    pixels = np.round(np.clip(colour, 0, 1) * 255).astype(np.uint8)
    depth = np.where(hit, t, 0.0)  # local z is -1, so t is the depth along the axis
    return pixels.reshape(HEIGHT, WIDTH, 3), depth.reshape(HEIGHT, WIDTH)


def write_textured_scene(folder: Path, n_views: int = N_VIEWS, *, depth: bool = False) -> Path:
    """The scene as transforms.json with PNGs, and depth in millimetres where asked."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i, pose in enumerate(arc(n_views)):
        pixels, z = picture(pose)
        frame = {"file_path": f"images/v_{i}.png", "transform_matrix": pose.tolist()}
        Image.fromarray(pixels).save(folder / "images" / f"v_{i}.png")
        if depth:
            frame["depth_file_path"] = f"depth/v_{i}.png"
            (folder / "depth").mkdir(exist_ok=True)
            Image.fromarray(np.round(z * 1000).astype(np.uint16)).save(
                folder / frame["depth_file_path"]
            )
        frames.append(frame)
    shared = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    table = {"camera_model": "PINHOLE", "w": WIDTH, "h": HEIGHT, **shared, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(table))
    return folder


Change = Callable[[Path, dict], None]


def _poses(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def run(folder: Path, table: dict) -> None:
        for frame in table["frames"]:
            pose = np.array(frame["transform_matrix"], dtype=np.float64)
            frame["transform_matrix"] = change(pose).tolist()

    return run


def _transposed(pose: np.ndarray) -> np.ndarray:
    turned = pose.copy()
    turned[:3, :3] = pose[:3, :3].T
    return turned


def _negated(pose: np.ndarray) -> np.ndarray:
    new = pose.copy()
    new[:3, 3] *= -1
    return new


def _moved(pose: np.ndarray) -> np.ndarray:
    """The whole world turned, scaled by 3.7 and shifted: another frame, the same scene."""
    angle = 0.8
    turn = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    turn = turn @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    new = np.eye(4)
    new[:3, :3], new[:3, 3] = turn @ pose[:3, :3], 3.7 * turn @ pose[:3, 3] + [5.0, -2.0, 1.0]
    return new


def _focal(factor: float) -> Change:
    def run(folder: Path, table: dict) -> None:
        for part in (table, *table["frames"]):
            for key in ("fl_x", "fl_y"):
                if key in part:
                    part[key] *= factor
            for key in ("camera_angle_x", "camera_angle_y"):
                if key in part:
                    part[key] = 2 * np.arctan(np.tan(part[key] / 2) / factor)

    return run


def _half_size(folder: Path, table: dict) -> None:
    """Images halved under intrinsics of the full size, and no size stated that would tell."""
    for key in ("w", "h"):
        table.pop(key, None)
    for frame in table["frames"]:
        path = folder / frame["file_path"]
        with Image.open(path) as image:
            small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        small.save(path)


def _swapped(folder: Path, table: dict) -> None:
    a, b = table["frames"][3], table["frames"][8]
    a["transform_matrix"], b["transform_matrix"] = b["transform_matrix"], a["transform_matrix"]


def _shuffled(folder: Path, table: dict) -> None:
    frames = table["frames"]
    order = np.random.default_rng(5).permutation(len(frames))
    poses = [frame["transform_matrix"] for frame in frames]
    for frame, i in zip(frames, order, strict=True):
        frame["transform_matrix"] = poses[i]


def _sorted_as_text(folder: Path, table: dict) -> None:
    frames = table["frames"]
    by_text = sorted(range(len(frames)), key=lambda i: frames[i]["file_path"])
    by_number = sorted(
        range(len(frames)), key=lambda i: int("".join(filter(str.isdigit, frames[i]["file_path"])))
    )
    poses = [frame["transform_matrix"] for frame in frames]
    for text, number in zip(by_text, by_number, strict=True):
        frames[number]["transform_matrix"] = poses[text]


def _one_pose(folder: Path, table: dict) -> None:
    frame = table["frames"][5]
    pose = np.array(frame["transform_matrix"])
    angle = np.radians(8.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    frame["transform_matrix"] = (turn @ pose).tolist()


# what is done, and the words of the finding that must name it
SPOILERS: dict[str, tuple[Change, str, str]] = {
    "flipped": (_poses(lambda m: m @ FLIP), "convention", "OpenCV and OpenGL"),
    "w2c": (_poses(np.linalg.inv), "convention", "world-to-camera"),
    "w2c-opencv": (_poses(lambda m: np.linalg.inv(m @ FLIP)), "convention", "world-to-camera"),
    "transposed": (_poses(_transposed), "convention", "transposed"),
    "mirrored": (_poses(_negated), "convention", "behind the cameras"),
    "focal": (_focal(2.0), "focal", "2 times too long"),
    "half-size": (_half_size, "image-size", "2 times larger"),
    "swapped": (_swapped, "swapped", "exchanged"),
    "shuffled": (_shuffled, "shuffled", "do not belong together"),
    "text-order": (_sorted_as_text, "order", "alphabetical"),
    "one-pose": (_one_pose, "pose", "at odds"),
}
SOUND: dict[str, Change] = {"as-is": lambda folder, table: None, "moved": _poses(_moved)}


def spoil(scene: Path, copy: Path, change: Change) -> Path:
    """A copy of a scene (transforms.json, or Blender's training views alone) changed."""
    shutil.copytree(scene, copy)
    for path in sorted(copy.glob("transforms*.json")):
        if path.name != "transforms.json" and path.name != "transforms_train.json":
            path.unlink()
            continue
        table = json.loads(path.read_text())
        for frame in table["frames"]:
            if not Path(frame["file_path"]).suffix:
                frame["file_path"] += ".png"
        change(copy, table)
        path.write_text(json.dumps(table))
    return copy


def scenes_with_masks(folder: Path, *, inverted: bool) -> Path:
    """The textured ball alone, white around it, with masks (black = ignored) of it."""
    write_textured_scene(folder)
    table = json.loads((folder / "transforms.json").read_text())
    (folder / "masks").mkdir()
    for frame in table["frames"]:
        pose = np.array(frame["transform_matrix"])
        ball = ball_mask(pose)
        path = folder / frame["file_path"]
        with Image.open(path) as image:
            pixels = np.array(image)
        pixels[~ball] = 255
        Image.fromarray(pixels).save(path)
        frame["mask_path"] = f"masks/{path.name}"
        Image.fromarray(((ball != inverted) * 255).astype(np.uint8)).save(
            folder / frame["mask_path"]
        )
    (folder / "transforms.json").write_text(json.dumps(table))
    return folder


def ball_mask(pose: np.ndarray) -> np.ndarray:
    """Where an OpenGL pose sees the ball, [h, w] bool."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    local = np.stack([(x - WIDTH / 2) / FOCAL, -(y - HEIGHT / 2) / FOCAL, -np.ones_like(x)], -1)
    direction = local @ pose[:3, :3].T
    origin = pose[:3, 3]
    b = direction @ origin
    return b**2 - (direction**2).sum(-1) * (origin @ origin - 1.0) > 0

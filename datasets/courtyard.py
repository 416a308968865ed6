"""Make the scene `courtyard`: a walk with 80 photos, their cameras, exact depth, sparse points.

    python datasets/make.py courtyard OUT                # some minutes on two cores
    python datasets/make.py courtyard OUT --views 16 --width 100  # a small one, for trials

Writes OUT/transforms.json (nerfstudio's layout), OUT/images, OUT/depth and OUT/sparse_pc.ply.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from court_parts import PARTS
from court_trace import Camera, depth_image, distances, encode, render
from numpy.typing import NDArray
from PIL import Image
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

Array = NDArray[Any]

VIEWS, WIDTH, HEIGHT, FOCAL = 80, 400, 300, 275.0
HELD_OUT = 8  # every 8th view, from the fifth on
EYE = 1.62  # metres
DEPTH_UNIT = 0.004  # metres a step of the 16-bit depth files, which reach to 262 m
STOPS = 0.5  # exposure varies by this much either way
QUALITY = 92  # JPEG
POINTS = 6000
# where the walk leads, from the gate round the yard and once more nearer to the fountain
WALK = (
    (0.3, -7.7), (-2.6, -5.4), (-5.0, -3.2), (-5.5, 0.6), (-4.6, 4.4), (-1.8, 6.4), (1.6, 6.0),
    (3.6, 3.4), (4.6, 0.2), (4.6, -3.6), (2.4, -6.4), (-1.2, -6.6), (-3.2, -3.4), (-3.3, 0.4),
    (-2.4, 3.6), (0.6, 4.4), (3.0, 2.2), (3.3, -1.6), (2.0, -4.6), (0.3, -7.2),
)  # fmt: skip


def cameras(views: int = VIEWS, width: int = WIDTH) -> list[Camera]:
    """The cameras of the walk, evenly spaced along it."""
    corners = np.array(WALK)
    lengths = np.cumsum([0, *np.linalg.norm(np.diff(corners, axis=0), axis=1)])
    spline = CubicSpline(lengths, corners)
    fine = np.linspace(0, lengths[-1], 4001)
    track = spline(fine)
    way = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(track, axis=0), axis=1))])
    heading = np.unwrap(np.arctan2(*spline(fine, 1).T[::-1]))
    heading = gaussian_filter1d(heading, 130, mode="nearest")
    at = np.linspace(0, way[-1], views)
    s = at / way[-1]
    x, y, yaw = (np.interp(at, way, values) for values in (track[:, 0], track[:, 1], heading))
    # one looks ahead and about, more to the left, which is outward
    yaw = yaw + np.radians(12 + 43 * np.sin(2 * np.pi * (3.5 * s + 0.02)))
    pitch = np.radians(1.5 + 5 * np.sin(2 * np.pi * (3.3 * s + 0.3)))
    roll = np.radians(1.3 * np.sin(2 * np.pi * (7.1 * s)))
    z = EYE + 0.03 * np.sin(2 * np.pi * 23.3 * s)
    found = []
    for k in range(views):
        a, b, c = yaw[k], pitch[k], roll[k]
        ahead = np.array([np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b)])
        right = np.array([np.sin(a), -np.cos(a), 0.0])
        up = np.cross(right, ahead)
        pose = np.eye(4)
        pose[:3, 0] = np.cos(c) * right + np.sin(c) * up
        pose[:3, 1] = np.cos(c) * up - np.sin(c) * right
        pose[:3, 2], pose[:3, 3] = -ahead, (x[k], y[k], z[k])
        pose = np.round(pose, 9)
        found.append(Camera(pose, width, width * HEIGHT // WIDTH, FOCAL * width / WIDTH))
    return found


def name(number: int) -> str:
    """Stem of a view's files."""
    return f"frame_{number:03d}"


def is_held_out(number: int) -> bool:
    """Whether a view is for testing: never the first or the last."""
    return number % HELD_OUT == HELD_OUT // 2


def meter(camera: Camera) -> float:
    """Mean log2 brightness of a view, from a coarse rendering."""
    coarse = Camera(camera.pose, 24, 18, camera.focal * 24 / camera.width)
    luminance = render(coarse) @ np.array([0.2126, 0.7152, 0.0722])
    return float(np.log2(np.maximum(luminance, 1e-3)).mean())


def exposures(brightness: list[float]) -> Array:
    """Exposure [views] in stops, as a slow auto-exposure sets it: from -STOPS to STOPS."""
    wanted = -gaussian_filter1d(np.array(brightness), 1.5, mode="nearest")
    low, high = wanted.min(), wanted.max()
    return np.round((2 * (wanted - low) / max(high - low, 1e-9) - 1) * STOPS, 4)


def develop(light: Array, exposure: float) -> NDArray[np.uint8]:
    """A photo of linear light [..., 3]: times 2^exposure, clipped, sRGB, 8 bits."""
    return np.floor(encode(light * 2.0**exposure) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Job:
    """One view to be painted into `out`, with the cameras that may see its points."""

    out: Path
    number: int
    exposure: float
    held_out: bool
    cameras: list[Camera]
    points: int


def paint(job: Job) -> tuple[Array, NDArray[np.uint8]]:
    """Write a view's photo, and its depth if it is held out; its points [3, n], colours [n, 3]."""
    camera = job.cameras[job.number]
    light = render(camera)
    photo = develop(light, job.exposure)
    path = job.out / "images" / f"{name(job.number)}.jpg"
    Image.fromarray(photo).save(path, quality=QUALITY, subsampling=0, optimize=True)
    if job.held_out:
        depth = depth_image(camera)
        steps = np.floor(depth / DEPTH_UNIT + 0.5)
        steps[~(steps < 65536)] = 0
        target = job.out / "depth" / f"{name(job.number)}.png"
        Image.fromarray(steps.astype(np.uint16)).save(target, optimize=True)
        return np.zeros((3, 0)), np.zeros((0, 3), np.uint8)
    return sparse_points(job, photo)


def sparse_points(
    job: Job, photo: NDArray[np.uint8], size: int = 10
) -> tuple[Array, NDArray[np.uint8]]:
    """Surface points at the strongest edges of a photo that three training views see.

    Args:
        size: of the squares of pixels that give a point at most.
    """
    camera = job.cameras[job.number]
    grey = photo.astype(np.float64).mean(axis=2)
    gy, gx = np.gradient(grey)
    cells = (grey.shape[0] // size, grey.shape[1] // size)
    crop = np.hypot(gx, gy)[: cells[0] * size, : cells[1] * size]
    blocks = crop.reshape(cells[0], size, cells[1], size).transpose(0, 2, 1, 3)
    blocks = blocks.reshape(*cells, size * size)
    best, strength = blocks.argmax(axis=2).ravel(), blocks.max(axis=2).ravel()
    order = np.argsort(-strength, kind="stable")[: 2 * job.points]
    j = order // cells[1] * size + best[order] // size
    i = order % cells[1] * size + best[order] % size
    t = distances(camera, i + 0.5, j + 0.5)
    keep = np.flatnonzero(np.isfinite(t) & (t < 65535 * DEPTH_UNIT))
    i, j, t = i[keep], j[keep], t[keep]
    points = camera.pose[:3, 3:] + t * camera.rays(i + 0.5, j + 0.5)
    seen = np.zeros(t.size, dtype=int)
    for other, view in enumerate(job.cameras):
        if is_held_out(other):
            continue
        column, row, _ = view.project(points)
        inside = np.flatnonzero(
            (column > 0) & (column < view.width) & (row > 0) & (row < view.height)
        )
        if inside.size:
            gap = np.linalg.norm(points[:, inside] - view.pose[:3, 3:], axis=0)
            first = distances(view, column[inside], row[inside])
            seen[inside] += np.abs(first - gap) < 2e-3 + 1e-3 * gap
    good = np.flatnonzero(seen >= 3)[: job.points]
    return points[:, good], photo[j[good], i[good]]


def write_points(path: Path, points: Array, colours: NDArray[np.uint8]) -> None:
    """Binary PLY of positions [3, n] in double precision and colours [n, 3]."""
    table = np.zeros(points.shape[1], [(k, "<f8") for k in "xyz"] + [(k, "u1") for k in "rgb"])
    for k in range(3):
        table["xyz"[k]], table["rgb"[k]] = points[k], colours[:, k]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {points.shape[1]}"]
    header += [f"property double {k}" for k in "xyz"]
    header += [f"property uchar {k}" for k in ("red", "green", "blue")]
    path.write_bytes("\n".join([*header, "end_header"]).encode() + b"\n" + table.tobytes())


def transforms(views: list[Camera], exposure: Array) -> dict[str, Any]:
    """Content of transforms.json."""
    frames, splits = [], {"train_filenames": [], "test_filenames": []}
    for k, view in enumerate(views):
        file = f"images/{name(k)}.jpg"
        frame: dict[str, Any] = {"file_path": file, "exposure_ev": float(exposure[k])}
        if is_held_out(k):
            frame["depth_file_path"] = f"depth/{name(k)}.png"
        splits["test_filenames" if is_held_out(k) else "train_filenames"].append(file)
        frames.append(frame | {"transform_matrix": view.pose.tolist()})
    first = views[0]
    return {
        "camera_model": "PINHOLE",
        "w": first.width,
        "h": first.height,
        "fl_x": first.focal,
        "fl_y": first.focal,
        "cx": first.width / 2,
        "cy": first.height / 2,
        "depth_unit_scale_factor": DEPTH_UNIT,
        "is_euclidean_depth": True,
        "ply_file_path": "sparse_pc.ply",
        **splits,
        "frames": frames,
    }


def run(task: Any, jobs: list[Any], workers: int) -> Iterator[Any]:
    """Results of a task in order, made by `workers` processes."""
    if workers == 1:
        yield from map(task, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(task, jobs)


def make(out: Path, views: int = VIEWS, width: int = WIDTH, workers: int = 1) -> None:
    """Write the whole scene into `out`."""
    for folder in ("images", "depth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    walk = cameras(views, width)
    exposure = exposures(list(run(meter, walk, workers)))
    content = json.dumps(transforms(walk, exposure), indent=1)
    (out / "transforms.json").write_text(content + "\n")
    count = -(-POINTS * width**2 // (WIDTH**2 * views * 7 // 8))
    jobs = [Job(out, k, float(exposure[k]), is_held_out(k), walk, count) for k in range(views)]
    start, found = time.time(), []
    for done, part in enumerate(run(paint, jobs, workers), 1):
        found.append(part)
        if done % 10 == 0 or done == views:
            print(f"views: {done}/{views}, {time.time() - start:.0f} s", file=sys.stderr)
    points = np.concatenate([part[0] for part in found], axis=1)
    write_points(out / "sparse_pc.ply", points, np.concatenate([part[1] for part in found]))
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {views} views, {points.shape[1]} points, {size / 1e6:.2f} MB")


def clearance(view: Camera) -> float:
    """Least distance of a camera to anything, or less."""
    return float(min(part.distance(view.pose[:3, 3:])[0] for part in PARTS))


def main(arguments: list[str]) -> int:
    """Command line of `make.py courtyard`."""
    parser = argparse.ArgumentParser(prog="make.py courtyard", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--views", type=int, default=VIEWS, help="how many photos")
    parser.add_argument("--width", type=int, default=WIDTH, help="of a photo, in pixels")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    if options.views < 2 or options.width < 8 or options.jobs < 1:
        parser.error("--views wants at least 2, --width 8, --jobs 1")
    make(options.out, options.views, options.width, options.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

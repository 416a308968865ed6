"""Make the data set `biplane`, or check that what is committed is what this program makes.

    python datasets/make.py                  # write datasets/biplane (about 4 minutes on 2 cores)
    python datasets/make.py --out DIR        # write it elsewhere
    python datasets/make.py --check          # make all views again and compare, write nothing
    python datasets/make.py --check --views 6
    python datasets/make.py --shape cup --out DIR   # another scene with exact geometry
    python datasets/make.py courtyard DIR    # the walk through a courtyard, see courtyard.py

Exit status: 0 done or equal, 2 bad usage, 3 `--check` found a difference.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scene_mesh import ground_truth_mesh, write_ply  # noqa: E402
from scene_parts import SHAPE, SHAPES  # noqa: E402
from scene_sdf import signed_distance, union_distance  # noqa: E402
from scene_trace import View, depth_and_normals, render  # noqa: E402

Array = NDArray[np.floating[Any]]

HOME = Path(__file__).resolve().parent / "biplane"
SIZE = 200  # pixels
ANGLE = 0.6  # camera_angle_x, radians
RADIUS = 4.0  # of the sphere of cameras
SPLITS = {"train": 84, "val": 8, "test": 24}
PREVIEW = (7, 2, 6, 9, 15, 14, 17, 19)  # test views on the sheet
DEPTH_UNIT = 1e-4  # scene units per step of the 16-bit depth files


def camera_to_world(direction: Array) -> Array:
    """Pose [4, 4] (OpenGL axes) on the sphere at unit `direction` [3], facing the origin, z up."""
    up = np.array([0.0, 0.0, 1.0]) if abs(direction[2]) < 0.999 else np.array([1.0, 0.0, 0.0])
    right = np.cross(up, direction)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, np.cross(direction, right), direction
    pose[:3, 3] = RADIUS * direction
    return np.round(pose, 10)


def poses(split: str) -> Array:
    """Camera-to-world matrices [views, 4, 4]: a Fibonacci lattice on the sphere, a bit shaken."""
    count, seed = SPLITS[split], list(SPLITS).index(split)
    rng = np.random.default_rng(seed)
    shake = rng.uniform(-0.25, 0.25, (2, count))
    k = np.arange(count)
    height = 1 - 2 * (k + 0.5 + shake[0]) / count
    turn = (k * (3 - np.sqrt(5)) * np.pi) + seed * 1.1 + shake[1] * np.sqrt(4 / count)
    flat = np.sqrt(1 - height**2)
    directions = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)
    return np.stack([camera_to_world(d) for d in directions])


def view(split: str, number: int) -> View:
    """One camera of a split."""
    return View(poses(split)[number], SIZE, ANGLE)


def paint(job: tuple[str, int]) -> dict[str, NDArray[Any]]:
    """The files of one view as {relative path: pixels}; with depth and normals for test."""
    split, number = job
    camera = view(split, number)
    files: dict[str, NDArray[Any]] = {f"{split}/r_{number}.png": render(camera)}
    if split == "test":
        depth, normals = depth_and_normals(camera)
        steps = np.floor(depth / DEPTH_UNIT + 0.5).astype(np.uint16)
        code = np.floor((normals * 0.5 + 0.5) * 255 + 0.5) * (depth > 0)[..., None]
        files[f"{split}/r_{number}_depth_0001.png"] = steps
        files[f"{split}/r_{number}_normal_0001.png"] = code.astype(np.uint8)
    return files


def transforms(split: str) -> dict[str, Any]:
    """Content of transforms_<split>.json."""
    frames = [
        {"file_path": f"./{split}/r_{k}", "transform_matrix": pose.tolist()}
        for k, pose in enumerate(poses(split))
    ]
    return {"camera_angle_x": ANGLE, "frames": frames}


def measure(
    vertices: Array, faces: NDArray[np.integer[Any]], count: int = 100_000
) -> dict[str, float]:
    """How far points drawn uniformly on the mesh lie from the exact surface, in scene units."""
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normal, axis=1) / 2
    rng = np.random.default_rng(0)
    chosen = corners[rng.choice(len(faces), count, p=area / area.sum())]
    weights = rng.dirichlet(np.ones(3), count)
    error = np.abs(signed_distance(np.einsum("nk,nkd->nd", weights, chosen)))
    return {
        "vertices": len(vertices),
        "faces": len(faces),
        "area": round(float(area.sum()), 4),
        "volume": round(float(np.einsum("fd,fd->", corners[:, 0], normal) / 6), 4),
        "vertex_error_max": round(float(np.abs(union_distance(vertices)[0]).max()), 7),
        "surface_error_mean": round(float(error.mean()), 6),
        "surface_error_p99": round(float(np.percentile(error, 99)), 6),
        "surface_error_max": round(float(error.max()), 6),
    }


def paint_all(jobs: Iterable[tuple[str, int]], workers: int) -> Iterable[dict[str, NDArray[Any]]]:
    """The views' files, in order, made by `workers` processes."""
    if workers == 1:
        yield from map(paint, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(paint, jobs)


def make(out: Path, workers: int) -> None:
    """Write the whole data set into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
        (out / f"transforms_{split}.json").write_text(
            json.dumps(transforms(split), indent=1) + "\n"
        )
    vertices, faces = ground_truth_mesh()
    write_ply(out / "mesh.ply", vertices, faces)
    facts = {
        "near": 2.0,
        "far": 6.0,
        "up": "z",
        "background": "transparent, straight alpha, sRGB",
        "depth": {"kind": "euclidean", "estimator": "exact", "unit": DEPTH_UNIT, "invalid": 0},
        "normals": {"frame": "world", "code": "round((n * 0.5 + 0.5) * 255)", "invalid": [0, 0, 0]},
        "mesh": measure(vertices, faces),
    }
    (out / "geometry.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"mesh: {facts['mesh']}", file=sys.stderr)
    jobs = [(split, k) for split, count in SPLITS.items() for k in range(count)]
    start = time.time()
    for done, files in enumerate(paint_all(jobs, workers), 1):
        for name, pixels in files.items():
            Image.fromarray(pixels).save(out / name, optimize=True)
        if done % 10 == 0 or done == len(jobs):
            print(f"views: {done}/{len(jobs)}, {time.time() - start:.0f} s", file=sys.stderr)
    write_preview(out)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {len(jobs)} views, {len(faces)} faces, {size / 1e6:.2f} MB")


def write_preview(out: Path) -> None:
    """A sheet of eight test views on white, for people."""
    sheet = Image.new("RGB", (4 * SIZE, 2 * SIZE), "white")
    for k, number in enumerate(PREVIEW):
        with Image.open(out / "test" / f"r_{number}.png") as picture:
            sheet.paste(picture, (k % 4 * SIZE, k // 4 * SIZE), picture)
    sheet.save(out / "preview.png", optimize=True)


def difference(name: str, pixels: NDArray[Any], home: Path) -> str | None:
    """What is wrong with a committed picture, or None when no value is more than a step off."""
    path = home / name
    if not path.is_file():
        return f"{name}: missing"
    found = np.asarray(Image.open(path)).astype(np.int64)
    if found.shape != pixels.shape:
        return f"{name}: shape {found.shape}, made {pixels.shape}"
    worst = int(np.abs(found - pixels.astype(np.int64)).max())
    return f"{name}: off by up to {worst} steps" if worst > 1 else None


def check(home: Path, workers: int, views: int | None) -> list[str]:
    """Differences between what lies in `home` and what is made now; all views or an even sample."""
    faults = []
    for split in SPLITS:
        path = home / f"transforms_{split}.json"
        found = json.loads(path.read_text()) if path.is_file() else None
        if found != transforms(split):
            faults.append(f"{path.name}: differs or is missing")
    jobs = [(split, k) for split, count in SPLITS.items() for k in range(count)]
    if views is not None:
        jobs = [jobs[int(k)] for k in np.linspace(0, len(jobs) - 1, min(views, len(jobs))).round()]
    for files in paint_all(jobs, workers):
        found = [difference(name, pixels, home) for name, pixels in files.items()]
        faults += [fault for fault in found if fault]
    print(f"{home}: {len(jobs)} views made again, {len(faults)} differences")
    return faults


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["courtyard"]:
        import courtyard

        return courtyard.main(arguments[1:])
    parser = argparse.ArgumentParser(description="Make or check the data set `biplane`.")
    parser.add_argument("--out", type=Path, default=HOME, help="folder to write, or to check")
    parser.add_argument(
        "--check", action="store_true", help="compare, write nothing; status 3 if different"
    )
    parser.add_argument(
        "--views", type=int, help="with --check: how many views, spread evenly (default all)"
    )
    parser.add_argument("--shape", choices=list(SHAPES), default=SHAPE, help="what is made")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    if options.jobs < 1 or (options.views is not None and (options.views < 1 or not options.check)):
        parser.error("--jobs and --views want a positive number, --views goes with --check")
    if options.shape != "biplane" and options.out == HOME:
        parser.error(f"--shape {options.shape} wants --out: {HOME} holds the biplane")
    if options.shape != SHAPE:  # the parts are constants of the modules: another process
        words = [sys.executable, __file__, *arguments]
        return subprocess.call(words, env=os.environ | {"SCENE_SHAPE": options.shape})
    if not options.check:
        make(options.out, options.jobs)
        return 0
    faults = check(options.out, options.jobs, options.views)
    for fault in faults:
        print(fault)
    return 3 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compare the depth that a run renders with a scene's true depth images.

    python datasets/depth_error.py RUN SCENE          # a table
    python datasets/depth_error.py RUN SCENE --json   # the same figures as JSON

RUN is a folder of `nerf train`, SCENE the scene it was trained on, whose held-out views have
`depth_file_path`. A pixel's relative error is |rendered - true| / true, both along the ray. Pixels
without a true depth (0: sky) do not count. Pixels where the run renders nothing count as error 1.
Two estimates count: `median_depth`, where half of the opacity is passed, and `depth`, the mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nerfcli import NerfError
from nerfcli.engine.render import Model, as_image, load_model, render_image
from nerfcli.engine.runs import Run
from nerfcli.scenes import read_source
from nerfcli.scenes.source import Depth

ESTIMATES = ("median_depth", "depth")


def read_depth(depth: Depth, cosines: np.ndarray) -> np.ndarray:
    """True distance along the rays [h, w] in source units, 0 where unknown, from a depth image.

    Args:
        cosines: [h, w] of the angles between rays and optical axis; h, w may be a fraction of the
            file's.
    """
    stored = (
        np.load(depth.path) if depth.path.suffix == ".npy" else np.asarray(Image.open(depth.path))
    )
    height, width = cosines.shape
    rows = ((np.arange(height) + 0.5) * stored.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * stored.shape[1] / width).astype(int)
    values = stored[rows][:, columns].astype(np.float64) * depth.scale
    return values if depth.is_euclidean else values / cosines


def relative_errors(model: Model, index: int, depth: Depth) -> tuple[np.ndarray, dict]:
    """True distances [n] of a view's surface pixels, and the relative errors [n] by estimate."""
    cameras = model.scene.cameras
    ways = as_image(cameras.image_rays(index, "cpu").directions, cameras, index)
    axis = cameras.c2w[index, :, 2].numpy()
    truth = read_depth(depth, ways @ axis / np.linalg.norm(ways, axis=-1))
    with torch.no_grad():
        pixels = render_image(model, cameras, index)
    surface = truth > 0
    units = model.scene.scene_from_source.scale
    found = {
        name: as_image(getattr(pixels, name), cameras, index)[surface] / units for name in ESTIMATES
    }
    true = truth[surface]
    return true, {name: np.abs(value - true) / true for name, value in found.items()}


def summarise(true: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """Median, mean and the part within 3 % of relative errors [n]."""
    return {
        "pixels": int(true.size),
        "median": round(float(np.median(errors)), 5),
        "mean": round(float(errors.mean()), 5),
        "within_3_percent": round(float((errors < 0.03).mean()), 4),
    }


def measure(run: Path, scene: Path, limit: float | None = None) -> dict:
    """Errors over the views with true depth that were held out.

    Args:
        limit: leave out what is farther, in source units.

    Raises:
        NerfError: no such run or scene, or no held-out view with depth.
    """
    model = load_model(Run.open(run))
    depths = {frame.name: frame.depth for frame in read_source(scene).frames if frame.depth}
    names = model.scene.names
    chosen = [i for i in model.scene.splits.get("test", ()) if names[i] in depths]
    if not chosen:
        raise NerfError(f"{scene} has no depth_file_path for a held-out view of {run}.")
    parts = [relative_errors(model, i, depths[names[i]]) for i in chosen]
    true = np.concatenate([part[0] for part in parts])
    near = true <= (limit or np.inf)
    result: dict = {"views": len(chosen), "limit": limit}
    for name in ESTIMATES:
        errors = np.concatenate([part[1][name] for part in parts])
        result[name] = summarise(true[near], errors[near])
    return result


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare rendered depth with true depth images.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("scene", type=Path, help="scene folder")
    parser.add_argument("--limit", type=float, help="leave out what is farther, in scene units")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    try:
        result = measure(options.run, options.scene, options.limit)
    except NerfError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{result['views']} views, relative error of depth along the ray")
    for name in ESTIMATES:
        row = result[name]
        print(
            f"{name}: median {row['median']:.2%}, mean {row['mean']:.2%}, "
            f"{row['within_3_percent']:.1%} of {row['pixels']} pixels within 3 %"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

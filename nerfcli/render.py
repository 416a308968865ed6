"""`render`: a field and cameras become images, frames on disk, a GIF or an mp4."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerfcli import backends
from nerfcli.cameras import Cameras
from nerfcli.config import Config
from nerfcli.errors import NerfError
from nerfcli.field import AnyField, HashField, create_field
from nerfcli.progress import Progress, StopSignal
from nerfcli.rays import Pixels
from nerfcli.runs import Run
from nerfcli.scenes import Scene
from nerfcli.video import Writer, open_writer

CLASSIC_CHUNK = 2048  # rays at once; 192 samples each through a 256-wide network
LAYERS = ("rgb", "depth", "opacity")


@dataclass(frozen=True)
class Model:
    """A trained field with what is needed to show it; holds no images."""

    field: AnyField
    scene: Scene
    config: Config
    backend: str

    @property
    def background(self) -> Tensor:
        white = self.config.scene.background == "white"
        return torch.ones(3) if white else torch.zeros(3)


def load_model(run: Run, backend: str = "auto") -> Model:
    """The field of a run's newest checkpoint.

    Raises:
        NerfError: no readable checkpoint, or the backend cannot run here.
    """
    config, scene = run.config, Scene.from_json(run.scene_json)
    tensors, _ = run.load_model()
    choice = backends.select(backend, "cpu")
    generator = torch.Generator().manual_seed(0)
    field = create_field(config, scene.box, scene.near, scene.far, choice.ops, generator)
    field.load_state(tensors, config.occupancy.threshold)
    return Model(field, scene, config, choice.line)


def render_image(model: Model, cameras: Cameras, index: int) -> Pixels:
    """One camera's view: Pixels of height * width rays, row-major."""
    field = model.field
    rays = cameras.image_rays(index)
    chunk = field.ops.rays_per_chunk if isinstance(field, HashField) else CLASSIC_CHUNK
    parts = [
        field.render_rays(rays[start : start + chunk], model.background)
        for start in range(0, len(rays), chunk)
    ]
    return Pixels.cat(parts)


def as_image(values: Tensor, cameras: Cameras, index: int) -> np.ndarray:
    """[height * width, ...] -> [height, width, ...] numpy."""
    width, height = (int(v) for v in cameras.size[index])
    return values.reshape(height, width, *values.shape[1:]).cpu().numpy()


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def depth_colors(depth: np.ndarray, opacity: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Depth as a picture: near is bright, far is dark, nothing is black. -> [h, w, 3] in [0, 1]."""
    near, far = limits
    nearness = np.clip((far - depth) / max(far - near, 1e-9), 0.0, 1.0)
    knots = np.linspace(0.0, 1.0, 6)
    table = np.array(
        [
            [0.10, 0.05, 0.25],
            [0.35, 0.10, 0.50],
            [0.70, 0.20, 0.45],
            [0.95, 0.45, 0.30],
            [1.00, 0.75, 0.40],
            [1.00, 1.00, 0.80],
        ]
    )
    colors = np.stack([np.interp(nearness, knots, table[:, c]) for c in range(3)], axis=-1)
    return colors * np.clip(opacity, 0.0, 1.0)[..., None]


def frames(
    model: Model, cameras: Cameras, progress: Progress, stop: StopSignal | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rgb [h, w, 3], depth [h, w] in source units, opacity [h, w]) of each camera."""
    units = model.scene.scene_from_source.scale
    for i in range(len(cameras)):
        if stop is not None and stop.received:
            return
        pixels = render_image(model, cameras, i)
        rgb, depth, opacity = (
            as_image(v, cameras, i) for v in (pixels.rgb, pixels.depth / units, pixels.opacity)
        )
        yield rgb, depth, opacity
        progress.update(i + 1)


def depth_limits(model: Model, cameras: Cameras) -> tuple[float, float]:
    """Nearest and farthest distance to the detail cube over a path, in source units."""
    box = model.scene.box
    center = torch.tensor(box.center, dtype=torch.float64)
    distance = (cameras.c2w[:, :, 3] - center).norm(dim=1)
    near = float((distance - 1.2 * box.half_size).clamp(min=0.0).min())
    far = float((distance + 1.2 * box.half_size).max())
    units = model.scene.scene_from_source.scale
    return near / units, far / units


def render_path(
    run: Run,
    cameras: Cameras,
    *,
    out: Path,
    save: tuple[str, ...] = ("rgb",),
    fps: int = 30,
    backend: str = "auto",
    progress: Progress,
    stop: StopSignal | None = None,
) -> dict:
    """Render a path to `out`: .mp4, .gif, or a folder of PNG frames (any other name).

    Layers beside rgb go to <stem>_<layer>.<suffix>; in a folder, depth is also written as
    float32 NPY in source units with a sidecar JSON.

    Returns:
        files, n_frames, seconds, seconds_per_frame, and the signal that stopped it, if any.

    Raises:
        NerfError: an unknown layer, an unwritable path, or no readable checkpoint.
    """
    unknown = [layer for layer in save if layer not in LAYERS]
    if unknown or not save:
        raise NerfError(f"--save: unknown layer {unknown}; known: {', '.join(LAYERS)}.")
    model = load_model(run, backend)
    progress.note(model.backend)
    limits = depth_limits(model, cameras)
    start = time.perf_counter()
    writers: dict[str, Writer] = {layer: open_writer(out, layer, save, fps) for layer in save}
    n_frames = 0
    try:
        for rgb, depth, opacity in frames(model, cameras, progress, stop):
            pictures = {
                "rgb": rgb,
                "depth": depth_colors(depth, opacity, limits),
                "opacity": np.repeat(opacity[..., None], 3, axis=-1),
            }
            for layer, writer in writers.items():
                writer.add(to_uint8(pictures[layer]), depth if layer == "depth" else None)
            n_frames += 1
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
    files = [str(path) for writer in writers.values() for path in writer.close()]
    seconds = time.perf_counter() - start
    return {
        "files": files,
        "n_frames": n_frames,
        "seconds": round(seconds, 3),
        "seconds_per_frame": round(seconds / max(n_frames, 1), 4),
        "stopped": stop.received if stop is not None else None,
    }

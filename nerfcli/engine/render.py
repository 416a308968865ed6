"""`render`: a field and cameras become images, frames on disk, a GIF or an mp4."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerfcli import backends
from nerfcli.cameras.cameras import Cameras
from nerfcli.core.devices import memory_errors, pick
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Note, Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine.runs import Run
from nerfcli.engine.video import Writer, open_writer
from nerfcli.methods import Field, Trainer, method_of
from nerfcli.methods.base import background_of
from nerfcli.reference.samples import Pixels
from nerfcli.scenes import Scene

LEAST_CHUNK = 1024
MEMORY_ADVICE = "close what else uses it, render at --scale 0.5, or use --device cpu"
ENCODING = 8  # frames that may wait for their encoder
LAYERS = ("rgb", "depth", "opacity")


@dataclass(frozen=True)
class Model:
    """A field with what is needed to show it; holds no images.

    backend: a line that says what evaluates it.
    """

    field: Field
    scene: Scene
    backend: str
    device: str = "cpu"

    @staticmethod
    def of(trainer: Trainer) -> Model:
        """The field of a trainer as it is now, to be rendered between two of its steps."""
        field = trainer.rendered_field()
        return Model(field, trainer.scene, f"backend {field.ops.name}", str(trainer.device))

    @property
    def background(self) -> Tensor:
        """[3], on the model's device."""
        return background_of(self.scene, self.device)


def load_model(
    run: Run,
    backend: str = "auto",
    device: str = "cpu",
    note: Note | None = None,
) -> Model:
    """The field of a run's newest checkpoint, whatever device it was trained on.

    Args:
        device: auto, cpu or cuda.
        note: takes a remark where a GPU backend is checked at its first use here.

    Raises:
        NerfError: no readable checkpoint, or the backend or device cannot be had here.
    """
    config, scene, device = run.config, Scene.from_json(run.scene_json), pick(device)
    choice = backends.select(backend, device, note)
    tensors, _ = run.load_model(device)
    generator = torch.Generator("cpu").manual_seed(0)
    create_field = method_of(config).create_field
    field = create_field(config, scene, choice.backend, generator)
    field.load_state(tensors)
    return Model(field, scene, choice.line, device)


def render_image(model: Model, cameras: Cameras, index: int) -> Pixels:
    """One camera's view: Pixels of height * width rays, row-major, on the model's device.

    As many rays at once as the field likes; half as many, again and again, where the GPU's
    memory does not hold what they need.

    Raises:
        NerfError: it does not even hold LEAST_CHUNK rays.
    """
    field = model.field
    rays = cameras.image_rays(index, model.device, field.needs_radii)
    chunk = field.rays_per_chunk
    parts, start = [], 0
    while start < len(rays) or not parts:
        enough = chunk <= LEAST_CHUNK
        try:
            with memory_errors("rendering", MEMORY_ADVICE) if enough else nullcontext():
                parts.append(field.render_rays(rays[start : start + chunk], model.background))
        except torch.OutOfMemoryError:
            chunk //= 2
        else:
            start += chunk
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
    model: Model,
    cameras: Cameras,
    save: tuple[str, ...],
    progress: Progress,
    stop: StopSignal | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """What each camera sees, no more of it than `save` needs: a GPU's copies take their time.

    Yields:
        rgb [h, w, 3] uint8; depth [h, w] in source units; opacity [h, w].
    """
    units = model.scene.scene_from_source.scale
    for i in range(len(cameras)):
        if stop is not None and stop.received:
            return
        pixels, view = render_image(model, cameras, i), {}
        if "rgb" in save:
            rgb = (pixels.rgb.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
            view["rgb"] = as_image(rgb, cameras, i)
        if "depth" in save:
            view["depth"] = as_image(pixels.depth / units, cameras, i)
        if save != ("rgb",):
            view["opacity"] = as_image(pixels.opacity, cameras, i)
        yield view
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
        files, n_frames, seconds, seconds_per_frame, and the signal that stopped it, if any: then
        nothing is written, and what was there stays.

    Raises:
        NerfError: an unknown layer, a video of views of several sizes, a path that cannot be
            written or a full disk, or no readable checkpoint.
    """
    unknown = [layer for layer in save if layer not in LAYERS]
    if unknown or not save:
        raise NerfError(f"--save: unknown layer {unknown}; known: {', '.join(LAYERS)}.")
    if out.suffix and len(cameras.size.unique(dim=0)) > 1:
        raise NerfError(
            f"--out {out}: the frames have several sizes, a video has one; name a folder for PNGs."
        )
    model = load_model(run, backend, run.config.device, progress.note)
    progress.note(model.backend)
    limits = depth_limits(model, cameras)
    start = time.perf_counter()
    writers: dict[str, Writer] = {layer: open_writer(out, layer, save, fps) for layer in save}
    try:
        n_frames = _encode_all(frames(model, cameras, save, progress, stop), writers, limits)
        stopped = stop.received if stop is not None and n_frames < len(cameras) else None
        files = []
        for writer in writers.values():  # a part of the path is not what was asked for
            if stopped is not None:
                writer.abort()
            else:
                files += [str(path) for path in writer.close()]
    except BaseException as error:
        for writer in writers.values():
            writer.abort()
        if isinstance(error, OSError):
            raise NerfError(f"cannot write {out}: {error.strerror or error}.") from error
        raise
    seconds = time.perf_counter() - start
    return {
        "files": files,
        "n_frames": n_frames,
        "seconds": round(seconds, 3),
        "seconds_per_frame": round(seconds / max(n_frames, 1), 4),
        "stopped": stopped,
    }


def _encode_all(
    views: Iterator[dict[str, np.ndarray]],
    writers: dict[str, Writer],
    limits: tuple[float, float],
) -> int:
    """Write frames in a thread of its own while the next are rendered; how many there were."""

    def encode(view: dict[str, np.ndarray]) -> None:
        for layer, writer in writers.items():
            if layer == "rgb":
                picture = view["rgb"]
            elif layer == "depth":
                picture = to_uint8(depth_colors(view["depth"], view["opacity"], limits))
            else:
                picture = np.repeat(to_uint8(view["opacity"])[..., None], 3, axis=-1)
            writer.add(picture, view["depth"] if layer == "depth" else None)

    n_frames, waiting = 0, deque[Future[None]]()
    with ThreadPoolExecutor(1) as pool:
        for view in views:
            waiting.append(pool.submit(encode, view))
            n_frames += 1
            if len(waiting) > ENCODING:
                waiting.popleft().result()
        for future in waiting:
            future.result()
    return n_frames

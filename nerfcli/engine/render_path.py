"""`render`: cameras along a path become a GIF, an mp4 or PNG frames."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import quantity, roughly
from nerfcli.engine.cost import describe_views, estimate_seconds, preview_scale
from nerfcli.engine.kept_frames import KeptFrames, describe_frames, keeping_frames
from nerfcli.engine.render import Model, as_image, load_model, render_image, to_uint8
from nerfcli.engine.render_files import RenderFiles, ensure_known, ensure_layers
from nerfcli.engine.runs import Run
from nerfcli.engine.video import VideoWriter, ensure_video

ENCODING = 8  # frames that may wait for their encoder
Picture = dict[str, np.ndarray]  # a frame's layers, [h, w, 3] uint8


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
    kept: KeptFrames,
    progress: Progress,
    stop: StopSignal | None = None,
) -> Iterator[tuple[bool, Picture]]:
    """Each camera's frame, from those that are kept or rendered.

    Yields:
        whether it was kept, and the layers, [h, w, 3] uint8; or, of one to be drawn, what the
        camera sees, no more of it than `save` needs (a GPU's copies take their time): rgb
        [h, w, 3] uint8, depth [h, w] in source units, opacity [h, w].
    """
    units = model.scene.scene_from_source.scale
    n_ready = 0
    for i in range(len(cameras)):
        if stop is not None and stop.received:
            return
        ready = kept.load(i)
        if ready is not None:
            n_ready += 1
            yield True, ready
            continue
        if i == n_ready:  # the rate counts from here
            progress.update(i)
        pixels, view = render_image(model, cameras, i), Picture()
        if "rgb" in save:
            rgb = (pixels.rgb.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
            view["rgb"] = as_image(rgb, cameras, i)
        if "depth" in save:
            view["depth"] = as_image(pixels.depth / units, cameras, i)
        if save != ("rgb",):
            view["opacity"] = as_image(pixels.opacity, cameras, i)
        yield False, view
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
    fps: float = 30,
    backend: str = "auto",
    model: Model | None = None,
    remark: str = "",
    progress: Progress,
    stop: StopSignal | None = None,
) -> dict:
    """Render a path to `out`: .mp4, .gif, .png (of one camera), or a folder of PNG frames.

    Layers beside the first go to <stem>_<layer>.<suffix>; of PNGs, depth is also written as
    float32 NPY in source units, with a sidecar JSON in a folder. Finished frames are kept until
    all are there, and taken over by the next call for the same.

    Args:
        model: of the run, if it is loaded already. remark: about the path, for people.

    Returns:
        files, n_frames, n_kept (of them, taken over), seconds, seconds_per_frame, expected_seconds,
        and the signal that stopped it, if any: then no file is written, what was there stays,
        n_frames are finished, and frames_in is their folder.

    Raises:
        NerfError: an unknown layer, frames that make no such video, a path that cannot be
            written or a full disk, or no readable checkpoint.
    """
    ensure_layers(save)
    ensure_known(out)
    outputs = RenderFiles(out, save)
    if outputs.is_video:
        ensure_video(out, cameras.size.numpy(), fps)
    if model is None:
        model = load_model(run, backend, run.config.device, progress.note)
    for line in filter(None, (remark, model.backend)):
        progress.note(line)
    progress.total = len(cameras)
    what = describe_frames(run, model, cameras, save, not outputs.is_video)
    limits = depth_limits(model, cameras)
    start = time.perf_counter()
    with keeping_frames(outputs.folder, what, cameras) as kept:
        missing = sorted(set(range(len(cameras))) - set(kept.there()))
        expected = _announce(model, cameras, missing, progress)
        writers = {
            layer: VideoWriter(outputs.video(layer), fps, kept.folder)
            for layer in (save if outputs.is_video else ())
        }
        try:
            views = frames(model, cameras, save, kept, progress, stop)
            n_frames, n_kept = _encode_all(views, kept, writers, limits)
            stopped = stop.received if stop is not None and n_frames < len(cameras) else None
            if kept.damaged:
                progress.note(f"{quantity(len(kept.damaged), 'kept frame')} broken: rendered again")
            files: list[Path] = []
            if stopped is None:
                kept.mark_complete(outputs)
                files = [writer.close() for writer in writers.values()]
                files += [] if outputs.is_video else kept.move(outputs)
                kept.remove()
            else:  # a part of the path is not what was asked for; more may be there than was read
                n_rendered = n_frames - n_kept
                n_frames = len(kept.there())
                n_kept = max(n_frames - n_rendered, 0)
        except OSError as error:
            raise NerfError(f"cannot write {out}: {error.strerror or error}.") from error
        finally:
            for writer in writers.values():
                writer.abort()
    seconds = time.perf_counter() - start
    result = {
        "files": [str(path) for path in files],
        "n_frames": n_frames,
        "n_kept": n_kept,
        "seconds": round(seconds, 3),
        "seconds_per_frame": round(seconds / max(n_frames - n_kept, 1), 4),
        "expected_seconds": round(expected, 1),
        "stopped": stopped,
    }
    return result | ({"frames_in": str(kept.folder)} if stopped is not None and n_frames else {})


def _announce(model: Model, cameras: Cameras, missing: list[int], progress: Progress) -> float:
    """Say what is to be rendered and how long it takes; return the expected seconds."""
    if not missing:
        progress.note(f"all {quantity(len(cameras), 'frame')} were finished before")
        return 0.0
    expected = estimate_seconds(model, cameras[missing])
    text = describe_views(cameras[missing], "frame", expected)
    if len(missing) < len(cameras):
        done = quantity(len(cameras) - len(missing), "frame")
        text = f"{done} finished before; going on with {text}"
    scale = preview_scale(expected)
    if scale is not None and len(missing) == len(cameras):
        text += (
            f" (a preview at {scale:g} of that size {roughly(scale * scale * expected)}). Frames "
            "are kept as they are finished: after Ctrl-C the same command goes on"
        )
    progress.note(text)
    return expected


def _encode_all(
    views: Iterator[tuple[bool, Picture]],
    kept: KeptFrames,
    writers: dict[str, VideoWriter],
    limits: tuple[float, float],
) -> tuple[int, int]:
    """Keep and encode frames in a thread of its own while the next are rendered.

    Returns:
        How many there were, and how many of them had been kept before.
    """

    def draw(view: Picture) -> Picture:
        pictures = Picture()
        for layer in kept.layers:
            if layer == "rgb":
                pictures[layer] = view["rgb"]
            elif layer == "depth":
                pictures[layer] = to_uint8(depth_colors(view["depth"], view["opacity"], limits))
            else:
                pictures[layer] = np.repeat(to_uint8(view["opacity"])[..., None], 3, axis=-1)
        return pictures

    def encode(index: int, is_kept: bool, view: Picture) -> None:
        pictures = view if is_kept else draw(view)
        if not is_kept:
            kept.save(index, pictures, view.get("depth"))
        for layer, writer in writers.items():
            writer.add(pictures[layer])

    n_frames, n_kept, waiting = 0, 0, deque[Future[None]]()
    with ThreadPoolExecutor(1) as pool:
        for is_kept, view in views:
            waiting.append(pool.submit(encode, n_frames, is_kept, view))
            n_frames, n_kept = n_frames + 1, n_kept + is_kept
            if len(waiting) > ENCODING:
                waiting.popleft().result()
        for future in waiting:
            future.result()
    return n_frames, n_kept

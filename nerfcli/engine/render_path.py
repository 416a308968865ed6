"""`render`: cameras along a path become a video or frames."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerfcli.cameras.cameras import Cameras
from nerfcli.core.errors import NerfError
from nerfcli.core.files import BusyError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import quantity, roughly
from nerfcli.engine.cost import describe_views, estimate_seconds, preview_scale
from nerfcli.engine.kept_frames import (
    KeptFrames,
    describe_frames,
    keeping_frames,
    lie_in_place,
)
from nerfcli.engine.layers import View, depth_scale, layers_of
from nerfcli.engine.pictures import draw_layer, sheet_frames, write_sheet
from nerfcli.engine.render import Model, load_model, render_image
from nerfcli.engine.render_files import (
    EXACT,
    PICTURE,
    Output,
    ensure_fitting,
    ensure_layers,
)
from nerfcli.engine.runs import Run
from nerfcli.engine.video import VideoWriter, ensure_video

ENCODING = 8  # frames that may wait for their encoder
PATIENCE, PAUSE = 5, 0.2  # tries of a last shard to get the folder for itself, and seconds between


def frames(
    model: Model,
    cameras: Cameras,
    kept: KeptFrames,
    progress: Progress,
    stop: StopSignal | None = None,
    indices: list[int] | None = None,
    drawn: bool = True,
) -> Iterator[tuple[int, bool, View]]:
    """Each camera's frame, from those that are kept or rendered.

    Args:
        indices: which of them; None: all.
        drawn: whether pictures of kept frames are needed.

    Yields:
        its number, whether it was kept, and the layers: of a kept one pictures, else numbers, no
        more than the files need.
    """
    save, exact = kept.files.layers, kept.files.kind in EXACT
    indices = list(range(len(cameras))) if indices is None else indices
    n_ready = 0
    for done, i in enumerate(indices):
        if stop is not None and stop.received:
            return
        ready = kept.load(i, drawn)
        if ready is not None:
            n_ready += 1
            yield i, True, ready
            continue
        if done == n_ready:  # the rate counts from here
            progress.update(done)
        pixels = render_image(model, cameras, i)
        yield i, False, layers_of(model, cameras, i, pixels, save, kept.scale, exact=exact)
        progress.update(done + 1)


def render_path(
    run: Run,
    cameras: Cameras,
    output: Output,
    *,
    backend: str = "auto",
    model: Model | None = None,
    remark: str = "",
    progress: Progress,
    stop: StopSignal | None = None,
) -> dict:
    """Render a path to a video, a picture (of one camera), or a folder of frames.

    Layers beside the first go to <stem>_<layer>.<suffix>. Depth as numbers has a sidecar JSON.
    Finished frames are kept until all are there, and taken over by the next call for the same. A
    shard renders its part of them, and the last one finishes the whole.

    Args:
        model: of the run, if it is loaded already. remark: about the path, for people.

    Returns:
        files, n_frames, n_kept (of them, taken over), seconds, seconds_per_frame, expected_seconds,
        and the signal that stopped it, if any: then no file is written, what was there stays,
        n_frames are finished, and frames_in is their folder. Of a shard also shard and n_there,
        how many frames of the path are finished by now; files are those of the whole, if it is.

    Raises:
        NerfError: an unknown layer, frames that make no such video, a path that cannot be
            written or a full disk, or no readable checkpoint.
    """
    files, shard = output.files, output.shard
    ensure_layers(files.layers)
    ensure_fitting(files)
    if files.is_video:
        ensure_video(files.out, cameras.size.numpy(), output.fps)
    if model is None:
        model = load_model(run, backend, run.config.device, progress.note)
    for line in filter(None, (remark, model.backend)):
        progress.note(line)
    scale = depth_scale(model, cameras, output.depth)
    what = describe_frames(run, model, cameras, files, scale)
    in_place = lie_in_place(
        files, what, anew=output.overwrite and shard is None, overwrite=output.overwrite
    )
    mine = list(range(len(cameras))) if shard is None else shard.frames(len(cameras))
    progress.total = len(mine)
    start = time.perf_counter()
    written: list[Path] = []
    try:
        with keeping_frames(files, what, cameras, scale, in_place=in_place, shard=shard) as kept:
            missing = [i for i in mine if not kept.has(i)]
            expected = _announce(model, cameras[mine], cameras[missing], progress)
            work = _Work(model, cameras, kept, progress, stop)
            if shard is None:
                n_frames, n_kept, written = _finish(work, output)
            else:
                n_frames, n_kept = _encode_all(work, {}, [], mine)
            stopped = stop.received if stop is not None and n_frames < len(mine) else None
            if kept.damaged:
                progress.note(f"{quantity(len(kept.damaged), 'kept frame')} broken: rendered again")
            if stopped is not None and shard is None:
                # a part of the path is not what was asked for; more may be there than was read
                n_rendered = n_frames - n_kept
                n_frames = len(kept.there())
                n_kept = max(n_frames - n_rendered, 0)
            n_there = len(kept.there()) if shard is not None else n_frames
        whole = shard is not None and shard.finishes and n_there == len(cameras)
        if whole and stopped is None:
            with suppress(BusyError):
                written = _assemble(model, cameras, output, what, in_place, progress, stop)
    except OSError as error:
        raise NerfError(f"cannot write {files.out}: {error.strerror or error}.") from error
    seconds = time.perf_counter() - start
    result = {
        "files": [str(path) for path in written],
        "n_frames": n_frames,
        "n_kept": n_kept,
        "seconds": round(seconds, 3),
        "seconds_per_frame": round(seconds / max(n_frames - n_kept, 1), 4),
        "expected_seconds": round(expected, 1),
        "stopped": stopped,
    }
    if shard is not None:
        result |= {"shard": str(shard), "n_there": n_there}
    waiting = stopped is not None or (shard is not None and not written)
    return result | ({"frames_in": str(kept.folder)} if waiting and n_frames else {})


@dataclass(frozen=True)
class _Work:
    model: Model
    cameras: Cameras
    kept: KeptFrames
    progress: Progress
    stop: StopSignal | None


def _finish(work: _Work, output: Output) -> tuple[int, int, list[Path]]:
    """Render what is missing of all frames, and write the files if all are there.

    Returns:
        How many frames there were, how many of them had been kept before, and the files.
    """
    files, kept, n_cameras = output.files, work.kept, len(work.cameras)
    writers = {
        layer: VideoWriter(
            files.video(layer),
            output.fps,
            kept.folder,
            output.codec,
            has_alpha=layer == "rgba",
        )
        for layer in (files.layers if files.is_video else ())
    }
    shown = [] if output.sheet is None else sheet_frames(n_cameras)
    try:
        pictures: dict[int, np.ndarray] = {}
        n_frames, n_kept = _encode_all(work, writers, shown, None, pictures)
        if n_frames < n_cameras:
            return n_frames, n_kept, []
        kept.mark_complete()
        written = [writer.close() for writer in writers.values()]
        written += [] if files.is_video else kept.place()
        if output.sheet is not None:
            write_sheet(output.sheet, pictures)
            written.append(output.sheet)
        if not kept.in_place:
            kept.remove()
        return n_frames, n_kept, written
    finally:
        for writer in writers.values():
            writer.abort()


def _assemble(
    model: Model,
    cameras: Cameras,
    output: Output,
    what: dict,
    in_place: bool,
    progress: Progress,
    stop: StopSignal | None,
) -> list[Path]:
    """Write the files when the frames of all shards are there.

    Raises:
        BusyError: another shard is at it, or still at work.
    """
    files, scale = output.files, depth_scale(model, cameras, output.depth)
    for attempt in range(PATIENCE):
        try:
            with keeping_frames(files, what, cameras, scale, in_place=in_place) as kept:
                if len(kept.there()) < len(cameras):  # another shard has finished it
                    return []
                progress.note(f"all {quantity(len(cameras), 'frame')} are there")
                return _finish(_Work(model, cameras, kept, progress, stop), output)[2]
        except BusyError:
            if attempt == PATIENCE - 1:
                raise
            time.sleep(PAUSE)
    return []


def _announce(model: Model, cameras: Cameras, missing: Cameras, progress: Progress) -> float:
    """Say what is to be rendered and how long it takes; return the expected seconds."""
    if not len(missing):
        progress.note(f"all {quantity(len(cameras), 'frame')} were finished before")
        return 0.0
    expected = estimate_seconds(model, missing)
    text = describe_views(missing, "frame", expected)
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
    work: _Work,
    writers: dict[str, VideoWriter],
    shown: list[int],
    indices: list[int] | None,
    pictures: dict[int, np.ndarray] | None = None,
) -> tuple[int, int]:
    """Keep and encode frames in a thread of its own while the next are rendered.

    Args:
        shown: frames whose pictures of the first layer go to `pictures`.
        indices: the frames; None: all.

    Returns:
        How many there were, and how many of them had been kept before.
    """
    kept = work.kept
    first = kept.files.layers[0]

    def encode(index: int, is_kept: bool, view: View) -> None:
        found = view if is_kept else kept.save(index, view)
        for layer, writer in writers.items():
            writer.add(found[layer])
        if pictures is not None and index in shown:
            drawn = is_kept or kept.files.kind == PICTURE
            pictures[index] = found[first] if drawn else draw_layer(view, first, kept.scale)

    n_frames, n_kept, waiting = 0, 0, deque[Future[None]]()
    views = frames(
        work.model,
        work.cameras,
        kept,
        work.progress,
        work.stop,
        indices,
        drawn=bool(writers or shown),
    )
    with ThreadPoolExecutor(1) as pool:
        for index, is_kept, view in views:
            waiting.append(pool.submit(encode, index, is_kept, view))
            n_frames, n_kept = n_frames + 1, n_kept + is_kept
            if len(waiting) > ENCODING:
                waiting.popleft().result()
        for future in waiting:
            future.result()
    return n_frames, n_kept

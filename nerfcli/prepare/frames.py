"""Take frames from a video: the sharpest of each window of time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.core.progress import Update, ignore_update

LEAST_SIDE = 480  # pixels of the shorter side at which sharpness is measured
QUALITY = 95


def take_frames(
    video: Path,
    out: Path,
    n_frames: int,
    update: Update = ignore_update,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Write about `n_frames` frames as JPEG, the sharpest of each window; return their names.

    Args:
        is_stopped: asked after each frame; if true, return early.

    Raises:
        NerfError: ffmpeg cannot read the video, or it is too short.
    """
    names: list[str] = []
    with _open_video(video) as (header, reader):
        width, height = header["size"]
        total = int(header["fps"] * header["duration"]) or n_frames
        window = max(total / n_frames, 1.0)
        best: tuple[float, np.ndarray, int] | None = None
        for index, raw in enumerate(reader):
            frame = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
            if best is not None and int(index / window) != int(best[2] / window):
                names.append(_write_frame(best, out))
                best = None
            sharpness = measure_sharpness(frame)
            if best is None or sharpness > best[0]:
                best = (sharpness, frame, index)
            update(index + 1)
            if is_stopped():
                return names
        if best is not None:
            names.append(_write_frame(best, out))
    if len(names) < 3:
        raise NerfError(f"{video} has only {len(names)} frames; at least three are needed.")
    return names


def count_frames(video: Path) -> int:
    """Read the number of frames from a video's header; 0 if unknown.

    Raises:
        NerfError: not a video.
    """
    with _open_video(video) as (header, _):
        return int(header["fps"] * header["duration"])


@contextmanager
def _open_video(video: Path) -> Iterator[tuple[dict[str, Any], Iterator[bytes]]]:
    """Yield a video's header and its raw frames, [height, width, 3] uint8 each.

    Raises:
        NerfError: ffmpeg cannot read it.
    """
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(video))
    try:
        yield next(reader), reader
    except (OSError, RuntimeError, StopIteration, subprocess.SubprocessError) as error:
        raise NerfError(f"{video} cannot be read as a video ({_last_line(error)}).") from error
    finally:
        reader.close()


def measure_sharpness(frame: np.ndarray) -> float:
    """Return the mean square of the Laplacian of grey, at about LEAST_SIDE pixels.

    Args:
        frame: [height, width, 3] uint8.
    """
    step = max(min(frame.shape[:2]) // LEAST_SIDE, 1)
    # thin, do not average: averaging would hide the blur
    grey = frame[::step, ::step].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    laplacian = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    return float(np.square(laplacian).mean())


def _write_frame(best: tuple[float, np.ndarray, int], out: Path) -> str:
    name = f"frame_{best[2]:06d}.jpg"
    with replacing(out / name) as aside:
        Image.fromarray(best[1]).save(aside, quality=QUALITY, subsampling=0)
    return name


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__

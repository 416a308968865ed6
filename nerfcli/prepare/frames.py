"""Frames of a video: of each window of time the sharpest one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp")
LEAST_SIDE = 480  # pixels to which a frame is thinned before its sharpness is measured
QUALITY = 95


def take_frames(
    video: Path,
    out: Path,
    n_frames: int,
    done: Callable[[int], None] = lambda n: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Write about `n_frames` frames as JPEG, one of each window, and return their names.

    Raises:
        NerfError: ffmpeg cannot read the video, or it is too short.
    """
    reader = _reader(video)
    names: list[str] = []
    try:
        about = next(reader)
        width, height = about["size"]
        total = int(about["fps"] * about["duration"]) or n_frames
        window = max(total / n_frames, 1.0)
        best: tuple[float, np.ndarray, int] | None = None
        for index, raw in enumerate(reader):
            frame = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
            if best is not None and int(index / window) != int(best[2] / window):
                names.append(_save(best, out))
                best = None
            sharp = sharpness(frame)
            if best is None or sharp > best[0]:
                best = (sharp, frame, index)
            done(index + 1)
            if stopped():
                return names
        if best is not None:
            names.append(_save(best, out))
    except (OSError, RuntimeError, StopIteration, subprocess.SubprocessError) as error:
        raise NerfError(f"{video} cannot be read as a video ({_first_line(error)}).") from error
    finally:
        reader.close()
    if len(names) < 3:
        raise NerfError(f"{video} has only {len(names)} frames; at least three are needed.")
    return names


def count_frames(video: Path) -> int:
    """Frames of a video by its header, 0 where that does not tell.

    Raises:
        NerfError: not a video.
    """
    reader = _reader(video)
    try:
        about = next(reader)
    except (OSError, RuntimeError, StopIteration, subprocess.SubprocessError) as error:
        raise NerfError(f"{video} cannot be read as a video ({_first_line(error)}).") from error
    finally:
        reader.close()
    return int(about["fps"] * about["duration"])


def _reader(video: Path) -> Any:
    import imageio_ffmpeg

    return imageio_ffmpeg.read_frames(str(video))


def sharpness(frame: np.ndarray) -> float:
    """Mean square of the Laplacian of grey, at about LEAST_SIDE pixels. frame [h, w, 3] uint8."""
    step = max(min(frame.shape[:2]) // LEAST_SIDE, 1)
    # thinning, not averaging: averaging would hide the blur that is looked for
    grey = frame[::step, ::step].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    bend = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    return float(np.square(bend).mean())


def _save(best: tuple[float, np.ndarray, int], out: Path) -> str:
    name = f"frame_{best[2]:06d}.jpg"
    with replacing(out / name) as aside:
        Image.fromarray(best[1]).save(aside, quality=QUALITY, subsampling=0)
    return name


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__

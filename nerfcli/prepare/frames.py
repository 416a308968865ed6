"""Take frames from a video: the sharpest of each window, and no picture twice."""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.core.progress import Note, Update, ignore_update
from nerfcli.core.text import quantity

LEAST_SIDE = 480  # pixels of the shorter side at which sharpness is measured
QUALITY = 95
HDR = ("arib-std-b67", "smpte2084")  # transfer functions of HLG and PQ, by ffmpeg's names
TONE_MAP = (
    "zscale=tin={curve}:pin=2020:min=2020_ncl:t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv444p"
)
# enlarged, never reduced; a turned video has its sides and their ratio exchanged
SQUARE = "scale='round(iw*max(sar,1))':'round(ih/min(sar,1))',setsar=1"
HD_LINES = 720
HD_MATRIX = "scale=in_color_matrix=bt709"
# what ffmpeg says of a pixel format beside its colours
NO_COLOUR = re.compile(r"tv|pc|progressive|.*first.*|\d+ bpc")


def take_frames(
    video: Path,
    out: Path,
    n_frames: int,
    update: Update = ignore_update,
    is_stopped: Callable[[], bool] = lambda: False,
    note: Note = lambda text: None,
) -> list[str]:
    """Write `n_frames` frames as JPEG, the sharpest of each window; return their names.

    The windows hold equally many different pictures: a header's duration and frame rate may be
    absent or wrong, and a picture that is shown for longer is still one picture. So the video is
    read twice.

    Args:
        is_stopped: asked after each frame; if true, return early.
        note: takes remarks.

    Raises:
        NerfError: ffmpeg cannot read the video, or it is too short.
    """
    found = _measure_frames(video, update, is_stopped, note)
    if is_stopped():
        return []
    if len(found) < 3:
        raise NerfError(
            f"{video} has only {quantity(len(found), 'frame')}; at least three are needed."
        )
    if len(found) < n_frames:
        note(f"{video} has no more than {len(found)} different frames: all of them are taken")
    chosen = _choose_sharpest(found, min(n_frames, len(found)))
    names: list[str] = []
    with _open_video(video) as (header, reader):
        for index, raw in enumerate(reader):
            if index == chosen[len(names)]:
                names.append(_write_frame(_as_pixels(raw, header), index, out))
            if is_stopped() or len(names) == len(chosen):
                break
    return names


def count_frames(video: Path) -> int:
    """Estimate the number of frames from a video's header; 0 if it does not say.

    Raises:
        NerfError: not a video.
    """
    with _open_video(video) as (header, _):
        return round(header["fps"] * header["duration"])  # the duration is rounded, too


def _measure_frames(
    video: Path, update: Update, is_stopped: Callable[[], bool], note: Note
) -> list[tuple[int, float]]:
    """Return index and sharpness of each frame that differs from the one before."""
    found: list[tuple[int, float]] = []
    with _open_video(video) as (header, reader):
        curve = _find_hdr(header)
        if curve and not header["is_mapped"]:
            note(
                f"{video} is HDR ({curve}), which this ffmpeg cannot convert: colours will be pale"
            )
        last = b""
        for index, raw in enumerate(reader):
            if raw != last:
                found.append((index, measure_sharpness(_as_pixels(raw, header))))
            last = raw
            update(index + 1)
            if is_stopped():
                break
    return found


def _choose_sharpest(found: Sequence[tuple[int, float]], n: int) -> list[int]:
    """Cut frames into n windows of equal size; return the index of the sharpest in each."""
    edges = [len(found) * i // n for i in range(n + 1)]
    windows = [found[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [max(window, key=lambda frame: frame[1])[0] for window in windows]


@contextmanager
def _open_video(video: Path) -> Iterator[tuple[dict[str, Any], Iterator[bytes]]]:
    """Yield a video's header and its raw frames, [height, width, 3] uint8 each, upright.

    Each frame comes once, whatever its time, with square pixels; HDR is tone-mapped where ffmpeg
    can, which the header's `is_mapped` says.

    Raises:
        NerfError: ffmpeg cannot read it.
    """
    # it warns of a frame that is turned upright
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    reader = _read(video, [])
    try:
        header = next(reader)
        curve, square = _find_hdr(header), _find_squaring(video)
        plain = [*(_find_matrix(header) if curve is None else []), *square]
        frames: Iterator[bytes] | None = None
        if curve and _has_tone_map():
            reader.close()
            reader = _read(video, [TONE_MAP.format(curve=curve), *square])
            # ffmpeg refuses to map what has no colour matrix, for one
            with suppress(OSError, RuntimeError, StopIteration):
                mapped = next(reader)
                frames = chain([next(reader)], reader)
                header = mapped
        is_mapped = frames is not None
        if frames is None and (plain or curve):
            reader.close()
            reader = _read(video, plain)
            header = next(reader)
        yield header | {"is_mapped": is_mapped}, frames or reader
    except (OSError, RuntimeError, StopIteration, subprocess.SubprocessError) as error:
        raise NerfError(f"{video} cannot be read as a video ({_last_line(error)}).") from error
    finally:
        reader.close()


def _read(video: Path, filters: list[str]) -> Generator[Any, None, None]:
    """Start ffmpeg; yield the header and then the frames."""
    import imageio_ffmpeg

    options = ["-fps_mode", "passthrough", *(["-vf", ",".join(filters)] if filters else [])]
    return imageio_ffmpeg.read_frames(_as_input(video), output_params=options)


def _as_input(video: Path) -> str:
    """Return what ffmpeg takes for a file, though its name has a colon as protocols have."""
    return f"file:{video}"


def _find_squaring(video: Path) -> list[str]:
    """Return the filter that makes pixels square, none where they are."""
    import imageio_ffmpeg

    # the header that imageio_ffmpeg gives leaves the shape of pixels out
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", _as_input(video)]
    log = subprocess.run(command, capture_output=True, check=False).stderr.decode(errors="replace")
    line = next((line for line in log.splitlines() if " Video: " in line), "")
    found = re.search(r"\bSAR (\d+):(\d+)", line)
    return [] if found is None or found[1] == found[2] else [SQUARE]


def _find_matrix(header: dict[str, Any]) -> list[str]:
    """Return the filter that decodes HD video without a colour matrix as players do."""
    pixels, _, details = header["pix_fmt"].partition("(")
    if not pixels.startswith(("yuv", "nv", "p0")) or min(header["source_size"]) < HD_LINES:
        return []
    words = [word.strip() for word in details.rstrip(")").split(",")]
    colours = [word for word in words if word and not NO_COLOUR.fullmatch(word)]
    return [] if colours and not colours[0].startswith("unknown") else [HD_MATRIX]


def _find_hdr(header: dict[str, Any]) -> str | None:
    """Return the transfer function of an HDR video, None for others."""
    return next((curve for curve in HDR if curve in header["pix_fmt"]), None)


@cache
def _has_tone_map() -> bool:
    """Whether ffmpeg has the filters of TONE_MAP."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-filters"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return False
    return {"zscale", "tonemap"} <= set(listed)


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


def _as_pixels(raw: bytes, header: dict[str, Any]) -> np.ndarray:
    width, height = header["size"]
    return np.frombuffer(raw, np.uint8).reshape(height, width, 3)


def _write_frame(pixels: np.ndarray, index: int, out: Path) -> str:
    name = f"frame_{index:06d}.jpg"
    with replacing(out / name) as aside:
        Image.fromarray(pixels).save(aside, quality=QUALITY, subsampling=0)
    return name


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__

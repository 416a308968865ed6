"""Write frames as mp4, GIF or a folder of PNGs; nothing is replaced before all is written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.files import aside_path

DEPTH_SIDECAR = {
    "kind": "euclidean",
    "estimator": "expected",
    "unit": "source units",
    "invalid": 0,
    "dtype": "float32",
}


@dataclass(frozen=True)
class Encoding:
    """How ffmpeg writes a file: codec, pixel format, what sizes must divide by, and options."""

    codec: str
    pixels: str
    size_multiple: int
    options: tuple[str, ...]


ENCODINGS = {
    # H.264 in yuv420p, which needs even sizes; the index in front, so that browsers start at once
    ".mp4": Encoding(
        *("libx264", "yuv420p", 2),
        (
            *("-crf", "18", "-preset", "medium", "-movflags", "+faststart"),
            # players take HD without a tag for BT.709, and ffmpeg by itself converts to BT.601
            *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"),
            *("-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"),
        ),
    ),
    # one palette for all frames, so that colours do not flicker; endless
    ".gif": Encoding(
        *("gif", "pal8", 1),
        (
            *("-f", "gif", "-loop", "0", "-vf"),
            "split[a][b];[a]palettegen=reserve_transparent=0[palette];"
            "[b][palette]paletteuse=dither=bayer:bayer_scale=5",
        ),
    ),
}


GIF_FASTEST = 50  # frames a second: browsers show each frame of under 2/100 s for 10/100 s


class Writer(Protocol):
    """Takes frames; close() puts the result in place and returns its paths."""

    def add(self, frame: np.ndarray, depth: np.ndarray | None) -> None: ...
    def close(self) -> list[Path]: ...
    def abort(self) -> None: ...


def open_writer(out: Path, layer: str, save: tuple[str, ...], fps: int) -> Writer:
    """Open a writer for one layer; the first layer asked for gets the plain name.

    Raises:
        NerfError: an unknown suffix, too fast a GIF, or the folder of `out` cannot be written.
    """
    ensure_rate(out, fps)
    suffix = out.suffix.lower()
    video = suffix in ENCODINGS
    if suffix and not video and not out.is_dir():
        raise NerfError(
            f"--out {out}: unknown suffix {suffix!r}; use .mp4, .gif, or a folder for PNGs."
        )
    folder = out.parent if video else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NerfError(
            f"cannot write to {folder}: {error.strerror}; choose another --out."
        ) from error
    if not video:
        return FrameWriter(out, layer)
    path = out if layer == save[0] else out.with_name(f"{out.stem}_{layer}{out.suffix}")
    return VideoWriter(path, fps)


def ensure_rate(out: Path, fps: int) -> None:
    """Raise NerfError where --out cannot play that many frames a second.

    A GIF states how long each frame stays in whole hundredths of a second. ffmpeg varies them so
    that they add up: 3, 4, 3 at 30 frames a second.
    """
    if out.suffix.lower() == ".gif" and fps > GIF_FASTEST:
        raise NerfError(
            f"--fps {fps}: browsers slow a GIF of more than {GIF_FASTEST} frames a second down to "
            f"10. Use --fps {GIF_FASTEST} or less, or .mp4."
        )


class VideoWriter:
    """An mp4 or GIF, encoded by imageio's ffmpeg plugin beside its place and then renamed."""

    def __init__(self, path: Path, fps: int) -> None:
        self.path, self.fps = path, fps
        self.encoding = ENCODINGS[path.suffix.lower()]
        # the plugin refuses names that are no video's, so a GIF has another one until it is done
        # ffmpeg takes what precedes a colon in a relative path for a protocol
        self.aside = aside_path(path.absolute().with_suffix(".mp4"))
        self._stream: Any = None
        self._n_frames = 0

    def add(self, frame: np.ndarray, depth: np.ndarray | None) -> None:
        multiple = self.encoding.size_multiple
        height, width = (n - n % multiple for n in frame.shape[:2])
        try:
            if self._stream is None:
                self._stream = self._open()
            self._stream.append_data(frame[:height, :width])
        except (OSError, RuntimeError) as error:  # its text holds the command line and the log
            reason = str(error).partition("\n")[0]
            raise NerfError(f"cannot write {self.path}: ffmpeg failed ({reason}).") from error
        self._n_frames += 1

    def _open(self) -> Any:
        import imageio.v2 as imageio  # v3 cannot write frame by frame through ffmpeg

        return imageio.get_writer(
            self.aside,
            format="FFMPEG",  # pyright: ignore[reportArgumentType]  # its type says otherwise
            mode="I",
            fps=self.fps,
            codec=self.encoding.codec,
            pixelformat=self.encoding.pixels,
            macro_block_size=self.encoding.size_multiple,
            quality=None,
            output_params=list(self.encoding.options),
            ffmpeg_log_level="error",
        )

    def close(self) -> list[Path]:
        if self._stream is None:
            return []
        self._stream.close()
        self._ensure_whole()
        os.replace(self.aside, self.path)
        return [self.path]

    def _ensure_whole(self) -> None:
        """Raise NerfError unless all frames can be read back: ffmpeg's exit status is lost."""
        import imageio_ffmpeg

        try:
            found = imageio_ffmpeg.count_frames_and_secs(str(self.aside))[0]
        except RuntimeError:  # no file, or none that can be read
            found = 0
        if found != self._n_frames:
            raise NerfError(
                f"cannot write {self.path}: {found} of {self._n_frames} frames arrived in it. "
                "Is the disk full?"
            )

    def abort(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self.aside.unlink(missing_ok=True)


class FrameWriter:
    """<out>/<layer>_0000.png, ...; depth also as float32 NPY in source units."""

    def __init__(self, folder: Path, layer: str) -> None:
        self.folder, self.layer = folder, layer
        self._aside = Path(tempfile.mkdtemp(prefix=".frames-", dir=folder))
        self._names: list[str] = []

    def add(self, frame: np.ndarray, depth: np.ndarray | None) -> None:
        from imageio.v3 import imwrite

        stem = f"{self.layer}_{len(self._names):04d}"
        imwrite(self._aside / f"{stem}.png", frame)
        self._names.append(f"{stem}.png")
        if depth is not None:
            np.save(self._aside / f"{stem}.npy", depth.astype(np.float32))

    def close(self) -> list[Path]:
        if self.layer == "depth":
            (self._aside / "depth.json").write_text(json.dumps(DEPTH_SIDECAR, indent=2) + "\n")
        for path in sorted(self._aside.iterdir()):
            os.replace(path, self.folder / path.name)
        self._aside.rmdir()
        return [self.folder / name for name in self._names]

    def abort(self) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)

"""Frames to disk: mp4 through ffmpeg, GIF, or a folder of PNGs. Written aside, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.files import aside_path, replacing

DEPTH_SIDECAR = {
    "kind": "euclidean",
    "estimator": "expected",
    "unit": "source units",
    "invalid": 0,
    "dtype": "float32",
}


class Writer(Protocol):
    """Takes frames; close() puts the result in place and returns its paths."""

    def add(self, frame: np.ndarray, depth: np.ndarray | None) -> None: ...
    def close(self) -> list[Path]: ...
    def abort(self) -> None: ...


def open_writer(out: Path, layer: str, save: tuple[str, ...], fps: int) -> Writer:
    """A writer for one layer; the first layer asked for gets the plain name.

    Raises:
        NerfError: an unknown suffix, or the folder of `out` cannot be written.
    """
    suffix = out.suffix.lower()
    video = suffix in (".mp4", ".gif")
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
    return Mp4Writer(path, fps) if suffix == ".mp4" else GifWriter(path, fps)


class Mp4Writer:
    """H.264 in yuv420p with the index in front, so that browsers play it at once."""

    def __init__(self, path: Path, fps: int) -> None:
        self.path, self.aside, self.fps = path, aside_path(path), fps
        self._stream = None
        self._n_frames = 0

    def add(self, frame: np.ndarray, depth: np.ndarray | None) -> None:
        height, width = (n - n % 2 for n in frame.shape[:2])  # yuv420p needs even sizes
        if self._stream is None:
            self._stream = self._open(width, height)
        self._stream.send(np.ascontiguousarray(frame[:height, :width]))
        self._n_frames += 1

    def _open(self, width: int, height: int):  # a generator that takes frames
        try:
            import imageio_ffmpeg
        except ImportError as error:
            raise NerfError(
                "mp4 needs the package imageio-ffmpeg: pip install imageio-ffmpeg, or write .gif "
                "or a folder of PNGs."
            ) from error
        stream = imageio_ffmpeg.write_frames(
            str(self.aside),
            (width, height),
            fps=self.fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            quality=None,  # pyright: ignore[reportArgumentType]  # -crf says it instead
            output_params=["-crf", "18", "-preset", "medium", "-movflags", "+faststart"],
            ffmpeg_log_level="error",
        )
        stream.send(None)
        return stream

    def close(self) -> list[Path]:
        if self._stream is None:
            return []
        self._stream.close()
        self._ensure_whole()
        os.replace(self.aside, self.path)
        return [self.path]

    def _ensure_whole(self) -> None:
        """Raise NerfError unless all frames can be read back; ffmpeg reports no exit status."""
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


class GifWriter:
    """An endless GIF with one palette for all frames, so that colours do not flicker."""

    def __init__(self, path: Path, fps: int) -> None:
        self.path, self.fps = path, fps
        self._frames: list[np.ndarray] = []

    def add(self, frame: np.ndarray, depth: np.ndarray | None) -> None:
        self._frames.append(frame)

    def close(self) -> list[Path]:
        from PIL import Image

        if not self._frames:
            return []
        some = self._frames[:: max(1, len(self._frames) // 8)]
        palette = Image.fromarray(np.concatenate(some)).quantize(256)
        images = [Image.fromarray(f).quantize(palette=palette) for f in self._frames]
        with replacing(self.path) as aside:
            images[0].save(
                aside,
                save_all=True,
                append_images=images[1:],
                duration=round(1000 / self.fps),
                loop=0,
            )
        return [self.path]

    def abort(self) -> None:
        self._frames = []


class FrameWriter:
    """<out>/<layer>_0000.png, ...; depth also as float32 NPY in source units."""

    def __init__(self, folder: Path, layer: str) -> None:
        self.folder, self.layer = folder, layer
        self._aside = Path(tempfile.mkdtemp(prefix=".frames-", dir=folder))
        self._names: list[str] = []

    def add(self, frame: np.ndarray, depth: np.ndarray | None) -> None:
        from PIL import Image

        stem = f"{self.layer}_{len(self._names):04d}"
        Image.fromarray(frame).save(self._aside / f"{stem}.png")
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

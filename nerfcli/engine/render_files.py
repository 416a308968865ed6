"""The files that a render writes: a video, one picture, or a folder of frames; a name for each.

Needs no torch, so that the command line can ask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed

LAYERS = ("rgb", "rgba", "depth", "median-depth", "normal", "opacity")
ESTIMATORS = {"depth": "expected", "median-depth": "median"}  # the layers of depth
DEPTH_KINDS = ("distance", "z")
FORMATS = ("png", "jpg", "exr", "npy")  # of single frames
PICTURE = "picture"  # a PNG to look at: what videos are made of
EXACT = ("exr", "npy")  # colours in float32
VIDEOS = (".mp4", ".mov", ".webm", ".gif", ".webp")
STILLS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".exr": "exr", ".npy": "npy"}
FILES = (*VIDEOS, *STILLS)
NO_ALPHA = (".mp4", ".gif", ".jpg", ".jpeg")
RECORD = "frames.json"  # in a folder of frames: what they are of


def suffixes(layer: str, kind: str) -> tuple[str, ...]:
    """Suffixes of a layer's files, the first one the main: depth as PNG is also there as float32.

    kind: of FORMATS, or PICTURE.
    """
    if kind == "png" and layer in ESTIMATORS:
        return (".png", ".npy")
    return (".png",) if kind == PICTURE else (f".{kind}",)


def has_numbers(layer: str, kind: str) -> bool:
    """Whether a layer's files hold depth as numbers, which need a sidecar to be understood."""
    return layer in ESTIMATORS and kind not in (PICTURE, "jpg")


@dataclass(frozen=True)
class Shard:
    """A part of a path's frames: number i belongs to shard i % count + 1.

    finishes: whether the one that comes last writes the files of the whole.
    """

    number: int
    count: int
    finishes: bool = True

    def frames(self, n_frames: int) -> list[int]:
        return list(range(self.number - 1, n_frames, self.count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class RenderFiles:
    """What a render to `out` writes.

    Attributes:
        out: a video, a picture of the only frame, or a folder of frames.
        layers: each has files of its own; the first one asked for gets the plain name.
        folder_format: of the frames in a folder, one of FORMATS.
    """

    out: Path
    layers: tuple[str, ...]
    folder_format: str = "png"

    @property
    def is_video(self) -> bool:
        return self.out.suffix.lower() in VIDEOS

    @property
    def is_folder(self) -> bool:
        return self.out.suffix.lower() not in FILES

    @property
    def kind(self) -> str:
        """How single frames are written: one of FORMATS, or PICTURE for those of a video."""
        if self.is_folder:
            return self.folder_format
        return PICTURE if self.is_video else STILLS[self.out.suffix.lower()]

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.out if self.is_folder else self.out.parent

    def records(self) -> list[tuple[str, Path]]:
        """Each layer whose numbers need a sidecar, and where that is to lie."""
        return [
            (layer, self.out / f"{layer}.json" if self.is_folder else self._beside(layer, ".json"))
            for layer in self.layers
            if has_numbers(layer, self.kind)
        ]

    def video(self, layer: str) -> Path:
        return self._beside(layer, self.out.suffix)

    def frame(self, index: int) -> list[tuple[str, Path]]:
        """Each file of one frame: its name among the kept frames, and where it is to lie."""
        placed = []
        for layer in self.layers:
            for k, suffix in enumerate(suffixes(layer, self.kind)):
                name = frame_name(layer, index, suffix)
                beside = self._beside(layer, suffix if k else self.out.suffix)
                placed.append((name, self.out / name if self.is_folder else beside))
        return placed

    def frames_there(self) -> list[Path]:
        """List the frames in a folder: also those of a longer path."""
        patterns = [
            rf"{layer}_\d{{4,}}{re.escape(suffix)}"
            for layer in self.layers
            for suffix in suffixes(layer, self.kind)
        ]
        paths = sorted(self.out.glob("*"))
        return [path for p in patterns for path in paths if re.fullmatch(p, path.name)]

    def there(self) -> list[Path]:
        """List the files that a render replaces or removes."""
        if self.is_folder:
            written = self.frames_there()
        elif self.is_video:
            written = [self.video(layer) for layer in self.layers]
        else:
            written = [path for _, path in self.frame(0)]
        written += [path for _, path in self.records()]
        return [path for path in written if path.exists()]

    def _beside(self, layer: str, suffix: str) -> Path:
        stem = self.out.stem if layer == self.layers[0] else f"{self.out.stem}_{layer}"
        return self.out.with_name(f"{stem}{suffix}")


@dataclass(frozen=True)
class Output:
    """How a path is written.

    Attributes:
        files: where. fps, codec: of a video. depth: of DEPTH_KINDS.
        sheet: a picture with some of the frames. shard: the part of the frames to render.
        overwrite: whether a folder's frames of something else may be replaced.
    """

    files: RenderFiles
    fps: float = 30
    codec: str = "h264"
    depth: str = "distance"
    sheet: Path | None = None
    shard: Shard | None = None
    overwrite: bool = True


def frame_name(layer: str, index: int, suffix: str = ".png") -> str:
    return f"{layer}_{index:04d}{suffix}"


def ensure_layers(layers: tuple[str, ...]) -> None:
    """Raise NerfError for layers that do not exist."""
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or not layers:
        raise NerfError(f"--save: unknown layer {unknown}; known: {', '.join(LAYERS)}.")


def ensure_fitting(files: RenderFiles) -> None:
    """Raise NerfError for a suffix that no render writes, or that cannot hold a layer."""
    out, suffix = files.out, files.out.suffix.lower()
    if out.suffix and suffix not in FILES and not out.is_dir():
        raise NerfError(
            f"--out {out}: unknown suffix {out.suffix!r}; use {', '.join(FILES)}, or a folder for "
            "frames."
        )
    if files.folder_format not in FORMATS:
        raise NerfError(
            f"--format: unknown format {files.folder_format!r}; known: {', '.join(FORMATS)}."
        )
    where = f"--format {files.folder_format}" if files.is_folder else f"--out {out}"
    if "rgba" in files.layers and (suffix in NO_ALPHA or files.kind == "jpg"):
        raise NerfError(
            f"{where} holds no transparency, which --save rgba needs: use .mov, .webm, .webp, "
            ".png, .exr, or a folder."
        )
    if files.kind == "exr":
        ensure_installed("OpenEXR", where)

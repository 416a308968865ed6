"""The files that a render writes: a video, one picture, or a folder of frames; a name for each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nerfcli.core.errors import NerfError

LAYERS = ("rgb", "depth", "opacity")
VIDEOS = (".mp4", ".gif")
FILES = (*VIDEOS, ".png")
DEPTH_RECORD = "depth.json"  # in a folder of frames: what its depth is


@dataclass(frozen=True)
class RenderFiles:
    """What a render to `out` writes.

    Attributes:
        out: a video, a picture of the only frame (.png), or a folder of PNG frames.
        layers: each has files of its own; the first one asked for gets the plain name.
    """

    out: Path
    layers: tuple[str, ...]

    @property
    def is_video(self) -> bool:
        return self.out.suffix.lower() in VIDEOS

    @property
    def is_folder(self) -> bool:
        return self.out.suffix.lower() not in FILES

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.out if self.is_folder else self.out.parent

    @property
    def record(self) -> Path | None:
        """What says what the depth of a folder is; None where there is nothing to say."""
        return self.out / DEPTH_RECORD if self.is_folder and "depth" in self.layers else None

    def video(self, layer: str) -> Path:
        return self._beside(layer, self.out.suffix)

    def frame(self, index: int) -> list[tuple[str, Path]]:
        """Each file of one frame: its name among the kept frames, and where it is to lie."""
        parts = [(layer, suffix) for layer in self.layers for suffix in suffixes(layer, True)]
        return [
            (
                frame_name(layer, index, suffix),
                self.out / frame_name(layer, index, suffix)
                if self.is_folder
                else self._beside(layer, self.out.suffix if suffix == ".png" else suffix),
            )
            for layer, suffix in parts
        ]

    def there(self) -> list[Path]:
        """List the files that a render replaces or removes: also frames of a longer path."""
        if self.is_folder:
            paths = sorted(self.out.glob("*"))
            patterns = [
                rf"{layer}_\d{{4,}}{re.escape(suffix)}"
                for layer in self.layers
                for suffix in suffixes(layer, True)
            ]
            written = [path for p in patterns for path in paths if re.fullmatch(p, path.name)]
            written += [] if self.record is None else [self.record]
        elif self.is_video:
            written = [self.video(layer) for layer in self.layers]
        else:
            written = [path for _, path in self.frame(0)]
        return [path for path in written if path.exists()]

    def _beside(self, layer: str, suffix: str) -> Path:
        stem = self.out.stem if layer == self.layers[0] else f"{self.out.stem}_{layer}"
        return self.out.with_name(f"{stem}{suffix}")


def suffixes(layer: str, numbers: bool) -> tuple[str, ...]:
    """Suffixes of a frame's files; numbers: depth is kept as float32, too."""
    return (".png", ".npy") if layer == "depth" and numbers else (".png",)


def frame_name(layer: str, index: int, suffix: str = ".png") -> str:
    return f"{layer}_{index:04d}{suffix}"


def ensure_layers(layers: tuple[str, ...]) -> None:
    """Raise NerfError for layers that do not exist."""
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or not layers:
        raise NerfError(f"--save: unknown layer {unknown}; known: {', '.join(LAYERS)}.")


def ensure_known(out: Path) -> None:
    """Raise NerfError for a suffix that no render writes."""
    if out.suffix and out.suffix.lower() not in FILES and not out.is_dir():
        raise NerfError(
            f"--out {out}: unknown suffix {out.suffix!r}; use .mp4, .gif, .png, or a folder for "
            "PNGs."
        )

"""Write frames as a video, GIF or animated WebP; nothing is replaced before all is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.core.errors import NerfError


@dataclass(frozen=True)
class Encoding:
    """How ffmpeg writes a file: codec, pixel format, what sizes must divide by, and options."""

    codec: str
    pixels: str
    size_multiple: int
    options: tuple[str, ...]


# players take HD without a tag for BT.709, and ffmpeg by itself converts to BT.601
BT709 = (
    *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"),
    *("-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"),
)
# the index in front, so that browsers start at once
STREAMED = ("-movflags", "+faststart")
CODECS = ("h264", "h265")  # of an mp4
ENCODINGS = {
    # yuv420p needs even sizes
    ".mp4": Encoding(
        *("libx264", "yuv420p", 2), ("-crf", "18", "-preset", "medium", *STREAMED, *BT709)
    ),
    "h265": Encoding(
        *("libx265", "yuv420p", 2),
        # Apple's players want hvc1
        (*("-crf", "20", "-preset", "medium", "-tag:v", "hvc1"), *STREAMED, *BT709),
    ),
    ".mov": Encoding("prores_ks", "yuv444p10le", 1, ("-profile:v", "4444", *BT709)),
    ".mov alpha": Encoding(
        *("prores_ks", "yuva444p10le", 1), ("-profile:v", "4444", "-alpha_bits", "16", *BT709)
    ),
    ".webm": Encoding(
        *("libvpx-vp9", "yuv420p", 1),
        (*("-crf", "24", "-b:v", "0", "-deadline", "good", "-cpu-used", "4"), *BT709),
    ),
    ".webm alpha": Encoding(
        *("libvpx-vp9", "yuva420p", 1),
        (
            *("-crf", "24", "-b:v", "0", "-deadline", "good", "-cpu-used", "4"),
            *("-auto-alt-ref", "0", *BT709),  # libvpx knows no such frames with alpha
        ),
    ),
    ".webp": Encoding(
        *("libwebp_anim", "yuv420p", 1), ("-f", "webp", "-loop", "0", "-quality", "90")
    ),
    ".webp alpha": Encoding(
        *("libwebp_anim", "yuva420p", 1), ("-f", "webp", "-loop", "0", "-quality", "90")
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


def encoding_of(out: Path, codec: str = "h264", *, has_alpha: bool = False) -> Encoding:
    """How ffmpeg writes `out`. codec: of CODECS, for an mp4."""
    suffix = out.suffix.lower()
    if suffix == ".mp4":
        return ENCODINGS[".mp4" if codec == "h264" else codec]
    return ENCODINGS[f"{suffix} alpha" if has_alpha else suffix]


def ensure_codec(out: Path | None, codec: str | None) -> None:
    """Raise NerfError for an unknown --codec, and for one of a file that has no choice.

    out: None: an mp4.
    """
    if codec is None:
        return
    if codec not in CODECS:
        raise NerfError(f"--codec: unknown codec {codec!r}; known: {', '.join(CODECS)}.")
    if out is not None and out.suffix.lower() != ".mp4":
        raise NerfError(f"--codec is of an .mp4; --out {out} has none to choose. Leave it out.")


GIF_FASTEST = 50  # frames a second: browsers show each frame of under 2/100 s for 10/100 s


def ensure_video(out: Path, sizes: np.ndarray, fps: float) -> None:
    """Raise NerfError unless frames of `sizes` [n, 2], width and height, make a video at `out`."""
    suffix = out.suffix.lower()
    if len(np.unique(sizes, axis=0)) > 1:
        raise NerfError(
            f"--out {out}: the frames have several sizes, a video has one; name a folder."
        )
    encoding, (width, height) = encoding_of(out), sizes[0].tolist()
    if min(width, height) < encoding.size_multiple:
        raise NerfError(
            f"--out {out}: frames of {width}x{height} are too small for {suffix}; render at a "
            "greater --scale, or name a .gif or a folder."
        )
    ensure_rate(out, fps)


def ensure_rate(out: Path, fps: float) -> None:
    """Raise NerfError where --out cannot play that many frames a second.

    A GIF states how long each frame stays in whole hundredths of a second. ffmpeg varies them so
    that they add up: 3, 4, 3 at 30 frames a second.
    """
    if out.suffix.lower() == ".gif" and fps > GIF_FASTEST:
        raise NerfError(
            f"--fps {fps:g}: browsers slow a GIF of over {GIF_FASTEST} frames a second down to "
            f"10. Use --fps {GIF_FASTEST} or less, or .mp4."
        )


class VideoWriter:
    """A video, encoded by imageio's ffmpeg plugin in `folder` and then renamed.

    codec: of CODECS, for an mp4. has_alpha: frames are [h, w, 4] with straight alpha.
    """

    def __init__(
        self, path: Path, fps: float, folder: Path, codec: str = "h264", *, has_alpha: bool = False
    ) -> None:
        self.path, self.fps = path, fps
        self.encoding = encoding_of(path, codec, has_alpha=has_alpha)
        # the plugin refuses names that are no video's, so a GIF has another one until it is done
        # ffmpeg takes what precedes a colon in a relative path for a protocol
        suffix = path.suffix.lower()
        suffix = suffix if suffix in (".mov", ".webm") else ".mp4"
        self.aside = folder.absolute() / f"part-{path.stem}{suffix}"
        self._stream: Any = None
        self._n_frames = 0

    def add(self, frame: np.ndarray) -> None:
        """Take a frame [h, w, 3 or 4] uint8; H.264 loses the last row or column of an odd size."""
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
            ffmpeg_log_level="quiet",  # its lines go to our stderr, past --quiet and --json
        )

    def close(self) -> Path:
        """Put the video in place.

        Raises:
            NerfError: frames are missing in it.
        """
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._ensure_whole()
        os.replace(self.aside, self.path)
        return self.path

    def _ensure_whole(self) -> None:
        """Raise NerfError unless all frames can be read back: ffmpeg's exit status is lost."""
        import imageio_ffmpeg

        try:
            if self.path.suffix.lower() == ".webp":  # which ffmpeg writes and does not read
                seconds = _webp_seconds(self.aside)
                found = self._n_frames if seconds is None else round(seconds * self.fps)
            else:
                found = imageio_ffmpeg.count_frames_and_secs(str(self.aside))[0]
        except (RuntimeError, OSError):  # no file, or none that can be read
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


def _webp_seconds(path: Path) -> float | None:
    """How long an animated WebP plays; None of a still one, which frames that are all alike make.

    Frames that are alike are one in it, shown for longer.
    """
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        times = [frame.info.get("duration", 0) for frame in ImageSequence.Iterator(image)]
    return sum(times) / 1000.0 if all(times) else None

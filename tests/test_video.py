"""mp4, GIF and PNG frames, read back with other programs' eyes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.engine.video import ENCODINGS, VideoWriter, ensure_video, written_size


def picture(i: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A grey ramp with a red square that moves to the right."""
    frame = np.linspace(40, 200, size[1], dtype=np.uint8)[None, :, None]
    frame = np.repeat(np.repeat(frame, size[0], axis=0), 3, axis=2).copy()
    frame[10:30, 4 * i : 4 * i + 20] = (220, 30, 30)
    return frame


def write(out: Path, n: int = 5, size: tuple[int, int] = (48, 64)) -> Path:
    writer = VideoWriter(out, 10, out.parent)
    for i in range(n):
        writer.add(picture(i, size))
    return writer.close()


def test_mp4_is_h264_yuv420p_with_all_frames(tmp_path: Path):
    path = write(tmp_path / "a.mp4")
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    assert meta["codec"].startswith("h264")
    assert "yuv420p" in meta["pix_fmt"]
    assert meta["size"] == (64, 48)
    assert meta["fps"] == 10
    images = [np.frombuffer(f, np.uint8).reshape(48, 64, 3) for f in reader]
    assert len(images) == 5
    error = np.abs(images[3].astype(int) - picture(3).astype(int)).mean()
    assert error < 6  # chroma is stored at half resolution and the coding is lossy
    assert list(tmp_path.iterdir()) == [path]


def test_mp4_says_bt709_and_means_it(tmp_path: Path):
    """A player that assumes BT.709, as for all of HD, shows the colours that were rendered."""
    colours = [(200, 40, 30), (30, 160, 40), (40, 60, 200), (128, 128, 128)]
    frame = np.repeat(np.array(colours, np.uint8)[None], 16, axis=1).reshape(1, 64, 3)
    writer = VideoWriter(tmp_path / "a.mp4", 10, tmp_path)
    writer.add(np.repeat(frame, 48, axis=0))
    path = writer.close()
    options = ["-vf", "scale=in_color_matrix=bt709:in_range=tv"]
    reader = imageio_ffmpeg.read_frames(str(path), output_params=options)
    assert "bt709" in next(reader)["pix_fmt"]
    pixels = np.frombuffer(next(reader), np.uint8).reshape(48, 64, 3)
    for i, colour in enumerate(colours):
        assert np.abs(pixels[24, 16 * i + 8].astype(int) - colour).max() <= 3
    reader.close()


def test_mp4_plays_before_all_of_it_is_there(tmp_path: Path):
    path = write(tmp_path / "a.mp4")
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")  # the index, then the pictures


def test_odd_sizes_lose_one_row_or_column(tmp_path: Path):
    path = write(tmp_path / "a.mp4", size=(47, 65))
    assert next(imageio_ffmpeg.read_frames(str(path)))["size"] == (64, 46)


def test_gif_keeps_frames_rate_and_colours(tmp_path: Path):
    path = write(tmp_path / "a.gif")
    with Image.open(path) as gif:
        assert getattr(gif, "n_frames", 1) == 5
        assert gif.info["duration"] == 100
        assert gif.info["loop"] == 0
        gif.seek(1)
        frame = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(frame - picture(1)).mean() < 1  # about 160 colours, of which one is red


@pytest.mark.parametrize(("fps", "n"), [(30, 30), (24, 12), (50, 7)])
def test_the_frames_of_a_gif_add_up_to_the_length_of_the_video(fps: int, n: int, tmp_path: Path):
    writer = VideoWriter(tmp_path / "a.gif", fps, tmp_path)
    for i in range(n):
        writer.add(picture(i % 8))
    path = writer.close()
    length = 0
    with Image.open(path) as gif:
        for i in range(n):
            gif.seek(i)
            assert gif.info["duration"] >= 20  # browsers show faster frames for 100 ms
            length += gif.info["duration"]
    assert abs(length - 1000 * n / fps) < 10


def test_a_gif_keeps_frames_that_repeat_and_odd_sizes(tmp_path: Path):
    writer = VideoWriter(tmp_path / "a.gif", 25, tmp_path)
    for _ in range(4):
        writer.add(picture(0, (47, 65)))
    path = writer.close()
    with Image.open(path) as gif:
        assert getattr(gif, "n_frames", 1) == 4
        assert gif.size == (65, 47)
        assert gif.info["duration"] == 40
        for i in range(4):
            gif.seek(i)
            frame = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(frame - picture(0, (47, 65))).max() < 16
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_one_frame_is_a_video(name: str, tmp_path: Path):
    path = write(tmp_path / name, n=1)
    assert imageio_ffmpeg.count_frames_and_secs(str(path))[0] == 1


def test_ffmpeg_that_ends_early_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = replace(ENCODINGS[".mp4"], codec="no_such_codec")
    monkeypatch.setitem(ENCODINGS, ".mp4", broken)
    writer = VideoWriter(tmp_path / "a.mp4", 10, tmp_path)
    with pytest.raises(NerfError, match=r"cannot write .*a\.mp4: ffmpeg failed") as told:
        for i in range(1000):
            writer.add(picture(i % 8, (256, 256)))
    assert "\n" not in str(told.value)
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_the_size_that_is_written_is_known_before() -> None:
    assert written_size(Path("a.mp4"), 135, 241) == (134, 240)
    for out in ("a.webm", "a.gif", "a.png", "frames"):
        assert written_size(Path(out), 135, 241) == (135, 241)


def test_abort_leaves_nothing(tmp_path: Path):
    for name in ("a.mp4", "a.gif"):
        writer = VideoWriter(tmp_path / name, 10, tmp_path)
        writer.add(picture(0))
        writer.abort()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("name", "size", "fps", "message"),
    [
        ("a.mp4", (1, 9), 30, r"1x9 are too small for \.mp4"),
        ("a.gif", (9, 9), 60, "--fps 60: browsers slow a GIF .* Use --fps 50 or less"),
    ],
)
def test_what_makes_no_video_is_told(
    name: str, size: tuple[int, int], fps: int, message: str
) -> None:
    with pytest.raises(NerfError, match=message):
        ensure_video(Path(name), np.array([size, size]), fps)


def test_ffmpeg_says_nothing_past_us(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 10, tmp_path)
    writer.add(picture(0, (1, 1)))  # nothing is left of it
    with pytest.raises(NerfError, match="0 of 1 frames arrived"):
        writer.close()
    writer.abort()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("loss", ["half", "all"])
def test_a_video_that_did_not_arrive_whole_is_told(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ffmpeg, out of room on the disk, ends without a word to us."""
    writer = VideoWriter(tmp_path / "a.mp4", 10, tmp_path)
    for i in range(5):
        writer.add(picture(i))
    whole = writer._ensure_whole

    def cut() -> None:
        aside = writer.aside
        aside.write_bytes(aside.read_bytes()[: aside.stat().st_size // 2 if loss == "half" else 0])
        whole()

    monkeypatch.setattr(writer, "_ensure_whole", cut)
    with pytest.raises(NerfError, match="of 5 frames arrived"):
        writer.close()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "12:30.gif"):
        write(Path(name), 2)
    assert sorted(os.listdir()) == ["12:30.gif", "12:30.mp4"]

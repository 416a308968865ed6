"""Frames from videos: as many as asked for, each another picture, upright and in usual colours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from nerfcli.prepare import frames
from nerfcli.prepare.frames import measure_sharpness, take_frames


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """An mp4 of ten frames a second."""
    height, width = frames[0].shape[:2]
    sink = imageio_ffmpeg.write_frames(str(path), (width, height), fps=10, macro_block_size=2)
    sink.send(None)
    for frame in frames:
        sink.send(np.ascontiguousarray(frame))
    sink.close()


# imageio-ffmpeg leaves its pipes to the garbage collector, which pytest hears of
LEFT_PIPES = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


pytestmark = LEFT_PIPES
ENDLESS = ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-f", "webm"]


def ffmpeg(*words: object) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def source(seconds: float) -> list[str]:
    """A moving test picture, 30 frames a second."""
    return ["-f", "lavfi", "-i", f"testsrc=size=64x48:rate=30:duration={seconds}"]


def taken(video: Path, n: int) -> tuple[list[np.ndarray], list[str]]:
    notes: list[str] = []
    out = video.parent / "frames"
    names = take_frames(video, out, n, note=notes.append)
    assert sorted(path.name for path in out.iterdir()) == names
    return [np.array(Image.open(out / name)) for name in names], notes


def test_the_sharpest_frame_of_each_window(tmp_path: Path) -> None:
    """Every fourth frame is sharp, at changing places within the windows of six."""
    rng = np.random.default_rng(1)
    best, pictures = {2, 9, 12, 23}, []
    for i in range(24):
        sharp = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        soft = np.array(Image.fromarray(sharp).resize((8, 6)).resize((64, 48)))
        pictures.append(sharp if i in best else soft)
    assert measure_sharpness(sharp) > 2 * measure_sharpness(soft)
    write_video(tmp_path / "v.mp4", pictures)
    names = take_frames(tmp_path / "v.mp4", tmp_path / "frames", 4)
    assert {int(name[6:12]) for name in names} == best


def test_a_video_without_a_duration_gives_what_is_asked_for(tmp_path: Path) -> None:
    """Browsers and pipes leave the header's duration empty."""
    (tmp_path / "a.webm").write_bytes(ffmpeg(*source(3), *ENDLESS, "-"))
    assert frames.count_frames(tmp_path / "a.webm") == 0
    assert len(taken(tmp_path / "a.webm", 20)[0]) == 20


def test_a_variable_frame_rate_gives_what_is_asked_for_and_nothing_twice(tmp_path: Path) -> None:
    rate = ["-vf", "select='if(lt(t,1),1,not(mod(n,10)))'", "-fps_mode", "vfr"]
    ffmpeg(*source(4), *rate, tmp_path / "a.mp4")
    pictures, notes = taken(tmp_path / "a.mp4", 20)
    assert (len(pictures), notes) == (20, [])
    assert all((a != b).any() for a, b in zip(pictures, pictures[1:], strict=False))


def test_a_picture_that_is_shown_for_long_is_one(tmp_path: Path) -> None:
    words = ["-vf", "fps=5,fps=30", "-c:v", "ffv1", tmp_path / "a.mkv"]
    ffmpeg(*source(1), *words)
    pictures, notes = taken(tmp_path / "a.mkv", 10)
    assert len(pictures) == 5
    assert len(notes) == 1 and "no more than 5 different frames" in notes[0]


def test_hdr_is_tone_mapped_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saturated red of the colour space of HDR is pale where its numbers are taken for sRGB."""
    curve = "transfer=arib-std-b67:colorprim=bt2020:colormatrix=bt2020nc:log-level=none"
    red = ["-f", "lavfi", "-i", "color=c=0xb06050:size=64x48:rate=10:duration=1"]
    changing = "noise=alls=8:allf=t,scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le"
    words = ["-vf", changing, "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", curve]
    ffmpeg(*red, *words, tmp_path / "a.mp4")
    mapped, notes = taken(tmp_path / "a.mp4", 3)
    assert (len(mapped), notes) == (3, [])
    monkeypatch.setattr(frames, "_has_tone_map", lambda: False)
    (tmp_path / "again").mkdir()
    (tmp_path / "a.mp4").rename(tmp_path / "again" / "a.mp4")
    plain, notes = taken(tmp_path / "again" / "a.mp4", 3)
    assert len(notes) == 1 and "is HDR (arib-std-b67)" in notes[0]
    (red, green, _), (pale_red, pale_green, _) = (p[0].mean((0, 1)) for p in (mapped, plain))
    assert green / red < 0.7 * pale_green / pale_red


def test_a_turned_video_is_upright_and_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ffmpeg(*source(0.2), tmp_path / "lying.mp4")
    words = ["-display_rotation", "90", "-i", tmp_path / "lying.mp4", "-c", "copy"]
    ffmpeg(*words, tmp_path / "a.mp4")
    pictures, notes = taken(tmp_path / "a.mp4", 3)
    assert [picture.shape for picture in pictures] == [(64, 48, 3)] * 3
    assert notes == [] and capfd.readouterr().err == ""


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    """HDV stores 1440x1080 for 1920x1080; a turned one has its sides exchanged."""
    ffmpeg(*source(0.2), "-vf", "setsar=4/3", tmp_path / "a.mp4")
    assert taken(tmp_path / "a.mp4", 3)[0][0].shape == (48, 85, 3)
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    with frames._open_video(tmp_path / "b.mp4") as (header, reader):
        assert header["size"] == (48, 85) and len(next(reader)) == 48 * 85 * 3


def test_hdr_that_cannot_be_mapped_is_read_and_said(tmp_path: Path) -> None:
    """ffmpeg maps no HLG without a colour matrix."""
    words = ["-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le"]
    curve = ["-x265-params", "transfer=arib-std-b67:log-level=none"]
    ffmpeg(*source(0.2), *words, *curve, tmp_path / "a.mp4")
    pictures, notes = taken(tmp_path / "a.mp4", 3)
    assert len(pictures) == 3 and len(notes) == 1 and "is HDR (arib-std-b67)" in notes[0]


def test_a_time_of_day_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a colon ffmpeg expects a protocol."""
    ffmpeg(*source(0.2), tmp_path / "a.mp4")
    (tmp_path / "a.mp4").rename(tmp_path / "12:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert frames.count_frames(Path("12:30.mp4")) == 6
    assert len(take_frames(Path("12:30.mp4"), tmp_path / "frames", 3)) == 3


def test_the_count_of_frames_is_theirs(tmp_path: Path) -> None:
    """The header's duration has hundredths of a second: 40 frames at 30 a second take 1.33 s."""
    ffmpeg(*source(40 / 30), tmp_path / "a.mp4")
    assert frames.count_frames(tmp_path / "a.mp4") == 40


@pytest.mark.parametrize("lines", [720, 576])
def test_hd_without_a_colour_matrix_is_bt709(tmp_path: Path, lines: int) -> None:
    """As players take it; smaller video is BT.601."""
    pale = f"color=c=0xb06050:size={lines}x{lines}:rate=10:duration=0.3,format=rgb24"
    matrix = "bt709" if lines == 720 else "bt601"
    words = ["-vf", f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p"]
    words[1] += ",setparams=colorspace=unknown"
    ffmpeg("-f", "lavfi", "-i", pale, *words, tmp_path / "a.mp4")
    with frames._open_video(tmp_path / "a.mp4") as (header, reader):
        assert "bt" not in header["pix_fmt"]
        found = frames._as_pixels(next(reader), header)[::90, ::90].reshape(-1, 3).astype(int)
    assert np.abs(found - [0xB0, 0x60, 0x50]).max() <= 3


@pytest.mark.parametrize(
    ("pixels", "is_untagged"),
    [
        *(("yuv420p(progressive)", True), ("yuvj420p(pc)", True), ("yuv420p", True)),
        *(("yuv420p(tv, unknown/bt709/bt709, top first)", True), ("rgb24(pc)", False)),
        *(("yuv420p(tv, bt709)", False), ("yuv420p10le(10 bpc, tv, smpte170m)", False)),
    ],
)
def test_the_colour_matrix_is_read_from_the_header(pixels: str, is_untagged: bool) -> None:
    header = {"pix_fmt": pixels, "source_size": (1920, 1080)}
    assert bool(frames._find_matrix(header)) == is_untagged

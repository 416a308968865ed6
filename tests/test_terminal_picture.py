"""Pictures in the terminal: each encoding is decoded again, and the terminal is found."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import SIZE, SMALL, Call, nerf_environment
from nerfcli.cli import main, preview
from nerfcli.cli import terminal_picture as module
from nerfcli.cli.terminal_picture import (
    CHUNK,
    LONGEST,
    as_blocks,
    as_iterm2,
    as_kitty,
    as_sixel,
    encode,
    find_protocol,
    is_sixel_answer,
)
from nerfcli.engine.preview import newest_picture, render_small
from nerfcli.engine.render import load_model
from nerfcli.engine.runs import Run

NOISE = np.random.default_rng(0).integers(0, 256, (46, 90, 3), dtype=np.uint8)
x, y = np.meshgrid(np.linspace(0, 1, 61), np.linspace(0, 1, 44))
SMOOTH = (255 * np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], -1)).astype(np.uint8)


def decode_blocks(text: str) -> np.ndarray:
    cell = r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀"
    assert text.endswith("\n") and all(li.endswith("\x1b[0m") for li in text.splitlines())
    rows = []
    for line in text.splitlines():
        cells = np.array(re.findall(cell, line), int).reshape(-1, 2, 3)
        rows += [cells[:, 0], cells[:, 1]]
    return np.stack(rows).astype(np.uint8)


def decode_kitty(text: str) -> np.ndarray:
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{k};{p}\x1b\\" for k, p in parts) == text
    heads = [dict(pair.split("=") for pair in keys.split(",")) for keys, _ in parts]
    assert [head["m"] for head in heads] == ["1"] * (len(heads) - 1) + ["0"]
    assert heads[0]["a"] == "T" and heads[0]["f"] == "100" and heads[0]["q"] == "2"
    assert all(len(part) == CHUNK for _, part in parts[:-1]) and len(parts[-1][1]) <= CHUNK
    return decode_png(base64.b64decode("".join(part for _, part in parts), validate=True))


def decode_iterm2(text: str) -> np.ndarray:
    found = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07", text)
    assert found is not None
    facts, content = dict(p.split("=") for p in found[1].split(";")), base64.b64decode(found[2])
    assert facts["inline"] == "1" and int(facts["size"]) == len(content)
    return decode_png(content)


def decode_png(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def decode_sixel(text: str) -> np.ndarray:
    """By the manual of the VT340: registers in percent, bands of six, `$` back, `-` on, `!` n."""
    found = re.fullmatch(r'\x1bP0;1;0q"1;1;(\d+);(\d+)(.*)\x1b\\', text)
    assert found is not None
    width, height = int(found[1]), int(found[2])
    image = np.full((height, width, 3), -1.0)
    registers: dict[int, np.ndarray] = {}
    color, column, top = 0, 0, 0
    token = r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|([$-])"
    at = 0
    for m in re.finditer(token, found[3]):
        assert m.start() == at
        at = m.end()
        if m[1]:
            color = int(m[1])
            if m[2]:
                registers[color] = np.array([int(m[2]), int(m[3]), int(m[4])]) * 2.55
        elif m[8]:
            column, top = 0, top + 6 * (m[8] == "-")
        else:
            n, bits = int(m[5] or 1), ord(m[6] or m[7]) - 63
            for row in range(6):
                if bits >> row & 1:
                    image[top + row, column : column + n] = registers[color]
            column += n
            assert column <= width
    assert at == len(found[3]) and image.min() >= 0  # each pixel is painted
    return image


@pytest.mark.parametrize("image", [NOISE, SMOOTH], ids=["noise", "smooth"])
def test_what_is_encoded_is_decoded_again(image: np.ndarray) -> None:
    assert np.array_equal(decode_blocks(as_blocks(image)), image)
    assert np.array_equal(decode_kitty(as_kitty(image, 30)), image)
    assert np.array_equal(decode_iterm2(as_iterm2(image, 30)), image)
    assert as_kitty(image, 30).startswith("\x1b_Ga=T,f=100,q=2,c=30,m=")
    reduced = np.asarray(Image.fromarray(image).quantize(module.COLORS).convert("RGB"), float)
    assert np.abs(decode_sixel(as_sixel(image)) - reduced).max() <= 1.5  # percents


def test_a_sixel_picture_has_the_colours_of_the_image() -> None:
    assert np.abs(decode_sixel(as_sixel(SMOOTH)) - SMOOTH).mean() < 6


def test_blocks_of_an_odd_height_lose_a_row_and_one_row_is_doubled() -> None:
    assert np.array_equal(decode_blocks(as_blocks(NOISE[:5])), NOISE[:4])
    assert np.array_equal(decode_blocks(as_blocks(NOISE[:1])), NOISE[[0, 0]])


def test_a_picture_fits_the_terminal() -> None:
    wide, tall = np.zeros((100, 400, 3), np.uint8), np.zeros((400, 100, 3), np.uint8)
    assert decode_blocks(encode(wide, "blocks", 80, 30)).shape == (20, 80, 3)
    assert decode_blocks(encode(tall, "blocks", 80, 30)).shape == (60, 15, 3)
    assert decode_sixel(encode(wide, "sixel", 80, 30).rstrip("\n")).shape[1] == LONGEST
    text = encode(tall, "kitty", 80, 30)
    assert ",c=15," in text and decode_kitty(text.rstrip("\n")).shape == (LONGEST, 80, 3)
    assert ";width=80;" in encode(wide, "iterm2", 80, 30)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-256color"}, "sixel"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, "blocks"),
        ({"TERM": "linux"}, "blocks"),
        ({"TERM": "tmux-256color", "TMUX": "x", "KITTY_WINDOW_ID": "1"}, "sixel"),
        ({"TERM": "screen", "LC_TERMINAL": "iTerm2"}, "sixel"),
        ({"TERM": "dumb"}, None),
        ({}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
    ],
)
def test_the_terminal_is_known_by_its_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], protocol: str | None
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert find_protocol(environment, lambda: True) == protocol
    other = "blocks" if protocol == "sixel" else protocol
    assert find_protocol(environment, lambda: False) == other
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert find_protocol(environment, lambda: True) is None


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ("\x1b[?62;4;22c", True),
        ("\x1b[?63;1;2;4c", True),
        ("\x1b[?62;22c", False),
        ("\x1b[?4;6c", False),  # a VT132: the first number is no attribute
        ("\x1b[?1;24c", False),
        ("", False),
    ],
)
def test_sixel_is_an_attribute_of_the_terminal(answer: str, known: bool) -> None:
    assert is_sixel_answer(answer) is known


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_what_is_typed_meanwhile_is_no_answer() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\x1b[?62;4c")
    assert module._read_answer(reader) == "\x1b[?62;4c"
    os.write(writer, b"ls\x1b[?62;4c")
    assert is_sixel_answer(module._read_answer(reader))
    os.close(writer)
    assert module._read_answer(reader) == ""
    os.close(reader)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize(("answer", "known"), [(b"\x1b[?62;4c", True), (b"\x1b[?62;22c", False)])
def test_a_terminal_is_asked_and_left_as_it_was(answer: bytes, known: bool) -> None:
    import fcntl
    import pty
    import termios

    code = (
        "from nerfcli.cli import terminal_picture as m; import termios\n"
        "m.ANSWERS_WITHIN = 600.0; before = termios.tcgetattr(0)\n"
        "print(m.knows_sixel(), termios.tcgetattr(0) == before)"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        env=nerf_environment(),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    seen = b""
    while not seen.endswith(b"\x1b[c"):
        seen += os.read(ours, 64)
    os.write(ours, answer)
    while not seen.endswith(b"\n"):
        seen += os.read(ours, 64)
    assert child.wait() == 0
    assert seen.decode().partition("\x1b[c")[2].split() == [str(known), "True"]
    os.close(ours)
    os.close(theirs)


@pytest.fixture(scope="module")
def trained(ball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "r"
    words = ["train", str(ball), "--out", str(folder), "--steps", "2", "--quiet", *SMALL]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--backend", "torch", "--device", "cpu"])
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in the current folder, and a terminal that shows blocks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preview, "find_protocol", lambda: "blocks")
    return Path(shutil.copytree(trained, tmp_path / "r"))


def test_a_preview_is_the_first_frame_and_writes_nothing(run: Path, call: Call) -> None:
    before = sorted(run.rglob("*"))
    done = call("render", "r", "--path", "test", "--preview", "--quiet")
    assert done.code == 0 and sorted(run.rglob("*")) == before
    shown = decode_blocks(done.out)
    assert call("render", "r", "--path", "test", "--frame", 0, "--out", "f.png").code == 0
    small = Image.open("f.png").resize(shown.shape[1::-1], Image.Resampling.LANCZOS)
    assert np.abs(shown.astype(int) - np.asarray(small)).max() <= 1
    last = call("render", "r", "--path", "test", "--frame", 1, "--preview", "--quiet").out
    assert not np.array_equal(decode_blocks(last), shown)


def test_a_preview_that_cannot_be_shown_is_refused(
    run: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, message in (
        (["--out", "f.png"], "leave --out out"),
        (["--json"], "leave --json out"),
        (["--save", "depth"], "leave --save depth out"),
    ):
        done = call("render", "r", "--preview", *words)
        assert done.code == 2 and message in done.err
    monkeypatch.setattr(preview, "find_protocol", lambda: None)
    done = call("render", "r", "--preview")
    assert done.code == 2 and "needs stdout to be a terminal" in done.err


def test_info_shows_a_run_and_never_to_a_program(
    run: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("info", "r")
    text, _, picture = done.out.partition("\x1b")
    assert text.startswith("r: scene ball") and decode_blocks("\x1b" + picture).shape[2] == 3
    assert "\x1b" not in call("info", "r", "--json").out + call("info", "r", "--quiet").out
    monkeypatch.setattr(preview, "GLANCE_SECONDS", -1.0)
    assert "\x1b" not in call("info", "r").out  # no time for it
    red = np.full((8, 12, 3), [200, 0, 0], np.uint8)
    Image.fromarray(red).save(run / "renders" / "orbit_0000.png")
    _, _, picture = call("info", "r").out.partition("\x1b")
    assert (decode_blocks("\x1b" + picture) == [200, 0, 0]).all()
    (run / "renders" / "orbit_0000.png").write_bytes(b"broken")
    assert call("info", "r").code == 0


def test_a_picture_older_than_the_checkpoint_is_not_of_it(run: Path) -> None:
    place = run / "renders" / "orbit_0000.png"
    Image.fromarray(NOISE).save(place)
    opened: Any = Run.open(run)
    assert np.array_equal(newest_picture(opened), NOISE)  # pyright: ignore[reportArgumentType]
    os.utime(place, (1.0, 1.0))
    assert newest_picture(opened) is None
    model = load_model(opened)
    image = render_small(model, model.scene.cameras, 8)
    assert image is not None and image.shape == (8, 8, 3) and SIZE > 8

"""A picture in the terminal: by the graphics of kitty, iTerm2 or sixel, else by half blocks."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

KITTY_TERMS = ("kitty", "ghostty")  # in TERM or TERM_PROGRAM
ITERM_PROGRAMS = ("iTerm.app", "WezTerm", "mintty")
WITHOUT_SIXEL = ("Apple_Terminal", "vscode")  # not asked: they may print what they do not know
PROTOCOLS = ("kitty", "iterm2", "sixel", "blocks")
CHUNK = 4096  # characters of a part, by kitty's protocol
COLORS = 255  # of a sixel picture; xterm has 256 registers
ANSWERS_WITHIN = 0.3  # seconds in which a terminal says what it can
LONGEST = 320  # pixels of the longer side of a picture
MOST_COLUMNS, ROWS_LEFT = 80, 8  # the text above a picture stays in view
SIXEL_ATTRIBUTE = "4"  # in the answer to "primary device attributes"


def find_protocol(
    environment: Mapping[str, str] | None = None, ask: Callable[[], bool] | None = None
) -> str | None:
    """Which of PROTOCOLS stdout can show; None where it is no terminal, or wants no colour.

    Args:
        ask: asks the terminal whether it knows sixel.
    """
    known = os.environ if environment is None else environment
    term, program = known.get("TERM", ""), known.get("TERM_PROGRAM", "")
    if not _is_terminal(sys.stdout) or term in ("", "dumb") or known.get("NO_COLOR"):
        return None
    inside = "TMUX" in known or term.startswith(("screen", "tmux"))  # takes no graphics but sixel
    if not inside:
        if "KITTY_WINDOW_ID" in known or any(k in term or k in program for k in KITTY_TERMS):
            return "kitty"
        if program in ITERM_PROGRAMS or known.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
    if term == "linux" or program in WITHOUT_SIXEL:
        return "blocks"
    return "sixel" if (knows_sixel if ask is None else ask)() else "blocks"


def show_picture(image: np.ndarray, protocol: str) -> None:
    """Print a picture [height, width, 3] uint8 on stdout, as large as there is room.

    A reader that has gone is no error.
    """
    size = shutil.get_terminal_size()
    columns, rows = min(size.columns, MOST_COLUMNS), max(size.lines - ROWS_LEFT, 8)
    with suppress(OSError):
        sys.stdout.write(encode(image, protocol, columns, rows))
        sys.stdout.flush()


def encode(image: np.ndarray, protocol: str, columns: int, rows: int) -> str:
    """Encode a picture by one of PROTOCOLS, at most so many cells large.

    A cell is taken to be twice as high as wide, as it nearly is.
    """
    height, width = image.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    if protocol == "blocks":
        return as_blocks(_resized(image, round(scale * width), round(scale * height)))
    shrunk = min(1.0, LONGEST / max(width, height))
    image = _resized(image, round(shrunk * width), round(shrunk * height))
    wide = max(1, int(scale * width))
    if protocol == "kitty":
        return as_kitty(image, wide) + "\n"
    return (as_iterm2(image, wide) if protocol == "iterm2" else as_sixel(image)) + "\n"


def as_blocks(image: np.ndarray) -> str:
    """Upper half blocks: a cell shows two pixels, one above the other, in 24 bits."""
    if len(image) % 2:
        image = image[:-1] if len(image) > 1 else image.repeat(2, axis=0)
    lines = []
    for above, below in zip(image[::2].tolist(), image[1::2].tolist(), strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m\u2580"
            for a, b in zip(above, below, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)


def as_kitty(image: np.ndarray, columns: int) -> str:
    """The graphics protocol of kitty: a PNG in parts of base64; no answer is wanted."""
    text = base64.b64encode(_png(image)).decode()
    parts = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    heads = [f"a=T,f=100,q=2,c={columns},"] + [""] * (len(parts) - 1)
    more = [1] * (len(parts) - 1) + [0]
    marked = zip(heads, more, parts, strict=True)
    return "".join(f"\x1b_G{head}m={m};{part}\x1b\\" for head, m, part in marked)


def as_iterm2(image: np.ndarray, columns: int) -> str:
    """The inline images of iTerm2: a PNG in base64."""
    png = _png(image)
    facts = f"inline=1;size={len(png)};width={columns};preserveAspectRatio=1"
    return f"\x1b]1337;File={facts}:{base64.b64encode(png).decode()}\x07"


def as_sixel(image: np.ndarray) -> str:
    """Sixel graphics of the VT340: bands of six rows, one run of bits for each colour in it."""
    import numpy as np
    from PIL import Image

    reduced = Image.fromarray(image).quantize(COLORS)
    index = np.asarray(reduced)
    percents = np.round(np.array(reduced.getpalette()).reshape(-1, 3) / 2.55).astype(int)
    height, width = index.shape
    out = [f'\x1bP0;1;0q"1;1;{width};{height}']
    for color in np.unique(index).tolist():
        out.append("#{};2;{};{};{}".format(color, *percents[color].tolist()))
    for top in range(0, height, 6):
        band = index[top : top + 6]
        weights = 1 << np.arange(len(band))
        for color in np.unique(band).tolist():
            bits = weights @ (band == color)
            starts = np.flatnonzero(np.diff(bits, prepend=-1))
            lengths = np.diff(starts, append=width)
            runs = zip(bits[starts].tolist(), lengths.tolist(), strict=True)
            out.append(f"#{color}" + "".join(_run(chr(63 + b), n) for b, n in runs) + "$")
        out.append("-")
    return "".join(out) + "\x1b\\"


def _run(character: str, n: int) -> str:
    return f"!{n}{character}" if n > 3 else character * n


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    import numpy as np
    from PIL import Image

    size = max(width, 1), max(height, 1)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def knows_sixel() -> bool:
    """Ask the terminal for its attributes; False where it does not answer soon.

    Only a terminal that this process has to itself is asked: stdin would swallow what is typed.
    """
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return False
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        return False
    source = sys.stdin.fileno()
    try:
        if os.tcgetpgrp(source) != os.getpgrp():  # in the background, a change would stop us
            return False
        before = termios.tcgetattr(source)
    except (OSError, termios.error):
        return False
    try:
        tty.setcbreak(source, termios.TCSANOW)
        os.write(sys.stdout.fileno(), b"\x1b[c")
        return is_sixel_answer(_read_answer(source))
    except (OSError, termios.error):
        return False
    finally:
        with suppress(OSError, termios.error):
            termios.tcsetattr(source, termios.TCSANOW, before)


def is_sixel_answer(answer: str) -> bool:
    """Whether the answer to "primary device attributes" has sixel among them."""
    found = re.search(r"\x1b\[\?([\d;]+)c", answer)
    return found is not None and SIXEL_ATTRIBUTE in found[1].split(";")[1:]


def _read_answer(source: int) -> str:
    answer, end = b"", time.monotonic() + ANSWERS_WITHIN
    while not answer.endswith(b"c") and (left := end - time.monotonic()) > 0:
        if select.select([source], [], [], left)[0]:
            part = os.read(source, 64)
            if not part:
                break
            answer += part
    return answer.decode("ascii", "replace")


def _is_terminal(stream: object) -> bool:
    try:
        return bool(stream.isatty())  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, ValueError):  # none, or closed
        return False

"""One Ctrl-C or SIGTERM in the middle: one line, its exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trimesh

from conftest import SMALL, nerf_environment
from nerfcli.cli import main
from nerfcli.cli.output import stop_code
from nerfcli.core import signals
from nerfcli.core.errors import NerfError
from nerfcli.core.files import filling
from nerfcli.core.signals import Interrupted, StopSignal, interruptible
from nerfcli.engine import evaluate, render_path
from nerfcli.extraction import multiview
from nerfcli.matching import matching
from nerfcli.methods import hashgrid_trainer
from nerfcli.scenes import image_cache
from nerfcli.scenes.writers import convert

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


@pytest.fixture(scope="module", autouse=True)
def heard() -> Iterator[None]:
    """A shell's background job, which a test run may be, ignores Ctrl-C, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def run(ball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps; its exports and renders are empty."""
    folder = tmp_path_factory.mktemp("signals") / "run"
    with pytest.raises(SystemExit, match="0"):
        main(["train", str(ball), "--out", str(folder), "--steps", "2", "--quiet", *SMALL])
    (folder / "exports").mkdir()
    return folder


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.skipif(signals.HANGUP is None, reason="there is no SIGHUP here")
def test_a_lost_terminal_stops_politely_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        for block, received in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)):
            signal.signal(signal.SIGHUP, block)
            with StopSignal() as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.01)
                assert stop.received == received
            assert signal.getsignal(signal.SIGHUP) == block
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop_code(signal.SIGHUP) == 75


@pytest.mark.parametrize("number", list(CODES))
def test_a_signal_raises_once_and_the_handlers_come_back(number: int) -> None:
    before, tidied = signal.getsignal(number), False
    with pytest.raises(Interrupted) as caught, interruptible():
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), number)  # while it tidies up
            time.sleep(0.01)
            tidied = True
    assert tidied
    assert caught.value.number == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", list(CODES))
def test_a_signal_within_an_import_waits_for_its_end(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module's own lazy imports would swallow what is raised within."""
    (tmp_path / "deep_inside.py").write_text(
        f"import os\nos.kill(os.getpid(), {int(number)})\n"
        "for i in range(1000): pass\nwhole = True\n"
    )
    (tmp_path / "lazy_outside.py").write_text(
        "try:\n    import deep_inside\nexcept BaseException:\n    raise RecursionError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(Interrupted) as caught, interruptible():
            import lazy_outside  # pyright: ignore[reportMissingImports]

            pytest.fail(f"{lazy_outside} has swallowed the signal")
        assert caught.value.number == number
        assert sys.modules["deep_inside"].whole
        assert sys.getprofile() is None
    finally:
        for name in ("deep_inside", "lazy_outside"):
            sys.modules.pop(name, None)


def test_the_outermost_import_counts() -> None:
    def frame(filename: str, back: Any = None) -> Any:
        return SimpleNamespace(f_code=SimpleNamespace(co_filename=filename), f_back=back)

    command = frame("check.py")
    outer = frame(signals.IMPORTS[0], command)
    inner = frame(signals.IMPORTS[1], frame("numpy/__init__.py", outer))
    assert signals._outermost_import(frame("numpy/fft.py", inner)) is outer
    assert signals._outermost_import(command) is None
    with pytest.raises(Interrupted):
        signals.raise_outside_imports(signal.SIGINT, command)


@pytest.mark.parametrize("number", list(CODES))
def test_what_fails_after_a_signal_is_told_as_the_signal(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallow(*args: Any, **kinds: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except Interrupted:
            raise RecursionError from None

    monkeypatch.setattr("nerfcli.cli.app", swallow)
    with pytest.raises(SystemExit) as caught:
        main(["runs"])
    assert caught.value.code == CODES[signal.Signals(number)]
    assert capsys.readouterr().err.startswith("nerf: stopped by ")


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def signalling(call: int, number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which sends this process a signal at its n-th call."""
    calls = count(1)

    def called(*args: Any, **kinds: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args, **kinds)

    return called


TRAIN = ["train", "BALL", "--steps", "3", *SMALL]
STOPPED: dict[str, tuple[list[str], Any, str, int]] = {
    "export": (["export", "RUN", "--to", "views", "--views", "5"], multiview, "_rgba", 2),
    "convert": (
        *(["convert", "BALL", "--to", "transforms", "--out", "OUT/a"], convert),
        *("write_image", 2),
    ),
    "check": (["check", "BALL", "--picture", "OUT.png"], matching, "read_image", 2),
    "train while images are read": ([*TRAIN, "--out", "OUT"], image_cache, "_read", 2),
    "train before the first step": (TRAIN, hashgrid_trainer, "visual_hull", 1),
}


@pytest.mark.parametrize("number", list(CODES))
@pytest.mark.parametrize("name", list(STOPPED))
def test_a_stopped_command_leaves_nothing(
    name: str,
    number: int,
    run: Path,
    ball: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, module, function, call = STOPPED[name]
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(run), "BALL": str(ball), "OUT": str(tmp_path / "out")}
    for word, place in places.items():
        words = [text.replace(word, place) for text in words]
    monkeypatch.setattr(module, function, signalling(call, number, getattr(module, function)))
    before = everything(run) | everything(tmp_path)
    capsys.readouterr()  # of the fixture
    with pytest.raises(SystemExit) as end:
        main([*words, "--json", "--quiet"])
    out, err = capsys.readouterr()
    by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert end.value.code == CODES[signal.Signals(number)]
    assert err == f"nerf: stopped by {by}; nothing half-written is left.\n"
    assert err == f"nerf: {json.loads(out)['error']}\n"
    assert everything(run) | everything(tmp_path) == before


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
def test_a_stopped_render_leaves_what_was_there_and_goes_on(
    name: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, rendered = tmp_path / name, render_path.render_image
    words = ["render", str(run), "--out", str(out), "--frames", "4", "--overwrite", "--json"]
    with pytest.raises(SystemExit, match="0"):
        main(words)
    capsys.readouterr()
    before = {path: path.stat().st_ino for path in everything(tmp_path)}
    contents = {path: path.read_bytes() for path in before if path.is_file()}
    monkeypatch.setattr(render_path, "render_image", signalling(2, signal.SIGTERM, rendered))
    with pytest.raises(SystemExit) as end:
        main(words)
    result = json.loads(capsys.readouterr().out)
    assert end.value.code == 75
    assert (result["files"], result["stopped"], result["n_frames"]) == ([], signal.SIGTERM, 2)
    folder = Path(result["frames_in"])
    kept = {path for path in everything(tmp_path) if folder in (path, path.parent)}
    assert {path.name for path in kept if path.suffix} == {
        *("frames.json", "rgb_0000.png", "rgb_0001.png")
    }
    left = everything(tmp_path) - kept
    assert {path: path.stat().st_ino for path in left} == before

    calls: list[int] = []

    def count_calls(model: Any, cameras: Any, index: int) -> Any:
        calls.append(index)
        return rendered(model, cameras, index)

    torn = (folder / "rgb_0000.png").read_bytes()[:-60]
    (folder / "rgb_0000.png").write_bytes(torn)
    (folder / "part-rgb_0002.png").write_bytes(b"what a kill left")
    monkeypatch.setattr(render_path, "render_image", count_calls)
    with pytest.raises(SystemExit, match="0"):
        main(words)
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (calls, result["n_kept"], result["n_frames"]) == ([0, 2, 3], 1, 4)
    assert "2 frames finished before; going on with 2 frames of 16x16" in captured.err
    assert "1 kept frame broken: rendered again" in captured.err
    assert everything(tmp_path) == set(before)
    assert {path: path.read_bytes() for path in contents} == contents  # the same, to the bit


def test_frames_of_another_checkpoint_are_not_taken_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, rendered = Path(shutil.copytree(run, tmp_path / "run")), render_path.render_image
    words = ["render", str(run), "--frames", "3", "--json"]

    def stopped_at(call: int, *more: str) -> dict[str, Any]:
        monkeypatch.setattr(render_path, "render_image", signalling(call, signal.SIGINT, rendered))
        with pytest.raises(SystemExit):
            main([*words, *more])
        return json.loads(capsys.readouterr().out)

    first = Path(stopped_at(2)["frames_in"])
    other = Path(stopped_at(1, "--scale", "0.5")["frames_in"])
    assert len(list(first.glob("*.png"))) == 2  # a preview does not replace them
    assert other != first
    moved = run.rename(tmp_path / "moved")  # a run folder moves, with what is under way
    words[1] = str(moved)
    assert stopped_at(9)["n_kept"] == 2
    stopped_at(1)  # orbit-2.mp4
    monkeypatch.setattr(render_path, "render_image", rendered)
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--resume", str(moved), "--steps", "3", "--quiet"])
    capsys.readouterr()
    assert stopped_at(9)["n_kept"] == 0
    assert {path.name for path in (moved / "renders").iterdir()} == {"orbit.mp4", "orbit-2.mp4"}


def test_a_stopped_eval_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = signalling(1, signal.SIGTERM, evaluate.render_image)
    monkeypatch.setattr(evaluate, "render_image", stopping)
    with pytest.raises(SystemExit, match="75"):
        main(["eval", str(run), "--no-images"])
    assert "stopped after 1 of 2 views; eval.json is not written" in capsys.readouterr().out
    assert not (run / "eval.json").exists()


def test_a_signal_behind_the_last_frame_stops_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = signalling(3, signal.SIGTERM, render_path.render_image)
    monkeypatch.setattr(render_path, "render_image", stopping)
    out = tmp_path / "a.gif"
    with pytest.raises(SystemExit, match="0"):
        main(["render", str(run), "--out", str(out), "--frames", "3", "--json"])
    assert json.loads(capsys.readouterr().out)["files"] == [str(out)]


def test_threads_of_a_library_do_not_crash_the_end(tmp_path: Path) -> None:
    """SciPy's search goes on in threads of its own, in memory that would be freed under it."""
    trimesh.creation.icosphere(subdivisions=5).export(tmp_path / "a.ply")
    trimesh.creation.box().export(tmp_path / "b.ply")
    code = (
        "import os, signal, threading\n"
        "from scipy.spatial import KDTree\n"
        "from nerfcli.__main__ import main\n"
        "query = KDTree.query\n"
        "def stopped(*args, **kinds):\n"
        "    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    while True: query(*args, **kinds)\n"  # until the signal ends it
        "KDTree.query = stopped\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", "a.ply", "b.ply", "--samples", "400000"],
        cwd=tmp_path,
        env=nerf_environment(),
        capture_output=True,
        text=True,
    )
    last = "nerf: stopped by SIGTERM; nothing half-written is left.\n"
    assert (done.returncode, done.stderr[-len(last) :]) == (75, last)


def test_pycolmap_leaves_sigterm_alone() -> None:
    pytest.importorskip("pycolmap")
    code = (
        "import os, signal; from nerfcli.core.signals import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    from nerfcli.prepare.sfm import load_pycolmap; load_pycolmap()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(stop.received == signal.SIGTERM)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=nerf_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'nerfcli.cli.output': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = nerf_environment()
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "nerfcli", "info"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_folder_is_filled_at_once_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), filling(folder) as aside:
        (aside / "half").write_text("")
        raise ZeroDivisionError
    assert everything(tmp_path) == set()
    folder.mkdir()
    (folder / "other").write_text("theirs")
    (folder / "a").write_text("old")
    with filling(folder) as aside:
        (aside / "in").mkdir()
        (aside / "in" / "b").write_text("b")
        (aside / "a").write_text("new")
    texts = {name: (folder / name).read_text() for name in ("other", "a", "in/b")}
    assert texts == {"other": "theirs", "a": "new", "in/b": "b"}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    with pytest.raises(NerfError, match="cannot write"), filling(Path("/proc/none")):
        pass

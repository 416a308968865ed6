"""Files that others may read, and what is said of those that they may not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from conftest import SMALL
from nerfcli.cli import main
from nerfcli.core.files import ensure_writable, filling, replacing, replacing_folder
from nerfcli.shapes.mesh_files import save_shape
from nerfcli.shapes.remesh import icosphere

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX ones")

NOBODY = 65534
GRID = ("--to", "voxels", "--resolution", "8")
EVERYTHING = (
    ("render", "run", "--out", "out/a.gif", "--frames", "2"),
    ("render", "run", "--out", "out/a.mp4", "--frames", "2"),
    ("render", "run", "--out", "out/frames", "--frames", "2", "--save", "rgb,depth"),
    ("render", "run", "--frames", "2"),
    ("eval", "run"),
    ("eval", "run", "--out", "out/scores"),
    ("export", "run", "--to", "cameras"),
    ("export", "run", "--to", "mpi", "--planes", "3", "--out", "out/deep/mpi"),
    ("export", "run", "--to", "views", "--views", "2", "--out", "out/views"),
    ("export", "ball.ply", "--to", "points", "--points", "9", "--out", "out/points.ply"),
    *(("export", "ball.ply", *GRID, "--out", f"out/v{end}") for end in (".npz", ".binvox")),
    ("export", "ball.ply", "--to", "sdf", "--resolution", "8", "--out", "out/sdf.npz"),
    *(("export", "ball.ply", "--out", f"out/m{end}") for end in (".ply", ".obj", ".glb", ".stl")),
    ("convert", "ball", "--to", "colmap", "--out", "out/colmap"),
    ("check", "ball", "--picture", "out/check.png"),
)
Command = Callable[..., tuple[int, str]]


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before, threads = os.getcwd(), torch.get_num_threads()
    torch.set_num_threads(1)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


def ended(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(scope="module")
def made(ball: Path) -> Iterator[Path]:
    """A folder that others can reach: a scene, a run, and all that is made of them, umask 027."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    shutil.copytree(ball, folder / "ball")
    save_shape(icosphere(1), folder / "ball.ply")
    before = os.umask(0o027)
    try:
        with working_in(folder):
            train = ("train", "ball", "--out", "run", "--steps", "2", "--quiet", *SMALL)
            assert ended(*train) == 0
            codes = {" ".join(words): ended(*words, "--quiet") for words in EVERYTHING}
    finally:
        os.umask(before)
    assert {words for words, code in codes.items() if code not in (0, 3)} == set()
    yield folder
    shutil.rmtree(folder)


def test_every_file_has_the_mode_of_the_umask(made: Path) -> None:
    written = [path for name in ("run", "out") for path in (made / name, *(made / name).rglob("*"))]
    assert len(written) > 50
    files = {str(p): oct(p.stat().st_mode & 0o777) for p in written if p.is_file()}
    folders = {str(p): oct(p.stat().st_mode & 0o777) for p in written if p.is_dir()}
    assert {name: mode for name, mode in files.items() if mode != "0o640"} == {}
    assert {name: mode for name, mode in folders.items() if mode != "0o750"} == {}


def test_a_private_umask_stays_private(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        for private in (0o600, 0o700):
            with replacing(tmp_path / "file") as aside:
                aside.write_text("")
                aside.chmod(private)
            assert (tmp_path / "file").stat().st_mode & 0o777 == private
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def place(made: Path) -> Iterator[Path]:
    """A copy that its owner can read and change, and others can read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("ball", "run"):
        shutil.copytree(made / name, folder / name)
    shutil.copy(made / "ball.ply", folder / "ball.ply")
    (folder / "mine").mkdir(mode=0o777)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "mine").chmod(0o777)
    with working_in(folder):
        yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def others(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command as a user who owns nothing here; give its code and what it says."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            code = ended(*words)
        finally:
            if root:
                os.seteuid(0)
        out, err = capsys.readouterr()
        return code, out + err

    return run


READS = {
    "run": (("render", "run"), ("eval", "run"), ("export", "run"), ("info", "run")),
    "run/config.toml": (("render", "run"), ("info", "run"), ("train", "--resume", "run")),
    "run/scene.json": (("render", "run"), ("eval", "run"), ("info", "run")),
    "run/state.json": (("render", "run"), ("info", "run"), ("train", "--resume", "run")),
    "run/model-2.safetensors": (
        *(("render", "run", "--out", "mine/a.gif"), ("eval", "run", "--out", "mine/s")),
        *(("export", "run", "--out", "mine/m.ply"), ("info", "run")),
    ),
    "ball": (("train", "ball", "--out", "mine/r"), ("check", "ball")),
    "ball/transforms_train.json": (
        *(("train", "ball", "--out", "mine/r"), ("check", "ball")),
        ("convert", "ball", "--to", "colmap", "--out", "mine/c"),
    ),
    "ball/train": (("train", "ball", "--out", "mine/r"), ("check", "ball")),
    "ball/train/r_3.png": (
        *(("train", "ball", "--out", "mine/r"), ("check", "ball")),
        ("convert", "ball", "--to", "colmap", "--out", "mine/c"),
    ),
    "ball/test/r_9.png": (
        *(
            ("train", "ball", "--out", "mine/r"),
            ("eval", "run", "--scene", "ball", "--out", "mine/s"),
        ),
    ),
    "ball.ply": (
        ("export", "ball.ply", "--to", "sdf", "--out", "mine/x.npz"),
        ("compare", "ball.ply", "ball.ply"),
        ("eval", "run", "--geometry", "ball.ply", "--out", "mine/s"),
    ),
}


@pytest.mark.parametrize("locked", list(READS))
def test_what_may_not_be_read_is_named(place: Path, others: Command, locked: str) -> None:
    (place / locked).chmod(0)
    for words in READS[locked]:
        code, said = others(*words, "--quiet")
        assert code == 2, (words, said)
        assert said.count("nerf: ") == 1 and said.count("\n") == 1, (words, said)
        assert "ermission denied" in said and locked in said, (words, said)
        assert "No such file" not in said and "Traceback" not in said
    assert list((place / "mine").iterdir()) == []


def test_runs_of_others_are_not_no_runs(place: Path, others: Command) -> None:
    (place / "runs").mkdir()
    shutil.copytree(place / "run", place / "runs" / "a")
    (place / "runs" / "a").chmod(0)
    code, said = others("render", "--quiet")
    assert (code, "runs/a" in said, "ermission denied" in said) == (2, True, True), said
    shutil.copytree(place / "run", place / "runs" / "b")
    code, said = others("runs")
    assert code == 0 and "runs/b" in said, said
    assert "runs/a cannot be opened: cannot read runs/a/config.toml: Permission denied." in said
    (place / "runs").chmod(0)
    for words in (("render",), ("runs",), ("train", "--resume", "ball")):
        code, said = others(*words)
        assert (code, "ermission denied" in said) == (2, True), said


def test_a_run_that_may_only_be_read_is_used_by_out(
    place: Path, others: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in [place / "run", *(place / "run").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    work = {
        "render": ("--out", "mine/a.gif", "--frames", "2"),
        "eval": ("--out", "mine/scores"),
        "export": ("--out", "mine/mpi", "--to", "mpi", "--planes", "3"),
    }
    for verb, words in work.items():
        code, said = others(verb, "run", *words, "--quiet")
        assert code == 0, said
    scores = json.loads((place / "mine" / "scores" / "eval.json").read_text())
    assert scores["n_views"] == 2
    assert len(list((place / "mine" / "scores" / "renders" / "test").glob("*.png"))) == 2
    code, said = others("eval", "run", "--out", "mine/scores", "--quiet")
    assert code == 2 and "--overwrite" in said
    assert others("eval", "run", "--out", "mine/scores", "--overwrite", "--quiet")[0] == 0

    from nerfcli.engine.runs import Run

    monkeypatch.setattr(Run, "load_model", lambda *a, **k: pytest.fail("it works before it asks"))
    for verb in work:
        code, said = others(verb, "run", "--quiet")
        assert code == 2 and "Name another place by --out" in said, said
        assert "cannot write run/" in said and "Permission denied" in said
    code, said = others("train", "--resume", "run", "--steps", "5", "--quiet")
    assert code == 2 and "cannot write run/" in said, said


@pytest.mark.parametrize(
    "words",
    [
        ("train", "ball", "--out", "shut/r"),
        ("render", "run", "--out", "shut/a.mp4"),
        ("eval", "run", "--out", "shut/s"),
        ("export", "run", "--out", "shut/m.ply"),
        ("export", "run", "--to", "mpi", "--out", "shut/m"),
        ("export", "ball.ply", "--to", "points", "--out", "shut/m.ply"),
        ("convert", "ball", "--to", "colmap", "--out", "shut/c"),
        ("convert", "ball", "--to", "colmap", "--out", "shut/free"),
        ("check", "ball", "--picture", "shut/c.png"),
        ("check", "ball", "--fix", "--out", "shut/c"),
        ("prepare", "ball/train", "--out", "shut/p"),
    ],
)
def test_an_unwritable_place_is_named_before_the_work(
    place: Path, others: Command, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nerfcli.engine.runs import Run
    from nerfcli.scenes import image_cache

    if words[0] == "prepare":
        pytest.importorskip("sqlite3")
    (place / "shut" / "free").mkdir(parents=True)
    (place / "shut" / "free").chmod(0o777)
    (place / "shut").chmod(0o555)
    for module, name in ((Run, "load_model"), (image_cache, "_read")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("it works before it asks"))
    code, said = others(*words, "--quiet")
    assert code == 2, said
    assert said.count("nerf: ") == 1 and said.count("\n") == 1, said
    assert "cannot write" in said and "Permission denied" in said and "shut" in said
    monkeypatch.undo()


def test_a_folder_of_ours_in_one_of_others_is_filled(place: Path) -> None:
    (place / "shut" / "free").mkdir(parents=True)
    (place / "shut" / "free").chmod(0o777)
    (place / "shut").chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        with filling(place / "shut" / "free") as aside:
            (aside / "a").write_text("a")
    finally:
        if root:
            os.seteuid(0)
    assert os.listdir(place / "shut" / "free") == ["a"]


def test_the_folders_above_go_with_what_failed(tmp_path: Path) -> None:
    for writer in (replacing, filling, replacing_folder):
        with pytest.raises(ZeroDivisionError), writer(tmp_path / "a" / "b" / "c") as aside:
            (aside if writer is replacing else aside / "file").write_text("half")
            raise ZeroDivisionError
        assert os.listdir(tmp_path) == []
    ensure_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []

"""Folders of the program itself, files that are whole or absent, numbers as text."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from nerfcli.core.errors import NerfError
from nerfcli.core.files import cache_folder, replacing_folder
from nerfcli.core.text import clock, duration, quantity


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of temporary files; none of the user's own."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


def test_what_can_be_computed_again_lies_in_the_users_cache(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(temporary / "home"))
    assert cache_folder() == temporary / "home" / ".cache" / "nerfcli"
    monkeypatch.setenv("XDG_CACHE_HOME", str(temporary / "cache"))
    assert cache_folder() == temporary / "cache" / "nerfcli"
    assert cache_folder().is_dir()


def test_without_a_home_to_write_in_there_is_a_folder_all_the_same(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only home is played by one that is no folder: root may write anywhere."""
    (temporary / "home").write_text("")
    monkeypatch.setenv("HOME", str(temporary / "home"))
    folder = temporary / f"nerfcli-{os.getuid()}"
    assert cache_folder() == cache_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() == folder


def test_a_folder_that_others_can_write_to_is_not_taken(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in it is run."""
    (temporary / "home").write_text("")
    monkeypatch.setenv("HOME", str(temporary / "home"))
    theirs = temporary / f"nerfcli-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    assert cache_folder() != theirs and cache_folder().stat().st_mode & 0o777 == 0o700
    theirs.chmod(0o755)
    another = theirs.stat().st_uid + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    theirs.rename(temporary / f"nerfcli-{another}")
    assert cache_folder().name != f"nerfcli-{another}"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "old").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as aside:
        (aside / "half").write_text("")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
    (tmp_path / ".out.part" / "left").mkdir(parents=True)  # by a process that was killed
    with replacing_folder(folder) as aside:
        (aside / "new").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]
    with pytest.raises(NerfError, match="cannot write"), replacing_folder(Path("/proc/none")):
        pass


@pytest.mark.parametrize(
    ("seconds", "short", "long"),
    [(0.123, "0.123 s", "0:00"), (59, "59 s", "0:59"), (61, "1:01", "1:01")]
    + [(3599.6, "1:00:00", "1:00:00"), (7384, "2:03:04", "2:03:04")],
)
def test_times_as_people_write_them(seconds: float, short: str, long: str) -> None:
    assert (duration(seconds), clock(seconds)) == (short, long)


def test_a_count_bends_its_noun() -> None:
    assert [quantity(n, "view") for n in (0, 1, 2)] == ["0 views", "1 view", "2 views"]

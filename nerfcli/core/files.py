"""Files that are either whole or absent: written aside, then renamed. JSON without NaN.

Who may read them is the umask's matter, whichever library wrote them.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from nerfcli.core.errors import CannotWrite, NerfError

# what the machine refuses, and no program can help: never a bug of ours
REFUSALS = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT))


def aside_path(path: Path) -> Path:
    """Return a hidden path beside `path`, with its suffix, for a file not yet complete."""
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`, same suffix, that takes its place when the block succeeds.

    The data is on the disk before the name points to it: a machine that loses its power leaves the
    old file or the new one.

    Raises:
        CannotWrite: the operating system refuses to write there.
    """
    aside = aside_path(path)
    try:
        with folders_above(path):
            try:
                yield aside
                open_to_others(aside)
                with aside.open("rb+") as file:
                    os.fsync(file.fileno())
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}.") from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    with suppress(OSError):  # Windows, and some network disks
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def folders_above(path: Path) -> Iterator[None]:
    """Make the folders above `path`; those that it made and that stay empty go away again."""
    made = list(takewhile(lambda folder: not folder.exists(), path.parents))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # something is in it by now
                folder.rmdir()


def open_to_others(path: Path) -> None:
    """Give a file the permissions of the umask if it has none for others.

    Temporary files of libraries (tempfile in Python and Rust) are private, and stay so when they
    are renamed.
    """
    found = path.lstat()
    if stat.S_ISREG(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077:
        probe = path.with_name(f"{path.name}.mode")  # the umask itself can only be read by setting
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666))
            path.chmod(stat.S_IMODE(found.st_mode) | stat.S_IMODE(probe.stat().st_mode))
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its place when the block succeeds.

    Everything in the earlier `folder` goes away; make sure first that it is ours.

    Raises:
        NerfError: the operating system refuses to write there.
    """
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with folders_above(folder), _removed(aside):
            aside.mkdir()
            yield aside
            if folder.exists():
                shutil.rmtree(folder)
            aside.rename(folder)
    except OSError as error:
        raise NerfError(f"cannot write {folder}: {error.strerror or error}.") from error


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a new folder, whose files move into `folder` when the block succeeds.

    They replace files of the same names. Everything else in `folder` stays. The new folder lies in
    `folder` where that is there: its parent may belong to somebody else.

    Raises:
        NerfError: the operating system refuses to write there.
    """
    folder = folder.resolve()
    try:
        aside = folder if folder.is_dir() else folder.parent
        aside /= f".{folder.name}.{os.getpid()}"
        with folders_above(aside), _removed(aside):
            aside.mkdir()
            yield aside
            for path in sorted(path for path in aside.rglob("*") if path.is_file()):
                place = folder / path.relative_to(aside)
                place.parent.mkdir(parents=True, exist_ok=True)
                open_to_others(path)
                os.replace(path, place)
    except OSError as error:
        raise NerfError(f"cannot write {folder}: {error.strerror or error}.") from error


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Remove the folder after the block, however that ends."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class BusyError(NerfError):
    """Another process holds a lock."""


@contextmanager
def locked(folder: Path, busy: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a folder or a file; the system releases it when the process ends.

    Args:
        busy: the error message if another process holds the lock.
        shared: others may hold a shared lock at the same time.

    Raises:
        BusyError: another process holds it, or has just removed the folder; never on a system
            without such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError as error:  # its holder has removed it this moment
        raise BusyError(busy) from error
    try:
        with suppress(OSError):  # some network disks cannot
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(busy) from error
        if not _is_open_at(handle, folder):  # removed before we had the lock
            raise BusyError(busy)
        yield
    finally:
        os.close(handle)


def _is_open_at(handle: int, path: Path) -> bool:
    """Whether what is open is what lies at `path` now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def json_text(value: object, indent: int | None = None) -> str:
    """Return standard JSON: non-finite numbers become null, paths become strings."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: object) -> None:
    write_text(path, json_text(value, indent=1) + "\n")


def ensure_no_pointer(path: Path, data: bytes) -> None:
    """Raise NerfError if `data` is what Git LFS leaves in place of a file that it did not fetch."""
    if data.startswith(b"version https://git-lfs"):
        raise NerfError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`.")


def read_json(path: Path, *, lenient: bool = False, twice: list[str] | None = None) -> Any:
    """Read the JSON value in `path`.

    Args:
        lenient: take comments and trailing commas, and UTF-16 and UTF-32 as well as UTF-8.
        twice: gets the keys that an object states more than once.

    Raises:
        NerfError: unreadable, or broken JSON (with its line).
    """

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if twice is not None and len(made) < len(pairs):
            seen: set[str] = set()
            twice.extend(key for key, _ in pairs if key in seen or seen.add(key))
        return made

    try:
        data = path.read_bytes()
        ensure_no_pointer(path, data)
        if not data.strip():
            raise NerfError(f"{path} is empty ({len(data)} bytes). Take an intact copy.")
        text = data.decode(json.detect_encoding(data) if lenient else "utf-8-sig")
        try:
            return json.loads(text, object_pairs_hook=None if twice is None else collect)
        except json.JSONDecodeError:
            if not lenient:
                raise
            return json.loads(
                _without_comments(text), object_pairs_hook=None if twice is None else collect
            )
    except json.JSONDecodeError as error:
        raise NerfError(
            f"{path}, line {error.lineno}, column {error.colno}: broken JSON ({error.msg}). "
            "Repair the file, or take an intact copy."
        ) from error
    except UnicodeDecodeError as error:
        raise NerfError(f"{path}: not a UTF-8 text file. Take an intact copy.") from error
    except OSError as error:
        raise NerfError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; too deep
        raise NerfError(f"{path}: absurd JSON ({error}). Take an intact copy.") from error


def _without_comments(text: str) -> str:
    """Blank out comments and trailing commas of a JSON text; lines and columns stay."""

    def blank(match: re.Match[str]) -> str:
        return match[0] if match[0][0] == '"' else re.sub(r"[^\n]", " ", match[0])

    string = r'"(?:\\.|[^"\\])*(?:"|\Z)'
    text = re.sub(string + r"|//[^\n]*|/\*.*?(?:\*/|\Z)", blank, text, flags=re.DOTALL)
    return re.sub(string + r"|,(?=\s*[\]}])", blank, text, flags=re.DOTALL)


def ensure_writable(path: Path, advice: str = "Choose another place.") -> None:
    """Raise NerfError unless `path` can be created or replaced; leave nothing behind.

    advice: ends the message.
    """
    place = path
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        if place != path and not place.is_dir():
            raise NerfError(f"cannot write {path}: {place} is not a folder. {advice}")
        folder = place if place.is_dir() else place.parent
        # a permission check is not enough: root always passes it
        with tempfile.TemporaryFile(dir=folder):
            pass
        if place is not folder:
            place.open("ab").close()
    except OSError as error:
        where = "" if place == path else f" in {place.absolute()}"
        raise NerfError(f"cannot write {path}: {error.strerror}{where}. {advice}") from error


def refusal(error: OSError) -> str | None:
    """Say what the machine refuses; None where the fault may be ours."""
    if error.errno not in REFUSALS:
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write {error.filename or 'a file'}: {error.strerror}. Make room."
    what = error.filename or "a file"
    return f"cannot read or write {what}: {error.strerror}. See who may, or choose another place."


def cache_folder() -> Path:
    """Return the user's cache folder, `nerfcli` in ~/.cache or the like.

    If that cannot be written (a read-only home, or none), return a folder that only the user
    can write among the temporary files.
    """
    try:
        folder = _user_cache() / "nerfcli"
        folder.mkdir(parents=True, exist_ok=True)
        ensure_writable(folder)
    except (OSError, RuntimeError, NerfError):  # RuntimeError: a user without a home
        return _private_folder()
    return folder


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _private_folder() -> Path:
    """Return a temporary folder that no other user can write to: we run programs kept there."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"nerfcli-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = found.st_uid == user and stat.S_ISDIR(found.st_mode)
        if ours and (not found.st_mode & 0o022 or sys.platform == "win32"):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="nerfcli-"))


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value

"""Checks of --out before any work begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path

from nerfcli.core.errors import NerfError

NAME_ANOTHER = "Name another place by --out."


def ensure_own_folder(out: Path, records: Iterable[str]) -> None:
    """Raise NerfError unless `out` is absent, empty, or holds one of our files `records`."""
    if out.exists() and not out.is_dir():
        raise NerfError(f"--out {out} is a file; a folder is needed.")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in records):
        raise NerfError(f"--out {out} is not empty; choose another folder.")


def ensure_absent(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raise NerfError for the first path that exists, unless --overwrite allows to replace it."""
    existing = next((path for path in paths if path.exists()), None)
    if existing is not None and not overwrite:
        raise NerfError(f"{existing} exists; replace it by --overwrite, or choose another --out.")


def first_free(path: Path, is_taken: Callable[[Path], bool]) -> Path:
    """Return `path`, or the first of <stem>-2, <stem>-3, ... beside it that is not taken."""
    more = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in count(2))
    return next(free for free in chain([path], more) if not is_taken(free))

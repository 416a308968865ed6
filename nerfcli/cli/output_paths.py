"""Checks of --out before any work begins.

One rule for all commands: nothing is replaced without --overwrite, default names count up, and a
folder with a data set, or anything else that is not ours, is never written into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path

from nerfcli.cli.hints import scene_format
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable

NAME_ANOTHER = "Name another place by --out."


def ensure_own_folder(
    out: Path, records: Iterable[str] = (), patterns: tuple[str, ...] = ()
) -> None:
    """Raise NerfError unless `out` is absent, empty, or ours.

    Args:
        records: files of which one alone shows that the folder is ours.
        patterns: of files that earlier commands may have left; without a record, all must fit.
    """
    if out.exists() and not out.is_dir():
        raise NerfError(f"--out {out} is a file; a folder is needed.")
    if not out.is_dir() or any((out / name).exists() for name in records):
        return
    if scene_format(out):
        raise NerfError(f"--out {out} is a data set; choose another folder.")
    strange = [path.name for path in out.iterdir() if not any(path.match(p) for p in patterns)]
    if strange:
        raise NerfError(f"--out {out} is not empty ({min(strange)}); choose another folder.")


def ensure_apart(out: Path, source: Path, *, inside: bool = False) -> None:
    """Raise NerfError where `out` is or holds what it is made from, or lies in it.

    inside: it may lie in it.
    """
    mine, theirs = out.resolve(), source.resolve()
    if mine == theirs or mine in theirs.parents:
        raise NerfError(f"--out {out} is or holds {source} itself; choose another folder.")
    if theirs in mine.parents and not inside:
        raise NerfError(f"--out {out} lies in {source}; choose another folder.")


def ensure_new_folder(
    out: Path, source: Path, records: Iterable[str] = (), *, overwrite: bool = False
) -> None:
    """Raise NerfError unless a folder can be put at `out`, whole, that touches nothing of `source`.

    records: files of which one shows that a folder is ours, which --overwrite may replace.
    """
    ensure_apart(out, source, inside=True)
    if out.name in ("", ".."):
        raise NerfError(f"--out {out} has no name of its own; name the folder to make.")
    ensure_own_folder(out, records)
    if out.is_dir() and any(out.iterdir()):
        ensure_absent([out], overwrite=overwrite)
    ensure_writable(out)
    ensure_writable(out.absolute().with_name(f".{out.name}.part"))  # it is made beside its place


def ensure_absent(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raise NerfError for the first path that exists, unless --overwrite allows to replace it."""
    existing = next((path for path in paths if path.exists()), None)
    if existing is not None and not overwrite:
        raise NerfError(f"{existing} exists; replace it by --overwrite, or choose another --out.")


def first_free(path: Path, is_taken: Callable[[Path], bool]) -> Path:
    """Return `path`, or the first of <stem>-2, <stem>-3, ... beside it that is not taken."""
    more = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in count(2))
    return next(free for free in chain([path], more) if not is_taken(free))

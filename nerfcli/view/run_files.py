"""What a page saves: JSON files in folders of the run, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, write_text

NAME = re.compile(r"\w[\w-]{0,63}")


class AlreadyThere(NerfError):
    """A file of that name is there already."""


def ensure_name(name: str) -> None:
    """Raise NerfError for a name that could lead elsewhere."""
    if not NAME.fullmatch(name):
        raise NerfError(f"The name {name[:80]!r} has more than letters, digits, - and _.")


def save_in_run(run: Path, folder: str, name: str, text: str, *, replace: bool = False) -> Path:
    """Write <run>/<folder>/<name>.json.

    Raises:
        NerfError: a name that could lead elsewhere, a folder that does, or one that refuses.
        AlreadyThere: the name is taken, and `replace` is not set.
    """
    ensure_name(name)
    place = run / folder
    if not place.resolve().is_relative_to(run.resolve()):
        raise NerfError(f"{place} leads out of the run: nothing is written there.")
    path = place / f"{name}.json"
    if (path.exists() or path.is_symlink()) and not replace:
        raise AlreadyThere(f"{path.name} is there already. Press again to replace it.")
    write_text(path, text)
    return path


def saved_in_run(run: Path, folder: str) -> dict[str, Path]:
    """What was saved, by name."""
    try:
        return {path.stem: path for path in sorted((run / folder).glob("*.json"))}
    except OSError:
        return {}


def can_save(run: Path, folder: str) -> bool:
    """Whether the run takes files; a run that was copied from elsewhere may be read-only."""
    try:
        ensure_writable(run / folder / "path.json")
    except NerfError:
        return False
    return True

"""List folders once, and find names in them that are alike."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nerfcli.scenes.photo_formats import AVIF, HEIF, RAW

# tried in this order for a path without one (instant-ngp's list, as far as Pillow reads it)
EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tga", ".ppm", ".webp", ".tif", ".tiff"),
    *(*AVIF, *HEIF),
)
# endings of pictures that are not looked for, but may lie there converted
CONVERTIBLE = (
    *RAW,
    *(".exr", ".hdr", ".jp2", ".pgm", ".jpe", ".jfif", ".mpo"),
)
DEPTH_EXTENSIONS = (".png", ".tif", ".tiff", ".npy")
PICTURES = frozenset((*EXTENSIONS, *DEPTH_EXTENSIONS, *CONVERTIBLE))
FOREIGN_FILES = {
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
}  # left by other systems


def is_file(path: Path) -> bool:
    """Whether the file exists; false for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or left by another system: no picture of a scene."""
    return name.startswith(".") or name.lower() in FOREIGN_FILES


def list_files(folder: Path, pattern: str) -> list[Path]:
    """List what a pattern matches in a folder, sorted; hidden files do not count.

    macOS puts `._x.txt` beside `x.txt` on foreign disks, and a glob matches both.
    """
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.name))


def fold(name: str) -> str:
    """Make names equal that differ in letter case or Unicode form only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def split_name(name: str) -> tuple[str, str]:
    """Split a name before its extension; what is no extension of a picture belongs to the stem."""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem and (dot + ending).lower() in PICTURES else (name, "")


def suffix_of(name: str) -> str:
    """Return the extension of a picture in lower case; "" for any other."""
    return split_name(name)[1].lower()


@dataclass(frozen=True)
class Listing:
    """The names in a folder; `is_closed`: they could not be listed."""

    path: Path
    files: frozenset[str]
    folders: frozenset[str]
    is_closed: bool = False

    @staticmethod
    def of(path: Path) -> Listing:
        files, folders = set(), set()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    with suppress(OSError):  # a link to itself
                        if entry.is_dir():
                            folders.add(entry.name)
                        elif entry.is_file() and not entry.name.startswith("._"):
                            files.add(entry.name)
        except PermissionError:
            return Listing(path, frozenset(), frozenset(), is_closed=True)
        except (OSError, ValueError):  # no such folder, or a name that none can have
            pass
        return Listing(path, frozenset(files), frozenset(folders))

    @cached_property
    def alike(self) -> dict[str, list[str]]:
        """Names by what `fold` makes of them."""
        return self._group(fold)

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        """Names by what `fold` makes of them without their extension."""
        return self._group(lambda name: fold(split_name(name)[0]))

    def _group(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.files):
            if not is_hidden(name):
                groups[key(name)].append(name)
        return groups

    def find_exact(self, name: str) -> Path | None:
        """Find a file of this name, or of this name with an extension of a picture.

        Raises:
            PermissionError: what is in the folder may not be known.
        """
        if self.is_closed:
            with suppress(FileNotFoundError, ValueError):
                os.stat(self.path / name)
                return self.path / name
        if name in self.files:
            return self.path / name
        tried = () if split_name(name)[1] else (name + extension for extension in EXTENSIONS)
        return next((self.path / other for other in tried if other in self.files), None)

    def find(self, name: str, extensions: Sequence[str]) -> Path | None:
        """Find the one file whose name is alike, or is alike but for one of the extensions."""
        stem = split_name(name)[0]
        others = [
            other for other in self.stems.get(fold(stem), ()) if suffix_of(other) in extensions
        ]
        for names in (self.alike.get(fold(name), []), others):
            same = [other for other in names if split_name(other)[0] == stem] or names
            if len({split_name(other)[0] for other in same}) == 1:
                order = (*extensions, *map(suffix_of, same))
                return self.path / min(same, key=lambda other: order.index(suffix_of(other)))
        return None

"""Find the images, masks and depth images that a scene's files name, as other systems wrote them.

A name counts as found in spite of: another case of its letters, another Unicode form, another or
no extension, backslashes, percent signs, and a folder of another machine. What a name says exactly
always wins, and no file is taken for two names.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

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
OTHER_NAMES = ("input", "rgb")  # of the folder of images, by some tools
FOREIGN_FILES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}  # left by other systems
IMAGE_FOLDER = re.compile(r"images(_\d{1,4})?|input|rgb")


def is_file(path: Path) -> bool:
    """Whether the file exists; false for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or left by another system: no picture of a scene."""
    return name.startswith(".") or name.lower() in FOREIGN_FILES


def image_folders(root: Path) -> list[Path]:
    """List candidates in order: images, images_2, images_4, ..., other names, the folder itself."""
    reduced = []
    for folder in root.iterdir():
        match = re.fullmatch(r"images_(\d{1,4})", folder.name)
        if match and folder.is_dir():
            reduced.append((int(match[1]), folder))
    named = [root / "images", *(folder for _, folder in sorted(reduced))]
    named += [root / name for name in OTHER_NAMES]
    return [folder for folder in named if folder.is_dir()] + [root]


def image_files(folder: Path) -> list[Path]:
    """List the image files in a folder, sorted by name; hidden files do not count."""
    names = sorted(name for name in _Folder.of(folder).files if not is_hidden(name))
    return [folder / name for name in names if _suffix(name) in EXTENSIONS]


def one_of_each(paths: Sequence[Path]) -> list[Path]:
    """Choose one file where a picture is there in several formats, in the order of EXTENSIONS."""
    chosen: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: EXTENSIONS.index(_suffix(path.name))):
        chosen.setdefault(path.with_suffix(""), path)
    return sorted(chosen.values())


class Pictures:
    """The files of one kind that a scene's files name, and what was assumed to find them.

    Args:
        root: what relative names refer to.
        folders: where the names usually lie, in order; `root` by default.
        others: further folders to look in; a find there is an assumption.
        what: the kind, for the notes.
        extensions: of a file that may stand for one of another extension, in order.
        known: another kind of the same scene, whose listings of folders are used again.
    """

    def __init__(
        self,
        root: Path,
        folders: Sequence[Path] = (),
        others: Sequence[Path] = (),
        what: str = "images",
        extensions: Sequence[str] = EXTENSIONS,
        known: Pictures | None = None,
    ) -> None:
        self.root = root
        self.folders = list(folders) or [root]
        self.others = [folder for folder in others if folder not in self.folders]
        self.what = what
        self.extensions = tuple(extensions)
        self._listed: dict[Path, _Folder] = {} if known is None else known._listed
        self._found: dict[str, Path] = {}
        self._taken: dict[Path, tuple[str, ...]] = {}
        self._finds: list[_Find] = []
        self._rules: dict[bool, _Rule] = {}

    def find_all(self, stated: Iterable[str]) -> dict[str, Path]:
        """Find files by their stated names, all in the same way; leaves out what is not there.

        A path of another machine is cut at the front until it names a file below the scene. One
        cut and one folder serve all names: the longest rest that finds at least half as many files
        as any other does.
        """
        stated = list(dict.fromkeys(stated))
        groups: dict[bool, list[_Name]] = {False: [], True: []}
        for name in map(_parse_name, stated):
            if name.stated not in self._found:
                groups[name.is_foreign].append(name)
        for is_foreign, names in groups.items():
            finds = self._find_alike(names, is_foreign) if names else []
            for find in finds:
                self._found[find.stated] = find.path
                self._taken.setdefault(find.path, find.parts)
            self._finds += finds
        return {name: self._found[name] for name in stated if name in self._found}

    def find(self, stated: str) -> Path | None:
        """Find one file by its stated name; None if it is not there."""
        return self.find_all([stated]).get(stated)

    def find_here(self, name: str) -> Path | None:
        """Find a file below `root` by this very name, extension included, whatever its case."""
        parts = _parse_name(name).parts
        exact = self._follow(self.root, parts, is_exact=True)
        return exact or self._follow(self.root, parts, is_exact=False, extensions=())

    def find_beside(self, path: Path, name: str) -> Path | None:
        """Find a file by this very name, whatever its case, in the folder of another."""
        listing = self._list(path.parent)
        return listing.find_exact(name) or listing.find(name, ())

    @property
    def folder(self) -> Path | None:
        """The one of `folders` and `others` in which the files were found."""
        return next((find.folder for find in self._finds if find.folder is not None), None)

    @property
    def notes(self) -> list[str]:
        """What was assumed, one line for each kind of assumption."""
        notes = []
        moved = [find for find in self._finds if find.is_moved]
        if moved:
            read = Path(os.path.relpath(moved[0].path, self.root)).as_posix()
            notes.append(
                f"{len(moved)} {self.what} are not where they are stated ({moved[0].stated}), "
                f"{read} is read"
            )
        outside = [find for find in self._finds if find.is_outside]
        if outside:
            notes.append(
                f"{len(outside)} {self.what} are read from outside of the scene, as stated: "
                f"{outside[0].path}"
            )
        pairs = Counter(find.endings for find in self._finds if find.endings is not None)
        if pairs:
            each = (
                f"{n} {self.what} are named {a}, their {b} is read" for (a, b), n in pairs.items()
            )
            notes.append(", ".join(each))
        named = [find for find in self._finds if find.is_renamed]
        if named:
            notes.append(
                f"{len(named)} {self.what} have another letter case, Unicode form or encoding than "
                f"stated: {named[0].path.name} is read for {named[0].stated}"
            )
        return notes

    def _find_alike(self, names: list[_Name], is_foreign: bool) -> list[_Find]:
        """Find names by the first rule that finds at least half of what the best one does."""
        tried: list[tuple[_Rule | None, list[_Find]]] = []
        if is_foreign:
            tried.append((None, [find for name in names if (find := self._as_stated(name))]))
        for rule in self._list_rules(names, is_foreign):
            if tried and len(tried[-1][1]) == len(names):
                break
            tried.append((rule, self._find_by(rule, names)))
        best = max(len(finds) for _, finds in tried)
        rule, finds = next(pair for pair in tried if 2 * len(pair[1]) >= best)
        if rule is not None and finds:
            self._rules.setdefault(is_foreign, rule)
        return finds

    def _list_rules(self, names: list[_Name], is_foreign: bool) -> Iterable[_Rule]:
        """List the rules in the order to try them; one that served before comes first."""
        if is_foreign in self._rules:
            yield self._rules[is_foreign]
        places = [*self.folders, *self.others]
        if is_foreign:  # a path leads through the scene's own folder
            places = [self.root, *(place for place in places if place != self.root)]
            longest = max(len(name.parts) for name in names)
            yield from (_Rule(place, cut, True) for cut in range(longest) for place in places)
            return
        yield from (_Rule(place, 0, place not in self.folders) for place in places)
        if all(IMAGE_FOLDER.fullmatch(name.parts[0]) for name in names):  # images/ for images_4/
            yield from (_Rule(place, 1, True) for place in places)

    def _find_by(self, rule: _Rule, names: list[_Name]) -> list[_Find]:
        """Find names by one rule: exact ones first, so that none loses its file to another."""
        taken = dict(self._taken)
        found: dict[str, Path] = {}
        for is_exact in (True, False):
            for name in names:
                parts = name.parts[rule.cut :]
                if name.stated in found or not parts:
                    continue
                path = self._follow(rule.folder, parts, is_exact)
                if path is None:
                    continue
                is_other = taken.setdefault(path, name.parts) != name.parts
                if not is_other or (is_exact and not rule.is_moved):
                    found[name.stated] = path
        return [
            _Find(name.stated, found[name.stated], rule.folder, rule.is_moved, name.parts)
            for name in names
            if name.stated in found
        ]

    def _as_stated(self, name: _Name) -> _Find | None:
        path = self.root / name.text
        if not is_file(path):
            return None
        is_outside = self.root.resolve() not in path.resolve().parents and path.is_absolute()
        return _Find(name.stated, path, None, False, name.parts, is_outside and name.is_absolute)

    def _follow(
        self,
        folder: Path,
        parts: tuple[str, ...],
        is_exact: bool,
        extensions: Sequence[str] | None = None,
    ) -> Path | None:
        """Follow a path by its very names, or else by names that are alike."""
        extensions = self.extensions if extensions is None else extensions
        forms = [parts]
        if not is_exact and any("%" in part for part in parts):
            forms.append(tuple(map(unquote, parts)))
        for form in forms:
            place: Path | None = folder
            for part in form[:-1]:
                place = None if place is None else self._enter(place, part, is_exact)
            if place is not None:
                listing = self._list(place)
                name = form[-1]
                path = listing.find_exact(name) if is_exact else listing.find(name, extensions)
                if path is not None:
                    return path
        return None

    def _enter(self, folder: Path, name: str, is_exact: bool) -> Path | None:
        listing = self._list(folder)
        if name == ".." or name in listing.folders or listing.is_closed:
            return folder / name
        alike = (
            [] if is_exact else [other for other in listing.folders if fold(other) == fold(name)]
        )
        return folder / alike[0] if len(alike) == 1 else None

    def _list(self, folder: Path) -> _Folder:
        if folder not in self._listed:
            self._listed[folder] = _Folder.of(folder)
        return self._listed[folder]


def fold(name: str) -> str:
    """Make names equal that differ in letter case or Unicode form only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@dataclass(frozen=True)
class _Rule:
    """Look in a folder for what is left of a path without its first `cut` parts."""

    folder: Path
    cut: int
    is_moved: bool


@dataclass(frozen=True)
class _Name:
    """A stated name, the path that it means, and its parts.

    Attributes:
        is_foreign: the path is absolute, or begins above the scene.
    """

    stated: str
    text: str
    parts: tuple[str, ...]
    is_absolute: bool
    is_foreign: bool


def _parse_name(stated: str) -> _Name:
    text = stated.replace("\\", "/")
    if text[:7].lower() == "file://":
        text = unquote(text[7:])
        text = text[1:] if re.match(r"/[A-Za-z]:", text) else text
    is_absolute = re.match(r"/|[A-Za-z]:", text) is not None
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    is_foreign = is_absolute or parts[:1] == ("..",)
    if is_foreign:
        parts = tuple(part for part in parts if part != "..")
    return _Name(stated, text, parts or ("",), is_absolute, is_foreign)


@dataclass(frozen=True)
class _Find:
    """A stated name, its file, the folder that the rule named, and the parts of the name."""

    stated: str
    path: Path
    folder: Path | None
    is_moved: bool
    parts: tuple[str, ...]
    is_outside: bool = False

    @property
    def endings(self) -> tuple[str, str] | None:
        """The stated extension and that of the file, where they differ."""
        stated, found = _split(self.parts[-1])[1], _split(self.path.name)[1]
        return (stated, found) if stated and stated != found else None

    @property
    def is_renamed(self) -> bool:
        """Whether the file's name differs otherwise than by its extension."""
        there = (self.path.name,) if self.is_moved else self.path.parts
        pairs = zip(reversed(self.parts), reversed(there), strict=False)
        return any(_split(a)[0] not in (_split(b)[0], b) for a, b in pairs)


@dataclass(frozen=True)
class _Folder:
    """The names in a folder; `is_closed`: they could not be listed."""

    path: Path
    files: frozenset[str]
    folders: frozenset[str]
    is_closed: bool = False

    @staticmethod
    def of(path: Path) -> _Folder:
        files, folders = set(), set()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.add(entry.name)
                    elif entry.is_file() and not entry.name.startswith("._"):
                        files.add(entry.name)
        except PermissionError:
            return _Folder(path, frozenset(), frozenset(), is_closed=True)
        except (OSError, ValueError):  # no such folder, or a name that none can have
            pass
        return _Folder(path, frozenset(files), frozenset(folders))

    @cached_property
    def alike(self) -> dict[str, list[str]]:
        """Names by what `fold` makes of them."""
        return self._group(fold)

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        """Names by what `fold` makes of them without their extension."""
        return self._group(lambda name: fold(_split(name)[0]))

    def _group(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.files):
            if not is_hidden(name):
                groups[key(name)].append(name)
        return groups

    def find_exact(self, name: str) -> Path | None:
        """Find a file of this name, or of this name with an extension of a picture."""
        if self.is_closed and is_file(self.path / name):
            return self.path / name
        tried = (name, *(name + extension for extension in EXTENSIONS if not _split(name)[1]))
        return next((self.path / other for other in tried if other in self.files), None)

    def find(self, name: str, extensions: Sequence[str]) -> Path | None:
        """Find the one file whose name is alike, or is alike but for one of the extensions."""
        stem = _split(name)[0]
        others = [other for other in self.stems.get(fold(stem), ()) if _suffix(other) in extensions]
        for names in (self.alike.get(fold(name), []), others):
            same = [other for other in names if _split(other)[0] == stem] or names
            if len({_split(other)[0] for other in same}) == 1:
                order = (*extensions, *map(_suffix, same))
                return self.path / min(same, key=lambda other: order.index(_suffix(other)))
        return None


def _split(name: str) -> tuple[str, str]:
    """Split a name before its extension; what is no extension of a picture belongs to the stem."""
    stem, dot, ending = name.rpartition(".")
    known = {*EXTENSIONS, *DEPTH_EXTENSIONS, *CONVERTIBLE}
    return (stem, dot + ending) if stem and (dot + ending).lower() in known else (name, "")


def _suffix(name: str) -> str:
    return _split(name)[1].lower()

"""Find the images, masks and depth images that a scene's files name, as other systems wrote them.

A name counts as found in spite of: another case of its letters, another Unicode form, another or
no extension, backslashes, percent signs, and a folder of another machine. What a name says exactly
always wins, and no file is taken for two names.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from nerfcli.core.text import quantity
from nerfcli.scenes.readers.listings import (
    EXTENSIONS,
    Listing,
    fold,
    is_file,
    is_hidden,
    split_name,
    suffix_of,
)

OTHER_NAMES = ("input", "rgb")  # of the folder of images, by some tools
IMAGE_FOLDER = re.compile(r"images(_\d{1,4})?|input|rgb", re.IGNORECASE)


def image_folders(root: Path) -> list[Path]:
    """List candidates in order: images, images_2, images_4, ..., other names, the folder itself.

    In any letter case, the usual one first.
    """
    found = []
    for folder in root.iterdir():
        name = folder.name.lower()
        if IMAGE_FOLDER.fullmatch(name) and folder.is_dir():
            stem, _, factor = name.partition("_")
            order = ("images", *OTHER_NAMES).index(stem), int(factor or 1)
            found.append((order, name != folder.name, folder))
    return [folder for *_, folder in sorted(found)] + [root]


def is_image_folder(folder: Path) -> bool:
    """Whether a folder has one of the names under which images lie."""
    return IMAGE_FOLDER.fullmatch(folder.name) is not None


def image_files(folder: Path) -> list[Path]:
    """List the image files in a folder, sorted by name; hidden files do not count."""
    names = sorted(name for name in Listing.of(folder).files if not is_hidden(name))
    return [folder / name for name in names if suffix_of(name) in EXTENSIONS]


def one_of_each(paths: Sequence[Path]) -> list[Path]:
    """Choose one file where a picture is there in several formats, in the order of EXTENSIONS."""
    chosen: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: EXTENSIONS.index(suffix_of(path.name))):
        chosen.setdefault(path.with_suffix(""), path)
    return sorted(chosen.values())


def relative_name(path: Path, root: Path) -> str:
    """Name a file by its path relative to `root`, which holds on any machine."""
    return Path(os.path.relpath(path, root)).as_posix()


class Pictures:
    """The files of one kind that a scene's files name, and what was assumed to find them.

    Args:
        root: what relative names refer to.
        folders: where the names usually lie, in order; `root` by default.
        given: where the user says that they lie; nothing else counts then.
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
        given: str | Path | None = None,
    ) -> None:
        self.root = root
        self.given = None if given is None else Path(given)
        self.folders = list(folders) or [root]
        self.others = [folder for folder in others if folder not in self.folders]
        self.what = what
        self.extensions = tuple(extensions)
        self._listed: dict[Path, Listing] = {} if known is None else known._listed
        self._found: dict[str, Path] = {}
        self._taken: dict[Path, tuple[str, ...]] = {}
        self._finds: list[_Find] = []
        self._rules: dict[bool, _Rule] = {}
        self._first: list[Path] = []
        self._alike: list[Path] = []

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

    def prefer_exact(self, stated: Iterable[str]) -> None:
        """Look first where most of these very names are, even in `others`; note if several do."""
        parts = {
            name.parts[-1:] if name.is_foreign else name.parts for name in map(_parse_name, stated)
        }
        held = {
            folder: sum(self._follow(folder, each, is_exact=True) is not None for each in parts)
            for folder in (*self.folders, *self.others)
        }
        self.others.sort(key=lambda folder: -held[folder])
        usual = max(held[folder] for folder in self.folders)
        self._first = [folder for folder in self.others[:1] if held[folder] > 2 * usual]
        self._alike = [folder for folder in self.others if held[folder] == len(parts)]

    def name_of(self, stated: str, path: Path) -> str:
        """Name a found file: by its place below `root`, or as stated where the user gave a folder.

        So a run knows its images again when that folder moves.
        """
        if self.given is None:
            return relative_name(path, self.root)
        name = _parse_name(stated)
        depth = len(path.relative_to(self.given).parts) if name.is_foreign else len(name.parts)
        return "/".join((*name.parts[-depth:-1], path.name))

    def find_here(self, name: str) -> Path | None:
        """Find a file below `root` by this very name, extension included, whatever its case."""
        parts = _parse_name(name).parts
        exact = self._follow(self.root, parts, is_exact=True)
        return exact or self._follow(self.root, parts, is_exact=False, extensions=())

    def find_beside(self, path: Path, name: str) -> Path | None:
        """Find a file by this very name, whatever its case, in the folder of another."""
        listing = self._list(path.parent)
        return listing.find_exact(name) or listing.find(name, ())

    def again(self) -> Pictures:
        """Return finders of the same files for another list of their names."""
        return Pictures(
            self.root, self.folders, self.others, self.what, self.extensions, self, self.given
        )

    @property
    def places(self) -> list[Path]:
        """Where the files are looked for, in order."""
        if self.given is not None:
            return [self.given]
        return list(dict.fromkeys((*self._first, *self.folders, *self.others)))

    @property
    def folder(self) -> Path | None:
        """The one of `folders` and `others` in which the files were found."""
        return next((find.folder for find in self._finds if find.folder is not None), None)

    def _are(self, n: int) -> str:
        """Count files with their verb: 1 image is, 2 images are."""
        return f"{quantity(n, self.what.removesuffix('s'))} {'is' if n == 1 else 'are'}"

    @property
    def notes(self) -> list[str]:
        """What was assumed, one line for each kind of assumption."""
        notes = []
        moved = [find for find in self._finds if find.is_moved]
        if moved:
            read = relative_name(moved[0].path, self.root)
            notes.append(
                f"{self._are(len(moved))} not where they are stated ({moved[0].stated}), "
                f"{read} is read"
            )
        if len(self._alike) > 1 and self.folder in self._alike:
            folders = ", ".join(relative_name(folder, self.root) for folder in self._alike)
            read = relative_name(self.folder, self.root)
            notes.append(f"each of {folders} holds all {self.what}, {read} is read")
        outside = [find for find in self._finds if find.is_outside]
        if outside:
            notes.append(
                f"{self._are(len(outside))} read from outside of the scene, as stated: "
                f"{outside[0].path}"
            )
        pairs = Counter(find.endings for find in self._finds if find.endings is not None)
        if pairs:
            each = (f"{self._are(n)} named {a}, their {b} is read" for (a, b), n in pairs.items())
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
        if is_foreign and self.given is None:
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
        longest = max(len(name.parts) for name in names)
        places = self.places
        if self.given is not None:
            yield from (_Rule(self.given, cut, False) for cut in range(longest))
            return
        if is_foreign:  # a path leads through the scene's own folder
            places = [self.root, *(place for place in places if place != self.root)]
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
                first = taken.setdefault(path, name.parts)
                # equal names of two folders, both cut off: an error of the whole scene
                is_unclear = self.given is not None and first[-1] == name.parts[-1]
                if first == name.parts or is_unclear or (is_exact and not rule.is_moved):
                    found[name.stated] = path
        return [
            _Find(
                name.stated,
                found[name.stated],
                rule.folder,
                rule.is_moved,
                name.parts,
                cut=rule.cut,
            )
            for name in names
            if name.stated in found
        ]

    def _as_stated(self, name: _Name) -> _Find | None:
        path = self.root / name.text
        if not is_file(path):
            listing = self._list(path.parent)
            found = listing.find_exact(path.name) or listing.find(path.name, self.extensions)
            if found is None:
                return None
            path = found
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

    def _list(self, folder: Path) -> Listing:
        if folder not in self._listed:
            self._listed[folder] = Listing.of(folder)
        return self._listed[folder]


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
    cut: int = 0

    @property
    def endings(self) -> tuple[str, str] | None:
        """The stated extension and that of the file, where they differ."""
        stated, found = split_name(self.parts[-1])[1], split_name(self.path.name)[1]
        return (stated, found) if stated and stated != found else None

    @property
    def is_renamed(self) -> bool:
        """Whether the file's name differs otherwise than by its extension."""
        pairs = zip(reversed(self.parts[self.cut :]), reversed(self.path.parts), strict=False)
        return any(split_name(a)[0] not in (split_name(b)[0], b) for a, b in pairs)

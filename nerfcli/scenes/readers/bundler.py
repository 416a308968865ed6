"""Read Bundler's bundle.out and list.txt (also VisualSFM's and RealityCapture's export of them).

x_camera = R x_world + t with OpenGL's axes; a pixel is f (1 + k1 r^2 + k2 r^4) times (x, y) from
the image's middle, y up, with (x, y) = -(X, Y) / Z and r = |(x, y)|.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from nerfcli.cameras.lenses import Lens
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.readers.arrays import read_text
from nerfcli.scenes.readers.collector import Collector, Pinhole, find_images
from nerfcli.scenes.source import MOST_DISTANT, NoFrames, Points, Source

FILES = ("bundle.out", "bundle/bundle.out", "bundle.rd.out", "sfm/bundle.out")
LISTS = ("list.txt", "bundle.list.txt", "bundle.txt", "list_imgs.txt")
WORDS = re.compile(r"#[^\n]*|\S+")  # and comments
FOCAL = re.compile(r"\s+\d+\s+[\d.eE+-]+\s*$")  # that extract_focal adds to a name


def find_bundler(root: Path) -> Path | None:
    """Find the reconstruction in a folder."""
    return next((root / name for name in FILES if (root / name).is_file()), None)


def read_bundler(root: Path, path: Path, wanted: SceneConfig) -> Source:
    """Read cameras and points, and find the images that the list names.

    Raises:
        NerfError: a fault in the files; says at which camera or point.
    """
    if root.name == "bundle":  # given by its file; the images are beside the folder
        root = root.absolute().parent
    names = _list(root, path)
    numbers = _Numbers(path)
    n_cameras, n_points = numbers.take_counts(2, "the numbers of cameras and points")
    if n_cameras != len(names):
        raise NerfError(
            f"{path} has {n_cameras} cameras, and its list {len(names)} images; each camera needs "
            "one, in the same order."
        )
    pictures = find_images(root, names, wanted)
    collector = Collector(root, path, wanted, pictures=pictures)
    kept: list[str | None] = []
    unplaced = 0
    for i, name in enumerate(names):
        where = f"{path}, camera {i} ({name})"
        f, k1, k2, *rest = numbers.take(15, where)
        if f == 0:
            unplaced += 1
            kept.append(None)
            continue
        rotation, translation = np.array(rest[:9]).reshape(3, 3), np.array(rest[9:])
        pose = np.concatenate([rotation.T, (-rotation.T @ translation)[:, None]], axis=1)
        camera = Pinhole((f, f), lens=Lens.of("brown", k1=k1, k2=k2))
        kept.append(None)
        with collector.faults.collect():
            image = pictures.find(name)
            kept[-1] = collector.add(name, image, pose, camera, where, opengl=True)
    if unplaced:
        collector.notes.append(f"{unplaced} of {n_cameras} cameras are not part of the model")
    points = _read_points(numbers, n_points, n_cameras)
    source = collector.finish("bundler")
    return replace(source, points=_points(source, *points, kept))


def _list(root: Path, path: Path) -> list[str]:
    """Read the names of the images, without the focal length that may follow."""
    folders = dict.fromkeys((path.parent, path.parent.parent, root))
    named = (*LISTS, f"{path.stem}.list.txt", f"{path.name}.list.txt")
    for place in (folder / name for folder in folders for name in named):
        if place.is_file():
            lines = (line.strip() for line in read_text(place).split("\n"))
            return [FOCAL.sub("", line).removeprefix("./") for line in lines if line]
    raise NoFrames(
        f"{path} needs its list of images, a line for each camera. Looked for: {', '.join(LISTS)}."
    )


class _Numbers:
    """The numbers of a text file, one after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = (match[0] for match in WORDS.finditer(read_text(path)))
        self.words: Iterator[str] = (word for word in found if not word.startswith("#"))

    def take(self, n: int, what: str) -> list[float]:
        """Return the next n numbers, finite and not absurd."""
        values = []
        for _ in range(n):
            word = next(self.words, None)
            if word is None:
                raise NerfError(f"{what}: {self.path.name} ends before it; it is truncated.")
            try:
                values.append(float(word))
            except ValueError as error:
                raise NerfError(f"{what}: expected a number, got {word[:40]!r}.") from error
        if not (np.abs(values) < MOST_DISTANT).all():  # false for NaN
            raise NerfError(f"{what}: a value is not finite, or absurd.")
        return values

    def take_counts(self, n: int, what: str) -> list[int]:
        values = self.take(n, f"{self.path}: {what}")
        if not all(value >= 0 and value == int(value) for value in values):
            raise NerfError(f"{self.path}: {what} must be whole numbers, got {values}.")
        return [int(value) for value in values]


def _read_points(numbers: _Numbers, n_points: int, n_cameras: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the points [n, 6] (x, y, z, r, g, b), and the views [m, 4] (point, camera, x, y)."""
    points, views = array("d"), array("d")  # a list of lists would take ten times the memory
    for i in range(n_points):
        where = f"{numbers.path}, point {i}"
        points.extend(numbers.take(6, where))
        (n_views,) = numbers.take_counts(1, f"point {i}'s number of views")
        for _ in range(n_views):
            camera, _, x, y = numbers.take(4, where)
            if not (camera == int(camera) and 0 <= camera < n_cameras):
                raise NerfError(f"{where}: a view of camera {camera:g}, of {n_cameras} cameras.")
            views.extend((i, camera, x, y))
    return np.array(points).reshape(-1, 6), np.array(views).reshape(-1, 4)


def _points(
    source: Source, points: np.ndarray, views: np.ndarray, kept: list[str | None]
) -> Points | None:
    """Collect the points, and the views of frames that are part of the source."""
    if not len(points):
        return None
    index = {frame.name: i for i, frame in enumerate(source.frames)}
    frame_of = np.array([-1 if name is None else index[name] for name in kept], np.int64)
    frames = frame_of[views[:, 1].astype(np.int64)]
    views, frames = views[frames >= 0], frames[frames >= 0]
    middle = np.array([frame.principal for frame in source.frames])[frames]
    return Points(
        points[:, :3],
        points[:, 3:].clip(0, 255).astype(np.uint8),
        None,
        views[:, 0].astype(np.int64),
        frames,
        middle + views[:, 2:] * [1.0, -1.0],
    )

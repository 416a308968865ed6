"""Read Bundler's bundle.out and list.txt (also VisualSFM's and RealityCapture's export of them).

x_camera = R x_world + t with OpenGL's axes; a pixel is f (1 + k1 r^2 + k2 r^4) times (x, y) from
the image's middle, y up, with (x, y) = -(X, Y) / Z and r = |(x, y)|.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nerfcli.cameras.lenses import Lens
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.readers.arrays import read_numbers, read_text
from nerfcli.scenes.readers.collector import Collector, Pinhole, find_images
from nerfcli.scenes.source import NoFrames, Points, Source

FILES = ("bundle.out", "bundle/bundle.out", "bundle.rd.out", "sfm/bundle.out")
LISTS = ("list.txt", "bundle.list.txt", "bundle.txt", "list_imgs.txt")
MOST_BYTES = 2**30  # some ten thousand photos; reading takes several times as much memory
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
            f"{path} has {quantity(n_cameras, 'camera')}, and its list "
            f"{quantity(len(names), 'image')}; each camera needs "
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
    tracks = _read_points(numbers, n_points, n_cameras)
    del numbers  # as large as the file
    source = collector.finish("bundler")
    return replace(source, points=_points(source, tracks, kept))


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
        self.values = read_numbers(path, MOST_BYTES)
        self.at = 0

    def take(self, n: int, what: str) -> array[float]:
        """Return the next n numbers."""
        values = self.values[self.at : self.at + n]
        if len(values) < n:
            raise NerfError(f"{what}: {self.path.name} ends before it; it is truncated.")
        self.at += n
        return values

    def take_counts(self, n: int, what: str) -> list[int]:
        values = self.take(n, f"{self.path}: {what}")
        if not all(value >= 0 and value.is_integer() for value in values):
            raise NerfError(f"{self.path}: {what} must be whole numbers, got {list(values)}.")
        return [int(value) for value in values]


@dataclass(frozen=True)
class _Tracks:
    """The points, [n, 6] (x, y, z, r, g, b), and the views of them.

    Attributes:
        point, camera: [m] int64. xy: [m, 2], from the image's middle.
    """

    points: np.ndarray
    point: np.ndarray
    camera: np.ndarray
    xy: np.ndarray


def _read_points(numbers: _Numbers, n_points: int, n_cameras: int) -> _Tracks:
    """Read the points: six numbers each, their number of views, and four numbers for each view."""
    starts = array("q")
    for i in range(n_points):
        starts.append(numbers.at)
        numbers.at += 6
        (n_views,) = numbers.take_counts(1, f"point {i}'s number of views")
        numbers.at += 4 * n_views
    if numbers.at > len(numbers.values):
        numbers.take(1, f"{numbers.path}, point {n_points - 1}")
    values, first = np.frombuffer(numbers.values), np.frombuffer(starts, np.int64)
    counts = values[first + 6].astype(np.int64)
    point = np.repeat(np.arange(n_points), counts)
    earlier = np.cumsum(counts) - counts  # views of the points before
    view = (first + 7 - 4 * earlier)[point] + 4 * np.arange(len(point))
    camera = values[view]
    wrong = np.flatnonzero((camera != np.floor(camera)) | (camera < 0) | (camera >= n_cameras))
    if len(wrong):
        at = wrong[0]
        raise NerfError(
            f"{numbers.path}, point {point[at]}: a view of camera {camera[at]:g}, of {n_cameras} "
            "cameras."
        )
    points = values[first[:, None] + np.arange(6)]
    xy = np.stack([values[view + 2], values[view + 3]], axis=1)
    return _Tracks(points, point, camera.astype(np.int64), xy)


def _points(source: Source, tracks: _Tracks, kept: list[str | None]) -> Points | None:
    """Collect the points, and the views of frames that are part of the source."""
    if not len(tracks.points):
        return None
    index = {frame.name: i for i, frame in enumerate(source.frames)}
    frame_of = np.array([index.get(name or "", -1) for name in kept], np.int64)
    frames = frame_of[tracks.camera]
    is_kept = frames >= 0
    frames = frames[is_kept]
    middle = np.array([frame.principal for frame in source.frames])[frames]
    return Points(
        tracks.points[:, :3],
        tracks.points[:, 3:].clip(0, 255).astype(np.uint8),
        None,
        tracks.point[is_kept],
        frames,
        middle + tracks.xy[is_kept] * [1.0, -1.0],
    )

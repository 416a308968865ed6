"""Find which views show the same things, and where, from the images alone.

Poses only help to choose a few more pairs to match; they never influence what is matched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress, Update, ignore_update
from nerfcli.matching.features import RATIO, Features, find_features, match_features
from nerfcli.scenes.images import read_image
from nerfcli.scenes.scene import Scene

MAX_VIEWS = 300  # larger scenes are thinned evenly: neighbours are enough to judge a view
LARGEST, FEATURES = 1000, 1000  # pixels of the longer side, features of an image
SHORTLIST = 128  # coarsest features of each image, compared with those of all others
BY_IMAGE, BY_POSE = 4, 2  # neighbours of each view by appearance, and by pose
NEIGHBOURS = 8  # nearest matches that vote on a match: do they move along with it?
VOTES = 3  # votes that a match needs
SLACK = 0.5  # tolerated error of a neighbour's motion per distance: the scene is not flat
LEAST_MATCHES = 20  # of a pair; fewer may be chance


@dataclass(frozen=True)
class ImageAnalysis:
    """Features and statistics of one image.

    Attributes:
        features: in pixels of the scene's cameras.
        working_size: width and height at which the features were found.
        thumbnail: [16, 16] float32 grey in [0, 1], area means.
        contrast: standard deviation of grey.
        sharpness: standard deviation of the Laplacian over the contrast.
        reduced: [h, w] float32 grey at about an eighth of the size.
        size: width and height of the camera's image.
    """

    features: Features
    working_size: tuple[int, int]
    thumbnail: Tensor
    contrast: float
    sharpness: float
    reduced: Tensor
    size: tuple[int, int]

    def sample_brightness(self, xy: Tensor) -> Tensor:
        """Look up grey around pixels xy [m, 2]; returns [m] float64."""
        height, width = self.reduced.shape
        x = (xy[:, 0] / self.size[0] * width).long().clamp(0, width - 1)
        y = (xy[:, 1] / self.size[1] * height).long().clamp(0, height - 1)
        return self.reduced[y, x].double()


@dataclass(frozen=True)
class Matches:
    """Features that two views share, flat over all pairs of views.

    Attributes:
        pairs: [p, 2] int64 cameras.
        pair: [m] int64, index of each match's pair.
        xy: [m, 2, 2] float64, pixels in the first and second view.
    """

    pairs: Tensor
    pair: Tensor
    xy: Tensor

    @property
    def cameras(self) -> Tensor:
        """Cameras of each match, [m, 2] int64."""
        return self.pairs[self.pair]

    def __len__(self) -> int:
        return len(self.pair)


@dataclass(frozen=True)
class MatchedScene:
    """Everything that the check reads from a scene's images.

    Attributes:
        images: analyses by camera. unreadable: reasons by camera.
        analysed: cameras of `images`, in order.
        shared: [k, k] number of coarse features that each two of them share.
        matches: between pairs of cameras.
    """

    images: dict[int, ImageAnalysis]
    unreadable: dict[int, str]
    analysed: tuple[int, ...]
    shared: Tensor
    matches: Matches


def match_scene(scene: Scene, progress: Progress, max_views: int = MAX_VIEWS) -> MatchedScene:
    """Read images, find their features, and match similar and neighbouring views."""
    chosen = _choose_views(scene, max_views)
    with progress.another(len(chosen), "image", "look") as reporter:
        images, unreadable = analyse_images(
            scene, chosen, largest=LARGEST, limit=FEATURES, update=reporter.update
        )
    analysed = sorted(images)
    shared = count_shared_features([images[i].features for i in analysed])
    pairs = choose_pairs(shared, measure_pose_distances(scene, analysed))
    with progress.another(len(pairs), "pair", "match") as reporter:
        matches = match_pairs(
            images, [(analysed[a], analysed[b]) for a, b in pairs], reporter.update
        )
    return MatchedScene(images, unreadable, tuple(analysed), shared, matches)


def _choose_views(scene: Scene, limit: int) -> list[int]:
    """Choose at most `limit` cameras that have an image, evenly."""
    available = [i for i, path in enumerate(scene.image_paths) if path is not None]
    if len(available) <= limit:
        return available
    return [available[i] for i in np.linspace(0, len(available) - 1, limit).round().astype(int)]


def compute_working_scale(scene: Scene, images: dict[int, ImageAnalysis]) -> Tensor:
    """Divide working size by camera size, per camera; 1 where there is no analysis. [n_cameras]"""
    scale = torch.ones(len(scene.cameras), dtype=torch.float64)
    for i, image in images.items():
        scale[i] = image.working_size[0] / float(scene.cameras.size[i, 0])
    return scale


def analyse_images(
    scene: Scene,
    cameras: Sequence[int],
    *,
    largest: int,
    limit: int,
    update: Update = ignore_update,
) -> tuple[dict[int, ImageAnalysis], dict[int, str]]:
    """Read images, several at a time, and find their features.

    Args:
        largest: reduce images until their longer side has at most this many pixels.
        limit: largest number of features of an image.

    Returns:
        The analyses by camera, and the reasons why the other images cannot be read.
    """
    images: dict[int, ImageAnalysis] = {}
    unreadable: dict[int, str] = {}

    def analyse(camera: int) -> ImageAnalysis | str:
        try:
            return _analyse_image(scene, camera, largest, limit)
        except NerfError as error:
            return str(error)

    with _one_thread_each() as pool:
        for camera, result in zip(cameras, pool.map(analyse, cameras), strict=True):
            if isinstance(result, str):
                unreadable[camera] = result
            else:
                images[camera] = result
            update(len(images) + len(unreadable))
    return images, unreadable


def _analyse_image(scene: Scene, camera: int, largest: int, limit: int) -> ImageAnalysis:
    path = scene.image_paths[camera]
    if path is None:
        raise NerfError(f"{scene.names[camera]} has no image.")
    width, height = scene.cameras.size[camera].tolist()
    grey = _read_grey(path, scene.downscale, (width, height))
    working = grey
    if max(grey.shape) > largest:
        factor = largest / max(grey.shape)
        working = _resize(grey, round(grey.shape[1] * factor), round(grey.shape[0] * factor))
    image = torch.from_numpy(np.array(working))
    features = find_features(image, limit)
    ratio = torch.tensor([grey.shape[1] / working.shape[1], grey.shape[0] / working.shape[0]])
    features = Features(
        features.xy * ratio, features.scale * ratio[0], features.angle, features.descriptors
    )
    contrast = float(image.std())
    inner = image[1:-1, 1:-1]
    laplacian = image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:] - 4 * inner
    return ImageAnalysis(
        features,
        (image.shape[1], image.shape[0]),
        torch.from_numpy(_resize(grey, 16, 16)),
        contrast,
        float(laplacian.std()) / max(contrast, 1e-6),
        torch.from_numpy(_resize(grey, image.shape[1] // 8, image.shape[0] // 8)),
        (width, height),
    )


def _resize(grey: np.ndarray, width: int, height: int) -> np.ndarray:
    """Average an image [h, w] float32 down to a size of at least one pixel."""
    size = (max(width, 1), max(height, 1))
    return np.array(Image.fromarray(grey).resize(size, Image.Resampling.BOX))


def _read_grey(path: Path, downscale: int, size: tuple[int, int]) -> np.ndarray:
    """Read [height, width] float32 in [0, 1]; transparent pixels become white."""
    pixels = read_image(path, downscale, size).numpy().astype(np.float32) / 255
    rgb = pixels[..., :3]
    if pixels.shape[-1] == 4:
        rgb = rgb * pixels[..., 3:] + (1 - pixels[..., 3:])
    return rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def find_features_of_files(
    paths: Sequence[Path], update: Update, largest: int = 640, limit: int = 600
) -> list[Features]:
    """Find features of image files, read at reduced size, for `count_shared_features`."""

    def find(path: Path) -> Features:
        with Image.open(path) as image:
            image.draft("L", (largest, largest))
            grey = image.convert("L")
        grey.thumbnail((largest, largest))
        return find_features(torch.from_numpy(np.array(grey, dtype=np.float32) / 255), limit)

    results = []
    with _one_thread_each() as pool:
        for features in pool.map(find, paths):
            results.append(features)
            update(len(results))
    return results


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool: one image per thread is faster than one image on all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def count_shared_features(images: Sequence[Features]) -> Tensor:
    """Count how many of their coarsest features each two images share. -> [n, n]"""
    n = len(images)
    coarse = torch.zeros(n, SHORTLIST, images[0].descriptors.shape[1] if n else 128)
    for i, features in enumerate(images):
        chosen = features.scale.argsort(descending=True)[:SHORTLIST]
        coarse[i, : len(chosen)] = features.descriptors[chosen]
    shared = torch.zeros(n, n)
    rows = torch.arange(SHORTLIST)
    for i in range(n):
        similarity = torch.einsum("kd,nmd->nkm", coarse[i], coarse[i:])
        best, nearest = similarity.topk(2, dim=2)
        back = similarity.argmax(dim=1).gather(1, nearest[..., 0])
        first, second = (2 - 2 * best.clamp(max=1)).sqrt().unbind(-1)
        good = (back == rows) & (first < RATIO * second) & (best[..., 0] > 0.5)
        shared[i, i:] = shared[i:, i] = good.sum(1).float()
    return shared.fill_diagonal_(0)


def measure_pose_distances(scene: Scene, cameras: Sequence[int]) -> Tensor:
    """Measure how far views stand apart: distance over its median, plus twice the angle.

    Returns:
        [n, n], infinite on the diagonal.
    """
    rows = torch.tensor(list(cameras), dtype=torch.int64)
    positions, forwards = scene.cameras.positions[rows], scene.cameras.forwards[rows]
    distance = torch.cdist(positions, positions)
    angle = torch.acos((forwards @ forwards.T).clamp(-1, 1))
    unit = distance[distance > 0].median() if bool((distance > 0).any()) else distance.new_ones(())
    return (distance / unit + 2 * angle).fill_diagonal_(torch.inf)


def choose_pairs(shared: Tensor, distances: Tensor) -> list[tuple[int, int]]:
    """Pair each view with the views most similar and nearest to it.

    Args:
        shared, distances: [n, n].

    Returns:
        Sorted pairs of indices below n.
    """
    pairs = set()
    for i in range(len(shared)):
        similar = shared[i].argsort(descending=True, stable=True)[:BY_IMAGE].tolist()
        near = distances[i].argsort(stable=True)[:BY_POSE].tolist()
        pairs |= {(min(i, j), max(i, j)) for j in similar + near if i != j}
    return sorted(pairs)


def match_pairs(
    images: dict[int, ImageAnalysis],
    pairs: Sequence[tuple[int, int]],
    update: Update = ignore_update,
) -> Matches:
    """Match pairs of views; leave out pairs with fewer than LEAST_MATCHES."""
    kept, index, xy = [], [], []
    for done, (a, b) in enumerate(pairs, start=1):
        first, second = images[a].features, images[b].features
        matched = match_features(first, second)
        matched = matched[_move_together(first, second, matched)]
        update(done)
        if len(matched) < LEAST_MATCHES:
            continue
        index.append(torch.full((len(matched),), len(kept)))
        kept.append((a, b))
        xy.append(torch.stack([first.xy[matched[:, 0]], second.xy[matched[:, 1]]], dim=1))
    if not kept:
        none = torch.zeros(0, dtype=torch.int64)
        return Matches(none.reshape(0, 2), none, torch.zeros(0, 2, 2, dtype=torch.float64))
    return Matches(torch.tensor(kept), torch.cat(index), torch.cat(xy))


def _move_together(a: Features, b: Features, pairs: Tensor) -> Tensor:
    """Test whether a match's neighbours move as its own scale and rotation predict. [m] bool"""
    if len(pairs) <= NEIGHBOURS:
        return torch.zeros(len(pairs), dtype=torch.bool)
    i, j = pairs.unbind(-1)
    before, after = a.xy[i], b.xy[j]
    near = torch.cdist(before, before).fill_diagonal_(torch.inf)
    near = near.topk(NEIGHBOURS, largest=False).indices
    size, turn = (b.scale[j] / a.scale[i])[:, None], (b.angle[j] - a.angle[i])[:, None]
    u, v = (before[near] - before[:, None]).unbind(-1)
    cos, sin = size * torch.cos(turn), size * torch.sin(turn)
    expected = torch.stack([cos * u - sin * v, sin * u + cos * v], dim=-1)
    actual = after[near] - after[:, None]
    reach = torch.maximum(expected.norm(dim=-1), actual.norm(dim=-1)) + 4.0
    return ((expected - actual).norm(dim=-1) < SLACK * reach).sum(1) >= VOTES

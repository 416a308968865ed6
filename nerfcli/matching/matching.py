"""What the images alone say: which views show the same things, and where.

Poses are used for nothing but the choice of a few more pairs to look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nerfcli.core.errors import NerfError
from nerfcli.matching.features import RATIO, Features, find_features, match_features
from nerfcli.scenes.images import read_image
from nerfcli.scenes.scene import Scene

SHORTLIST = 128  # coarsest features of each image, compared with those of all others
BY_IMAGE, BY_POSE = 4, 2  # neighbours of each view by what it shows, and by where it stands
NEIGHBOURS = 8  # matches around a match that are asked whether they move along with it
VOTES = 3  # of them must
SLACK = 0.5  # of a neighbour's distance: by how much it may miss, for the scene is not flat
LEAST_MATCHES = 20  # of a pair; fewer may be chance


@dataclass(frozen=True)
class Look:
    """One image as far as the check needs it.

    Attributes:
        features: in pixels of the scene's cameras.
        working: width and height at which the features were found.
        thumbnail: [16, 16] float32 grey in [0, 1]: area means.
        contrast: standard deviation of grey.
        sharpness: standard deviation of the Laplacian over the contrast.
        small: [h, w] float32 grey at about an eighth of the size. size: of the camera's image.
    """

    features: Features
    working: tuple[int, int]
    thumbnail: Tensor
    contrast: float
    sharpness: float
    small: Tensor
    size: tuple[int, int]

    def brightness(self, xy: Tensor) -> Tensor:
        """Grey around pixels xy [m, 2] -> [m] float64."""
        height, width = self.small.shape
        x = (xy[:, 0] / self.size[0] * width).long().clamp(0, width - 1)
        y = (xy[:, 1] / self.size[1] * height).long().clamp(0, height - 1)
        return self.small[y, x].double()


@dataclass(frozen=True)
class Matches:
    """Features that two views share; flat over all pairs of views.

    Attributes:
        pairs: [p, 2] int64 cameras.
        pair: [m] int64, which pair a match belongs to.
        xy: [m, 2, 2] float64, pixels in the first and second view.
    """

    pairs: Tensor
    pair: Tensor
    xy: Tensor

    @property
    def cameras(self) -> Tensor:
        """[m, 2] int64."""
        return self.pairs[self.pair]

    def __len__(self) -> int:
        return len(self.pair)


def look_at_images(
    scene: Scene,
    cameras: Sequence[int],
    *,
    largest: int,
    limit: int,
    step: Callable[[], object] = lambda: None,
) -> tuple[dict[int, Look], dict[int, str]]:
    """Read images, several at a time, and find their features.

    Args:
        largest: images are reduced until their longer side is at most this many pixels.
        limit: features of an image.
        step: called after each image.

    Returns:
        The looks, and for images that cannot be read the reason; both by camera.
    """
    looks, faults = {}, {}

    def one(camera: int) -> Look | str:
        try:
            return _look(scene, camera, largest, limit)
        except NerfError as error:
            return str(error)

    with _one_thread_each() as pool:
        for camera, found in zip(cameras, pool.map(one, cameras), strict=True):
            if isinstance(found, str):
                faults[camera] = found
            else:
                looks[camera] = found
            step()
    return looks, faults


def _look(scene: Scene, camera: int, largest: int, limit: int) -> Look:
    path = scene.image_paths[camera]
    if path is None:
        raise NerfError(f"{scene.names[camera]} has no image.")
    width, height = scene.cameras.size[camera].tolist()
    grey = _grey(path, scene.downscale, (width, height))
    working = grey
    if max(grey.shape) > largest:
        factor = largest / max(grey.shape)
        size = (max(round(grey.shape[1] * factor), 1), max(round(grey.shape[0] * factor), 1))
        working = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))
    image = torch.from_numpy(np.array(working))
    features = find_features(image, limit)
    ratio = torch.tensor([grey.shape[1] / working.shape[1], grey.shape[0] / working.shape[0]])
    moved = Features(
        features.xy * ratio, features.scale * ratio[0], features.angle, features.descriptors
    )
    thumbnail = np.array(Image.fromarray(grey).resize((16, 16), Image.Resampling.BOX))
    spread = float(image.std())
    inner = image[1:-1, 1:-1]
    bend = image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:] - 4 * inner
    sharpness = float(bend.std()) / max(spread, 1e-6)
    eighth = (max(image.shape[1] // 8, 1), max(image.shape[0] // 8, 1))
    coarse = np.array(Image.fromarray(grey).resize(eighth, Image.Resampling.BOX))
    return Look(
        moved,
        (image.shape[1], image.shape[0]),
        torch.from_numpy(thumbnail),
        spread,
        sharpness,
        torch.from_numpy(coarse),
        (width, height),
    )


def _grey(path: Path, downscale: int, size: tuple[int, int]) -> np.ndarray:
    """[height, width] float32 in [0, 1]; transparent pixels become white."""
    pixels = read_image(path, downscale, size).numpy().astype(np.float32) / 255
    rgb = pixels[..., :3]
    if pixels.shape[-1] == 4:
        rgb = rgb * pixels[..., 3:] + (1 - pixels[..., 3:])
    return rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def features_of_files(
    paths: Sequence[Path], done: Callable[[int], object], largest: int = 640, limit: int = 600
) -> list[Features]:
    """Features of image files, for `likeness`; reads them reduced."""

    def one(path: Path) -> Features:
        with Image.open(path) as image:
            image.draft("L", (largest, largest))
            grey = image.convert("L")
        grey.thumbnail((largest, largest))
        return find_features(torch.from_numpy(np.array(grey, dtype=np.float32) / 255), limit)

    found = []
    with _one_thread_each() as pool:
        for features in pool.map(one, paths):
            found.append(features)
            done(len(found))
    return found


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool; one image a thread is faster than one image on all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def likeness(looks: Sequence[Features]) -> Tensor:
    """How many of their coarsest features each two images share. -> [n, n]"""
    n = len(looks)
    coarse = torch.zeros(n, SHORTLIST, looks[0].descriptors.shape[1] if n else 128)
    for i, features in enumerate(looks):
        chosen = features.scale.argsort(descending=True)[:SHORTLIST]
        coarse[i, : len(chosen)] = features.descriptors[chosen]
    shared = torch.zeros(n, n)
    rows = torch.arange(SHORTLIST)
    for i in range(n):
        similarity = torch.einsum("kd,nmd->nkm", coarse[i], coarse[i:])
        best, where = similarity.topk(2, dim=2)
        back = similarity.argmax(dim=1).gather(1, where[..., 0])
        near, second = (2 - 2 * best.clamp(max=1)).sqrt().unbind(-1)
        good = (back == rows) & (near < RATIO * second) & (best[..., 0] > 0.5)
        shared[i, i:] = shared[i:, i] = good.sum(1).float()
    return shared.fill_diagonal_(0)


def nearness(scene: Scene, cameras: Sequence[int]) -> Tensor:
    """How far views stand apart: distance in units of the median one plus angle. -> [n, n]"""
    rows = torch.tensor(list(cameras), dtype=torch.int64)
    positions, forwards = scene.cameras.positions[rows], scene.cameras.forwards[rows]
    distance = torch.cdist(positions, positions)
    angle = torch.acos((forwards @ forwards.T).clamp(-1, 1))
    unit = distance[distance > 0].median() if bool((distance > 0).any()) else distance.new_ones(())
    return (distance / unit + 2 * angle).fill_diagonal_(torch.inf)


def choose_pairs(shared: Tensor, apart: Tensor) -> list[tuple[int, int]]:
    """Each view with those most like it and those nearest to it, as positions in the lists."""
    pairs = set()
    for i in range(len(shared)):
        alike = shared[i].argsort(descending=True, stable=True)[:BY_IMAGE].tolist()
        near = apart[i].argsort(stable=True)[:BY_POSE].tolist()
        pairs |= {(min(i, j), max(i, j)) for j in alike + near if i != j}
    return sorted(pairs)


def shared_matches(
    looks: dict[int, Look],
    pairs: Sequence[tuple[int, int]],
    step: Callable[[], object] = lambda: None,
) -> Matches:
    """Match pairs of views; pairs with fewer than LEAST_MATCHES are left out."""
    kept, index, places = [], [], []
    for a, b in pairs:
        first, second = looks[a].features, looks[b].features
        found = match_features(first, second)
        found = found[_move_together(first, second, found)]
        step()
        if len(found) < LEAST_MATCHES:
            continue
        index.append(torch.full((len(found),), len(kept)))
        kept.append((a, b))
        places.append(torch.stack([first.xy[found[:, 0]], second.xy[found[:, 1]]], dim=1))
    if not kept:
        none = torch.zeros(0, dtype=torch.int64)
        return Matches(none.reshape(0, 2), none, torch.zeros(0, 2, 2, dtype=torch.float64))
    return Matches(torch.tensor(kept), torch.cat(index), torch.cat(places))


def _move_together(a: Features, b: Features, pairs: Tensor) -> Tensor:
    """Whether a match's neighbours go where its own scale and turn would take them. [m] bool."""
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
    found = after[near] - after[:, None]
    reach = torch.maximum(expected.norm(dim=-1), found.norm(dim=-1)) + 4.0
    return ((expected - found).norm(dim=-1) < SLACK * reach).sum(1) >= VOTES

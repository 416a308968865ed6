"""From photos or a video to a scene: the stages, what is remembered of them, and the verdict."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.core.files import read_json, write_json
from nerfcli.core.progress import Progress
from nerfcli.prepare import frames, photos
from nerfcli.prepare import sfm as motion
from nerfcli.prepare.normalise import placed
from nerfcli.prepare.options import LENSES, RECORD, WORK, Wish, asked_for, ensure_same
from nerfcli.prepare.photos import Photo
from nerfcli.prepare.sfm import Motion, Stopped
from nerfcli.scenes.readers.colmap import read_colmap
from nerfcli.scenes.source import Source
from nerfcli.scenes.writers.transforms import write_transforms

UNDISTORTED = "undistorted"  # in WORK, from when the scene's images begin to be replaced
SMALL = 600  # pixels of the longer side below which images are enlarged for matching
EXHAUSTIVE = 60  # photos up to which every pair is matched
ALIKE, OVERLAP = 20, 10  # otherwise: most similar images of each, and neighbours in order
ENOUGH = 0.5  # of the images: with fewer registered, the scene is not what was photographed


@dataclass(frozen=True)
class _Folder:
    """The scene to be, and the files of the stages in it."""

    out: Path
    wish: Wish
    thing: Path
    progress: Progress
    stopped: Callable[[], bool]

    @property
    def images(self) -> Path:
        return self.out / "images"

    @property
    def work(self) -> Path:
        return self.out / WORK

    def begin(self) -> None:
        """Remember what the folder is made of, or see that it is the same as then."""
        record = self.work / "wish.json"
        if record.is_file():
            ensure_same(self.out, read_json(record), self.thing, self.wish)
            if (self.work / UNDISTORTED).exists():  # stopped while the images were replaced
                shutil.rmtree(self.images, ignore_errors=True)
            return
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(record, asked_for(self.thing, self.wish))


def prepare_scene(
    thing: Path, out: Path, wish: Wish, progress: Progress, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Make the scene `out`, or go on making it; returns the verdict.

    Raises:
        NerfError: nothing usable, or structure from motion found nothing.
        Stopped: the user asked to stop; the same call goes on.
    """
    motion.load_pycolmap()
    start = time.monotonic()
    folder = _Folder(out, wish, thing, progress, stopped)
    folder.begin()
    taken, failed, in_order = _images(folder)
    if len(taken) < 3:
        raise NerfError(f"only {len(taken)} images can be read: {_first(failed)}")
    if wish.undistort and any(photo.has_alpha for photo in taken):
        raise NerfError(
            "--undistort would lose the images' transparency; leave it out, the lens is kept."
        )
    place = _flattened(folder, taken)
    names = [photo.name for photo in taken]
    # one camera for all if nothing speaks against it: shared intrinsics are better determined
    shared = len({(photo.size, photo.exif) for photo in taken}) == 1
    with progress.another(len(names), "image", "features") as reporter:
        motion.extract(place, names, LENSES[wish.lens], shared=shared, progress=reporter)
    _match(folder, place, names, in_order)
    with progress.another(len(names), "image", "poses") as reporter:
        models = motion.reconstruct(place, len(names), reporter)
    best = models[0]
    source = _written(folder, place, best)
    verdict = _verdict(folder, names, failed, models, source, place)
    verdict["asked"] = asked_for(thing, wish)
    verdict["seconds"] = round(time.monotonic() - start, 1)
    write_json(out / RECORD, verdict)
    shutil.rmtree(folder.work, ignore_errors=True)
    return verdict


def _first(failed: dict[str, str]) -> str:
    return "; ".join(f"{name} {reason}" for name, reason in list(failed.items())[:3]) or "none"


def _images(folder: _Folder) -> tuple[list[Photo], dict[str, str], bool]:
    """The scene's images/, those that cannot be used, and whether their order is one in time."""
    thing, progress = folder.thing, folder.progress
    if thing.is_file():
        origin = folder.work / "frames"
        if not origin.is_dir():
            origin = _video_frames(folder, origin)
        names = photos.find_photos(origin)
    else:
        origin = thing
        names = photos.find_photos(thing)
    with progress.another(len(names), "image", "copy") as reporter:
        taken, failed = photos.take_photos(origin, names, folder.images, reporter.update)
    return taken, failed, thing.is_file()


def _video_frames(folder: _Folder, place: Path) -> Path:
    """All frames, or none: half of them would not be evenly spread."""
    aside = place.with_name("frames.part")
    shutil.rmtree(aside, ignore_errors=True)
    total = frames.count_frames(folder.thing) or None
    with folder.progress.another(total, "frame", "video") as reporter:
        frames.take_frames(folder.thing, aside, folder.wish.frames, reporter.update, folder.stopped)
    if folder.stopped():
        raise Stopped
    aside.rename(place)
    return place


def _flattened(folder: _Folder, taken: Sequence[Photo]) -> Motion:
    """Where structure from motion reads: the images, or opaque or enlarged copies of them."""
    has_alpha = any(photo.has_alpha for photo in taken)
    zoom = _zoom([photo.size for photo in taken])
    if zoom == 1 and not has_alpha:
        return Motion(folder.images, None, folder.work, folder.stopped)
    flat, masks = folder.work / "flat", folder.work / "masks" if has_alpha else None
    for photo in taken:
        photos.flatten(folder.images, photo, flat, masks, zoom)
    return Motion(flat, masks, folder.work, folder.stopped)


def _zoom(sizes: Sequence[tuple[int, int]]) -> int:
    """SIFT's smallest features span several pixels: a small image shows hardly any of them."""
    largest = max(map(max, sizes))
    return -(-SMALL // largest) if largest < SMALL else 1


def _match(folder: _Folder, place: Motion, names: Sequence[str], in_order: bool) -> None:
    progress, n = folder.progress, len(names)
    if n <= EXHAUSTIVE and not in_order:
        with progress.another(n * (n - 1) // 2, "pair", "match") as reporter:
            motion.match_all(place, reporter)
        return
    pairs = _likely_pairs(folder, place, names)
    with progress.another(len(pairs), "pair", "match") as reporter:
        motion.match(place, pairs, reporter)


def _likely_pairs(folder: _Folder, place: Motion, names: Sequence[str]) -> list[tuple[str, str]]:
    """Each image with its neighbours in order, far ones in doubling steps, and with its likes."""
    from nerfcli.matching.matching import features_of_files, likeness

    with folder.progress.another(len(names), "image", "compare") as reporter:
        found = features_of_files([place.images / name for name in names], reporter.update)
    shared = likeness(found)
    pairs: set[tuple[int, int]] = set()
    steps = [*range(1, OVERLAP + 1), *(2**k for k in range(4, 12))]
    for i in range(len(names)):
        near = [i + step for step in steps if i + step < len(names)]
        alike = shared[i].argsort(descending=True)[:ALIKE].tolist()
        pairs |= {(min(i, j), max(i, j)) for j in near + alike if i != j}
    return [(names[a], names[b]) for a, b in sorted(pairs)]


def _written(folder: _Folder, place: Motion, best: Any) -> Source:
    """Write transforms.json, the points and the pyramid; returns the scene in its own frame."""
    model = folder.work / "model"
    model.mkdir(exist_ok=True)
    best.write_binary(str(model))
    if folder.wish.undistort:
        model = _undistorted(folder, place, model)
    source = placed(read_colmap(folder.out, model))
    names = [f"images/{frame.name}" for frame in source.frames]
    nothing: list[str | None] = [None] * len(names)
    write_transforms(source, names, nothing, nothing, folder.out)
    if folder.wish.pyramid:
        photos.write_pyramid(folder.images, folder.out, folder.wish.pyramid)
    return source


def _undistorted(folder: _Folder, place: Motion, model: Path) -> Path:
    """Replace images/ by pinhole images of the registered views; returns their model."""
    target, pycolmap = folder.work / UNDISTORTED, motion.load_pycolmap()
    shutil.rmtree(target, ignore_errors=True)
    if place.images != folder.images:  # its cameras are of enlarged copies
        found = pycolmap.Reconstruction(str(model))
        for image in found.images.values():
            with Image.open(folder.images / image.name) as stored:
                image.camera.rescale(*stored.size)
        model = folder.work / "model_stored"
        model.mkdir(exist_ok=True)
        found.write_binary(str(model))
    pycolmap.undistort_images(target, model, folder.images)
    shutil.rmtree(folder.images)
    (target / "images").rename(folder.images)
    return target / "sparse"


def _verdict(
    folder: _Folder,
    names: Sequence[str],
    failed: dict[str, str],
    models: Sequence[Any],
    source: Source,
    place: Motion,
) -> dict[str, Any]:
    best = models[0]
    inside = {image.name for image in best.images.values() if image.has_pose}
    elsewhere = {
        image.name for model in models[1:] for image in model.images.values() if image.has_pose
    }
    counts = motion.matched_counts(place.database)
    lost = dict(failed)
    for name in names:
        if name not in inside:
            lost[name] = _why(*counts.get(name, (0, 0)), name in elsewhere)
    focal = np.array([frame.focal[0] for frame in source.frames])
    total = len(names) + len(failed)
    enough = len(inside) >= max(3, ENOUGH * total)
    return {
        "scene": str(folder.out),
        "images": total,
        "registered": len(inside),
        "enough": enough,
        "reprojection_px": best.compute_mean_reprojection_error(),
        "points": best.num_points3D(),
        "track_length": best.compute_mean_track_length(),
        "models": [model.num_reg_images() for model in models],
        "focal_px": float(np.median(focal)),
        "applied_scale": source.applied_scale,
        "failed": lost,
    }


def _why(features: int, matched: int, elsewhere: bool) -> str:
    if elsewhere:
        return "belongs to another part of the capture, which nothing joins to the largest"
    if features < 100:
        return f"shows too little texture ({features} features)"
    if matched == 0:
        return "shares too little with any other image"
    return f"matches {matched} other image{'s' if matched > 1 else ''}, but its pose was not found"

"""Turn photos or a video into a scene: run the stages, keep their results, write the record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing_folder, write_json
from nerfcli.core.progress import Progress
from nerfcli.core.text import quantity
from nerfcli.prepare import frames, photos, sfm
from nerfcli.prepare.masks import MASKS, find_masks, take_masks
from nerfcli.prepare.normalise import normalise
from nerfcli.prepare.options import (
    EQUIRECTANGULAR,
    LENSES,
    MASKED,
    RECORD,
    REQUEST,
    WORK,
    PrepareOptions,
    describe_request,
    ensure_same_request,
    read_record,
    remove_made,
)
from nerfcli.prepare.panoramas import N_VIEWS, cut_panoramas, view_rotations
from nerfcli.prepare.photos import Photo
from nerfcli.scenes.photo_formats import list_unreadable
from nerfcli.scenes.readers.colmap import read_colmap
from nerfcli.scenes.readers.listings import list_files
from nerfcli.scenes.source import Source
from nerfcli.scenes.writers.transforms import write_transforms

FAILED = "failed"  # in the record of what is asked for: the attempt ended with an error
MODELS, PINHOLE = "models", "pinhole"  # in WORK, once whole: what is found, undistorted images
SMALL = 600  # pixels of the longer side below which images are enlarged for matching
EXHAUSTIVE = 60  # photos up to which every pair is matched
SIMILAR, OVERLAP = 20, 10  # otherwise: most similar images of each, and neighbours in order
ENOUGH = 0.5  # of the images: with fewer registered, the scene is not what was photographed


@dataclass(frozen=True)
class _Job:
    """A scene in the making.

    Attributes:
        capture: a folder of photos, or a video file. out: the scene's folder.
        is_stopped: whether the user has stopped the command.
    """

    capture: Path
    out: Path
    options: PrepareOptions
    progress: Progress
    is_stopped: Callable[[], bool]

    @property
    def images(self) -> Path:
        """The scene's images, as they are to be trained on."""
        return self.out / "images"

    @property
    def masks(self) -> Path:
        """The folder of the photos' masks."""
        return self.out / MASKS

    @property
    def photos(self) -> Path:
        """The folder of the images that poses are sought of."""
        return self.work / "photos" if self.options.undistort else self.images

    @property
    def is_panoramic(self) -> bool:
        return self.options.lens == EQUIRECTANGULAR

    @property
    def work(self) -> Path:
        return self.out / WORK

    @property
    def record(self) -> Path:
        """Says what the folder is made from, while it is made."""
        return self.work / REQUEST

    def begin(self) -> None:
        """Record what the folder is made from, or ensure that it is the same as before."""
        request = describe_request(self.capture, self.options)
        if self.record.is_file():
            before = read_record(self.record)
            failed = before.pop(FAILED, False)
            if not failed:
                ensure_same_request(self.out, before, self.capture, self.options)
                return
            if before != request:
                self.progress.note(f"{before.get('from')} failed here: starting anew")
                remove_made(self.out)
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(self.record, request)

    def give_up(self) -> None:
        """Leave nothing after a failure that would refuse another attempt, and no empty folder."""
        if any(folder.is_dir() for folder in (self.images, self.photos)):
            write_json(self.record, read_record(self.record) | {FAILED: True})
            return
        remove_made(self.out)
        with suppress(OSError):  # it holds something else
            self.out.rmdir()


def prepare_scene(
    capture: Path,
    out: Path,
    options: PrepareOptions,
    progress: Progress,
    is_stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Make the scene `out`, or continue to make it; return its record.

    Args:
        capture: a folder of photos, or a video file.
        is_stopped: whether the user has stopped the command.

    Raises:
        NerfError: nothing usable, or structure from motion found no model.
        Stopped: the user stopped the command; the same call continues.
    """
    sfm.load_pycolmap()
    job = _Job(capture, out, options, progress, is_stopped)
    job.begin()
    try:
        return _make_scene(job)
    except sfm.Stopped:
        raise
    except Exception:
        job.give_up()
        raise


def _make_scene(job: _Job) -> dict[str, Any]:
    """Run the stages that are not finished; return the record."""
    start, options, progress = time.monotonic(), job.options, job.progress
    taken, failed = _take_images(job)
    if len(taken) < 3:
        reasons = [f"{name} {reason}" for name, reason in list(failed.items())[:3]]
        raise NerfError(
            f"only {quantity(len(taken), 'image')} can be read: {'; '.join(reasons) or 'none'}"
        )
    if options.undistort and any(photo.has_alpha for photo in taken):
        raise NerfError(
            "--undistort would lose the images' transparency; leave it out, the lens is kept."
        )
    masks = job.masks if (job.work / MASKED).exists() else None
    if masks is not None and options.undistort:
        raise NerfError("--undistort takes no masks; leave it out, the lens is kept.")
    workspace = _make_workspace(job, taken, masks)
    names = [photo.name for photo in taken]
    # share one camera unless sizes or lenses differ: shared intrinsics are better determined
    shared = len({(photo.size, photo.exif) for photo in taken}) == 1
    with progress.another(len(names), "image", "features") as reporter:
        sfm.extract_features(
            workspace, names, LENSES[options.lens], shared=shared, progress=reporter
        )
    _match_images(job, workspace, names)
    models = _find_models(job, workspace, len(names))
    source = _write_scene(job, workspace)
    record = _make_record(job, names, failed, models, source, workspace)
    record["asked"] = describe_request(job.capture, options)
    record["seconds"] = round(time.monotonic() - start, 1)
    write_json(job.out / RECORD, record)
    shutil.rmtree(job.work, ignore_errors=True)
    return record


def _take_images(job: _Job) -> tuple[list[Photo], dict[str, str]]:
    """Fill the scene's images/; return the photos, and by name the reasons why others failed."""
    folder = _take_frames(job) if job.capture.is_file() else job.capture
    names = photos.find_photos(folder, job.progress.note)
    _ensure_packages(names, job.progress)
    copies = job.work / "panoramas" if job.is_panoramic else job.photos
    with job.progress.another(len(names), "image", "copy") as reporter:
        taken, failed = photos.take_photos(folder, names, copies, reporter.update)
    if failed and len(taken) >= 3:
        name, reason = next(iter(failed.items()))
        job.progress.note(f"{quantity(len(failed), 'image')} left out: {name} {reason}")
    if job.is_panoramic and len(taken) >= 3:
        with job.progress.another(len(taken), "image", "cut") as reporter:
            return cut_panoramas(copies, taken, job.photos, reporter.update), failed
    _take_masks(job, folder, names, taken, failed)
    return taken, failed


def _ensure_packages(names: Sequence[str], progress: Progress) -> None:
    """Raise NerfError where a package is missing that most of the photos need; remark on fewer."""
    lacking, how = list_unreadable(names)
    if not lacking:
        return
    what = f"{len(lacking)} of {len(names)} photos cannot be read ({how})"
    if 2 * len(lacking) > len(names):
        raise NerfError(f"{what}. Install it, or take them out of the folder.")
    progress.note(what)


def _take_masks(
    job: _Job, folder: Path, names: Sequence[str], taken: Sequence[Photo], failed: dict[str, str]
) -> None:
    """Write the masks of the photos, if there are any, and leave a mark that there are."""
    given, beside = job.options.masks, folder / MASKS
    if given is None and not beside.is_dir():
        return
    if given is None:
        job.progress.note(f"{beside} is taken for masks: what is black there is ignored")
    place = beside if given is None else Path(given)
    used = [name for name in names if name not in failed]
    found = find_masks(place, used, job.progress.note)
    (job.work / MASKED).touch()
    take_masks(found, dict(zip(used, taken, strict=True)), job.masks, job.progress.note)


def _take_frames(job: _Job) -> Path:
    """Take the frames of a video, all or none: half of them would not be evenly spread."""
    folder = job.work / "frames"
    if folder.is_dir():
        return folder
    total = frames.count_frames(job.capture) or None
    with (
        replacing_folder(folder) as aside,
        job.progress.another(total, "frame", "video") as reporter,
    ):
        frames.take_frames(
            *(job.capture, aside, job.options.frames, reporter.update, job.is_stopped),
            note=reporter.note,
        )
        if job.is_stopped():
            raise sfm.Stopped
    return folder


def _make_workspace(job: _Job, taken: Sequence[Photo], given: Path | None) -> sfm.Workspace:
    """Choose the images for structure from motion, or make opaque or enlarged copies of them."""
    has_alpha = any(photo.has_alpha for photo in taken)
    zoom = _choose_zoom([photo.size for photo in taken])
    rig = view_rotations() if job.is_panoramic else None
    if zoom == 1 and not has_alpha:
        return sfm.Workspace(job.photos, given, job.work, job.is_stopped, rig)
    flat, masks = job.work / "flat", job.work / "masks" if has_alpha or given else None
    for photo in taken:
        photos.flatten(job.photos, photo, flat, masks, zoom, given)
    return sfm.Workspace(flat, masks, job.work, job.is_stopped, rig, zoom)


def _choose_zoom(sizes: Sequence[tuple[int, int]]) -> int:
    """Enlarge small images: SIFT's smallest features span several pixels."""
    largest = max(map(max, sizes))
    return -(-SMALL // largest) if largest < SMALL else 1


def _match_images(job: _Job, workspace: sfm.Workspace, names: Sequence[str]) -> None:
    n, is_video = len(names), job.capture.is_file()
    if n <= EXHAUSTIVE and not is_video:
        with job.progress.another(n * (n - 1) // 2, "pair", "match") as reporter:
            sfm.match_exhaustively(workspace, reporter)
        return
    pairs = _choose_pairs(job, workspace, names)
    with job.progress.another(len(pairs), "pair", "match") as reporter:
        sfm.match_pairs(workspace, pairs, reporter)


def _choose_pairs(
    job: _Job, workspace: sfm.Workspace, names: Sequence[str]
) -> list[tuple[str, str]]:
    """Pair each image with its neighbours in order, in steps that double, and with similar ones."""
    from nerfcli.matching.matching import count_shared_features, find_features_of_files

    with job.progress.another(len(names), "image", "compare") as reporter:
        paths = [workspace.images / name for name in names]
        features = find_features_of_files(paths, reporter.update)
    shared = count_shared_features(features)
    pairs: set[tuple[int, int]] = set()
    step = N_VIEWS if job.is_panoramic else 1  # to the same view of the next panorama
    steps = [step * n for n in (*range(1, OVERLAP + 1), *(2**k for k in range(4, 12)))]
    for i in range(len(names)):
        near = [i + step for step in steps if i + step < len(names)]
        similar = shared[i].argsort(descending=True)[:SIMILAR].tolist()
        pairs |= {(min(i, j), max(i, j)) for j in near + similar if i != j}
    return [(names[a], names[b]) for a, b in sorted(pairs)]


def _find_models(job: _Job, workspace: sfm.Workspace, n_images: int) -> list[Any]:
    """Find the models, or read those that an earlier run found; the largest comes first."""
    folder = job.work / MODELS
    if not folder.is_dir():
        with job.progress.another(n_images, "image", "poses") as reporter:
            models = sfm.reconstruct(workspace, n_images, reporter)
        with replacing_folder(folder) as aside:
            for i, model in enumerate(models):
                (aside / str(i)).mkdir()
                model.write_binary(str(aside / str(i)))
    pycolmap = sfm.load_pycolmap()
    n_models = len(list_files(folder, "*"))
    return [pycolmap.Reconstruction(str(folder / str(i))) for i in range(n_models)]


def _write_scene(job: _Job, workspace: sfm.Workspace) -> Source:
    """Write transforms.json, the points and the pyramid; return the normalised scene."""
    model = job.work / MODELS / "0"
    if job.options.undistort:
        model = _undistort(job, workspace, model)
    source = normalise(read_colmap(job.out, model))
    names = [f"images/{frame.name}" for frame in source.frames]
    masks = [f"{MASKS}/{frame.name}.png" if frame.mask else None for frame in source.frames]
    write_transforms(source, names, masks, [None] * len(names), job.out)
    if job.options.pyramid:
        photos.write_pyramid(job.images, job.out, job.options.pyramid)
    return source


def _undistort(job: _Job, workspace: sfm.Workspace, model: Path) -> Path:
    """Write pinhole images of the registered views to images/; return their model's folder."""
    folder, pycolmap = job.work / PINHOLE, sfm.load_pycolmap()
    if not folder.is_dir():
        if workspace.images != job.photos:  # the model's cameras belong to enlarged copies
            reconstruction = pycolmap.Reconstruction(str(model))
            for image in reconstruction.images.values():
                with Image.open(job.photos / image.name) as stored:
                    image.camera.rescale(*stored.size)
            model = job.work / "model_stored"
            model.mkdir(exist_ok=True)
            reconstruction.write_binary(str(model))
        with replacing_folder(folder) as aside:
            pycolmap.undistort_images(aside, model, job.photos)
    if (folder / "images").is_dir():  # not yet moved
        shutil.rmtree(job.images, ignore_errors=True)
        (folder / "images").rename(job.images)
    return folder / "sparse"


def _make_record(
    job: _Job,
    names: Sequence[str],
    failed: dict[str, str],
    models: Sequence[Any],
    source: Source,
    workspace: sfm.Workspace,
) -> dict[str, Any]:
    """Summarise the result as JSON: registered images, errors, and why images failed."""
    best = models[0]
    registered = {image.name for image in best.images.values() if image.has_pose}
    elsewhere = {
        image.name for model in models[1:] for image in model.images.values() if image.has_pose
    }
    counts = sfm.count_matches(workspace.database)
    reasons = dict(failed)
    for name in names:
        if name not in registered:
            reasons[name] = _explain_failure(*counts.get(name, (0, 0)), name in elsewhere)
    total = len(names) + len(failed)
    return {
        "scene": str(job.out),
        "images": total,
        "registered": len(registered),
        "enough": len(registered) >= max(3, ENOUGH * total),
        "reprojection_px": best.compute_mean_reprojection_error() / workspace.zoom,
        "points": best.num_points3D(),
        "track_length": best.compute_mean_track_length(),
        "models": [model.num_reg_images() for model in models],
        "focal_px": float(np.median([frame.focal[0] for frame in source.frames])),
        "applied_scale": source.applied_scale,
        "failed": reasons,
        "masks": (job.work / MASKED).exists(),
    }


def _explain_failure(n_features: int, n_matched: int, is_elsewhere: bool) -> str:
    """Explain why an image was not registered."""
    if is_elsewhere:
        return "belongs to another part of the capture, which nothing joins to the largest"
    if n_features < 100:
        return f"shows too little texture ({n_features} features)"
    if n_matched == 0:
        return "shares too little with any other image"
    return f"matches {quantity(n_matched, 'other image')}, but its pose was not found"

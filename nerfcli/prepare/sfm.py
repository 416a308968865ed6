"""Structure from motion through pycolmap: features, matches, the model; each goes on where it was.

The database remembers what is done, so that a stage that was stopped continues. pycolmap works in
a thread of its own and is watched through the database; it is asked to stop when the user does.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, getsignal, signal
from threading import current_thread, main_thread
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress

MAX_IMAGE_SIZE = 2000  # pixels: features of larger images are found at this size
POLL_SECONDS = 0.25
SEED = 0
MIN_INLIERS = 15  # of a pair of views, COLMAP's own bound
# COLMAP's defaults expect photos with thousands of features. With fewer there are fewer inliers
# as well, so its bounds on their number come down; and where nothing else gives a first pair.
FEW_FEATURES = 1500
RELAXED = {"init_min_num_inliers": 50, "init_min_tri_angle": 6.0, "abs_pose_min_num_inliers": 15}


class Stopped(Exception):
    """The user asked to stop; what is done so far is kept."""


@dataclass(frozen=True)
class Motion:
    """Where structure from motion works.

    Attributes:
        images: the folder that it reads. masks: or None.
        work: its own folder: database, models.
    """

    images: Path
    masks: Path | None
    work: Path
    stopped: Callable[[], bool]

    @property
    def database(self) -> Path:
        return self.work / "database.db"


def load_pycolmap() -> Any:
    """pycolmap, silenced.

    Raises:
        NerfError: it is not installed.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise NerfError(
            "nerf prepare finds the cameras with pycolmap, which is not installed: "
            "pip install pycolmap"
        ) from error
    # its logging library takes SIGTERM for a crash; what Python knows of the signal stays in force
    if current_thread() is main_thread() and (handler := getsignal(SIGTERM)) is not None:
        signal(SIGTERM, handler)
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL.value)
    return pycolmap


def extract(
    motion: Motion, names: Sequence[str], lens: str, *, shared: bool, progress: Progress
) -> None:
    """Find features of all images that have none yet."""
    pycolmap = load_pycolmap()
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = lens
    if motion.masks is not None:
        reader.mask_path = str(motion.masks)
    finding = pycolmap.FeatureExtractionOptions()
    finding.max_image_size = MAX_IMAGE_SIZE
    mode = pycolmap.CameraMode.SINGLE if shared else pycolmap.CameraMode.AUTO
    if shared and _count(motion.database, "cameras"):
        reader.existing_camera_id = 1  # a stopped extraction goes on with the same camera

    def work(token: Any) -> None:
        pycolmap.extract_features(
            motion.database,
            motion.images,
            image_names=list(names),
            camera_mode=mode,
            reader_options=reader,
            extraction_options=finding,
            device=pycolmap.Device.cpu,
            cancellation_token=token,
        )

    _watched(motion, work, "keypoints", progress)


def match(motion: Motion, pairs: Sequence[tuple[str, str]], progress: Progress) -> None:
    """Match pairs of images that are not matched yet, and verify them geometrically."""
    pycolmap = load_pycolmap()
    listed = motion.work / "pairs.txt"
    listed.write_text("".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = str(listed)
    pairing.block_size = 64  # small blocks: progress, and little lost by a stop
    verifying = _verifying(pycolmap)

    def work(token: Any) -> None:
        pycolmap.match_image_pairs(
            motion.database,
            pairing_options=pairing,
            verification_options=verifying,
            device=pycolmap.Device.cpu,
            cancellation_token=token,
        )

    _watched(motion, work, "two_view_geometries", progress)


def match_all(motion: Motion, progress: Progress) -> None:
    """Match every image with every other."""
    pycolmap = load_pycolmap()
    pairing = pycolmap.ExhaustivePairingOptions()
    pairing.block_size = 10
    verifying = _verifying(pycolmap)

    def work(token: Any) -> None:
        pycolmap.match_exhaustive(
            motion.database,
            pairing_options=pairing,
            verification_options=verifying,
            device=pycolmap.Device.cpu,
            cancellation_token=token,
        )

    _watched(motion, work, "two_view_geometries", progress)


def _verifying(pycolmap: Any) -> Any:
    """Options of the geometric verification, with a seed: the same photos, the same scene."""
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = SEED
    return options


def reconstruct(motion: Motion, n_images: int, progress: Progress) -> list[Any]:
    """Models that explain the matches, the one with most images first.

    Raises:
        NerfError: there is none.
    """
    pycolmap = load_pycolmap()
    models: dict[int, Any] = {}
    features = sorted(found for found, _ in matched_counts(motion.database).values())
    if not features:
        raise NerfError("pycolmap can read none of the images; save them as JPEG or PNG.")
    few = features[len(features) // 2] < FEW_FEATURES
    for relaxed in (True,) if few else (False, True):
        options = pycolmap.IncrementalPipelineOptions()
        options.min_model_size = min(10, max(3, n_images // 4))
        options.random_seed = SEED
        if relaxed:
            for key, value in RELAXED.items():
                setattr(options.mapper, key, value)
        count = 0

        def next_image() -> None:
            nonlocal count
            count += 1
            progress.update(min(count, n_images))

        def work(token: Any, options: Any = options, following: Any = next_image) -> None:
            folder = motion.work / "sparse"
            folder.mkdir(exist_ok=True)
            models.update(
                pycolmap.incremental_mapping(
                    motion.database,
                    motion.images,
                    folder,
                    options=options,
                    next_image_callback=following,
                    cancellation_token=token,
                )
            )

        _watched(motion, work, None, progress)
        if models:
            break
        if not relaxed:
            progress.note("no model with COLMAP's usual bounds; trying again with lower ones")
    if not models:
        raise NerfError(
            "structure from motion found no two images to begin with: they overlap too little, "
            "show too little texture, or were taken from one point. Take more photos with more "
            "overlap, walking sideways."
        )
    return sorted(models.values(), key=lambda model: -model.num_reg_images())


def _watched(
    motion: Motion, work: Callable[[Any], None], table: str | None, progress: Progress
) -> None:
    """Run blocking work in a thread, show how a table of the database grows, stop when asked."""
    token = load_pycolmap().CancellationToken()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(token)
        except BaseException as error:  # handed to the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if table is not None:
            progress.update(_glimpse(motion.database, table))
        if motion.stopped():
            token.cancel()
    if motion.stopped():
        raise Stopped
    if failures:
        if isinstance(failures[0], NerfError | KeyboardInterrupt):
            raise failures[0]
        raise NerfError(f"pycolmap failed: {failures[0]}") from failures[0]


def _glimpse(database: Path, table: str) -> int:
    """Rows of a table while pycolmap works on it: possibly not the latest, but without a lock.

    A reader's lock, however short, can meet the moment at which pycolmap needs the file for itself;
    pycolmap then ends the whole process ("database is locked").
    """
    return _count(database, table, "immutable=1")


def _count(database: Path, table: str, mode: str = "mode=ro") -> int:
    if not database.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?{mode}", uri=True)) as link:
            return int(link.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    except sqlite3.Error:  # half written, or not yet there
        return 0


def matched_counts(database: Path) -> dict[str, tuple[int, int]]:
    """Per image: its features, and how many images it is matched with."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as link:
        names = dict(link.execute("SELECT image_id, name FROM images").fetchall())
        features = dict(link.execute("SELECT image_id, rows FROM keypoints").fetchall())
        found = dict.fromkeys(names, 0)
        rows = link.execute("SELECT pair_id, rows FROM two_view_geometries").fetchall()
    for pair, inliers in rows:
        if inliers >= MIN_INLIERS:
            for image in (pair // 2147483647, pair % 2147483647):
                if image in found:
                    found[image] += 1
    return {name: (features.get(i, 0), found[i]) for i, name in names.items()}

"""Run structure from motion with pycolmap: features, matches, the model.

The database keeps finished work, so a stopped stage continues where it was. pycolmap works in a
thread of its own; we watch it through the database, and cancel it when the user stops the command.
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

import numpy as np
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.core.extras import missing
from nerfcli.core.progress import Progress

MAX_IMAGE_SIZE = 2000  # pixels of the longer side; larger images are reduced to it
POLL_SECONDS = 0.25
SEED = 0
# Of these many images or fewer, the model is found on one thread: several add up a bundle
# adjustment's sums in an order that depends on timing, and its last bits decide what is an inlier.
SINGLE_THREADED = 60
MIN_INLIERS = 15  # of a pair of views; COLMAP's own bound
# COLMAP's defaults expect photos with thousands of features. Relax its bounds on inliers for images
# with fewer features, and where the defaults give no first pair.
FEW_FEATURES = 1500
RELAXED = {"init_min_num_inliers": 50, "init_min_tri_angle": 6.0, "abs_pose_min_num_inliers": 15}


class Stopped(Exception):
    """The user stopped the command; finished work is kept."""


@dataclass(frozen=True)
class Workspace:
    """Folders of structure from motion.

    Attributes:
        images: the folder to read. masks: their masks, or None.
        work: folder for the database and models.
        rig: orientations of the views of a rig, [n, 3, 3] view to rig, where images of one name in
            view_0, view_1, ... were taken at once from one place with square pinholes of 90
            degrees; else None.
        is_stopped: whether the user has stopped the command.
        zoom: pixels of `images` per pixel of the photos, along a side.
    """

    images: Path
    masks: Path | None
    work: Path
    is_stopped: Callable[[], bool]
    rig: np.ndarray | None = None
    zoom: int = 1

    @property
    def database(self) -> Path:
        return self.work / "database.db"


def load_pycolmap() -> Any:
    """Import pycolmap and silence it.

    Raises:
        NerfError: it is not installed.
    """
    try:
        # the head of this file has loaded numpy and Pillow: with pycolmap 4.2.1 in front of both,
        # Pillow 13 aborts when it writes its first PNG
        import pycolmap
    except ImportError as error:
        raise missing("pycolmap", "nerf prepare") from error
    # its logging library treats SIGTERM as a crash: put Python's handler back
    if current_thread() is main_thread() and (handler := getsignal(SIGTERM)) is not None:
        signal(SIGTERM, handler)
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL.value)
    return pycolmap


def extract_features(
    workspace: Workspace, names: Sequence[str], lens: str, *, shared: bool, progress: Progress
) -> None:
    """Find the features of all images that have none yet.

    Args:
        lens: a COLMAP camera model. shared: use one camera for all images.
    """
    pycolmap = load_pycolmap()
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = lens
    if workspace.masks is not None:
        reader.mask_path = str(workspace.masks)
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.max_image_size = MAX_IMAGE_SIZE
    mode = pycolmap.CameraMode.SINGLE if shared else pycolmap.CameraMode.AUTO
    if workspace.rig is not None:
        mode = pycolmap.CameraMode.PER_FOLDER
        with Image.open(workspace.images / names[0]) as image:
            reader.camera_params = ",".join([str(image.width / 2)] * 4)  # both focals, the middle
    elif shared and _count_rows(workspace.database, "cameras"):
        reader.existing_camera_id = 1  # a stopped extraction goes on with the same camera

    def work(token: Any) -> None:
        # extraction numbers images as its threads finish them, and the model depends on the numbers
        with pycolmap.Database.open(workspace.database):
            pass
        pycolmap.import_images(
            workspace.database, workspace.images, mode, list(names), options=reader
        )
        pycolmap.extract_features(
            workspace.database,
            workspace.images,
            image_names=list(names),
            camera_mode=mode,
            reader_options=reader,
            extraction_options=extraction,
            device=pycolmap.Device.cpu,
            cancellation_token=token,
        )

    _run_watched(workspace, work, "keypoints", progress)
    if workspace.rig is not None:
        _apply_rig(workspace)


def _apply_rig(workspace: Workspace) -> None:
    """Record that the views of one name have one centre and known orientations."""
    pycolmap = load_pycolmap()
    assert workspace.rig is not None
    rig = pycolmap.RigConfig()
    for i, rotation in enumerate(workspace.rig):
        camera = pycolmap.RigConfigCamera(ref_sensor=i == 0, image_prefix=f"view_{i}/")
        if i:
            turn = pycolmap.Rotation3d(rotation.T @ workspace.rig[0])
            camera.cam_from_rig = pycolmap.Rigid3d(turn, np.zeros(3))
        rig.cameras = [*rig.cameras, camera]
    with pycolmap.Database.open(workspace.database) as database:
        pycolmap.apply_rig_config([rig], database)


def match_pairs(workspace: Workspace, pairs: Sequence[tuple[str, str]], progress: Progress) -> None:
    """Match pairs of images that are not matched yet, and verify them geometrically."""
    pycolmap = load_pycolmap()
    listed = workspace.work / "pairs.txt"
    listed.write_text("".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = str(listed)
    pairing.block_size = 64  # small blocks: frequent progress, and a stop loses little
    _match(workspace, pycolmap.match_image_pairs, pairing, progress)


def match_exhaustively(workspace: Workspace, progress: Progress) -> None:
    """Match every image with every other, and verify the pairs geometrically."""
    pycolmap = load_pycolmap()
    pairing = pycolmap.ExhaustivePairingOptions()
    pairing.block_size = 10
    _match(workspace, pycolmap.match_exhaustive, pairing, progress)


def _match(
    workspace: Workspace, match: Callable[..., None], pairing: Any, progress: Progress
) -> None:
    verification = load_pycolmap().TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED  # the same photos give the same scene
    matching = load_pycolmap().FeatureMatchingOptions()
    if workspace.rig is not None:
        matching.rig_verification = matching.skip_image_pairs_in_same_frame = True

    def work(token: Any) -> None:
        match(
            workspace.database,
            pairing_options=pairing,
            matching_options=matching,
            verification_options=verification,
            device=load_pycolmap().Device.cpu,
            cancellation_token=token,
        )

    _run_watched(workspace, work, "two_view_geometries", progress)


def reconstruct(workspace: Workspace, n_images: int, progress: Progress) -> list[Any]:
    """Reconstruct models that explain the matches; return them, the largest first.

    Raises:
        NerfError: no model was found.
    """
    pycolmap = load_pycolmap()
    models: dict[int, Any] = {}
    features = sorted(n for n, _ in count_matches(workspace.database).values())
    if not features:
        raise NerfError("pycolmap can read none of the images; save them as JPEG or PNG.")
    few = features[len(features) // 2] < FEW_FEATURES
    for relaxed in (True,) if few else (False, True):
        options = pycolmap.IncrementalPipelineOptions()
        options.min_model_size = min(10, max(3, n_images // 4))
        options.random_seed = SEED
        if workspace.rig is not None:  # all of the rig is known
            options.min_model_size = 3  # of moments, not of images
            options.ba_refine_sensor_from_rig = options.ba_refine_focal_length = False
            options.ba_refine_extra_params = False
        options.num_threads = 1 if n_images <= SINGLE_THREADED else -1
        if relaxed:
            for key, value in RELAXED.items():
                setattr(options.mapper, key, value)
        count = 0

        def count_image() -> None:
            nonlocal count
            count += 1
            progress.update(min(count, n_images))

        def work(token: Any, options: Any = options, next_image: Any = count_image) -> None:
            folder = workspace.work / "sparse"
            folder.mkdir(exist_ok=True)
            models.update(
                pycolmap.incremental_mapping(
                    workspace.database,
                    workspace.images,
                    folder,
                    options=options,
                    next_image_callback=next_image,
                    cancellation_token=token,
                )
            )

        _run_watched(workspace, work, None, progress)
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


def _run_watched(
    workspace: Workspace, work: Callable[[Any], None], table: str | None, progress: Progress
) -> None:
    """Run blocking work in a thread; show how a database table grows; cancel on a stop.

    Raises:
        Stopped: the user stopped the command.
        NerfError: pycolmap failed.
    """
    token = load_pycolmap().CancellationToken()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(token)
        except BaseException as error:  # raised again in the waiting thread
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if table is not None:
            progress.update(_count_without_lock(workspace.database, table))
        if workspace.is_stopped():
            token.cancel()
    if workspace.is_stopped():
        raise Stopped
    if failures:
        if isinstance(failures[0], NerfError | KeyboardInterrupt):
            raise failures[0]
        raise NerfError(f"pycolmap failed: {failures[0]}") from failures[0]


def _count_without_lock(database: Path, table: str) -> int:
    """Count a table's rows while pycolmap works on it; the count may be slightly old.

    pycolmap ends the whole process ("database is locked") if it needs the file for itself while a
    reader holds a lock, however short.
    """
    return _count_rows(database, table, "immutable=1")


def _count_rows(database: Path, table: str, mode: str = "mode=ro") -> int:
    if not database.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?{mode}", uri=True)) as link:
            return int(link.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])
    except sqlite3.Error:  # half written, or not there yet
        return 0


def count_matches(database: Path) -> dict[str, tuple[int, int]]:
    """Count, by image name, its features and the images that it matches."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as link:
        names = dict(link.execute("SELECT image_id, name FROM images").fetchall())
        features = dict(link.execute("SELECT image_id, rows FROM keypoints").fetchall())
        matched = dict.fromkeys(names, 0)
        rows = link.execute("SELECT pair_id, rows FROM two_view_geometries").fetchall()
    for pair, inliers in rows:
        if inliers >= MIN_INLIERS:
            for image in (pair // 2147483647, pair % 2147483647):
                if image in matched:
                    matched[image] += 1
    return {name: (features.get(i, 0), matched[i]) for i, name in names.items()}

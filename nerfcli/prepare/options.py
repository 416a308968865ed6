"""What `nerf prepare` was asked for, and the folder in which it is remembered."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.prepare import frames, photos
from nerfcli.prepare import sfm as motion
from nerfcli.scenes.writers.transforms import POINTS

WORK, RECORD = ".prepare", "prepare.json"  # in the new scene: the stages' files, the verdict
LENSES = {
    "simple": "SIMPLE_RADIAL",
    "radial": "RADIAL",
    "opencv": "OPENCV",
    "fisheye": "OPENCV_FISHEYE",
}


@dataclass(frozen=True)
class Wish:
    """What the user asked for.

    Attributes:
        frames: how many to take from a video.
        lens: a key of LENSES. undistort: pinhole images instead of a lens.
        pyramid: how often the images are also halved, into images_2, images_4, ...
    """

    frames: int = 150
    lens: str = "simple"
    undistort: bool = False
    pyramid: int = 0


def asked_for(thing: Path, wish: Wish) -> dict[str, Any]:
    return {"from": str(thing.resolve()), **asdict(wish)}


def ensure_same(out: Path, before: dict[str, Any], thing: Path, wish: Wish) -> None:
    """Raise NerfError if `out` was made of something else, or otherwise, than is asked for now."""
    now = asked_for(thing, wish)
    differ = [key for key in now if before.get(key) != now[key]]
    if differ:
        raise NerfError(
            f"{out} was begun with another {', '.join(differ)}; repeat that command "
            "to go on, or start again with --overwrite."
        )


def clear(thing: Path, out: Path) -> None:
    """Remove an earlier scene from `out`, and nothing else, once there is something to begin with.

    Raises:
        NerfError: pycolmap is missing, or `thing` is no video and holds no photos.
    """
    motion.load_pycolmap()
    if thing.is_file():
        frames.count_frames(thing)
    else:
        photos.find_photos(thing)
    for folder in (WORK, "images", *(f"images_{2**k}" for k in range(1, 6))):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in (RECORD, "transforms.json", POINTS):
        (out / file).unlink(missing_ok=True)

"""Options of `nerf prepare`, and the record of them in the scene's folder."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.core.files import read_json
from nerfcli.core.text import command
from nerfcli.prepare.frames import count_frames
from nerfcli.prepare.photos import find_photos
from nerfcli.prepare.sfm import load_pycolmap
from nerfcli.scenes.writers.transforms import POINTS

REQUEST = "options.json"  # in WORK: what the scene is made from, while it is made
MASKED = "masked"  # in WORK, from when masks are written
WORK, RECORD = ".prepare", "prepare.json"  # in the new scene: files of the stages, the result
EQUIRECTANGULAR = "equirectangular"
LENSES = {
    "simple": "SIMPLE_RADIAL",
    "radial": "RADIAL",
    "opencv": "OPENCV",
    "fisheye": "OPENCV_FISHEYE",
    EQUIRECTANGULAR: "PINHOLE",  # of the views that are cut out
}


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `nerf prepare`.

    Attributes:
        frames: number of frames to take from a video.
        lens: a key of LENSES. undistort: write pinhole images instead of keeping the lens.
        masks: a folder of masks, or None for none but those in the folder `masks` of the photos.
        pyramid: how often to halve the images, into images_2, images_4, ...
    """

    frames: int = 150
    lens: str = "simple"
    undistort: bool = False
    pyramid: int = 0
    masks: str | None = None


def describe_request(capture: Path, options: PrepareOptions) -> dict[str, Any]:
    """Return what a scene is made from, and how, as JSON.

    Args:
        capture: a folder of photos, or a video file.
    """
    return {"from": str(capture.resolve()), **asdict(options)}


def ensure_same_request(
    out: Path, before: dict[str, Any], capture: Path, options: PrepareOptions
) -> None:
    """Raise NerfError unless `out` was made from the same capture with the same options."""
    now = describe_request(capture, options)
    begun = not (out / "transforms.json").is_file()
    what = "a scene begun" if begun else "the scene made"
    again = f" Go on with that one: {_command(out, before)}." if begun else ""
    if before.get("from") != now["from"]:
        raise NerfError(
            f"{out} holds {what} from {before.get('from')}, not from {capture}. "
            f"Choose another --out, or start again with --overwrite.{again}"
        )
    differ = [
        f"--{key} {before.get(key)}, not {now[key]}" for key in now if before.get(key) != now[key]
    ]
    if differ:
        raise NerfError(
            f"{out} holds {what} with {' and '.join(differ)}. "
            f"Choose another --out, or start again with --overwrite.{again}"
        )


def read_record(path: Path) -> dict[str, Any]:
    """Read a record that `nerf prepare` has written.

    Raises:
        NerfError: it cannot be read, or is no object.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise NerfError(f"{path} holds no record of nerf prepare; start again with --overwrite.")
    return record


def repeat_command(out: Path) -> str:
    """Name the command that goes on with the scene that was begun in `out`."""
    before: dict[str, Any] = {}
    with suppress(NerfError):
        before = read_record(out / WORK / REQUEST)
    return _command(out, before)


def _command(out: Path, request: dict[str, Any]) -> str:
    """Name the command that makes `out`, with all options that are not the default ones."""
    words: list[str | Path] = ["nerf prepare", Path(request.get("from") or "PHOTOS"), "--out", out]
    for key, default in asdict(PrepareOptions()).items():
        value = request.get(key, default)
        if value != default:
            words += [f"--{key}"] if value is True else [f"--{key}", Path(str(value))]
    return command(*words)


def clear_scene(capture: Path, out: Path) -> None:
    """Remove an earlier scene from `out`, and nothing else, if `capture` can replace it.

    Raises:
        NerfError: pycolmap is missing, or `capture` is no video and holds no photos.
    """
    load_pycolmap()
    if capture.is_file():
        count_frames(capture)
    else:
        find_photos(capture)
    remove_made(out)


def remove_made(out: Path) -> None:
    """Remove from `out` what `nerf prepare` has made there, and nothing else."""
    made = ["masks"] if _has_masks(out) else []
    for folder in (WORK, "images", *made, *(f"images_{2**k}" for k in range(1, 6))):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in (RECORD, "transforms.json", POINTS):
        (out / file).unlink(missing_ok=True)


def _has_masks(out: Path) -> bool:
    """Whether the scene's masks are ours: a run with masks records it."""
    with suppress(NerfError):
        return (out / WORK / MASKED).exists() or bool(read_record(out / RECORD).get("masks"))
    return False

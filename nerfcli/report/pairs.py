"""The pictures that `nerf eval` left in two runs, for a page that shows both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.engine.evaluate import pair_name, pairs_folder
from nerfcli.engine.image_metrics import psnr
from nerfcli.engine.run_folders import STATE
from nerfcli.report.page import to_number
from nerfcli.report.pictures import ViewPictures, bytes_of_view, encode_together, error_map
from nerfcli.report.run_comparison import ScoredRun
from nerfcli.report.run_record import is_number

APART = 0.02  # dB between a picture's PSNR and the view's score, from which it may be of another


class NoPicture(Exception):
    """A view's pictures cannot be shown; the message is for people."""


def read_pair(scored: ScoredRun, row: dict, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the photo and the rendering of a view, [height, width, 3] in [0, 1].

    Raises:
        NoPicture: they are missing, damaged, or of an earlier evaluation.
    """
    path = pairs_folder(scored.run.path, split) / pair_name(row["name"])
    try:
        with Image.open(path) as file:
            both = np.asarray(file.convert("RGB"), dtype=np.float32) / 255.0
    except FileNotFoundError as error:
        raise NoPicture(f"{path} is missing") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise NoPicture(f"{path} cannot be read") from error
    width = both.shape[1] // 2
    photo, image = both[:, :width], both[:, width:]
    if photo.shape != image.shape or not photo.size:
        raise NoPicture(f"{path} is not a photo beside a rendering")
    if is_number(row.get("psnr")) and abs(psnr(image, photo) - row["psnr"]) > APART:
        with suppress(OSError):  # masks move the score as well, age alone tells little
            if path.stat().st_mtime < (scored.run.path / STATE).stat().st_mtime:
                raise NoPicture(f"{path} is older than the run's last step")
    return photo, image


def read_pictures(a: ScoredRun, b: ScoredRun, split: str) -> tuple[list[ViewPictures], str]:
    """Encode photo, renderings and errors of each view of both runs.

    Returns:
        The views that have pictures, and why others have none; "" where all have.
    """
    views: list[ViewPictures] = []
    faults: list[str] = []
    for row, shown in _pairs(a, b, split):
        if shown is None or isinstance(shown, str):
            faults.append(shown or f"the photos of {row['name']} differ")
            continue
        photo, image_a, image_b = shown
        pictures = {
            "a": _to_uint8(image_a),
            "b": _to_uint8(image_b),
            "photo": _to_uint8(photo),
            "error-a": error_map(image_a, photo, None),
            "error-b": error_map(image_b, photo, None),
        }
        jpegs, size = encode_together(pictures, bytes_of_view(len(a.views)))
        views.append(ViewPictures(row, jpegs, size, (photo.shape[1], photo.shape[0])))
    if not faults:
        return views, ""
    n = to_number(len(faults), 0)
    return views, f"{n} of {len(a.views)} views have no pictures here: {faults[0]}"


def ensure_same_photo(a: ScoredRun, b: ScoredRun, split: str) -> None:
    """Raise NerfError where the first view that both have a picture of is not of one photo.

    Views of two scenes often have the same names.
    """
    for row, shown in _pairs(a, b, split):
        if isinstance(shown, str):
            continue
        if shown is None:
            raise NerfError(
                f"the photos of {row['name']} in {a.run.path} and {b.run.path} differ: these are "
                "two scenes, or one with other photos. Compare runs of the same photos."
            )
        return


def _pairs(
    a: ScoredRun, b: ScoredRun, split: str
) -> Iterator[tuple[dict, tuple[np.ndarray, np.ndarray, np.ndarray] | str | None]]:
    """Each view with its photo and renderings, why these cannot be read, or None: two photos."""
    rows_b = {row["name"]: row for row in b.views}
    for row in a.views:
        try:
            photo, image_a = read_pair(a, row, split)
            other, image_b = read_pair(b, rows_b[row["name"]], split)
        except NoPicture as fault:
            yield row, str(fault)
            continue
        same = photo.shape == other.shape and np.array_equal(photo, other)
        yield row, (photo, image_a, image_b) if same else None


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(image * 255.0).astype(np.uint8)


def comparison_file(a: Path, b: Path) -> Path:
    """Where the page of two runs goes by default: into the second."""
    return b / f"compare-{a.resolve().name}.html"

"""Finished frames on the disk, so that a render that was stopped goes on with them.

A hidden folder beside the output, `.frames-<id>`, holds each finished frame as a lossless PNG and
frames.json, which says what they are of. The id is a digest of that, so that a preview does not
take the place of the frames of a large video. Frames are written aside and renamed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli import __version__
from nerfcli.cameras.cameras import Cameras
from nerfcli.core.errors import NerfError
from nerfcli.core.files import folders_above, json_text, locked, read_json, replacing, write_json
from nerfcli.engine.render import Model
from nerfcli.engine.render_files import RenderFiles, frame_name, suffixes
from nerfcli.engine.runs import Run

PREFIX, RECORD, COMPLETE = ".frames-", "frames.json", "complete.json"
DEPTH_SIDECAR = {
    "kind": "euclidean",
    "estimator": "expected",
    "unit": "source units",
    "invalid": 0,
    "dtype": "float32",
}


def describe_frames(
    run: Run, model: Model, cameras: Cameras, layers: tuple[str, ...], numbers: bool
) -> dict[str, Any]:
    """Say what frames are of: equal descriptions have equal pixels.

    Args:
        model: which is rendered; the run may have a newer checkpoint by now.
        numbers: depth is kept as float32, too.
    """
    known = hashlib.blake2b(model.digest().encode(), digest_size=16)
    known.update(json_text(run.scene_json).encode())
    seen = hashlib.blake2b(digest_size=16)
    for tensor in (cameras.c2w, cameras.focal, cameras.principal, cameras.size):
        seen.update(tensor.contiguous().numpy().tobytes())
    seen.update(repr(cameras.lenses).encode())
    return {
        "run": str(run.path.resolve()),
        "step": run.step,
        "field": known.hexdigest(),
        "cameras": seen.hexdigest(),
        "n_frames": len(cameras),
        "first_size": cameras.size[0].tolist(),
        "layers": list(layers),
        "numbers": numbers,
        "evaluated_by": f"{model.field.ops.name} on {model.device}",
        "version": __version__,
    }


@dataclass
class KeptFrames:
    """The folder of finished frames of one render.

    Attributes:
        folder: it. layers: one PNG a frame for each. sizes: [n, 2] width and height.
        numbers: a float32 NPY of depth beside its PNG.
        damaged: frames that were found broken, to be rendered again.
    """

    folder: Path
    layers: tuple[str, ...]
    sizes: np.ndarray
    numbers: bool
    damaged: list[int] = field(default_factory=list)

    def paths(self, index: int) -> list[Path]:
        """Every file of one frame."""
        return [
            self.folder / frame_name(layer, index, suffix)
            for layer in self.layers
            for suffix in suffixes(layer, self.numbers)
        ]

    def there(self) -> list[int]:
        """List the frames whose files are all in the folder."""
        return [i for i in range(len(self.sizes)) if all(path.is_file() for path in self.paths(i))]

    def load(self, index: int) -> dict[str, np.ndarray] | None:
        """Read one frame, [h, w, 3] uint8 by layer; None where it is not there whole."""
        from imageio.v3 import imread

        if not all(path.is_file() for path in self.paths(index)):
            return None
        width, height = self.sizes[index]
        pictures: dict[str, np.ndarray] = {}
        try:
            for layer in self.layers:
                picture = imread(self.folder / frame_name(layer, index), plugin="pillow")
                if picture.shape != (height, width, 3) or picture.dtype != np.uint8:
                    raise ValueError
                pictures[layer] = picture
            if self.numbers and "depth" in self.layers:
                depth = np.load(self.folder / frame_name("depth", index, ".npy"), mmap_mode="r")
                if depth.shape != (height, width):
                    raise ValueError
        except (OSError, ValueError, EOFError, SyntaxError):  # Pillow's, of a torn PNG
            self.damaged.append(index)
            return None
        return pictures

    def save(
        self, index: int, pictures: dict[str, np.ndarray], depth: np.ndarray | None = None
    ) -> None:
        """Keep one frame. depth: [h, w] in source units."""
        from imageio.v3 import imwrite

        for layer, picture in pictures.items():
            path = self.folder / frame_name(layer, index)
            if layer == "depth" and self.numbers and depth is not None:
                with replacing(path.with_suffix(".npy")) as aside, aside.open("wb") as file:
                    np.save(file, depth.astype(np.float32))
            with replacing(path) as aside, aside.open("wb") as file:
                imwrite(file, picture, extension=".png", plugin="pillow", compress_level=1)

    def mark_complete(self, files: RenderFiles) -> None:
        """Say that all frames are there, and where they go: what lies there is this render's."""
        write_json(self.folder / COMPLETE, str(files.out.resolve()))

    def move(self, files: RenderFiles) -> list[Path]:
        """Put all frames where they belong, and say there what depth is; return the pictures.

        Those of an earlier path go away first: a folder must not mix the two.
        """
        if files.is_folder:
            for path in files.there():
                path.unlink()
        if files.record is not None:
            write_json(files.record, DEPTH_SIDECAR)
        moved: dict[str, list[Path]] = {layer: [] for layer in self.layers}
        for index in range(len(self.sizes)):
            for name, place in files.frame(index):
                os.replace(self.folder / name, place)
                if name.endswith(".png"):
                    moved[name.partition("_")[0]].append(place)
        return [path for paths in moved.values() for path in paths]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def is_half_moved(files: RenderFiles) -> bool:
    """Whether a render was killed while it put its complete frames where `files` are."""
    out = str(files.out.resolve())
    records = list(files.folder.glob(f"{PREFIX}*/{COMPLETE}"))
    return any(read_json(record) == out for record in records)


@contextmanager
def keeping_frames(place: Path, what: dict[str, Any], cameras: Cameras) -> Iterator[KeptFrames]:
    """Open the folder of finished frames in `place` for those that `what` describes.

    Where it stays empty it is removed at the end. Frames of earlier checkpoints of the run, which
    nobody can complete, are removed at once.

    Raises:
        NerfError: the place cannot be written, or another process renders the same.
    """
    _remove_outdated(place, what)
    pixels = {key: value for key, value in what.items() if key != "run"}  # which may move
    name = hashlib.blake2b(json_text(pixels).encode(), digest_size=5).hexdigest()
    folder = place / f"{PREFIX}{name}"
    busy = f"another process renders the same frames in {folder}: wait for it."
    with ExitStack() as stack:
        try:
            stack.enter_context(folders_above(folder))
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise NerfError(
                f"cannot write to {place}: {error.strerror}; choose another --out."
            ) from error
        stack.enter_context(locked(folder, busy))
        if not (folder / RECORD).is_file():
            write_json(folder / RECORD, what)
        for path in folder.iterdir():  # what a kill left unfinished
            if path.name.startswith((".", "part-")):
                path.unlink(missing_ok=True)
        kept = KeptFrames(folder, tuple(what["layers"]), cameras.size.numpy(), what["numbers"])
        try:
            yield kept
        finally:
            if folder.is_dir() and not any(folder.glob("*.png")):
                kept.remove()


def _remove_outdated(place: Path, what: dict[str, Any]) -> None:
    own = place.resolve().parent == Path(what["run"])  # nothing but renders of the run
    for record in place.glob(f"{PREFIX}*/{RECORD}"):
        with suppress(OSError, NerfError):  # another process renders it: it may be completed
            of = read_json(record)
            if not isinstance(of, dict) or of.get("field") == what["field"]:
                continue
            if own or of.get("run") == what["run"]:
                with locked(record.parent, "busy"):
                    shutil.rmtree(record.parent, ignore_errors=True)

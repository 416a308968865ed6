"""Finished frames on the disk, so that a render that was stopped goes on with them.

A hidden folder beside the output, `.frames-<id>`, holds each finished frame as a lossless PNG and
frames.json, which says what they are of. The id is a digest of that, so that a preview does not
take the place of the frames of a large video. Frames are written aside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli import __version__
from nerfcli.cameras.cameras import Cameras
from nerfcli.core.errors import NerfError
from nerfcli.core.files import json_text, locked, write_json
from nerfcli.engine.runs import Run

PREFIX, RECORD = ".frames-", "frames.json"
DEPTH_SIDECAR = {
    "kind": "euclidean",
    "estimator": "expected",
    "unit": "source units",
    "invalid": 0,
    "dtype": "float32",
}


def describe_frames(
    run: Run, cameras: Cameras, layers: tuple[str, ...], numbers: bool, evaluated_by: str
) -> dict[str, Any]:
    """Say what frames are of: equal descriptions have equal pixels.

    Args:
        numbers: depth is kept as float32, too.
        evaluated_by: the backend and its device.
    """
    weights = hashlib.blake2b(digest_size=16)
    with (run.path / run.state["files"]["model"]).open("rb") as file:
        while block := file.read(1 << 22):
            weights.update(block)
    weights.update(json_text(run.scene_json).encode())
    seen = hashlib.blake2b(digest_size=16)
    for tensor in (cameras.c2w, cameras.focal, cameras.principal, cameras.size):
        seen.update(tensor.contiguous().numpy().tobytes())
    seen.update(repr(cameras.lenses).encode())
    return {
        "run": str(run.path.resolve()),
        "step": run.step,
        "field": weights.hexdigest(),
        "cameras": seen.hexdigest(),
        "n_frames": len(cameras),
        "first_size": cameras.size[0].tolist(),
        "layers": list(layers),
        "numbers": numbers,
        "evaluated_by": evaluated_by,
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
        stems = [(layer, f"{layer}_{index:04d}") for layer in self.layers]
        files = [f"{stem}.png" for _, stem in stems]
        files += [f"{stem}.npy" for layer, stem in stems if layer == "depth" and self.numbers]
        return [self.folder / name for name in files]

    def load(self, index: int) -> dict[str, np.ndarray] | None:
        """Read one frame, [h, w, 3] uint8 by layer; None where it is not there whole."""
        from imageio.v3 import imread

        if not all(path.is_file() for path in self.paths(index)):
            return None
        width, height = self.sizes[index]
        pictures: dict[str, np.ndarray] = {}
        try:
            for layer in self.layers:
                picture = imread(self.folder / f"{layer}_{index:04d}.png", plugin="pillow")
                if picture.shape != (height, width, 3) or picture.dtype != np.uint8:
                    raise ValueError
                pictures[layer] = picture
            if self.numbers and "depth" in self.layers:
                depth = np.load(self.folder / f"depth_{index:04d}.npy", mmap_mode="r")
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
            path = self.folder / f"{layer}_{index:04d}.png"
            if layer == "depth" and self.numbers and depth is not None:
                with _renamed(path.with_suffix(".npy")) as aside, aside.open("wb") as file:
                    np.save(file, depth.astype(np.float32))
            with _renamed(path) as aside, aside.open("wb") as file:
                imwrite(file, picture, extension=".png", plugin="pillow", compress_level=1)

    def move(self, folder: Path) -> list[Path]:
        """Put all frames into `folder`, and say there what depth is; return the pictures."""
        if self.numbers and "depth" in self.layers:
            (folder / "depth.json").write_text(json.dumps(DEPTH_SIDECAR, indent=2) + "\n")
        for index in range(len(self.sizes)):
            for path in self.paths(index):
                os.replace(path, folder / path.name)
        names = (f"{name}_{i:04d}.png" for name in self.layers for i in range(len(self.sizes)))
        return [folder / name for name in names]

    def move_one(self, out: Path) -> list[Path]:
        """Put the only frame at `out`, further layers beside it; return the pictures."""
        moved = []
        for path in self.paths(0):
            layer = path.name.partition("_")[0]
            place = layer_path(out, layer, self.layers).with_suffix(path.suffix)
            os.replace(path, place)
            moved += [place] if path.suffix == ".png" else []
        return moved

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def layer_path(out: Path, layer: str, layers: tuple[str, ...]) -> Path:
    """Name the file of one layer; the first one asked for gets the plain name."""
    return out if layer == layers[0] else out.with_name(f"{out.stem}_{layer}{out.suffix}")


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NerfError(
            f"cannot write to {place}: {error.strerror}; choose another --out."
        ) from error
    busy = f"another process renders the same frames in {folder}: wait for it."
    with locked(folder, busy):
        if not (folder / RECORD).is_file():
            write_json(folder / RECORD, what)
        for path in folder.iterdir():  # what a kill left unfinished
            if path.name.startswith("part-"):
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
        with suppress(OSError, ValueError):
            of = json.loads(record.read_text(encoding="utf-8"))
            if (own or of.get("run") == what["run"]) and of.get("field") != what["field"]:
                shutil.rmtree(record.parent, ignore_errors=True)


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder that gets the name `path` when the block succeeds."""
    aside = path.with_name(f"part-{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)

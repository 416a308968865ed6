"""Finished frames on the disk, so that a render that was stopped goes on with them.

The frames of a folder lie in their place at once; those of a video in a hidden folder beside it,
`.frames-<id>`, as lossless PNGs. frames.json says what they are of. The id is a digest of that, so
that a preview does not take the place of the frames of a large video. Frames are written aside and
renamed. Shards of one render share the folder: each holds a shared lock on it.
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
from nerfcli.core.files import folders_above, json_text, locked, read_json, write_json
from nerfcli.engine.frame_files import encode_layer, picture_of, read_layer, write_layer
from nerfcli.engine.layers import DepthScale, View
from nerfcli.engine.render import Model
from nerfcli.engine.render_files import RECORD, RenderFiles, Shard, frame_name, suffixes
from nerfcli.engine.runs import Run

PREFIX, SHARD_LOCK, COMPLETE = ".frames-", ".shard-", "complete.json"


def describe_frames(
    run: Run, model: Model, cameras: Cameras, files: RenderFiles, scale: DepthScale
) -> dict[str, Any]:
    """Say what frames are of: equal descriptions have equal pixels.

    model: which is rendered; the run may have a newer checkpoint by now.
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
        "layers": list(files.layers),
        "format": files.kind,
        "depth": scale.kind,
        "crop": None if model.crop is None else repr(model.crop),
        "evaluated_by": f"{model.field.ops.name} on {model.device}",
        "version": __version__,
    }


def pixels_of(what: object) -> dict[str, Any]:
    """What of a description says which pixels the frames have: the run may move."""
    items = what.items() if isinstance(what, dict) else ()
    return {key: value for key, value in items if key != "run"}


def lie_in_place(files: RenderFiles, what: dict[str, Any], *, anew: bool, overwrite: bool) -> bool:
    """Whether frames are rendered right where they belong: in a folder without others.

    Args:
        anew: a finished folder is rendered again.
        overwrite: frames of something else may be replaced.

    Raises:
        NerfError: there are others, which may not be replaced.
    """
    if not files.is_folder:
        return False
    if (files.out / RECORD).is_file():
        with suppress(NerfError):
            if pixels_of(read_json(files.out / RECORD)) == pixels_of(what):
                whole = all(
                    place.is_file() for i in range(what["n_frames"]) for _, place in files.frame(i)
                )
                return not (anew and whole)
    others = files.frames_there()
    if others and not overwrite:
        raise NerfError(
            f"{others[0]} is a frame of another render; replace it by --overwrite, or choose "
            "another --out."
        )
    return not others


@dataclass
class KeptFrames:
    """The folder of finished frames of one render.

    Attributes:
        folder: it. files: where they are to lie. sizes: [n, 2] width and height.
        scale: of depth. in_place: they lie where they belong.
        damaged: frames that were found broken, to be rendered again.
    """

    folder: Path
    files: RenderFiles
    sizes: np.ndarray
    scale: DepthScale
    in_place: bool = False
    damaged: list[int] = field(default_factory=list)

    def paths(self, index: int) -> list[Path]:
        """Every file of one frame."""
        return [self.folder / name for name, _ in self.files.frame(index)]

    def has(self, index: int) -> bool:
        return all(path.is_file() for path in self.paths(index))

    def there(self) -> list[int]:
        """List the frames whose files are all in the folder."""
        return [i for i in range(len(self.sizes)) if self.has(i)]

    def load(self, index: int, drawn: bool = True) -> dict[str, np.ndarray] | None:
        """Read one frame as pictures, [h, w, 3 or 4] uint8 by layer; None where it is not whole.

        drawn: false: only make sure that it is whole.
        """
        if not self.has(index):
            return None
        kind, (width, height) = self.files.kind, self.sizes[index].tolist()
        pictures: dict[str, np.ndarray] = {}
        try:
            for layer in self.files.layers:
                for suffix in suffixes(layer, kind):
                    path = self.folder / frame_name(layer, index, suffix)
                    values = read_layer(path, layer, kind, (width, height))
                    if drawn:
                        pictures[layer] = picture_of(values, layer, path, kind, self.scale)
        except ValueError:
            self.damaged.append(index)
            return None
        return pictures

    def save(self, index: int, view: View) -> dict[str, np.ndarray]:
        """Keep one frame; return what the last file of each layer holds."""
        pictures: dict[str, np.ndarray] = {}
        for layer in self.files.layers:
            for suffix, values in encode_layer(view, layer, self.files.kind, self.scale):
                write_layer(self.folder / frame_name(layer, index, suffix), layer, values)
                pictures[layer] = values
        return pictures

    def mark_complete(self) -> None:
        """Say that all frames are there, and where they go: what lies there is this render's."""
        if not self.in_place:
            write_json(self.folder / COMPLETE, str(self.files.out.resolve()))

    def place(self) -> list[Path]:
        """Put all frames where they belong, and say there what depth is; return the main files.

        Those of an earlier path go away first: a folder must not mix the two.
        """
        files = self.files
        if files.is_folder and not self.in_place:
            for path in files.there():
                path.unlink()
        self.write_records()
        placed: dict[str, list[Path]] = {layer: [] for layer in files.layers}
        for index in range(len(self.sizes)):
            for name, place in files.frame(index):
                if not self.in_place:
                    os.replace(self.folder / name, place)
                layer = name.rpartition("_")[0]
                if name.endswith(suffixes(layer, files.kind)[0]):
                    placed[layer].append(place)
        if files.is_folder and not self.in_place:
            os.replace(self.folder / RECORD, files.out / RECORD)
        return [path for paths in placed.values() for path in paths]

    def write_records(self) -> None:
        """Write the sidecars that say what depth is."""
        for layer, path in self.files.records():
            write_json(path, self.scale.record(layer, self.files.kind))

    def remove(self) -> None:
        """Remove a folder of its own with all in it; of frames in place, the record."""
        if self.in_place:
            (self.folder / RECORD).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def clean(self) -> None:
        """Remove what a kill left unfinished; not while others render into the folder."""
        layers = tuple(f".{layer}_" for layer in self.files.layers)
        for path in self.folder.iterdir():
            ours = layers if self.in_place else (".", "part-")
            if path.name.startswith((*ours, SHARD_LOCK)):
                path.unlink(missing_ok=True)


def is_half_moved(files: RenderFiles) -> bool:
    """Whether a render was killed while it put its complete frames where `files` are."""
    out = str(files.out.resolve())
    records = list(files.folder.glob(f"{PREFIX}*/{COMPLETE}"))
    return any(read_json(record) == out for record in records)


@contextmanager
def keeping_frames(
    files: RenderFiles,
    what: dict[str, Any],
    cameras: Cameras,
    scale: DepthScale,
    *,
    in_place: bool = False,
    shard: Shard | None = None,
) -> Iterator[KeptFrames]:
    """Open the folder of finished frames of `files` for those that `what` describes.

    Where it stays empty it is removed at the end. Frames of earlier checkpoints of the run, which
    nobody can complete, are removed at once.

    Args:
        in_place: they lie where they belong; see `lie_in_place`.
        shard: which others may work beside; it removes nothing.

    Raises:
        NerfError: the place cannot be written.
        BusyError: another process renders the same.
    """
    if shard is None:
        _remove_outdated(files.folder, what)
    name = hashlib.blake2b(json_text(pixels_of(what)).encode(), digest_size=5).hexdigest()
    folder = files.out if in_place else files.folder / f"{PREFIX}{name}"
    busy = f"another process renders the same frames in {folder}: wait for it."
    with ExitStack() as stack:
        try:
            stack.enter_context(folders_above(folder / RECORD))
        except OSError as error:
            raise NerfError(
                f"cannot write to {files.folder}: {error.strerror}; choose another --out."
            ) from error
        stack.enter_context(locked(folder, busy, shared=shard is not None))
        if shard is not None:
            mine = folder / f"{SHARD_LOCK}{shard.number}-{shard.count}"
            mine.touch()
            busy = f"another process renders shard {shard} in {folder}: wait for it."
            stack.enter_context(locked(mine, busy))
        if not (folder / RECORD).is_file():
            write_json(folder / RECORD, what)
        kept = KeptFrames(folder, files, cameras.size.numpy(), scale, in_place)
        if shard is None:
            kept.clean()
        if in_place:
            kept.write_records()
        try:
            yield kept
        finally:
            if shard is None and folder.is_dir() and not kept.there():
                for _, path in files.records() if in_place else ():
                    path.unlink(missing_ok=True)
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

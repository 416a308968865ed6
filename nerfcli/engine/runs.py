"""A run folder: everything that rendering needs, under relative names, so that it moves.

    config.toml  scene.json  metrics.jsonl  state.json  previous.json  renders/
    model-<step>.safetensors  optimizer-<step>.safetensors

state.json is the switch: it names the tensor files of one step, and one rename puts it in place
after they have been written and read back. A crash at any moment leaves the old or the new.
previous.json names those of the checkpoint before it, which is taken where the newest is damaged.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from errno import ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nerfcli.core.config import Config
from nerfcli.core.errors import CannotWrite, NerfError
from nerfcli.core.files import json_text, read_json, replacing, sync_folder, write_json
from nerfcli.core.settings import config_from_toml, write_config
from nerfcli.engine.checkpoints import ensure_whole, read_tensors, write_tensors
from nerfcli.engine.run_folders import (
    ASIDE,
    PREVIOUS,
    STATE,
    TENSOR_FILES,
    clear,
    ensure_free,
    ensure_replaceable,
    in_training,
    is_run,
    kept_if_saved,
    make_folders,
    newest_run,
    next_run_path,
    not_made,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

FORMAT = 2  # of the folder; raised when an older version could not read it
READABLE = (1, 2)  # 1: see core.config_format1
PARTS = ("model", "optimizer")

__all__ = ["Run", "ensure_free", "in_training", "is_run", "newest_run", "next_run_path"]


class UnknownFormat(NerfError):
    """Another version wrote the checkpoint; it is not damaged."""


class Run:
    """An open run folder.

    Attributes:
        path: the folder. config: resolved settings.
        scene_json: cameras, transform, splits, and what was resolved of the scene.
        remark: to the user, where the newest checkpoint is damaged and the one before it is taken;
            else "".
    """

    def __init__(self, path: Path, config: Config, scene_json: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.scene_json = scene_json
        self.remark = ""
        self._metrics_cut = False
        self._state: dict[str, Any] | None = None  # state.json, once it has been read

    @classmethod
    def create(
        cls,
        path: Path,
        config: Config,
        scene_json: dict[str, Any],
        *,
        overwrite: bool = False,
        held: ExitStack | None = None,
    ) -> Run:
        """Make the folder with config.toml and scene.json, before step 0.

        held: keeps the lock on the run, and takes the folder away where what follows fails before
            the first checkpoint. None: the run is not trained here.

        Raises:
            NerfError: something is there already (`overwrite` replaces a run, never anything
                else), another process trains it, or the place cannot be written.
        """
        ensure_free(path, overwrite=overwrite)
        made = make_folders(path)
        return cls._fill(path, made, config, scene_json, overwrite=overwrite, held=held)

    @classmethod
    def create_next(
        cls,
        scene_name: str,
        config: Config,
        scene_json: dict[str, Any],
        root: Path = Path("runs"),
        *,
        held: ExitStack | None = None,
    ) -> Run:
        """`create` at `next_run_path`; of two programs that start together each gets its own."""
        while True:
            path = next_run_path(scene_name, root)
            made = make_folders(path)
            if path in made:
                return cls._fill(path, made, config, scene_json, overwrite=False, held=held)

    @classmethod
    def _fill(
        cls,
        path: Path,
        made: list[Path],
        config: Config,
        scene_json: dict[str, Any],
        *,
        overwrite: bool,
        held: ExitStack | None,
    ) -> Run:
        with ExitStack() as own:
            own.enter_context(in_training(path))
            ensure_replaceable(path, overwrite=overwrite)  # once more: another may have made it
            own.enter_context(kept_if_saved(path, made))
            clear(path)
            try:
                (path / "renders").mkdir(exist_ok=True)
            except OSError as error:
                raise not_made(path, error) from error
            with replacing(path / "scene.json") as aside:  # `is_begun` until both are there
                aside.write_text(json_text(scene_json, indent=1) + "\n", encoding="utf-8")
                write_config(config, path / "config.toml")
            if held is not None:
                held.push(own.pop_all())
        return cls(path, config, scene_json)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open a run that has a checkpoint.

        Raises:
            NerfError: no such run, no checkpoint, another format version, or a damaged file.
        """
        if not path.is_dir():
            raise NerfError(f"no such run: {path} is not a folder. `nerf train` makes runs.")
        if not is_run(path):
            lacks = "scene.json" if (path / "config.toml").is_file() else "config.toml"
            raise NerfError(f"{path} is not a run folder: it has no {lacks}.")
        config, scene_json = config_from_toml(path / "config.toml"), _object(path / "scene.json")
        if config.scene.background:  # format 1 kept here what had been taken
            scene_json["background"] = config.scene.background
        run = cls(path, config, scene_json)
        if not run.has_checkpoint:
            raise NerfError(
                f"run {path} has no checkpoint ({STATE}): it was stopped before the first "
                "one, or is still on its way to it. Train it again with --overwrite."
            )
        _ = run.state  # fail early where something is wrong with it
        return run

    def using(self, *, backend: str | None = None, device: str | None = None) -> Run:
        """The same folder, to be run on another backend or device; the folder is not changed."""
        other, now = copy.copy(self), self.config
        other.config = dataclasses.replace(
            now, backend=backend or now.backend, device=device or now.device
        )
        return other

    def go_on_with(self, config: Config) -> None:
        """Let config.toml state the length and the folder of images that the run goes on with."""
        own, train = self.config, config.train
        after = dataclasses.replace(
            own,
            train=dataclasses.replace(own.train, steps=train.steps, minutes=train.minutes),
            scene=dataclasses.replace(own.scene, images=config.scene.images),
        )
        if after != own:
            self.config = after
            write_config(self.config, self.path / "config.toml")

    @property
    def renders(self) -> Path:
        return self.path / "renders"

    @property
    def step(self) -> int:
        """Of the last checkpoint."""
        return self.state["step"]

    @property
    def has_checkpoint(self) -> bool:
        return any((self.path / name).is_file() for name in (STATE, PREVIOUS))

    def save_checkpoint(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]
    ) -> None:
        """Keep one step, and the checkpoint before it.

        Args:
            state: JSON values, among them `step` (int); `format` and `files` are reserved.

        Raises:
            CannotWrite: the disk refuses, or gives back something else than was written. What was
                saved before stays as it is.
        """
        step = int(state["step"])
        last = self.state if self.has_checkpoint else None
        kept = [record["files"] for record in (last, self._before()) if record is not None]
        in_use = {name for files in kept for name in files.values()}
        for tag in (f"{step}{letter}" for letter in ("", "b", "c")):  # the same step once more
            files = {part: f"{part}-{tag}.safetensors" for part in PARTS}
            if in_use.isdisjoint(files.values()):
                break
        for part, tensors in zip(PARTS, (model, optimizer), strict=True):
            write_tensors(self.path / files[part], tensors, step)
        sync_folder(self.path)  # the files are there before a record names them
        if last is not None and not self.remark:
            write_json(self.path / PREVIOUS, last)
        write_json(self.path / STATE, {"format": FORMAT, "files": files, **state})
        sync_folder(self.path)  # and the records before the files of others go away
        self._state, self.remark = None, ""
        before = self._before() or {"files": {}}
        kept = {*files.values(), *before["files"].values()}
        for pattern in TENSOR_FILES + ASIDE:
            for path in self.path.glob(pattern):
                if path.name not in kept:
                    with suppress(OSError):  # the next one takes it away
                        path.unlink()

    def forget_metrics(self) -> None:
        """Let the next row of metrics cut what lies beyond the checkpoint, as a new run does."""
        self._metrics_cut = False

    def add_to_state(self, values: dict[str, Any]) -> None:
        """Write JSON values into the last checkpoint's state."""
        write_json(self.path / STATE, self.state | values)
        self._state = None

    def load_checkpoint(
        self, device: str = "cpu"
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Model tensors, optimiser tensors and state of the last checkpoint.

        Raises:
            NerfError: no checkpoint, another format version, truncated or mixed files.
        """
        both = self._of_one_step(lambda: [self._tensors(part, device) for part in PARTS])
        return both[0], both[1], self._user_state()

    def load_model(self, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Model tensors and state; the optimiser's file may be missing. Errors as above."""
        tensors = self._of_one_step(lambda: self._tensors("model", device))
        return tensors, self._user_state()

    def ensure_whole(self) -> None:
        """Raise NerfError where the checkpoint's files are gone or cut; quick, needs no torch."""

        def look() -> None:
            for name in self.state["files"].values():
                ensure_whole(self.path / name, self.state["step"])

        self._of_one_step(look)

    def _of_one_step(self, read: Callable[[], T]) -> T:
        """Read files of the last checkpoint, and anew where another process has replaced it.

        Where it is damaged, read those of the one before it.
        """
        while True:
            self._state, self.remark = None, ""
            state = self.state
            try:
                return read()
            except NerfError as error:
                if self._is_replaced(state):
                    continue
                before = self._before()
                if before is None or before == state:
                    raise
                self._go_back_to(before, error)
                try:
                    return read()
                except NerfError:
                    raise error from None

    def _is_replaced(self, state: dict[str, Any]) -> bool:
        try:
            return self._read_state() != state and not self.remark
        except NerfError:
            return False

    def _go_back_to(self, before: dict[str, Any], error: NerfError) -> None:
        self._state = before
        self.remark = f"{error} The checkpoint before it, of step {before['step']}, is taken."

    def _before(self) -> dict[str, Any] | None:
        """The record of the checkpoint before the last one; None where there is none to read."""
        try:
            return self._read_state(PREVIOUS)
        except NerfError:
            return None

    def _user_state(self) -> dict[str, Any]:
        return {k: v for k, v in self.state.items() if k not in ("format", "files")}

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl. The first one cuts what lies beyond the checkpoint:

        rows of steps that a resumed run takes again, and a last line torn by a crash.

        Raises:
            CannotWrite: the disk refuses; the file is as it was.
        """
        if not self._metrics_cut:
            self._cut_metrics()
            self._metrics_cut = True
        path, line = self.path / "metrics.jsonl", f"{json_text(row)}\n".encode()
        try:
            with path.open("ab", buffering=0) as file:
                before = file.tell()
                if (file.write(line) or 0) < len(line):  # the disk is full
                    file.truncate(before)
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
        except OSError as error:
            raise CannotWrite(f"cannot write {path}: {error.strerror or error}.") from error

    def _cut_metrics(self) -> None:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        last = self.state["step"] if self.has_checkpoint else -1
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _kept(line, last)]
        with replacing(path) as aside:
            aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    @property
    def state(self) -> dict[str, Any]:
        """state.json of the last checkpoint, checked; kept until a checkpoint is loaded or saved.

        Raises:
            NerfError: as for `load_checkpoint`.
        """
        if self._state is None:
            try:
                self._state = self._read_state()
            except NerfError as error:
                before = self._before()
                if before is None or isinstance(error, UnknownFormat):
                    raise
                self._go_back_to(before, error)
        assert self._state is not None
        return self._state

    def _read_state(self, name: str = STATE) -> dict[str, Any]:
        path = self.path / name
        if not path.is_file():
            raise NerfError(f"run {self.path} has no checkpoint (state.json). Train it first.")
        state = _object(path)
        if state.get("format") not in READABLE:
            raise UnknownFormat(
                f"{path}: checkpoint format {state.get('format')!r}, this version reads up to "
                f"{FORMAT}. Use the nerfcli that wrote it, or train again."
            )
        files = state.get("files")
        if not (
            isinstance(state.get("step"), int)
            and isinstance(files, dict)
            and all(
                isinstance(files.get(p), str) and files[p] == Path(files[p]).name for p in PARTS
            )
        ):
            raise NerfError(f"{path}: `step` or `files` is missing or wrong. Take an intact copy.")
        return state

    def _tensors(self, part: str, device: str) -> dict[str, Tensor]:
        state = self.state
        return read_tensors(self.path / state["files"][part], state["step"], device)


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise NerfError(f"{path}: expected a JSON object. Take an intact copy.")
    return value


def _kept(line: str, last: int) -> bool:
    try:
        return json.loads(line)["step"] <= last
    except (json.JSONDecodeError, KeyError, TypeError):
        return False  # torn by a crash, so beyond the checkpoint

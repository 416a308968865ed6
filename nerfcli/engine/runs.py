"""A run folder: everything that rendering needs, under relative names, so that it moves.

    config.toml  scene.json  metrics.jsonl  state.json  renders/
    model-<step>.safetensors  optimizer-<step>.safetensors

state.json is the switch: it names the tensor files of one step, and one rename puts it in place
after they have been written and read back. A crash at any moment leaves the old or the new.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.core.files import json_text, read_json, replacing, write_json
from nerfcli.core.settings import config_from_toml, write_config
from nerfcli.engine.checkpoints import ensure_whole, read_tensors, write_tensors
from nerfcli.engine.run_folders import (
    ASIDE,
    TENSOR_FILES,
    clear,
    ensure_free,
    ensure_replaceable,
    in_training,
    is_run,
    kept_if_saved,
    make_folders,
    not_made,
    states_under,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

FORMAT = 2  # of the folder; raised when an older version could not read it
READABLE = (1, 2)  # 1: see core.config_format1
PARTS = ("model", "optimizer")


class Run:
    """An open run folder.

    Attributes:
        path: the folder. config: resolved settings.
        scene_json: cameras, transform, splits, and what was resolved of the scene.
    """

    def __init__(self, path: Path, config: Config, scene_json: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.scene_json = scene_json
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
            write_json(path / "scene.json", scene_json)
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
                f"run {path} has no checkpoint (state.json): it was stopped before the first "
                "one, or is still on its way to it. Train it again with --overwrite."
            )
        _ = run.state  # fail early where something is wrong with it
        return run

    def using(self, *, backend: str | None = None, device: str | None = None) -> Run:
        """The same folder, to be run on another backend or device; the folder is not changed."""
        config = dataclasses.replace(
            self.config,
            backend=backend or self.config.backend,
            device=device or self.config.device,
        )
        return Run(self.path, config, self.scene_json)

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
        return (self.path / "state.json").is_file()

    def save_checkpoint(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]
    ) -> None:
        """Keep one step; the checkpoint before it stays valid until this one is complete.

        Args:
            state: JSON values, among them `step` (int); `format` and `files` are reserved.

        Raises:
            NerfError: the disk refuses, or gives back something else than was written.
        """
        step = int(state["step"])
        live = self.state["files"] if self.has_checkpoint else {}
        tag = str(step)
        if any(name.endswith(f"-{tag}.safetensors") for name in live.values()):
            tag += "b"  # the same step once more: never write over the files in use
        files = {part: f"{part}-{tag}.safetensors" for part in PARTS}
        for part, tensors in zip(PARTS, (model, optimizer), strict=True):
            write_tensors(self.path / files[part], tensors, step)
        write_json(self.path / "state.json", {"format": FORMAT, "files": files, **state})
        self._state = None
        for pattern in TENSOR_FILES + ASIDE:
            for path in self.path.glob(pattern):
                if path.name not in files.values():
                    path.unlink()

    def add_to_state(self, values: dict[str, Any]) -> None:
        """Write JSON values into the last checkpoint's state."""
        write_json(self.path / "state.json", self.state | values)
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
        """Read files of the last checkpoint, and anew where another process has replaced it."""
        while True:
            self._state = None
            state = self.state
            try:
                return read()
            except NerfError:
                if self._read_state() == state:
                    raise

    def _user_state(self) -> dict[str, Any]:
        return {k: v for k, v in self.state.items() if k not in ("format", "files")}

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl. The first one cuts what lies beyond the checkpoint:

        rows of steps that a resumed run takes again, and a last line torn by a crash.
        """
        if not self._metrics_cut:
            self._cut_metrics()
            self._metrics_cut = True
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json_text(row) + "\n")

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
            self._state = self._read_state()
        return self._state

    def _read_state(self) -> dict[str, Any]:
        path = self.path / "state.json"
        if not path.is_file():
            raise NerfError(f"run {self.path} has no checkpoint (state.json). Train it first.")
        state = _object(path)
        if state.get("format") not in READABLE:
            raise NerfError(
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


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` whose checkpoint was written last.

    Raises:
        NerfError: there is none.
    """
    states = [path for path in states_under(root) if is_run(path.parent)]
    if not states:
        raise NerfError(
            f"no run with a checkpoint under {root}/: name one, or make one: nerf train SCENE."
        )
    return max(states, key=lambda path: (path.stat().st_mtime_ns, str(path))).parent


def next_run_path(scene_name: str, root: Path = Path("runs")) -> Path:
    """runs/<scene>-<n> with the first n above all that are there."""
    name = re.sub(r"[^\w.-]+", "-", scene_name).strip("-.") or "scene"
    taken = [
        int(match[1])
        for path in root.glob("*")
        if (match := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name))
    ]
    return root / f"{name}-{max(taken, default=0) + 1}"


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

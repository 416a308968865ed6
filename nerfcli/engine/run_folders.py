"""The folder of a run before it is one: what may lie there, who may use it, how it is taken away.

Needs no torch.
"""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, locked

TENSOR_FILES = ("model-*.safetensors", "optimizer-*.safetensors")
ASIDE = (  # of a crash; .tmp??????: of the library that writes tensors
    *(".*.safetensors", ".tmp??????", ".state.*.json", ".previous.*.json"),
    *(".metrics.*.jsonl", ".config.*.toml", ".scene.*.json"),
)
BEGUN = ".scene.cleared.json"  # in a folder that is being cleared
STATE, PREVIOUS = "state.json", "previous.json"  # the last checkpoint, and the one before it
OURS = (
    *("config.toml", "scene.json", STATE, PREVIOUS),
    *("metrics.jsonl", "eval*.json", "report*.html", "compare-*.html"),
)
FOLDERS = ("renders", "exports", "tensorboard")
KEPT = ("paths", "crops")  # the user's own work, of use for the next run of the scene, too


def is_run(path: Path) -> bool:
    """Whether a folder is a run, whole or not: other programs also have a config.toml."""
    records = ("scene.json", "state.json")
    return (path / "config.toml").is_file() and any((path / name).is_file() for name in records)


def is_begun(path: Path) -> bool:
    """Whether a folder holds what a killed process left of a run that it made or took away."""
    names = [entry.name for entry in path.iterdir()]
    if names == ["renders"]:
        return not any((path / "renders").iterdir())
    ours = {file.name for pattern in (*OURS, *TENSOR_FILES, *ASIDE) for file in path.glob(pattern)}
    return any(path.glob(".scene.*.json")) and ours.issuperset({*names} - {*FOLDERS, *KEPT})


def has_checkpoint(path: Path) -> bool:
    """Whether a run has a checkpoint, be it only the one before the last."""
    return any((path / name).is_file() for name in (STATE, PREVIOUS))


def states_under(root: Path) -> list[Path]:
    """List state.json of each run under `root` that has a checkpoint and may be read.

    Raises:
        NerfError: there is none, but a folder that may not be read.
    """
    states, closed = find_files(root, "state.json")
    if closed and not states:
        raise NerfError(f"{next(iter(closed.values()))} Name a run that you may read.")
    return states


def find_files(root: Path, name: str) -> tuple[list[Path], dict[Path, str]]:
    """List the files `name` in the folders under `root`, which may be missing.

    Returns:
        The files, and the folders that may not be read, each with the reason.

    Raises:
        NerfError: `root` may not be read.
    """
    files, closed = [], {}
    try:
        folders = sorted(root.iterdir())
    except FileNotFoundError:
        folders = []
    except OSError as error:
        raise NerfError(
            f"cannot read {root}: {error.strerror}. Name a run that you may read."
        ) from error
    for folder in folders:
        try:  # pathlib's questions take what may not be read for what is not there
            if stat.S_ISREG((folder / name).stat().st_mode):
                files.append(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            closed[folder] = f"cannot read {folder / name}: {error.strerror}."
    return files, closed


def ensure_free(path: Path, *, overwrite: bool = False) -> None:
    """Raise NerfError unless a run can be created at `path`; touches nothing."""
    ensure_replaceable(path, overwrite=overwrite)
    if path.is_dir():
        with in_training(path):  # and not of another process
            pass
    ensure_writable(path)


def ensure_replaceable(path: Path, *, overwrite: bool) -> None:
    """Raise NerfError where something is at `path` that a new run may not replace."""
    if path.exists() and not path.is_dir():
        raise NerfError(f"{path} is a file; --out of `nerf train` names a folder.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if is_begun(path):
        return
    if not is_run(path):
        raise NerfError(f"{path} is not empty and not a run: choose another --out.")
    if not overwrite:
        raise NerfError(
            f"run {path} exists: go on with it by --resume, replace it by --overwrite, "
            "or choose another --out."
        )


def score_file(split: str = "test") -> str:
    """The name, in a run's folder, of the scores of a split's views."""
    return "eval.json" if split == "test" else f"eval-{split}.json"


def report_file(split: str = "test") -> str:
    """The name, in a run's folder, of the page that shows a split's scores and views."""
    return "report.html" if split == "test" else f"report-{split}.html"


def in_training(path: Path) -> AbstractContextManager[None]:
    """Within the block, no other process trains the run at `path`; NerfError if one does."""
    busy = f"run {path} is being trained by another process: wait for it, or choose another --out."
    return locked(path, busy)


@contextmanager
def kept_if_saved(path: Path, made: list[Path]) -> Iterator[None]:
    """Take a new run away where the block fails before its first checkpoint.

    made: the folders that were made for it, the innermost last.
    """
    try:
        yield
    except BaseException:
        if not has_checkpoint(path):
            clear(path)
            for folder in reversed(made):
                with suppress(OSError):  # something else is in it
                    folder.rmdir()
        raise


def make_folders(path: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that were not there."""
    made = []
    try:
        for folder in reversed((path, *path.parents)):
            if not folder.is_dir():
                with suppress(FileExistsError):  # another program was faster
                    folder.mkdir()
                    made.append(folder)
    except OSError as error:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise not_made(path, error) from error
    return made


def not_made(path: Path, error: OSError) -> NerfError:
    """Make the error of a run folder that the system refuses to make."""
    return NerfError(f"cannot make the run folder {path}: {error.strerror}.")


def clear(path: Path) -> None:
    """Remove the files of a run and nothing else; the switches first, so it is never half a run."""
    with suppress(OSError):  # a full disk
        (path / BEGUN).touch()
    for pattern in (PREVIOUS, STATE, *OURS, *TENSOR_FILES):
        for file in path.glob(pattern):
            file.unlink()
    for folder in FOLDERS:
        shutil.rmtree(path / folder, ignore_errors=True)
    for pattern in ASIDE:
        for file in path.glob(pattern):
            file.unlink()


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

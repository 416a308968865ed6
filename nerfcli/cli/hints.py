"""What a path is, and which command was meant, where a command is given the wrong thing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nerfcli.core.errors import NerfError
from nerfcli.core.files import read_json
from nerfcli.core.text import command, most_like
from nerfcli.engine.run_folders import is_run, states_under
from nerfcli.engine.source_record import ImageSource

RUNS = Path("runs")  # where `nerf train` puts runs by default
LISTED = "`nerf runs` lists those that are there."
SHAPES = (".ply", ".obj", ".glb", ".stl", ".binvox", ".off")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".gif")


def find_run(path: Path) -> Path:
    """Return the run folder that the user means by `path`, a folder or a name under runs/.

    Raises:
        NerfError: it is something else, or nothing; the message names the command that was meant.
    """
    if is_run(path):
        return path
    if path.is_dir():
        raise NerfError(f"{path} is {_describe_folder(path)}")
    if path.exists():
        raise NerfError(f"{path} is {_describe_file(path)}")
    if named := named_run(path):
        return named
    near = _near_run(path)
    hint = f"did you mean {near}?" if near else LISTED
    raise NerfError(f"no such run: {path}; {hint}")


def named_run(path: Path) -> Path | None:
    """The run under runs/ whose name is `path`, which is no path itself."""
    place = RUNS / path
    return place if not path.exists() and not path.is_absolute() and is_run(place) else None


def ensure_scene(path: Path, verb: str) -> None:
    """Raise NerfError where `path` is plainly something else than a scene.

    verb: of the command, which is said again with the right thing.
    """
    run = path if is_run(path) else named_run(path)
    if run is not None:
        raise NerfError(f"{run} is a run, not a scene. {_instead_of_run(run, verb)}")
    if path.is_file():
        if (run := _run_around(path)) is not None:
            raise NerfError(f"{path} is a file of run {run}, not a scene.")
        if path.suffix.lower() in VIDEOS:
            raise NerfError(f"{path} is a video, not a scene. {_prepare(path)}")
    if _is_begun(path):
        raise NerfError(f"{path} is {_describe_begun(path)}")
    if not path.exists() and (near := _near(path, path.parent)):
        raise NerfError(f"{path} does not exist; did you mean {near}?")


def ensure_resumable(path: Path) -> None:
    """Raise NerfError where nothing is at `path`, neither a run nor a scene to begin one with."""
    if path.exists():
        return
    near = [str(name) for name in (_near_run(path), _near(path, path.parent)) if name]
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}?"
    raise NerfError(f"no such run: {path}; {hint if near else LISTED}")


def ensure_capture(path: Path) -> None:
    """Raise NerfError where what `nerf prepare` is given is a run."""
    run = path if is_run(path) else named_run(path)
    if run is not None:
        raise NerfError(
            f"{run} is a run, not photos; its poses are known. "
            f"A video of it: {command('nerf render', run)}."
        )


def newest_run_of(scene: Path) -> Path | None:
    """The newest run under runs/ that was made from this scene, if any.

    Raises:
        NerfError: there is no run but one that may not be read.
    """
    place, found = str(scene.resolve()), []
    for run in _runs_under(RUNS):
        with suppress(NerfError, OSError):
            if _source_of(run) == place:
                found.append(run)
    return _newest(found)


def _runs_under(root: Path) -> list[Path]:
    return [state.parent for state in states_under(root) if is_run(state.parent)]


def _newest(runs: Iterable[Path]) -> Path | None:
    times = []
    for run in runs:
        with suppress(OSError):  # gone since
            times.append(((run / "state.json").stat().st_mtime_ns, run))
    return max(times)[1] if times else None


def _describe_folder(path: Path) -> str:
    """Say what a folder is that is no run, and what to do with it."""
    if _is_begun(path):
        return _describe_begun(path)
    if form := scene_format(path):
        run = newest_run_of(path)
        meant = f"Its newest run is {run}." if run else f"Train it: {command('nerf train', path)}."
        return f"a scene ({form}), not a run. {meant}"
    if newest := _newest(_runs_under(path)):
        return f"a folder of runs: name one, such as the newest, {newest}."
    if _holds_photos(path):
        return f"a folder of photos, not a run. {_prepare(path)}"
    missing = "scene.json" if (path / "config.toml").is_file() else "config.toml"
    return f"not a run folder: it has no {missing}. {LISTED}"


def _describe_file(path: Path) -> str:
    """Say what a file is, where a run was asked for."""
    if (run := _run_around(path)) is not None:
        return f"a file of run {run}: name the folder."
    suffix = path.suffix.lower()
    if suffix in SHAPES:
        return "a shape file, not a run: nerf export and nerf compare take it."
    if suffix in VIDEOS:
        return f"a video, not a run. {_prepare(path)}"
    if suffix == ".json":
        return f"a file, not a run. If it is a scene, train it: {command('nerf train', path)}."
    return f"a file; a run is a folder. {LISTED}"


def _describe_begun(path: Path) -> str:
    from nerfcli.prepare import repeat_command

    again = repeat_command(path)
    return f"a scene that `nerf prepare` has begun and not ended. Go on with it: {again}."


def _instead_of_run(run: Path, verb: str) -> str:
    source = ""
    with suppress(NerfError):
        source = _source_of(run)
    scene = Path(source) if source and Path(source).exists() else None
    if verb == "train":
        anew = f" Its scene anew: {command('nerf train', scene)}." if scene else ""
        return f"Go on with it: {command('nerf train --resume', run)}.{anew}"
    if scene is None:
        return f"Its scene was at {source or 'an unknown place'}, where nothing is now."
    if verb == "convert":
        words = command("nerf convert", scene, "--to FORMAT --out DIR")
        cameras = command("nerf export", run, "--to cameras")
        return f"Its scene: {words}. Its cameras as they were trained on: {cameras}."
    return f"Its scene is {scene}."


def _prepare(path: Path) -> str:
    words = command("nerf prepare", path, "--out scene && nerf train scene")
    return f"Find its cameras, then train: {words}."


def _source_of(run: Path) -> str:
    """The absolute path of the scene that a run was made from; "" if it is not recorded."""
    return ImageSource.recorded(read_json(run / "scene.json")).resolved


def _run_around(path: Path) -> Path | None:
    return next((parent for parent in list(path.parents)[:3] if is_run(parent)), None)


def _is_begun(path: Path) -> bool:
    if not path.is_dir() or (path / "transforms.json").is_file():
        return False
    from nerfcli.prepare import WORK  # needs torch

    return (path / WORK).is_dir()


def scene_format(path: Path) -> str:
    """The name of the format of a scene's folder; "" for any other folder."""
    from nerfcli.scenes.formats import formats_in  # needs torch

    with suppress(OSError):
        if found := formats_in(path):
            return found[0][0].name
    return ""


def _holds_photos(path: Path) -> bool:
    from nerfcli.scenes.readers.foreign import describe_photos

    return bool(describe_photos(path))


def _near_run(path: Path) -> Path | None:
    """The run that a name most likely means: the newest of a scene, or one of a like name."""
    runs = []
    with suppress(NerfError):
        runs = _runs_under(RUNS)
    of_scene = [run for run in runs if path.name and run.name.startswith(f"{path.name}-")]
    near = most_like(path.name, [run.name for run in runs])
    return _newest(of_scene) or (RUNS / near if near else None)


def _near(path: Path, folder: Path) -> Path | None:
    """The folder beside a missing path whose name is most like it."""
    try:
        names = [child.name for child in folder.iterdir() if child.is_dir()]
    except OSError:
        return None
    near = most_like(path.name, names)
    return folder / near if near else None

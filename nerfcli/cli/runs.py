"""nerf runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from nerfcli.cli.hints import RUNS
from nerfcli.cli.options import Json, Quiet
from nerfcli.cli.output import show
from nerfcli.core.errors import NerfError
from nerfcli.core.files import read_json, refusal
from nerfcli.core.text import duration
from nerfcli.engine.run_folders import find_files, is_run, score_file
from nerfcli.engine.runs import Run
from nerfcli.engine.source_record import ImageSource


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the runs are.", show_default=False)
    ] = RUNS,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """List the runs in a folder, the newest first. [default: runs]

    Each with its scene, length, held-out PSNR where `nerf eval` has measured it, and size. A run
    that cannot be opened is named with the reason.

    \b
    Examples:
      nerf runs
      nerf runs archive/ --json
    """
    if not folder.is_dir():
        if folder != RUNS:
            raise NerfError(f"{folder} is not a folder; name the one that the runs are in.")
        rows = []
    else:
        rows = list_runs(folder)
    show(_table(rows, folder), {"folder": str(folder), "runs": rows}, as_json)
    return 0


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Describe the runs in a folder, the newest checkpoint first, and what may not be read last.

    A run without a checkpoint stands where it began.
    """
    files, closed = find_files(folder, "config.toml")
    found = [file.parent for file in files if is_run(file.parent)]
    found.sort(key=lambda path: (_written(path), str(path)), reverse=True)
    shut = [_blank_row(path) | {"broken": reason} for path, reason in closed.items()]
    return [describe(path) for path in found] + shut


def describe(path: Path) -> dict[str, Any]:
    """What a run is, from its records alone; `broken` says why it cannot be opened, or is None."""
    row = _blank_row(path)
    try:
        run = Run.open(path)
        run.ensure_whole()
    except NerfError as error:
        return row | {"broken": str(error)}
    except OSError as error:
        return row | {"broken": refusal(error) or str(error)}
    state = run.state
    row |= {key: state.get(key) for key in ("step", "seconds", "finished")}
    row |= {"scene": run.scene_json.get("name"), "method": run.config.method}
    row["source"] = ImageSource.recorded(run.scene_json).resolved or None
    return row | held_out_score(path)


def _blank_row(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(path), "written": _written(path), "bytes": size_of(path)}
    row |= dict.fromkeys(("scene", "source", "method", "step", "seconds", "finished", "broken"))
    return row | dict.fromkeys(("test_psnr", "test_psnr_step"))


def held_out_score(path: Path) -> dict[str, Any]:
    """The PSNR of the held-out views that `nerf eval` left in a run, and the step it is of."""
    none = {"test_psnr": None, "test_psnr_step": None}
    try:
        score = read_json(path / score_file())
        if score["protocol"]["split"] != "test":
            return none
        return {"test_psnr": score["psnr"], "test_psnr_step": score.get("step")}
    except (NerfError, KeyError, TypeError):  # not measured, or by another version
        return none


def size_of(path: Path) -> int:
    """Bytes of a run on the disk."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except OSError:  # gone since, as a checkpoint that was replaced
                continue
    return total


def _written(path: Path) -> float:
    """When a run's last checkpoint was written, or else its settings; seconds since 1970."""
    for name in ("state.json", "config.toml"):
        try:
            return (path / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _table(rows: list[dict[str, Any]], folder: Path) -> str:
    if not rows:
        return f"no runs in {folder}/; make one: nerf train SCENE"
    head = ("run", "scene", "method", "steps", "time", "PSNR", "MB")
    cells = [head, *(_cells(row) for row in rows if row["broken"] is None)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = []
    for line in cells:
        texts = [cell.ljust(n) for cell, n in zip(line[:3], widths[:3], strict=True)]
        texts += [cell.rjust(n) for cell, n in zip(line[3:], widths[3:], strict=True)]
        lines.append("  ".join(texts).rstrip())
    if len(lines) == 1:
        lines = []
    if any("+" in line[3] for line in cells[1:]):
        lines.append("+ can go on: nerf train --resume RUN")
    if any("*" in line[5] for line in cells[1:]):
        lines.append("* measured at an earlier step: nerf eval RUN")
    broken = [f"{row['run']} cannot be opened: {row['broken']}" for row in rows if row["broken"]]
    return "\n".join(lines + broken)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    psnr, seconds = row["test_psnr"], row["seconds"]
    older = "" if psnr is None or row["test_psnr_step"] in (None, row["step"]) else "*"
    return (
        row["run"],
        str(row["scene"] or "?"),
        str(row["method"] or "?"),
        str(row["step"]) + ("" if row["finished"] in (True, None) else "+"),
        "?" if seconds is None else duration(seconds),
        "-" if psnr is None else f"{psnr:.2f}{older}",
        f"{row['bytes'] / 1e6:.1f}",
    )

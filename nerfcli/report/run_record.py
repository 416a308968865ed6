"""What a run folder tells of itself: curves, exposure codes, and the command that made it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfcli.core.settings import config_tree
from nerfcli.core.text import command
from nerfcli.engine.runs import Run
from nerfcli.engine.source_record import ImageSource
from nerfcli.methods.exposure import PREFIX

MEASURES = {"ms_ssim": "--ms-ssim", "psnr_cc": "--psnr-cc"}  # by their key in eval.json
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Exposure:
    """The learned exposure of a training photo: log2 gains, and offsets, of red, green, blue."""

    name: str
    stops: tuple[float, ...]
    offsets: tuple[float, ...]


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl; lines that a crash tore, and a missing file, are no rows."""
    try:
        text = (run.path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def curve(rows: list[dict[str, Any]], x: str, y: str) -> Points:
    """The points of two columns, where both have a number."""
    pairs = [(number(row, x), number(row, y)) for row in rows]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def ray_rates(rows: list[dict[str, Any]], x: str) -> Points:
    """Rays a second over `x`, from the steps and the seconds between rows."""
    points: Points = []
    for before, row in zip(rows, rows[1:], strict=False):
        keys = ("step", "seconds", "n_rays", x)
        if not all(is_number(r.get(k)) for r in (before, row) for k in keys):
            continue
        steps, seconds = row["step"] - before["step"], row["seconds"] - before["seconds"]
        if steps > 0 and seconds > 0:
            points.append((float(row[x]), row["n_rays"] * steps / seconds))
    return points


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number that a float holds."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return False


def number(row: dict[str, Any], key: str) -> float | None:
    """The number at a key; None where there is none."""
    value: Any = row.get(key)
    return float(value) if is_number(value) else None


def read_exposures(run: Run) -> list[Exposure]:
    """Read the exposure codes of the training photos; none where the run learned none.

    Raises:
        NerfError: no readable checkpoint.
    """
    if not run.config.train.exposure:
        return []
    _, optimizer, _ = run.load_checkpoint()
    codes = optimizer.get(f"{PREFIX}codes")
    if codes is None:
        return []
    names = [frame["name"] for frame in run.scene_json["frames"]]
    found = []
    for index in run.scene_json["splits"]["train"]:
        code = codes[index].tolist()
        stops = tuple(gain / math.log(2.0) for gain in code[:3])
        found.append(Exposure(names[index], stops, tuple(code[3:])))
    return found


def train_command(run: Run) -> str:
    """Write the command that trains the same again, by the run's own config.toml."""
    source = ImageSource.recorded(run.scene_json).resolved
    again = run.path.with_name(f"{run.path.name}-again")
    processes = run.state.get("processes")
    several = ("--devices", str(processes)) if processes else ()
    scene = Path(source) if source else "SCENE"
    return command(
        *("nerf train", scene, "--config", run.path / "config.toml", "--out", again), *several
    )


def eval_command(run: Run, split: str, scores: Collection[str] = ()) -> str:
    """Write the command that scores the views and makes the page again.

    Args:
        scores: keys of eval.json; those of measures that were asked for are asked for again.
    """
    more = [] if split == "test" else ["--split", split]
    nets = [net for net in ("vgg", "alex") if f"lpips_{net}" in scores]
    more += ["--lpips", ",".join(nets)] if nets else []
    more += [flag for key, flag in MEASURES.items() if key in scores]
    return command("nerf eval", run.path, *more)


def facts_of(run: Run) -> dict[str, object]:
    """Every setting of a run, by its dotted key, and what was taken from its scene."""
    scene = run.scene_json
    values: dict[str, object] = {}
    for key, value in config_tree(run.config).items():
        inner = {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {}
        values |= inner or {key: value}
    taken = {name: scene.get(name) for name in ("background", "downscale", "near", "far")}
    taken["photos"] = ImageSource.recorded(scene).resolved or None
    taken["training views"] = len(scene.get("splits", {}).get("train", ()))
    box = scene.get("box")
    if isinstance(box, dict):
        taken["box center"], taken["box half size"] = box.get("center"), box.get("half_size")
    taken["processes"] = run.state.get("processes", 1)
    return values | {f"scene: {key}": value for key, value in taken.items()}

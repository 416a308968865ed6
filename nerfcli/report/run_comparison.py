"""Two runs against each other: their scores view by view, and what else differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.core.files import read_json
from nerfcli.engine.run_folders import score_file
from nerfcli.engine.runs import Run
from nerfcli.report.paired import paired_difference
from nerfcli.report.run_record import eval_command, facts_of, number
from nerfcli.report.scores import is_higher_better, names_of_scores, unit
from nerfcli.scenes import Scene


@dataclass(frozen=True)
class ScoredRun:
    """A run with what `nerf eval` left in it for a split."""

    run: Run
    scores: dict[str, Any]

    @property
    def views(self) -> list[dict[str, Any]]:
        return self.scores["views"]

    def summary(self) -> dict[str, Any]:
        """What stands beside the other run's: as in `--json`."""
        state, scene = self.run.state, self.run.scene_json
        seconds = state.get("seconds")
        return {
            "run": str(self.run.path),
            "scene": scene.get("name"),
            "method": self.run.config.method,
            "seed": self.run.config.train.seed,
            "step": self.scores["step"],
            "seconds": round(seconds, 3) if seconds else None,
            "steps_per_second": state["step"] / seconds if seconds else None,
            "psnr": self.scores["psnr"],
            "ssim": self.scores["ssim"],
        }


def open_scored(path: Path, split: str) -> ScoredRun:
    """Open a run and its scores of a split.

    Raises:
        NerfError: no such run, or it has not been scored since its last step.
    """
    run = Run.open(path)
    file = path / score_file(split)
    again = f"Run: {eval_command(run, split)}"
    if not file.is_file():
        raise NerfError(f"run {path} has no scores of its {split} views ({file.name}). {again}")
    scores = read_json(file)
    if not _is_whole(scores):
        raise NerfError(f"{file} is not what nerf eval writes. {again}")
    if scores["step"] != run.step:
        raise NerfError(f"{file} is of step {scores['step']}, the run of step {run.step}. {again}")
    return ScoredRun(run, scores)


def _is_whole(scores: Any) -> bool:
    if not isinstance(scores, dict):
        return False
    views, protocol = scores.get("views"), scores.get("protocol")
    return (
        isinstance(protocol, dict)
        and isinstance(views, list)
        and bool(views)
        and all(isinstance(view, dict) and isinstance(view.get("name"), str) for view in views)
        and {"step", "psnr", "ssim"} <= scores.keys()
    )


def compare_runs(a: ScoredRun, b: ScoredRun, split: str) -> dict[str, Any]:
    """Compare the scores of two runs on the same views.

    Returns:
        As documented for `nerf compare RUN RUN --json`.

    Raises:
        NerfError: they were not scored on the same views, of the same size, by the same rules.
    """
    ensure_comparable(a, b, split)
    rows_b = {row["name"]: row for row in b.views}
    pairs = [(row, rows_b[row["name"]]) for row in a.views]
    names_a, names_b = names_of_scores(a.views), names_of_scores(b.views)
    names = [name for name in names_a if name in names_b]
    facts = [facts_of(run) for run in (a.run, b.run)]
    keys = list(dict.fromkeys([*facts[0], *facts[1]]))
    return {
        "split": split,
        "n_views": len(pairs),
        "a": a.summary(),
        "b": b.summary(),
        "scores": [_score(name, pairs) for name in names],
        "unpaired": sorted(set(names_a) ^ set(names_b)),
        "views": [_view(names, *pair) for pair in pairs],
        "settings": [
            {"key": key, "a": facts[0].get(key), "b": facts[1].get(key)}
            for key in keys
            if facts[0].get(key) != facts[1].get(key)
        ],
    }


def ensure_comparable(a: ScoredRun, b: ScoredRun, split: str) -> None:
    """Raise NerfError where a difference of the scores would not be one of the runs."""
    names = [{row["name"] for row in scored.views} for scored in (a, b)]
    only = sorted(names[0] ^ names[1])
    if only:
        raise NerfError(
            f"{a.run.path} and {b.run.path} were not scored on the same {split} views: "
            f"{len(only)} are of one alone, first {only[0]!r}. Train both with the same held-out "
            f"views, then run {_evals(a, b, split)}"
        )
    sizes = [_sizes(scored.run) for scored in (a, b)]
    for name in sorted(names[0]):
        if sizes[0].get(name) != sizes[1].get(name):
            raise NerfError(
                f"view {name!r} has {sizes[0].get(name)} pixels in {a.run.path} and "
                f"{sizes[1].get(name)} in {b.run.path}. Train both with the same "
                f"--downscale, then run {_evals(a, b, split)}"
            )
    rules = [scored.scores["protocol"] for scored in (a, b)]
    for key in rules[0].keys() & rules[1].keys():
        if rules[0][key] != rules[1][key]:
            raise NerfError(
                f"{a.run.path} and {b.run.path} were scored by different rules: {key} is "
                f"{rules[0][key]!r} and {rules[1][key]!r}. Score both alike, by "
                f"{_evals(a, b, split)}"
            )


def _evals(a: ScoredRun, b: ScoredRun, split: str) -> str:
    return f"{eval_command(a.run, split)} and {eval_command(b.run, split)}"


def _sizes(run: Run) -> dict[str, str]:
    scene = Scene.from_json(run.scene_json)
    sizes = (" x ".join(map(str, size)) for size in scene.cameras.size.tolist())
    return dict(zip(scene.names, sizes, strict=True))


def _score(name: str, pairs: Sequence[tuple[dict, dict]]) -> dict[str, Any]:
    """The difference in one score, over the views where both have a number."""
    found = [(number(a, name), number(b, name)) for a, b in pairs]
    both = [(x, y) for x, y in found if x is not None and y is not None]
    sign = 1 if is_higher_better(name) else -1
    gains = [sign * (b - a) for a, b in both]
    values_a, values_b = [a for a, _ in both], [b for _, b in both]
    empty = dict.fromkeys(("mean", "standard_error", "low", "high", "p")) | {"n": 0}
    paired = paired_difference(values_a, values_b) if both else empty
    return {
        "score": name,
        "unit": unit(name),
        "higher_is_better": sign > 0,
        "a": sum(values_a) / len(both) if both else None,
        "b": sum(values_b) / len(both) if both else None,
        "difference": paired["mean"],
        "standard_error": paired["standard_error"],
        "low": paired["low"],
        "high": paired["high"],
        "p": paired["p"],
        "n_views": len(both),
        "n_better": sum(gain > 0 for gain in gains),
        "n_worse": sum(gain < 0 for gain in gains),
    }


def _view(names: Sequence[str], a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    known = {n: (number(a, n), number(b, n)) for n in names}
    return {
        "name": a["name"],
        "a": {n: pair[0] for n, pair in known.items()},
        "b": {n: pair[1] for n, pair in known.items()},
        "difference": {
            n: None if x is None or y is None else round(y - x, 5) for n, (x, y) in known.items()
        },
    }

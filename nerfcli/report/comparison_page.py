"""The page of `nerf compare RUN RUN`: both runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nerfcli.core.text import command, duration, quantity
from nerfcli.report.curves import charts, histogram, line_chart
from nerfcli.report.page import (
    command_line,
    esc,
    figure,
    fill_page,
    number_table,
    paragraph,
    plain_table,
    section,
    slider,
    to_number,
    view_list,
)
from nerfcli.report.pictures import ViewPictures, error_caption, size_remark
from nerfcli.report.run_comparison import ScoredRun
from nerfcli.report.run_record import curve, eval_command, is_number, read_metrics
from nerfcli.report.scores import digits, is_decibels, label, unit

CAVEAT = (
    "The intervals are of the mean over views of this scene, taken as independent draws. They say "
    "nothing about other seeds: a training with another seed differs as well."
)


def comparison_page(
    a: ScoredRun,
    b: ScoredRun,
    value: dict[str, Any],
    views: Sequence[ViewPictures],
    missing: str,
) -> str:
    """Make the page.

    Args:
        value: of `compare_runs`. views, missing: of `read_pictures`.
    """
    scenes = {str(value[side]["scene"]) for side in ("a", "b")}
    name, split = " and ".join(sorted(scenes)), value["split"]
    views_text = quantity(value["n_views"], f"{split} view")
    names = "".join(
        f'<p><span class="key {color}"></span>{letter} &nbsp;{esc(value[side]["run"])}</p>'
        for side, letter, color in (("a", "A", "first"), ("b", "B", "second"))
    )
    head = f"<header><h1>{esc(name)}</h1>{paragraph(f'Two runs, {views_text}', 'soft')}{names}"
    body = [
        f"{head}</header>",
        section("Scores", _scores(value), paragraph(CAVEAT)),
        section("Views", _views(value, views), _remarks(a, b, views, missing, split)),
        section("Over the views", charts(_histograms(value))),
        section("Training", _training(value), charts(_curves(a, b))),
        section("Settings that differ", _settings(value)),
        section("Make it again", command_line(_command(value))),
    ]
    return fill_page(f"{name}: {value['a']['run']} and {value['b']['run']}", "\n".join(body))


def verdict(score: dict[str, Any]) -> str:
    """Say in one sentence what a score's difference shows."""
    name, n = label(score["score"]), score["n_views"]
    if score["difference"] is None:
        return f"{name}: no view has a number in both runs"
    mean, places = score["difference"], digits(score["score"])
    text = f"{name}: B is {signed(mean, places)}{_unit(score)} against A"
    if score["low"] is None:
        return f"{text}, on one view"
    text += f", 95 % interval {signed(score['low'], places)} to {signed(score['high'], places)}"
    return f"{text}; better in {score['n_better']} of {quantity(n, 'view')}: {conclusion(score)}"


def conclusion(score: dict[str, Any]) -> str:
    """Say which run is better in a score, as far as the interval shows it."""
    if score["low"] is None or score["low"] <= 0.0 <= score["high"]:
        return "no difference shown"
    return "B is better" if (score["low"] > 0) == score["higher_is_better"] else "A is better"


def signed(value: float | None, places: int) -> str:
    """Format a difference with its sign."""
    if value is None:
        return "–"
    return f"+{value:.{places}f}" if round(value, places) > 0 else to_number(value, places)


def _unit(score: dict[str, Any]) -> str:
    return f" {score['unit']}" if score["unit"] else ""


def _scores(value: dict[str, Any]) -> str:
    heads = [
        "mean over views",
        "A",
        "B",
        "B − A",
        "standard error",
        "95 % interval",
        "B better in",
        "",
    ]
    rows = []
    for score in value["scores"]:
        places = digits(score["score"])
        interval = "–"
        if score["low"] is not None:
            interval = f"{signed(score['low'], places)} to {signed(score['high'], places)}"
        rows.append(
            [
                f"{label(score['score'])}{_unit(score)}",
                to_number(score["a"], places),
                to_number(score["b"], places),
                signed(score["difference"], places),
                to_number(score["standard_error"], places + 1),
                interval,
                f"{score['n_better']} of {score['n_views']}",
                conclusion(score),
            ]
        )
    return number_table(heads, rows)


def _views(value: dict[str, Any], pictures: Sequence[ViewPictures]) -> str:
    of_view = {view.row["name"]: view for view in pictures}
    names = [score["score"] for score in value["scores"]]
    main = names[0] if names else None
    heads = ["view, B's losses first"]
    if main is not None:
        text = f"{label(main)} {unit(main)}".strip()
        heads += [f"A {text}", f"B {text}"]
    heads += [f"Δ {label(name)}" for name in names]

    def loss(view: dict[str, Any]) -> float:
        change = view["difference"].get(main)
        return change if is_number(change) else float("inf")

    lines = []
    for view in sorted(value["views"], key=loss):
        cells = [view["name"]]
        if main is not None:
            cells += [to_number(view[side].get(main), digits(main)) for side in ("a", "b")]
        cells += [signed(view["difference"][name], digits(name)) for name in names]
        shown = of_view.get(view["name"])
        lines.append((cells, "" if shown is None else _view(shown)))
    return view_list(heads, lines)


def _view(view: ViewPictures) -> str:
    captions = {
        "a": "<b>A</b>",
        "b": "<b>B</b>",
        "photo": "<b>Photo</b>",
        "error-a": error_caption("Error of A"),
        "error-b": error_caption("Error of B"),
    }
    alts = {"a": "Rendering of A", "b": "Rendering of B", "photo": "Photo",
            "error-a": "Error map of A", "error-b": "Error map of B"}  # fmt: skip
    pictures = "".join(
        figure(role, view.jpegs[role], view.shown, caption, f"{alts[role]}, {view.row['name']}")
        for role, caption in captions.items()
    )
    both = slider(("a", "A"), ("b", "B"), view.shown[0])
    return f'{both}<div class="pictures three">{pictures}</div>'


def _remarks(
    a: ScoredRun, b: ScoredRun, views: Sequence[ViewPictures], missing: str, split: str
) -> str:
    lines = [size_remark(views)]
    if missing:
        evals = " and ".join(eval_command(scored.run, split) for scored in (a, b))
        lines.append(f"{missing}. To have them, run {evals}.")
    return "".join(paragraph(line) for line in lines if line)


def _histograms(value: dict[str, Any]) -> list[str]:
    found = []
    for score in value["scores"]:
        name = score["score"]
        changes = [v["difference"][name] for v in value["views"]]
        text = f"B − A, {label(name)}{_unit(score)}"
        least = 0.02 if is_decibels(name) else 10.0 ** (1 - digits(name))
        known = [change for change in changes if is_number(change)]
        found.append(histogram(f"Histogram of {text}", text, known, least))
    return found


def _training(value: dict[str, Any]) -> str:
    both = (value["a"], value["b"])
    rows = [
        ["steps", *(f"{run['step']:,}" for run in both)],
        ["time", *("–" if run["seconds"] is None else duration(run["seconds"]) for run in both)],
        ["steps a second", *(to_number(run["steps_per_second"], 1) for run in both)],
        ["seed", *(str(run["seed"]) for run in both)],
        ["method", *(run["method"] for run in both)],
    ]
    return number_table(["", "A", "B"], rows)


def _curves(a: ScoredRun, b: ScoredRun) -> list[str]:
    rows = [(color, read_metrics(s.run)) for color, s in (("first", a), ("second", b))]
    psnr = [(color, curve(of, "seconds", "psnr")) for color, of in rows]
    steps = [(color, curve(of, "step", "psnr")) for color, of in rows]
    return [
        line_chart("PSNR of training rays over time", "PSNR of training rays, dB",
                   "seconds of training", psnr),
        line_chart("PSNR of training rays over steps", "PSNR of training rays, dB", "step", steps),
    ]  # fmt: skip


def _settings(value: dict[str, Any]) -> str:
    if not value["settings"]:
        return paragraph("None: both runs have the same settings.")
    rows = [[row["key"], *(text_of(row[side]) for side in ("a", "b"))] for row in value["settings"]]
    return plain_table(["setting", "A", "B"], rows)


def text_of(value: object) -> str:
    """Format a setting; what a run leaves out is a dash."""
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _command(value: dict[str, Any]) -> str:
    more = () if value["split"] == "test" else ("--split", value["split"])
    return command("nerf compare", Path(value["a"]["run"]), Path(value["b"]["run"]), *more)

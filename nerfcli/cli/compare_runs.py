"""nerf compare RUN RUN."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from nerfcli.cli.hints import named_run
from nerfcli.cli.output import show
from nerfcli.cli.output_paths import NAME_ANOTHER, ensure_absent
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, write_text
from nerfcli.core.text import duration, quantity
from nerfcli.engine.run_folders import is_run

OF_SHAPES = ("samples", "seed", "radius", "align", "voxels", "bootstrap")
OF_RUNS = ("split", "report", "out", "overwrite")


def are_runs(a: Path, b: Path) -> bool:
    """Whether both paths name runs.

    Raises:
        NerfError: one alone does.
    """
    kinds = [is_run(path) or named_run(path) is not None for path in (a, b)]
    if kinds[0] == kinds[1]:
        return kinds[0]
    run, other = (a, b) if kinds[0] else (b, a)
    raise NerfError(
        f"{run} is a run and {other} is none: name two runs, or two shapes. nerf export {run} "
        "makes a shape of it; nerf eval --geometry measures that against a true one."
    )


def ensure_options(context: typer.Context, kind: str, others: Collection[str]) -> None:
    """Raise NerfError for an option that was given and is of another kind of things."""
    for name in others:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":  # typer may bring its own click
            raise NerfError(f"--{name} does not go with {kind}; leave it out.")


def compare_two_runs(
    a: Path,
    b: Path,
    split: str,
    report: bool,
    out: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Compare the scores of two runs, write their page, and report."""
    from nerfcli.report.comparison_page import comparison_page
    from nerfcli.report.pairs import comparison_file, ensure_same_photo, read_pictures
    from nerfcli.report.run_comparison import compare_runs, open_scored

    a, b = named_run(a) or a, named_run(b) or b
    page = (out or comparison_file(a, b)) if report else None
    if out is not None:
        if not report:
            raise NerfError("--out names a page, and --no-report asks for none; leave one out.")
        if out.is_dir():
            raise NerfError(f"--out {out} is a folder; name the page, such as {out / 'ab.html'}.")
        ensure_absent([out], overwrite=overwrite)
    runs = open_scored(a, split), open_scored(b, split)
    value = compare_runs(*runs, split)
    ensure_same_photo(*runs, split)
    if page is not None:
        ensure_writable(page, NAME_ANOTHER)
        views, missing = read_pictures(*runs, split)
        write_text(page, comparison_page(*runs, value, views, missing))
        value |= {"report": str(page), "pictures": len(views), "missing": missing or None}
    show(_summary(value), value, as_json)
    return 0


def _summary(value: dict[str, Any]) -> str:
    from nerfcli.report.comparison_page import CAVEAT, text_of, verdict

    lines = [_run_line(letter, value[letter.lower()]) for letter in "AB"]
    views = quantity(value["n_views"], f"{value['split']} view")
    lines.append(f"{views}, B against A:")
    lines += [f"  {verdict(score)}" for score in value["scores"]]
    if value["unpaired"]:
        lines.append(f"  of one run alone, so not compared: {', '.join(value['unpaired'])}")
    lines.append(CAVEAT)
    rows = [("setting", "A", "B")]
    rows += [(row["key"], text_of(row["a"]), text_of(row["b"])) for row in value["settings"]]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines.append("settings that differ:" if len(rows) > 1 else "no settings differ")
    for key, a, b in rows if len(rows) > 1 else ():
        lines.append(f"  {key:<{widths[0]}}  {a:<{widths[1]}}  {b}")
    if value.get("missing"):
        lines.append(value["missing"])
    if "report" in value:
        lines.append(f"report: {value['report']}")
    return "\n".join(lines)


def _run_line(letter: str, run: dict[str, Any]) -> str:
    took = "" if run["seconds"] is None else f" in {duration(run['seconds'])}"
    steps = f"{run['step']:,} steps{took}"
    return f"{letter}  {run['run']}: scene {run['scene']}, {run['method']}, {steps}"

"""The page of `nerf eval`: a run's scores, and what each view looks like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nerfcli.core.files import write_text
from nerfcli.core.settings import config_to_toml
from nerfcli.core.text import duration, quantity
from nerfcli.engine.run_folders import report_file
from nerfcli.engine.runs import Run
from nerfcli.engine.source_record import ImageSource
from nerfcli.report.curves import charts, dot_chart, histogram, line_chart
from nerfcli.report.page import (
    command_line,
    esc,
    facts,
    figure,
    fill_page,
    folded,
    headline,
    number_table,
    paragraph,
    section,
    slider,
    to_number,
    view_list,
)
from nerfcli.report.pictures import ViewPictures, error_caption, size_remark
from nerfcli.report.run_record import (
    curve,
    eval_command,
    is_number,
    ray_rates,
    read_exposures,
    read_metrics,
    train_command,
)
from nerfcli.report.scores import cell, digits, label, names_of_scores, unit, worst_first


def write_eval_report(
    run: Run, result: dict[str, Any], views: Sequence[ViewPictures], place: Path
) -> Path:
    """Write the page of a split's scores into a folder, and give its path.

    Args:
        result: of `evaluate`. views: of the same evaluation, in any order.

    Raises:
        CannotWrite: the disk refuses.
    """
    path = place / report_file(result["protocol"]["split"])
    write_text(path, eval_page(run, result, views))
    return path


def eval_page(run: Run, result: dict[str, Any], views: Sequence[ViewPictures]) -> str:
    """Make the page; arguments as of `write_eval_report`."""
    name, split = run.scene_json.get("name") or run.path.name, result["protocol"]["split"]
    split_text = quantity(result["n_views"], f"{split} view")
    subtitle = f"Run {run.path} · step {result['step']:,} · {split_text}"
    body = [
        f"<header><h1>{esc(name)}</h1>{paragraph(subtitle, 'soft')}{_headline(result)}</header>",
        _views(result["views"], views),
        section("Over the views", _histograms(result["views"])),
        section("Training", _curves(run)),
        section("Exposure of the training photos", _exposures(run)),
        section("The scene", _scene(run)),
        section("How it was measured", _protocol(run, result)),
        section("Make it again", *_commands(run, split, result)),
    ]
    return fill_page(f"{name}: {split} views of {run.path.name}", "\n".join(body))


def _headline(result: dict[str, Any]) -> str:
    names = [n for n in names_of_scores(result["views"]) if is_number(result.get(n))]
    figures = [(label(n), to_number(result[n], digits(n)), unit(n)) for n in names]
    if result["exact_views"]:
        figures.append(("equal to the photo", str(result["exact_views"]), "views"))
    return headline(figures)


def _views(rows: Sequence[dict[str, Any]], views: Sequence[ViewPictures]) -> str:
    names, of_view = names_of_scores(rows), {view.row["name"]: view for view in views}
    heads = ["view, worst first", *(f"{label(n)} {unit(n)}".strip() for n in names)]
    lines = []
    for i in worst_first(rows):
        row, view = rows[i], of_view.get(rows[i]["name"])
        inner = "" if view is None else _view(view)
        lines.append(([row["name"], *(cell(row, n) for n in names)], inner))
    return section("Views", view_list(heads, lines), paragraph(size_remark(views)))


def _view(view: ViewPictures) -> str:
    error = error_caption("Error")
    if view.is_masked:
        error += "Grey: masked, not scored."
    depth = "<b>Depth</b>: nothing is hit"
    if view.depths is not None:
        near, far = view.depths
        depth = (
            f"<b>Depth</b> along the ray, source units: {near:.3g} (bright) to {far:.3g} (dark); "
            "black where nothing is hit"
        )
    captions = {"image": "<b>Rendering</b>", "photo": "<b>Photo</b>", "error": error,
                "depth": depth}  # fmt: skip
    alts = {"image": "Rendering", "photo": "Photo", "error": "Error map", "depth": "Depth"}
    pictures = "".join(
        figure(role, view.jpegs[role], view.shown, caption, f"{alts[role]} of {view.row['name']}")
        for role, caption in captions.items()
    )
    both = slider(("image", "Rendering"), ("photo", "Photo"), view.shown[0])
    return f'{both}<div class="pictures">{pictures}</div>'


def _histograms(rows: Sequence[dict[str, Any]]) -> str:
    found = []
    for name in names_of_scores(rows):
        values = [float(row[name]) for row in rows if is_number(row.get(name))]
        text = f"{label(name)} {unit(name)}".strip()
        least = 10.0 ** (1 - digits(name))
        found.append(histogram(f"Histogram of {text} over views", text, values, least))
    return charts(found)


def _curves(run: Run) -> str:
    rows = read_metrics(run)
    found = [
        line_chart("PSNR of training rays over steps", "PSNR of training rays, dB", "step",
                   [("first", curve(rows, "step", "psnr"))]),
        line_chart("Loss over steps", f"loss ({run.config.train.loss}), logarithmic", "step",
                   [("first", curve(rows, "step", "loss"))], is_log=True),
        line_chart("Rays a second over steps", "rays a second", "step",
                   [("first", ray_rates(rows, "step"))]),
    ]  # fmt: skip
    return charts(found) or paragraph("The run is too short for curves.")


def _exposures(run: Run) -> str:
    found = read_exposures(run)
    if not found:
        return ""
    colors = ("red", "green", "blue")
    dots = [
        (color, [(float(i), code.stops[c]) for i, code in enumerate(found)])
        for c, color in enumerate(colors)
    ]
    chart = dot_chart("Gain of each photo", "gain of red, green, blue, stops", "training photo",
                      dots)  # fmt: skip
    heads = ["photo", *(f"gain {c}, stops" for c in colors), *(f"offset {c}" for c in colors)]
    rows = [[code.name, *(to_number(v, 3) for v in (*code.stops, *code.offsets))] for code in found]
    return charts([chart]) + folded("All gains and offsets", number_table(heads, rows))


def _scene(run: Run) -> str:
    scene, config = run.scene_json, run.config
    box = scene.get("box") or {}
    splits = ", ".join(f"{len(v)} {k}" for k, v in (scene.get("splits") or {}).items() if v)
    rows = facts(
        [
            ("Photos", ImageSource.recorded(scene).resolved or "unknown"),
            ("Format", scene.get("kind")),
            ("Views", splits),
            ("Method", f"{config.method} ({reason})" if (reason := scene.get("method_reason"))
             else config.method),
            ("Box", box.get("source")),
        ]
    )  # fmt: skip
    warnings = scene.get("warnings")
    if warnings is None:
        found = paragraph("The run does not record what was found before training.")
    elif not warnings:
        found = paragraph(
            "The quick check of poses and focal length before training found nothing. nerf check "
            "looks at everything."
        )
    else:
        found = "".join(paragraph(f"Warning before training: {text}", "") for text in warnings)
    notes = "".join(paragraph(str(text)) for text in scene.get("notes") or ())
    return rows + found + notes


def _protocol(run: Run, result: dict[str, Any]) -> str:
    state, protocol = run.state, result["protocol"]
    seconds = state.get("seconds")
    software = result["environment"]
    rows: list[tuple[str, object]] = [
        ("Training", None if seconds is None else
         f"{duration(seconds)}, {state['step']:,} steps, seed {run.config.train.seed}"),
        ("Scoring", f"{result['seconds_per_view']:.3g} s a view"),
        ("Software", f"nerf {software['nerf']}, Python {software['python']}, torch "
         f"{software['torch']}, {software['backend']}"),
        ("Platform", software["platform"]),
        *((_title(key), value) for key, value in protocol.items()),
    ]  # fmt: skip
    geometry = result.get("geometry")
    if geometry:
        rows.append(("Shape", f"F-score {geometry['f_score']:.4f} against {geometry['truth']}"))
    return facts(rows)


def _title(key: str) -> str:
    if key in ("psnr", "psnr_corrected", "ssim"):
        return label(key)
    return key.replace("_", " ").capitalize()


def _commands(run: Run, split: str, result: dict[str, Any]) -> list[str]:
    settings = esc(config_to_toml(run.config))
    return [
        command_line(train_command(run)),
        command_line(eval_command(run, split, result)),
        folded("Settings of the run (config.toml)", f"<pre>{settings}</pre>"),
    ]

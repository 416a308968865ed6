"""Pieces of a page: escaped text, tables, pictures, and the page around them."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

import numpy as np

from nerfcli.engine.pictures import RAMP
from nerfcli.engine.render import to_uint8


def esc(value: object) -> str:
    """Escape text for HTML, in an attribute as well."""
    return html.escape(str(value), quote=True)


def fill_page(title: str, body: str) -> str:
    """Return one HTML page that asks for nothing else.

    Args:
        title: text. body: HTML.
    """
    page = files("nerfcli.report").joinpath("page.html").read_text(encoding="utf-8")
    ramp = ", ".join(f"rgb({r} {g} {b})" for r, g, b in to_uint8(RAMP).tolist())
    values = {"TITLE": esc(title), "BODY": body, "RAMP": ramp}
    # in one pass: what is filled in may itself look like a place
    return re.sub("@(TITLE|BODY|RAMP)@", lambda found: values[found[1]], page)


def section(title: str, *parts: str) -> str:
    """A heading and what is under it; nothing where that is empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section><h2>{esc(title)}</h2>\n{inner}</section>" if inner else ""


def paragraph(text: str, kind: str = "note") -> str:
    """A paragraph of text; nothing where that is empty."""
    return text and f'<p class="{kind}">{esc(text)}</p>'


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """A table of names and what they are; None is left out."""
    lines = "".join(
        f'<tr><th scope="row">{esc(name)}</th><td>{esc(value)}</td></tr>'
        for name, value in rows
        if value is not None
    )
    return f'<table class="facts">{lines}</table>'


def number_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is a name and whose others are numbers."""
    top = "".join(f'<th scope="col">{esc(head)}</th>' for head in heads)
    lines = "".join(
        "<tr>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="numbers">{table}</div>'


def plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text."""
    return number_table(heads, rows).replace('class="numbers"', 'class="texts"')


def headline(figures: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: (name, number, unit)."""
    cells = "".join(
        f"<div><dt>{esc(name)}</dt><dd>{esc(number)} <small>{esc(unit)}</small></dd></div>"
        for name, number, unit in figures
    )
    return f'<dl class="figures">{cells}</dl>'


def command_line(text: str) -> str:
    """A command with a button that copies it."""
    button = '<button type="button" class="copy" hidden>Copy</button>'
    return f'<div class="command"><pre>{esc(text)}</pre>{button}</div>'


def folded(title: str, inner: str) -> str:
    """HTML that opens at a click."""
    return f'<details class="plain"><summary>{esc(title)}</summary>{inner}</details>'


def figure(role: str, jpeg: bytes, size: tuple[int, int], caption: str, alt: str) -> str:
    """A picture with its caption.

    Args:
        role: by which a slider finds it. size: (width, height) of `jpeg`. caption: HTML.
    """
    data = base64.b64encode(jpeg).decode("ascii")
    return (
        f'<figure><img data-role="{esc(role)}" width="{size[0]}" height="{size[1]}" '
        f'decoding="async" alt="{esc(alt)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def slider(under: tuple[str, str], over: tuple[str, str], width: int) -> str:
    """A picture over another, up to a line that moves; shown where scripts run.

    Args:
        under, over: (role, name) of two figures in the same view; `under` is on the left.
        width: of their pictures, which are shown at twice that at most.
    """
    widest = f'style="--widest: {2 * width}px"'
    label = f"Line between {under[1]} and {over[1]}"
    sides = f'data-under="{esc(under[0])}" data-over="{esc(over[0])}"'
    return (
        f'<div class="slider" {widest} hidden {sides}>'
        '<img alt=""><img alt=""><input type="range" min="0" max="100" value="50" step="0.5" '
        f'aria-label="{esc(label)}"></div>'
        f'<div class="sides note" {widest} hidden><span>{esc(under[1])}</span>'
        f"<span>{esc(over[1])}</span></div>"
    )


def view_list(heads: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> str:
    """Views, one a line, each of which opens; the first one is open.

    Args:
        heads: of the columns, the name's first. rows: cells of a line, and the HTML it opens;
            where that is empty, the line does not open.
    """
    columns, row = f'style="--columns: {len(heads) - 1}"', "row many" if len(heads) > 3 else "row"
    lines = [f'<div class="{row} heads" {columns}>{_cells(heads)}</div>']
    is_first = True
    for cells, inner in rows:
        if not inner:
            lines.append(f'<div class="{row}" {columns}>{_cells(cells)}</div>')
            continue
        lines.append(
            f'<details class="view"{" open" if is_first else ""}>'
            f'<summary class="{row}" {columns}>{_cells(cells)}</summary>'
            f'<div class="opened">{inner}</div></details>'
        )
        is_first = False
    return "\n".join(lines)


def _cells(cells: Sequence[str]) -> str:
    name, *others = (esc(cell) for cell in cells)
    return f'<span class="name">{name}</span>' + "".join(f"<span>{o}</span>" for o in others)


def to_number(value: object, digits: int) -> str:
    """Format a number, or a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}".replace("-", "−")

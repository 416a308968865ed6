"""Charts as SVG: curves, a histogram, dots. Colours are those of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nerfcli.report.page import esc

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 24, 40  # around the plot
MOST_POINTS = 300  # of a curve; more are averaged
SIZES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A range of values with its name and unit, and whether it is logarithmic."""

    low: float
    high: float
    label: str
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        ends = (self.low, self.high, value)
        low, high, at = (math.log10(v) for v in ends) if self.is_log else ends
        return (at - low) / (high - low)

    def ticks(self, n: int) -> list[float]:
        if not self.is_log:
            return round_ticks(self.low, self.high, n)
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        steps = (1, 2, 5) if last - first < 2 else (1,)
        found = [k * 10.0**p for p in range(first - 1, last + 1) for k in steps]
        return [tick for tick in found if self.low <= tick <= self.high]


def round_ticks(low: float, high: float, n: int) -> list[float]:
    """List about n round numbers within [low, high]."""
    step = round_step((high - low) / n)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def round_step(least: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-12)))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= least * (1 - 1e-9))


def line_chart(title: str, label: str, x_label: str, curves: Sequence[tuple[str, Points]],
               *, is_log: bool = False) -> str:  # fmt: skip
    """Draw curves over one another; empty where none has two points.

    Args:
        title: of the chart, text. label: of y, with its unit. curves: (class of its colour:
            first, second; points). is_log: of y, whose values that are not above 0 are left out.
    """
    shown = []
    for color, points in curves:
        kept = [p for p in points if all(map(math.isfinite, p)) and (p[1] > 0 or not is_log)]
        if len(kept) > 1:
            shown.append((color, thin_out(kept)))
    if not shown:
        return ""
    xs = [x for _, points in shown for x, _ in points]
    ys = [y for _, points in shown for _, y in points]
    x_axis = Axis(min(0.0, *xs), max(xs) if max(xs) > min(0.0, *xs) else 1.0, x_label)
    y_axis = Axis(*_padded(min(ys), max(ys), is_log), label, is_log)
    lines = []
    for color, points in shown:
        path = " ".join(f"{_x(x_axis, x):.1f},{_y(y_axis, y):.1f}" for x, y in points)
        lines.append(f'<polyline class="curve" style="stroke: var(--{color})" points="{path}"/>')
    return _chart(title, x_axis, y_axis, "".join(lines))


def histogram(title: str, x_label: str, values: Sequence[float], least: float) -> str:
    """Draw how many values lie in each of some equal ranges; empty without any.

    least: width of a range. Their ends are round numbers.
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    step = round_step(max((high - low) / min(12, max(4, len(values) // 2)), least))
    start = math.floor(low / step + 1e-9)
    counts = [0] * (math.floor(high / step + 1e-9) - start + 1)
    for value in values:
        counts[math.floor(value / step + 1e-9) - start] += 1
    x_axis = Axis(start * step, (start + len(counts)) * step, x_label)
    y_axis = Axis(0.0, max(counts) * 1.08, "views")
    bars = []
    for k, count in enumerate(counts):
        left, right = (_x(x_axis, (start + k + end) * step) for end in (0, 1))
        top = _y(y_axis, count)
        about = f"{x_axis.low + k * step:g} to {x_axis.low + (k + 1) * step:g}: {count}"
        bars.append(
            f'<rect x="{left + 0.75:.1f}" y="{top:.1f}" width="{right - left - 1.5:.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}" fill="var(--first)"><title>{esc(about)}'
            "</title></rect>"
        )
    return _chart(title, x_axis, y_axis, "".join(bars), whole=True)


def dot_chart(title: str, label: str, x_label: str, series: Sequence[tuple[str, Points]]) -> str:
    """Draw points in colours: (name of the colour, points)."""
    ys = [y for _, points in series for _, y in points]
    most = max((x for _, points in series for x, _ in points), default=0.0)
    if not ys:
        return ""
    x_axis, y_axis = Axis(0.0, max(most, 1.0), x_label), Axis(*_padded(min(ys), max(ys)), label)
    dots = "".join(
        f'<circle cx="{_x(x_axis, x):.1f}" cy="{_y(y_axis, y):.1f}" r="2.2" fill="var(--{color})"/>'
        for color, points in series
        for x, y in points
    )
    return _chart(title, x_axis, y_axis, dots)


def thin_out(points: Points) -> list[tuple[float, float]]:
    """Average neighbours until no more than MOST_POINTS are left."""
    size = -(-len(points) // MOST_POINTS)
    if size == 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _padded(low: float, high: float, is_log: bool = False) -> tuple[float, float]:
    if is_log:
        return low / 1.15, high * 1.15
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - room if low < 0 or low - room > 0 else 0.0, high + room


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _chart(title: str, x_axis: Axis, y_axis: Axis, inner: str, *, whole: bool = False) -> str:
    """The axes around what is drawn. whole: y counts things."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines, x_text, y_text = [], _formatter(x_axis.ticks(5)), _formatter(y_axis.ticks(5))
    for tick in y_axis.ticks(5):
        if whole and tick != round(tick):
            continue
        y = _y(y_axis, tick)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_text(LEFT - 6, y + 4, y_text(tick), "end"))
    for tick in x_axis.ticks(5):
        x = _x(x_axis, tick)
        lines.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        )
        lines.append(_text(x, bottom + 17, x_text(tick), "middle"))
    lines.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    lines.append(_text(right, HEIGHT - 5, x_axis.label, "end"))
    lines.append(_text(0, 12, y_axis.label, "start"))
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(title)}">'
        f"{''.join(lines)}{inner}</svg></figure>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{esc(text)}</text>'


def _formatter(ticks: Sequence[float]) -> Callable[[float], str]:
    """What writes the numbers at an axis, all in one unit and with the digits they need."""
    most = max(map(abs, ticks), default=0.0)
    size, letter = next(((s, c) for s, c in SIZES if most >= 10 * s), (1.0, ""))
    return lambda tick: f"{tick / size:.6g}{letter if tick else ''}".replace("-", "−")


def charts(found: Sequence[str]) -> str:
    """Charts beside each other; nothing where all are empty."""
    inner = "".join(found)
    return f'<div class="charts">{inner}</div>' if inner else ""

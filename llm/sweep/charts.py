"""Scatter charts with curves and bands as inline SVG, in the looks of the run's page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llm.report.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Points, Scale, nice_ticks

HEIGHT = 230
MOST_LABELS = 6  # round numbers along the horizontal axis


@dataclass(frozen=True)
class Marks:
    """Points of one look: `trial` and `best` are dots, `law` is a curve."""

    points: Points
    look: str


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: numbers, evenly or by their logarithm, or named places 0, 1, 2, …"""

    log: bool = False
    labelled: tuple[float, ...] = ()  # places to label; none: round numbers
    names: tuple[str, ...] = ()


def scatter(marks: Sequence[Marks], axis: Axis, *, title: str, band: Sequence[tuple[float, float, float]] = ()) -> Markup:
    """A chart of value over a setting; `band` is (x, low, high), `title` is what a screen reader says."""
    places = [x for mark in marks for x, _ in mark.points] + [x for x, _, _ in band]
    values = [y for mark in marks for _, y in mark.points] + [y for _, *ends in band for y in ends]
    rows = nice_ticks(min(values), max(values), 4)
    across = _across(places, axis)
    up = Scale(min(rows[0], *values), max(rows[-1], *values), HEIGHT - BOTTOM, TOP)
    place = (lambda x: across(math.log10(x))) if axis.log else across
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{y}" dx="-6" dy="4" text-anchor="end">{}</text>')
    parts = [line.format(LEFT, WIDTH - RIGHT, LEFT, f"{row:g}", y=up(row)) for row in rows]
    text = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    parts += [text.format(place(x), HEIGHT - 5, label) for x, label in _ticks(places, axis)]
    if band:
        corners = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
        parts.append(Markup('<polygon points="{}"/>').format(" ".join(f"{place(x)},{up(y)}" for x, y in corners)))
    for mark in marks:
        if mark.look == "law":
            parts.append(Markup('<polyline class="main" points="{}"/>').format(" ".join(f"{place(x)},{up(y)}" for x, y in mark.points)))
        else:
            dot = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>')
            parts += [dot.format(mark.look, place(x), up(y), 6 if mark.look == "best" else 4) for x, y in mark.points]
    frame = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return frame.format(WIDTH, HEIGHT, title, Markup("").join(parts))


def _across(places: Sequence[float], axis: Axis) -> Scale:
    """From a place to pixels, with air at both ends."""
    numbers = [math.log10(x) for x in places] if axis.log else places
    low, high = (0.0, len(axis.names) - 1.0) if axis.names else (min(numbers), max(numbers))
    if low == high:
        low, high = low - 1, high + 1
    return Scale(low, high, LEFT + 24, WIDTH - RIGHT - 24)


def _ticks(places: Sequence[float], axis: Axis) -> list[tuple[float, str]]:
    """Places along the axis and their labels."""
    if axis.names:
        return [(float(index), name) for index, name in enumerate(axis.names)]
    if axis.labelled:
        return [(place, short(place)) for place in axis.labelled]
    low, high = min(places), max(places)
    if not axis.log:
        return [(tick, f"{tick:g}") for tick in nice_ticks(low, high, 5)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_values = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    inside = [value for value in round_values if low * 0.999 <= value <= high * 1.001]
    step = math.ceil(len(inside) / MOST_LABELS)
    return [(value, short(value)) for value in (inside[::step] if len(inside) > 1 else sorted({low, high}))]


def short(value: float) -> str:
    """A number in few characters.

    Example:
        >>> short(158016), short(2.5e9), short(0.003)
        ('158k', '2.5G', '0.003')
    """
    for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"

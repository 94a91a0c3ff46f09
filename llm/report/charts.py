"""Line charts as inline SVG. Colours come from the page's style, so one drawing serves light and dark.

Drawn by hand: importing a plotting library takes longer than the rest of the page, and every run writes one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 460, 46, 10, 8, 22
MOST_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One series; `look` is its class in the style: `raw`, `main` or `reference`."""

    points: Points
    look: str


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start), 2)


def line_chart(lines: Sequence[Line], *, title: str, height: int = 210, ticks: int = 4, from_zero: bool = False) -> Markup:
    """A chart of value by step; `title` is what a screen reader says."""
    steps = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points] + ([0.0] if from_zero else [])
    marks = nice_ticks(min(values), max(values), ticks)
    x_scale = Scale(min(0.0, *steps), max(steps), LEFT, WIDTH - RIGHT)
    y_scale = Scale(min(marks[0], *values), max(marks[-1], *values), height - BOTTOM, TOP)
    parts = [_grid(marks, y_scale), _axis(nice_ticks(x_scale.low, x_scale.high, 5), x_scale, height)]
    parts += [_path(thinned(line.points), x_scale, y_scale, line.look) for line in lines]
    frame = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return frame.format(WIDTH, height, title, Markup("").join(parts))


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between low and high, a multiple of 1, 2 or 5 apart, at most about + 1 of them.

    Example:
        >>> nice_ticks(3.4, 8.3, 4)
        [4.0, 6.0, 8.0]
    """
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / about))
    gap = next(multiple * magnitude for multiple in (1, 2, 5, 10) if span / (multiple * magnitude) <= about)
    first, last = math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9)
    return [round(index * gap, 12) for index in range(first, last + 1)] or [low]


def thinned(points: Points) -> Points:
    """At most MOST_POINTS points, each the mean of a run of neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    runs = [points[first : first + size] for first in range(0, len(points), size or 1)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _grid(ticks: Sequence[float], scale: Scale) -> Markup:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{y}" dx="-6" dy="4" text-anchor="end">{}</text>')
    return Markup("").join(line.format(LEFT, WIDTH - RIGHT, LEFT, f"{tick:g}", y=scale(tick)) for tick in ticks)


def _axis(ticks: Sequence[float], scale: Scale, height: int) -> Markup:
    text = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    return Markup("").join(
        text.format(scale(tick), height - 5, "end" if scale(tick) > WIDTH - RIGHT - 12 else "middle", f"{tick:,.0f}") for tick in ticks
    )


def _path(points: Points, x_scale: Scale, y_scale: Scale, look: str) -> Markup:
    places = " ".join(f"{x_scale(x)},{y_scale(y)}" for x, y in points if math.isfinite(y))
    path = Markup('<polyline class="{}" points="{}"/>').format(look, places)
    if look != "main" or len(points) > 60:
        return path
    dot = Markup('<circle class="{}" cx="{}" cy="{}" r="2.5"/>')
    return path + Markup("").join(dot.format(look, x_scale(x), y_scale(y)) for x, y in points if math.isfinite(y))

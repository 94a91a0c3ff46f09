"""The page of a sweep: one self-contained HTML file, in the style of a run's page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from llm.report.charts import Line, line_chart
from llm.report.template import filled
from llm.sweep.charts import Axis, Marks, scatter, short
from llm.sweep.result import Result
from llm.sweep.trial import Outcome
from llm.train.scaling import FLOPS_PER_PARAMETER_AND_TOKEN, Fit

NEXT_COMPUTE = 10.0  # the size to predict: the best one for this many times the compute of the largest trial
CURVE_POINTS = 40
MOST_NAMES = 8  # different values up to which an axis names each


def write_page(found: Result, out: Path) -> None:
    """Write the page."""
    values = {
        "config": found.config,
        "metric": found.config.metric.replace("_", " "),
        "best": found.best,
        "tiles": tiles(found),
        "settings": [setting_chart(found, setting) for setting in found.config.settings],
        "curves": curves(found),
        "law": law(found.law) if found.law else None,
        "law_missing": found.law_missing,
        "trials": sorted(found.outcomes, key=lambda outcome: (outcome.state != "finished", outcome.value)),
    }
    out.write_text(filled(Path(__file__).parent, values, filters={"short": short}), encoding="utf-8")


def tiles(found: Result) -> list[dict[str, str]]:
    """The key figures."""
    states = [outcome.state for outcome in found.outcomes]
    finished = [outcome.value for outcome in found.outcomes if outcome.state == "finished"]
    spread = f"the other finished trials up to {max(finished):.4f}" if len(finished) > 1 else "the only finished trial"
    rest = f"{states.count('stopped')} stopped early, {states.count('failed')} failed"
    return [
        {"label": f"Best {found.config.metric.replace('_', ' ')}", "value": f"{found.best.value:.4f}", "note": spread},
        {"label": "Trials finished", "value": f"{states.count('finished')} of {len(states)}", "note": rest},
        {"label": "Best trial", "value": f"{found.best.number}", "note": f"pretrain/{found.best.key}"},
    ]


def setting_chart(found: Result, setting: str) -> dict[str, Any]:
    """The metric over one setting, whatever the other settings were."""
    shown = found.comparable
    values = [outcome.settings[setting] for outcome in shown]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if numeric:
        ordered = sorted(set(values))
        listed = bool(found.config.settings[setting].values) and len(ordered) <= MOST_NAMES
        axis = Axis(log=ordered[0] > 0 and ordered[-1] / ordered[0] >= 4, labelled=tuple(ordered) if listed else ())
        places = [float(value) for value in values]
    else:
        names = list(dict.fromkeys(name(value) for value in found.config.settings[setting].values))[:MOST_NAMES]
        axis = Axis(names=tuple(names))
        places = [float(names.index(name(value))) if name(value) in names else len(names) - 1.0 for value in values]
    points = [(place, outcome.value) for place, outcome in zip(places, shown, strict=True)]
    best = [point for point, outcome in zip(points, shown, strict=True) if outcome is found.best]
    return {
        "name": setting,
        "best": name(found.best.settings[setting]),
        "chart": scatter([Marks(points, "trial"), Marks(best, "best")], axis, title=f"{found.config.metric} over {setting}"),
    }


def name(value: Any) -> str:
    """A value of a setting in few characters; of a section, its first numbers.

    Example:
        >>> name({"width": 64, "num_layers": 2, "num_heads": 4}), name(0.02), name(True)
        ('64 · 2 · 4', '0.02', 'True')
    """
    if isinstance(value, dict):
        return " · ".join(str(part) for part in value.values() if isinstance(part, int))[:16]
    return f"{value:g}" if isinstance(value, float) else str(value)[:16]


def curves(found: Result) -> Markup | None:
    """The metric by step of every trial, the best one strong; None if no trial validated more than once."""
    others = [outcome for outcome in found.outcomes if outcome is not found.best and len(outcome.curve) > 1]
    lines = [Line(finite(outcome), "raw") for outcome in others] + [Line(finite(found.best), "main")]
    if max(len(line.points) for line in lines) < 2:
        return None
    return line_chart([line for line in lines if line.points], title=f"{found.config.metric} by step", height=230)


def finite(outcome: Outcome) -> list[tuple[float, float]]:
    """The validations of a trial that a chart can show."""
    return [(float(step), value) for step, value in outcome.curve if math.isfinite(value)]


def law(fit: Fit) -> dict[str, Any]:
    """The fitted constants, a chart of loss over compute, and what the next size should be and reach."""
    flops = [FLOPS_PER_PARAMETER_AND_TOKEN * point.parameters * point.tokens for point in fit.points]
    following = NEXT_COMPUTE * fit.most_flops
    parameters, tokens = fit.optimum(following)
    along = [float(compute) for compute in np.geomspace(min(flops), following, CURVE_POINTS)]
    bands = [fit.loss(*fit.law.optimum(compute)) for compute in along]
    reached = fit.loss(parameters.value, tokens.value)
    chart = scatter(
        [
            Marks([(compute, band.value) for compute, band in zip(along, bands, strict=True)], "law"),
            Marks([(compute, point.loss) for compute, point in zip(flops, fit.points, strict=True)], "trial"),
            Marks([(following, reached.value)], "best"),
        ],
        Axis(log=True),
        title="loss over compute",
        band=[(compute, band.low, band.high) for compute, band in zip(along, bands, strict=True)],
    )
    return {
        "constants": fit.law,
        "chart": chart,
        "residual": fit.residual,
        "times": f"{NEXT_COMPUTE:g}",
        "flops": following,
        "parameters": parameters,
        "tokens": tokens,
        "loss": reached,
    }

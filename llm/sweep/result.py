"""What a sweep leaves behind, in STORE/sweeps/<key>/.

sweep.yaml          the sweep, every default spelled out
trials.jsonl        one line per trial: settings, outcome, curve
recommended.yaml    the recipe with the best trial's settings, whole; of a population without its generations
report.html         the page
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from llm.artifact import Store, named_errors, sha256_of
from llm.errors import DataError, DivergenceError
from llm.recipe import Recipe
from llm.sweep.config import SweepConfig
from llm.sweep.trial import Outcome, Trial
from llm.train import scaling

LEVELS = 2  # of sizes and of token budgets, from which the page speaks of a scaling law


@dataclass(frozen=True)
class Result:
    """The outcomes of a sweep and what follows from them."""

    config: SweepConfig
    outcomes: tuple[Outcome, ...]
    best: Outcome
    law: scaling.Fit | None
    law_missing: str  # why there is no law, where sizes and budgets vary

    @property
    def comparable(self) -> tuple[Outcome, ...]:
        """Trials that had their whole training: the finished ones, of a population those of its last generation."""
        ended = [outcome for outcome in self.outcomes if outcome.ended]
        if self.config.search == "population":
            last = max(outcome.curve[-1][0] for outcome in ended)
            return tuple(outcome for outcome in ended if outcome.curve[-1][0] == last)
        return tuple(ended)


def folder(store: Store, config: SweepConfig, trials: Sequence[Trial]) -> Path:
    """Where a sweep of these jobs belongs: its key depends on settings, data and code, not on how many train at a time."""
    key = sha256_of({"search": config.search, "metric": config.metric, "trials": [trial.job.key for trial in trials]})[:20]
    return store.root / "sweeps" / key


def result(config: SweepConfig, outcomes: Sequence[Outcome]) -> Result:
    """The best trial, and the scaling law if sizes and token budgets vary.

    Raises: DivergenceError if no trial finished.
    """
    finished = [outcome for outcome in outcomes if outcome.ended]
    if not finished:
        first = next((outcome.error for outcome in outcomes if outcome.error), "none ran to its end")
        raise DivergenceError("no trial of the sweep finished", value=first, remedy="narrow the ranges under settings")
    law, missing = _law(finished, config.seed)
    return Result(config, tuple(outcomes), min(finished, key=lambda outcome: outcome.value), law, missing)


def _law(finished: Sequence[Outcome], seed: int) -> tuple[scaling.Fit | None, str]:
    """The scaling law over the best trial of every size and budget."""
    best: dict[tuple[int, int], Outcome] = {}
    for outcome in finished:
        place = (outcome.parameters, outcome.tokens)
        if place not in best or outcome.value < best[place].value:
            best[place] = outcome
    if min(len({size for size, _ in best}), len({tokens for _, tokens in best})) < LEVELS:
        return None, ""
    points = [scaling.Point(size, tokens, outcome.value) for (size, tokens), outcome in best.items()]
    try:
        return scaling.fit(points, seed=seed), ""
    except DataError as error:
        return None, str(error)


def write(found: Result, recommended: Recipe, out: Path) -> None:
    """Write the four files of a sweep."""
    from llm.sweep.page import write_page

    with named_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "sweep.yaml").write_text(yaml.safe_dump(found.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        (out / "trials.jsonl").write_text("".join(json.dumps(_line(outcome), sort_keys=True) + "\n" for outcome in found.outcomes))
        (out / "recommended.yaml").write_text(recommended.as_yaml(), encoding="utf-8")
        write_page(found, out / "report.html")


def _line(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {"value": outcome.value if math.isfinite(outcome.value) else None}

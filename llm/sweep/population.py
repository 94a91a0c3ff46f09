"""Population based training, in generations of ordinary trainings.

Every member trains a share of the steps; then the worst quarter goes on from the weights of one of the best quarter, with
its settings, perturbed. Going on is `train.initial` of an ordinary recipe: a generation's optimizer and schedule begin anew
and its rows come in another order, so that no checkpoint serves another job and every trial can be looked up and repeated.

Source: Jaderberg et al., Population Based Training of Neural Networks, section 3, https://arxiv.org/abs/1711.09846; there
members go on asynchronously and keep their optimizer's state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm.recipe import Recipe, override
from llm.stages import job
from llm.sweep.config import Axis, SweepConfig
from llm.sweep.settings import rounded
from llm.sweep.trial import Outcome, Trial

FACTORS = (0.8, 1.2)  # by which a number is perturbed


def next_generation(config: SweepConfig, trials: Sequence[Trial], outcomes: Sequence[Outcome]) -> tuple[Trial, ...]:
    """One trial for each of this generation's, in their order: a pure function of the file and the outcomes; none if all failed."""
    random = np.random.default_rng((config.seed, trials[-1].number))
    ranked = sorted(range(len(trials)), key=lambda index: outcomes[index].value)
    winners = [index for index in ranked[: max(1, len(trials) // 4)] if outcomes[index].state == "finished"]
    if not winners:
        return ()
    losers = set(ranked[-len(winners) :]) | {index for index in ranked if outcomes[index].state != "finished"}
    children = []
    for index, trial in enumerate(trials):
        parent = trials[winners[int(random.integers(len(winners)))]] if index in losers else trial
        settings = perturbed(config, parent.settings, random) if index in losers else parent.settings
        children.append(child(parent, settings, number=trial.number + len(trials)))
    return tuple(children)


def perturbed(config: SweepConfig, settings: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """The settings, each moved a little within its axis."""
    return {setting: _moved(setting, config.settings[setting], value, bool(random.integers(2))) for setting, value in settings.items()}


def _moved(setting: str, axis: Axis, value: Any, up: bool) -> Any:
    """A neighbour in a list of values, or a number times one of FACTORS inside its range."""
    if axis.values:
        index = axis.values.index(value) + (1 if up else -1)
        return axis.values[min(max(index, 0), len(axis.values) - 1)]
    assert axis.low is not None
    assert axis.high is not None
    return rounded(setting, min(max(value * FACTORS[up], axis.low), axis.high))


def child(parent: Trial, settings: dict[str, Any], *, number: int) -> Trial:
    """A trial that goes on from a finished one's weights."""
    artifact = parent.find()
    assert artifact is not None, parent.number
    recipe = _changed(parent.job.recipe, {**settings, "train.initial": str(artifact.path), "seed": parent.recipe.seed + 1})
    following = job(recipe, parent.store, Path(parent.job.run), parent.job.node, parent.job.parents)
    return Trial(number, settings, following, parent.metric, after_steps=parent.after_steps + parent.recipe.train.steps)


def recommended(recipe: Recipe, trial: Trial) -> Recipe:
    """A trial's settings on the recipe that its sweep began with: without what made it one generation of several.

    Of a trial that is a whole training by itself, its own recipe.
    """
    whole = {"train.steps": recipe.train.steps, "train.initial": recipe.train.initial, "seed": recipe.seed}
    return _changed(trial.job.recipe, whole | trial.settings)


def _changed(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> Recipe:
    values = copy.deepcopy(dict(recipe))
    for setting, value in settings.items():
        override(values, setting, value)
    return Recipe.model_validate(values)

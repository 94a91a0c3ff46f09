"""From a sweep file to its candidates: the settings of every trial and the recipe that they make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from llm.artifact import Ref, Store, canonical
from llm.errors import RecipeError
from llm.recipe import Recipe, did_you_mean, line_of, load, schema_at
from llm.stages import STAGES, job
from llm.sweep.config import Axis, SweepConfig
from llm.sweep.trial import ONE_WORKER, Trial
from llm.train.config import ClusterConfig

SWEEPS = Path(__file__).parent.parent.parent / "deployments" / "sweeps"

VARIED = STAGES["pretrain"].reads  # sections that may vary: the data is prepared once for all trials


@dataclass(frozen=True)
class Candidate:
    """One point of the search."""

    settings: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its file, the recipe that it starts from, and the candidates."""

    config: SweepConfig
    recipe: Recipe
    candidates: tuple[Candidate, ...]

    @property
    def sizes(self) -> list[Recipe]:
        """A candidate of every model and micro-batch, on as many workers as there are trials at a time: what must fit the machine."""
        sizes = {
            canonical([each.recipe.model.model_dump(mode="json"), each.recipe.train.micro_batch_size]): each.recipe
            for each in self.candidates
        }
        return [recipe.model_copy(update={"cluster": self.cluster}) for recipe in sizes.values()]

    @property
    def cluster(self) -> ClusterConfig:
        """The recipe's cluster, with a worker for each trial at a time."""
        return self.recipe.cluster.model_copy(update=ONE_WORKER | {"workers": self.config.parallel, "in_process": False})

    def trials(self, store: Store, run: Path, rows: Ref) -> tuple[Trial, ...]:
        """The candidates as jobs on the tokenized rows."""
        jobs = [job(candidate.recipe, store, run, "base.pretrain", {"tokenized": rows}) for candidate in self.candidates]
        return tuple(
            Trial(number, candidate.settings, found, self.config.metric)
            for number, (candidate, found) in enumerate(zip(self.candidates, jobs, strict=True))
        )


def load_sweep(file: str, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """The sweep of this name or file; the overrides are for its recipe.

    Every candidate's recipe is validated here, before anything is computed.

    Raises: RecipeError in one line: the setting, its value, the file's line, and the nearest valid key.
    """
    path = find(file)
    config = read(path)
    recipe = load(config.recipe, overrides)
    fixed = dict(overrides or {})
    if config.search == "population":
        fixed["train.steps"] = max(1, recipe.train.steps // config.generations)
    candidates = tuple(Candidate(settings, _candidate_recipe(config.recipe, fixed | settings, path)) for settings in draw(config))
    if not all(candidate.recipe.train.steps for candidate in candidates):
        raise RecipeError(
            "trials are compared by what they learn, and one makes no step", value="steps 0", remedy="set train.steps above 0"
        )
    if not all(candidate.recipe.train.validation_rows for candidate in candidates):
        remedy = "set train.validation_rows above 0"
        raise RecipeError("trials are compared where they validate, and one never does", value="validation_rows 0", remedy=remedy)
    return Sweep(config, recipe, candidates)


def find(file: str) -> Path:
    """The file of a sweep given by path or by the name of one that ships."""
    path = Path(file) if file.endswith((".yaml", ".yml")) else SWEEPS / f"{file}.yaml"
    if path.is_file():
        return path
    shipped = sorted(file.stem for file in SWEEPS.glob("*.yaml"))
    raise RecipeError("no such sweep", value=file, remedy=did_you_mean(file, shipped) + f"have: {', '.join(shipped)}, or a .yaml file")


def read(path: Path) -> SweepConfig:
    """The validated sweep file.

    Raises: RecipeError naming the key and its line.
    """
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError("sweep is not valid YAML", value=" ".join(str(error).split()), remedy=f"correct {path.name}") from error
    if not isinstance(values, dict):
        raise RecipeError("sweep is empty or not a mapping", value=path.name, remedy="start from deployments/sweeps/small.yaml")
    try:
        config = SweepConfig.model_validate(values)
    except ValidationError as error:
        raise _explained(error, text, path) from None
    for setting in config.settings:
        if setting.split(".")[0] not in VARIED:
            near = did_you_mean(setting.split(".")[0], list(VARIED))
            where = f"{path.name} line {line_of(text, ['settings', setting])}"
            raise RecipeError(
                f"a sweep can't vary this setting ({where})",
                value=setting,
                remedy=f"{near}the data is prepared once: {', '.join(VARIED)} may vary",
            )
    return config


def draw(config: SweepConfig) -> list[dict[str, Any]]:
    """The settings of every trial, each once: a pure function of the file. More trials keep the first ones as they are."""
    if config.search == "grid":
        combinations = itertools.product(*(axis.values for axis in config.settings.values()))
        return [dict(zip(config.settings, values, strict=True)) for values in combinations]
    random = np.random.default_rng(config.seed)
    drawn = [{setting: _draw(setting, axis, random) for setting, axis in config.settings.items()} for _ in range(config.trials or 0)]
    return list({canonical(settings): settings for settings in drawn}.values())


def _draw(setting: str, axis: Axis, random: np.random.Generator) -> Any:
    """One value of a setting's axis."""
    share = float(random.random())
    if axis.values:
        return axis.values[int(share * len(axis.values))]
    assert axis.low is not None
    assert axis.high is not None
    if axis.scale == "log":
        return rounded(setting, axis.low * (axis.high / axis.low) ** share)
    return rounded(setting, axis.low + (axis.high - axis.low) * share)


def rounded(setting: str, value: float) -> int | float:
    """A number as its setting takes it: a whole one, or one of four digits, beyond which is noise."""
    return round(value) if _is_whole(setting) else float(f"{value:.4g}")


@cache
def _is_whole(setting: str) -> bool:
    _, options = schema_at(tuple(setting.split(".")))
    kinds = {option.get("type") for option in options}
    return "integer" in kinds and "number" not in kinds


def _candidate_recipe(recipe: str, overrides: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe with a trial's settings; an error names the sweep's file as the place of what is wrong."""
    try:
        return load(recipe, overrides)
    except RecipeError as error:
        raise RecipeError(error.fact.replace("--set", f"{path.name}, setting"), value=error.value, remedy=error.remedy) from None


def _explained(error: ValidationError, text: str, path: Path) -> RecipeError:
    """The first validation error as one line a person can act on."""
    first = error.errors()[0]
    location = list(first["loc"])
    setting, where = ".".join(str(part) for part in location), f"{path.name} line {line_of(text, location)}"
    if first["type"] == "extra_forbidden":
        section = Axis if location[0] == "settings" else SweepConfig
        near = did_you_mean(str(location[-1]), list(section.model_fields))
        return RecipeError(f"unknown key in {where}", value=setting, remedy=near + "remove or rename it")
    if first["type"] == "missing":
        return RecipeError(f"missing key in {where}", value=setting, remedy=f"set {setting}")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error":
        return RecipeError(f"{message} ({where})")
    return RecipeError(f"wrong value in {where}", value=f"{setting} = {str(first['input'])[:60]}", remedy=message[:1].lower() + message[1:])

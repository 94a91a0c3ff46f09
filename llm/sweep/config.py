"""A sweep file: a recipe, the settings of it that vary, and how the best values are looked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from llm.config import Section


class Axis(Section):
    """The values that one setting may take: a list, or a range of numbers."""

    values: list[Any] = Field(default=[], description="each a value of the setting; of a section, such as `model`, a whole section")
    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _list_or_range(self) -> Axis:
        if bool(self.values) == (self.low is not None or self.high is not None):
            raise ValueError("give either values: [...], or low: and high:")
        if not self.values:
            if self.low is None or self.high is None or self.low >= self.high:
                raise ValueError(f"a range needs low below high, not {self.low} and {self.high}")
            if self.scale == "log" and self.low <= 0:
                raise ValueError(f"a log scale needs low above 0, not {self.low}")
        return self


class SweepConfig(Section):
    """Everything that decides which trainings a sweep makes, apart from its recipe."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    recipe: str = Field(description="name or file of the recipe whose settings vary")
    settings: dict[str, Axis] = Field(min_length=1, description="dotted settings of `model`, `train` or `seed`, and their values")
    search: Literal["grid", "random", "asha", "population"] = Field(
        description="every combination; drawn ones; drawn ones of which the worse stop early, or go on from the better ones"
    )
    trials: int | None = Field(default=None, ge=1, description="how many are drawn; a grid has as many as it has")
    seed: int = Field(default=0, ge=0, description="of the drawn settings")
    metric: Literal["validation_loss", "loss"] = Field(default="validation_loss", description="lower is better")
    parallel: int = Field(default=1, ge=1, description="trials at a time, one worker each")
    generations: int = Field(default=4, ge=2, description="of a population, which share train.steps among them")
    reduction_factor: int = Field(default=3, ge=2, description="of asha: one in so many goes on from each rung")

    @model_validator(mode="after")
    def _search_can_run(self) -> SweepConfig:
        ranges = [setting for setting, axis in self.settings.items() if not axis.values]
        if self.search == "grid" and ranges:
            raise ValueError(f"a grid needs values, {ranges[0]} is a range; give it values: [...], or set search to random")
        if self.search == "grid" and self.trials is not None:
            raise ValueError("a grid makes every combination; remove trials, or set search to random")
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"a {self.search} search needs a number of trials; set trials")
        if self.search == "asha" and "train.steps" in self.settings:
            raise ValueError("asha compares trials at equal steps of one schedule; remove train.steps, or set search to random")
        if self.search == "population":
            self._population_can_go_on()
        return self

    def _population_can_go_on(self) -> None:
        fixed = ("train.steps", "train.initial", "train.objective")
        if wrong := [setting for setting in self.settings if not setting.startswith("train.") or setting.startswith(fixed)]:
            raise ValueError(f"a population keeps its weights, so {wrong[0]} can't vary; remove it, or set search to random")
        if (self.trials or 0) < 4:
            raise ValueError(f"a population of {self.trials} has no best and worst quarter; set trials to at least 4")

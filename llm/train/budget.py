"""When a training has used up what it may cost."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from llm.train.config import BudgetConfig, PriceConfig


@dataclass(frozen=True)
class Spent:
    """What a training has used over all its attempts."""

    seconds: float = 0.0  # of the whole group
    kwh: float = 0.0  # of all its machines' chips, without the building's share

    @classmethod
    def recorded(cls, records: Path) -> Spent:
        """What the steps in a `metrics.jsonl` took: of every attempt, those included that a crash made vain."""
        spent = cls()
        for line in records.read_bytes().splitlines() if records.is_file() else ():
            with contextlib.suppress(ValueError):  # torn by a kill
                record = json.loads(line)
                spent = spent.plus(record["step_seconds"], record["energy_kwh"])
        return spent

    def plus(self, seconds: float, kwh: float) -> Spent:
        """The same and a step more."""
        return replace(self, seconds=self.seconds + seconds, kwh=self.kwh + kwh)


def hourly_usd(price: PriceConfig, *, gpus: int, cores: int) -> float:
    """Dollars per hour of a group: its GPUs, whose price holds their hosts, or its cores where it has none."""
    return gpus * price.gpu_hour_usd if gpus else cores * price.cpu_hour_usd


def exceeded(budget: BudgetConfig, price: PriceConfig, spent: Spent, *, gpus: int, cores: int) -> str | None:
    """The first limit of the budget that is reached, as a fact and the setting that would raise it; None within all of them.

    Example:
        >>> exceeded(BudgetConfig(usd=5), PriceConfig(gpu_hour_usd=2.5), Spent(seconds=3600), gpus=2, cores=16)
        'spent 5.00 of cluster.budget.usd 5.00'
    """
    hours = spent.seconds / 3600
    used = {"hours": hours, "usd": hours * hourly_usd(price, gpus=gpus, cores=cores), "kwh": spent.kwh * price.pue}
    for name, amount in used.items():
        limit: float | None = getattr(budget, name)
        if limit is not None and amount >= limit:
            return f"spent {amount:.2f} of cluster.budget.{name} {limit:.2f}"
    return None

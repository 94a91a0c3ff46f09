"""Which checkpoints of a training stay, and which of them is the best."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from llm.train.config import TrainConfig


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay when another one is committed."""

    last: int = 2
    every_steps: int | None = None
    best: bool = False

    @classmethod
    def of(cls, train: TrainConfig) -> Retention:
        """The rule of a `train` section."""
        return cls(train.keep_checkpoints, train.keep_every_steps, train.keep_best or train.stop_after_validations is not None)

    def stay(self, losses: Mapping[int, float | None], unhealthy: Collection[int] = ()) -> set[int]:
        """Of checkpoints with these validation losses by step, the steps that stay; None is a step without validation.

        An unhealthy one stays while it is the newest, so that a run which was stopped goes on where it was, and never
        in the place of a healthy one: there a run returns to.

        Example:
            >>> losses = {10: 3.0, 20: 2.0, 30: 2.5, 40: None, 50: 2.1, 60: 2.2}
            >>> sorted(Retention(last=2, every_steps=40, best=True).stay(losses, unhealthy={60}))
            [20, 40, 50, 60]
        """
        healthy = sorted(losses.keys() - set(unhealthy))
        stay = {*healthy[-self.last :], *sorted(losses)[-1:]}
        if self.every_steps:
            stay |= {step for step in healthy if step % self.every_steps == 0}
        best = best_step(losses, unhealthy)
        if self.best and best is not None:
            stay.add(best)
        return stay


def best_step(losses: Mapping[int, float | None], unhealthy: Collection[int] = ()) -> int | None:
    """Of checkpoints with these validation losses by step, the first with the best one; None where none was validated.

    Example:
        >>> best_step({10: 3.0, 20: 2.0, 30: None, 40: 2.0, 50: 1.0}, unhealthy={50})
        20
    """
    validated = [(loss, step) for step, loss in losses.items() if loss is not None and step not in unhealthy]
    return min(validated)[1] if validated else None

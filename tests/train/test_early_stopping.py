"""When a training ends before its last step."""

from __future__ import annotations

import pytest

from llm.train.config import TrainConfig
from llm.train.early_stopping import finished


def stopped_after(losses: list[float], patience: int | None) -> int | None:
    """How many validations happen before the training is finished, one between steps without any; None: all."""
    settings = {"steps": 100, "global_batch_size": 1, "micro_batch_size": 1, "schedule": {"warmup_steps": 1}}
    train = TrainConfig.model_validate(settings | {"stop_after_validations": patience})
    history: list[dict[str, float]] = []
    for number, loss in enumerate(losses, start=1):
        history += [{"loss": 1.0}, {"loss": 1.0, "validation_loss": loss}]
        if finished(history, train):
            return number
    return None


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([5, 4, 3, 2, 1], 1, None),
        ([5, 4, 4.5, 3], 1, 3),
        ([5, 4, 4.5, 4.2, 3, 2], 3, None),
        ([5, 4, 4.5, 4.2, 4.1, 2], 3, 5),
        ([5, 4, 4, 4], 2, 4),  # as good is not better
        ([5, 6, 7, 8], None, None),
        ([5], 1, None),
    ],
)
def test_it_ends_after_that_many_validations_without_a_better_loss(losses: list[float], patience: int | None, expected: int | None) -> None:
    assert stopped_after(losses, patience) == expected

"""When a training has stopped getting better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm.train.config import TrainConfig


def finished(history: Sequence[Mapping[str, Any]], train: TrainConfig) -> bool:
    """Whether the last `stop_after_validations` validations all missed the best loss before them.

    A pure function of the history, so that a resumed run stops at the same step. The result is the checkpoint with the best loss.

    Source: Goodfellow et al., Deep Learning, https://www.deeplearningbook.org/contents/regularization.html, algorithm 7.1.
    """
    patience = train.stop_after_validations
    losses = [record["validation_loss"] for record in history if "validation_loss" in record]
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])

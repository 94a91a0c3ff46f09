"""How long the rows of an objective become. Imports no torch, so that a recipe is checked by it."""

from __future__ import annotations

from llm.train.objective.config import ObjectiveConfig, SpansConfig


def spans(config: SpansConfig, row_tokens: int) -> tuple[int, int]:
    """Tokens of a row that go missing, and the number of spans that they make.

    Source: T5, https://arxiv.org/abs/1910.10683, section 3.1.4, rounded as its released code does.
    Example:
        >>> spans(SpansConfig(kind="spans"), 512)
        (77, 26)
    """
    noise = min(max(1, round(row_tokens * config.share)), row_tokens - 1)
    return noise, max(1, min(round(noise / config.mean_span_tokens), noise, row_tokens - noise))


def longest(objective: ObjectiveConfig, row_tokens: int) -> int:
    """Positions that a decoder needs: one sequence holds what is read, what is written, and a sentinel for each span in both."""
    configs = [part.objective for part in objective.parts] if objective.kind == "mixture" else [objective]
    return max(row_tokens + (2 * spans(config, row_tokens)[1] + 1 if isinstance(config, SpansConfig) else 0) for config in configs)

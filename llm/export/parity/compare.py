"""Arithmetic that the gates of all families share."""

from __future__ import annotations

import numpy as np

from llm.errors import DivergenceError


def largest(difference: np.ndarray) -> float:
    """The largest magnitude; not-a-number when any entry is, so that a comparison with a limit fails."""
    return float(np.abs(difference).max())


def agreed(written: list[int], expected: np.ndarray, doubt: float) -> int:
    """How many written tokens were compared with PyTorch's logits [time, vocabulary] at their places, all equal.

    It ends early where PyTorch's two best are closer than `doubt`.

    Raises: DivergenceError at the first token that differs.
    """
    for step, (token, logits_V) in enumerate(zip(written, expected, strict=True)):
        second, best = np.partition(logits_V, -2)[-2:]
        if best - second < doubt:
            return step
        if token != logits_V.argmax():
            value = f"token {step} is {token}, PyTorch says {logits_V.argmax()}"
            raise DivergenceError(
                "greedy tokens differ", value=value, remedy="the graph's cache or positions are wrong; see llm/export/graphs"
            )
    return len(written)


def padded(rows: list[list[int]], *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one length and the mask that is 0 on padding.

    Example:
        >>> padded([[5, 6], [7]], left=True)[0].tolist()
        [[5, 6], [0, 7]]
    """
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for row, tokens in enumerate(rows):
        here = slice(width - len(tokens), None) if left else slice(len(tokens))
        ids[row, here], mask[row, here] = tokens, 1
    return ids, mask


def shortened(prompts: list[list[int]]) -> list[list[int]]:
    """The prompts as rows of a batch, no two of one length if that is possible."""
    return [prompt[: len(prompt) - index % len(prompt)] for index, prompt in enumerate(prompts)]

"""Arithmetic that the gates of all families share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from llm.errors import DivergenceError


def largest(difference: np.ndarray) -> float:
    """The largest magnitude; not-a-number when any entry is, so that a comparison with a limit fails."""
    return float(np.abs(difference).max())


def agreed(answers: Iterable[tuple[list[int], np.ndarray]], doubt: float) -> dict[str, int]:
    """How many written tokens equal what PyTorch finds likeliest, over answers and PyTorch's logits [time, vocabulary] at their places.

    A place where PyTorch's two best are no further apart than `doubt` is a tie: not compared, only counted. What follows it
    is compared again, for PyTorch has read the same text up to there, whichever of the two was written.

    Raises: DivergenceError at the first token that differs, or if all places are ties.

    Example:
        >>> agreed([([1, 0], np.array([[2.0, 2.0, 0.0], [5.0, 1.0, 0.0]]))], doubt=1e-3)
        {'greedy_tokens_compared': 1, 'greedy_ties': 1}
    """
    compared = ties = 0
    for written, expected in answers:
        second, best = np.partition(expected, -2)[:, -2:].T
        tied, likeliest = best - second <= doubt, expected.argmax(axis=1)
        wrong = np.flatnonzero(~tied & (likeliest != written))
        if len(wrong):
            value = f"token {wrong[0]} is {written[wrong[0]]}, PyTorch says {likeliest[wrong[0]]}"
            raise DivergenceError(
                "greedy tokens differ", value=value, remedy="the graph's cache or positions are wrong; see llm/export/graphs"
            )
        ties, compared = ties + int(tied.sum()), compared + int((~tied).sum())
    if not compared:
        remedy = "PyTorch's two best logits are everywhere closer than twice the graph's difference; train longer"
        raise DivergenceError("no greedy token could be compared", value=f"{ties} ties within {doubt:.1e}", remedy=remedy)
    return {"greedy_tokens_compared": compared, "greedy_ties": ties}


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

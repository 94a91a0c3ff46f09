"""The gate of export: the graph that will be served answers as the trained model does.

The reference is always the plainest way to compute a logit, one unpadded row from its first token without a
cache, so that a mistake in cache, padding or positions can't hide in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llm.errors import DivergenceError
from llm.export.config import ExportConfig
from llm.model.decoder import Decoder
from llm.serve.engine.session import Session


def check(model: Decoder, session: Session, prompts: list[list[int]], config: ExportConfig) -> dict[str, Any]:
    """Measure the largest logit difference and compare greedy tokens.

    Raises: DivergenceError if either is beyond what `config` allows.
    """
    by_shape = {
        "prefill": max(prefill_difference(model, session, prompt) for prompt in prompts),
        "padded_batch": padded_difference(model, session, prompts),
        "decode": max(decode_difference(model, session, prompt) for prompt in prompts),
    }
    difference = max(by_shape.values())
    if not difference <= config.max_logit_difference:
        remedy = f"more than export.max_logit_difference {config.max_logit_difference}; the export is wrong or its operators are imprecise"
        raise DivergenceError("exported graph differs from PyTorch", value=by_shape, remedy=remedy)
    compared = [greedy_agreement(model, session, prompt, config.greedy_tokens, doubt=2 * difference) for prompt in prompts]
    return {
        "max_logit_difference": difference,
        "max_logit_difference_by_shape": by_shape,
        "greedy_tokens_equal": True,
        "greedy_tokens_compared": sum(compared),
        "greedy_prompts": len(prompts),
    }


def prefill_difference(model: Decoder, session: Session, prompt: list[int]) -> float:
    """Largest difference over all positions of one prompt given at once."""
    logits, _ = session.run(np.array([prompt]), session.empty_cache())
    return _largest(logits[0] - reference(model, prompt))


def padded_difference(model: Decoder, session: Session, prompts: list[list[int]]) -> float:
    """Largest difference over the real positions of a left-padded batch, prefilled and then decoded by one token."""
    rows = [prompt[: len(prompt) - index % len(prompt)] for index, prompt in enumerate(prompts)]
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for row, (tokens, real) in enumerate(zip(ids, mask, strict=True)):
        tokens[width - len(rows[row]) :], real[width - len(rows[row]) :] = rows[row], 1
    first, cache = session.run(ids[:, :-1], session.empty_cache(len(rows)), attention_mask=mask[:, :-1])
    last, _ = session.run(ids[:, -1:], cache, attention_mask=mask)
    logits = np.concatenate((first, last), axis=1)
    return max(_largest(logits[row, width - len(tokens) :] - reference(model, tokens)) for row, tokens in enumerate(rows))


def decode_difference(model: Decoder, session: Session, prompt: list[int]) -> float:
    """Largest difference when the second half follows token by token, and in one piece, on a cache of the first."""
    half = (len(prompt) + 1) // 2
    expected = reference(model, prompt)[half:]
    _, cache = session.run(np.array([prompt[:half]]), session.empty_cache())
    piece, _ = session.run(np.array([prompt[half:]]), cache)
    singles = []
    for token in prompt[half:]:
        logits, cache = session.run(np.array([[token]]), cache)
        singles.append(logits[0, 0])
    return max(_largest(piece[0] - expected), _largest(np.array(singles) - expected))


def greedy_agreement(model: Decoder, session: Session, prompt: list[int], tokens: int, *, doubt: float) -> int:
    """How many greedy tokens were compared, all equal; it ends early where PyTorch's two best are closer than `doubt`.

    The graph writes first and PyTorch judges all positions in one pass: as long as they agree, both have read
    the same text, so this is the comparison of two generations at a fraction of the time.
    Raises: DivergenceError at the first token that differs.
    """
    written = greedy(session, prompt, min(tokens, model.config.max_positions - len(prompt)))
    expected = reference(model, prompt + written)[len(prompt) - 1 : -1]
    for step, (token, logits_V) in enumerate(zip(written, expected, strict=True)):
        second, best = np.partition(logits_V, -2)[-2:]
        if best - second < doubt:
            return step
        if token != logits_V.argmax():
            value = f"token {step} is {token}, PyTorch says {logits_V.argmax()}"
            raise DivergenceError(
                "greedy tokens differ", value=value, remedy="the graph's cache or positions are wrong; see llm/export/onnx.py"
            )
    return len(written)


def greedy(session: Session, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest continuation according to the graph, with its cache."""
    written: list[int] = []
    fresh, cache = prompt, session.empty_cache()
    for _ in range(tokens):
        logits, cache = session.run(np.array([fresh]), cache)
        fresh = [int(logits[0, -1].argmax())]
        written += fresh
    return written


@torch.inference_mode()
def reference(model: Decoder, tokens: list[int]) -> np.ndarray:
    """PyTorch's logits [time, vocabulary]."""
    logits_BTV, _ = model(torch.tensor([tokens], device=model.embedding.weight.device))
    return logits_BTV[0].float().cpu().numpy()


def _largest(difference: np.ndarray) -> float:
    """The largest magnitude; not-a-number when any entry is, so that a comparison with a limit fails."""
    return float(np.abs(difference).max())

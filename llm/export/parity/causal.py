"""Parity of a model that writes text: first pass, padded batch, decoding, greedy tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llm.export.parity.compare import agreed, largest, padded, shortened
from llm.export.parity.loaded import CachedGraph
from llm.model.decoder import Decoder
from llm.model.gpt2 import Gpt2

Writer = Decoder | Gpt2


def differences(model: Writer, folder: Path, prompts: list[list[int]]) -> dict[str, float]:
    """Largest logit difference by the shape that a pass has."""
    graph = CachedGraph(folder / "model.onnx")
    return {
        "prefill": max(prefill_difference(model, graph, prompt) for prompt in prompts),
        "padded_batch": padded_difference(model, graph, prompts),
        "decode": max(decode_difference(model, graph, prompt) for prompt in prompts),
    }


def agreement(model: Writer, folder: Path, prompts: list[list[int]], tokens: int, doubt: float) -> dict[str, int]:
    """How many greedy tokens equal PyTorch's, and how many are ties; see `agreed`.

    The graph writes first and PyTorch judges all positions in one pass: both read the same text, so this is the
    comparison of two generations at a fraction of the time.

    Raises: DivergenceError at the first token that differs, or if all are ties.
    """
    graph, longest = CachedGraph(folder / "model.onnx"), model.config.max_positions
    written = [greedy(graph, prompt, min(tokens, longest - len(prompt))) for prompt in prompts]
    answers = zip(prompts, written, strict=True)
    return agreed(((answer, reference(model, prompt + answer)[len(prompt) - 1 : -1]) for prompt, answer in answers), doubt)


def prefill_difference(model: Writer, graph: CachedGraph, prompt: list[int]) -> float:
    """Largest difference over all positions of one prompt given at once."""
    logits, _ = graph.run(np.array([prompt]), graph.empty_cache())
    return largest(logits[0] - reference(model, prompt))


def padded_difference(model: Writer, graph: CachedGraph, prompts: list[list[int]]) -> float:
    """Largest difference over the real positions of a left-padded batch, prefilled and then decoded by one token."""
    rows = shortened(prompts)
    ids, mask = padded(rows, left=True)
    first, cache = graph.run(ids[:, :-1], graph.empty_cache(len(rows)), attention_mask=mask[:, :-1])
    last, _ = graph.run(ids[:, -1:], cache, attention_mask=mask)
    logits = np.concatenate((first, last), axis=1)
    return largest(np.concatenate([logits[row, -len(tokens) :] - reference(model, tokens) for row, tokens in enumerate(rows)]))


def decode_difference(model: Writer, graph: CachedGraph, prompt: list[int]) -> float:
    """Largest difference when the second half follows token by token, and in one piece, on a cache of the first."""
    half = (len(prompt) + 1) // 2
    expected = reference(model, prompt)[half:]
    _, cache = graph.run(np.array([prompt[:half]]), graph.empty_cache())
    piece, _ = graph.run(np.array([prompt[half:]]), cache)
    singles = []
    for token in prompt[half:]:
        logits, cache = graph.run(np.array([[token]]), cache)
        singles.append(logits[0, 0])
    return largest(np.array([piece[0] - expected, np.array(singles) - expected]))


def greedy(graph: CachedGraph, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest continuation according to the graph, with its cache."""
    written: list[int] = []
    fresh, cache = prompt, graph.empty_cache()
    for _ in range(tokens):
        logits, cache = graph.run(np.array([fresh]), cache)
        fresh = [int(logits[0, -1].argmax())]
        written += fresh
    return written


@torch.inference_mode()
def reference(model: Writer, tokens: list[int]) -> np.ndarray:
    """PyTorch's logits [time, vocabulary]."""
    logits_BTV, _ = model(torch.tensor([tokens], device=model.embedding.weight.device))
    return logits_BTV[0].float().cpu().numpy()

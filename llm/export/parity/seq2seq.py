"""Parity of an encoder–decoder: the encoder's states, first pass, padded batch, decoding on the cache, greedy tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llm.export.parity.compare import agreed, largest, padded, shortened
from llm.export.parity.loaded import Seq2SeqGraphs
from llm.model.encoder_decoder import EncoderDecoder
from llm.train.objective.spans import START


def differences(model: EncoderDecoder, folder: Path, prompts: list[list[int]]) -> dict[str, float]:
    """Largest difference by the shape that a pass has; what the decoder reads is the prompt, reversed."""
    graphs = Seq2SeqGraphs(folder)
    return {
        "encoder": max(_encoder_difference(model, graphs, prompt) for prompt in prompts),
        "prefill": max(_difference(model, graphs, [prompt], cuts=[]) for prompt in prompts),
        "decode": max(_difference(model, graphs, [prompt], cuts=list(range(1, len(prompt) + 1))) for prompt in prompts),
        "padded_batch": _difference(model, graphs, shortened(prompts), cuts=[1, 2]),
    }


def agreement(model: EncoderDecoder, folder: Path, prompts: list[list[int]], tokens: int, doubt: float) -> dict[str, int]:
    """How many greedy tokens equal PyTorch's, and how many are ties; see llm/export/parity/causal.py.

    Raises: DivergenceError at the first token that differs, or if all are ties.
    """
    graphs = Seq2SeqGraphs(folder)
    answers = ((prompt, greedy(graphs, prompt, tokens)) for prompt in prompts)
    return agreed(((answer, reference(model, prompt, [START, *answer])[:-1]) for prompt, answer in answers), doubt)


def greedy(graphs: Seq2SeqGraphs, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest answer according to the graphs, with their cache."""
    ids, mask = padded([prompt])
    memory, cache = graphs.encode(ids, mask), graphs.empty_cache()
    written = [START]
    for _ in range(tokens):
        logits, cache = graphs.decode(np.array([written[-1:]]), memory, mask, cache)
        written.append(int(logits[0, -1].argmax()))
    return written[1:]


def _encoder_difference(model: EncoderDecoder, graphs: Seq2SeqGraphs, prompt: list[int]) -> float:
    with torch.inference_mode():
        expected = model.encode(torch.tensor([prompt], device=model.embedding.weight.device)).float().cpu().numpy()
    return largest(graphs.encode(*padded([prompt])) - expected)


def _difference(model: EncoderDecoder, graphs: Seq2SeqGraphs, rows: list[list[int]], cuts: list[int]) -> float:
    """Largest difference over a batch's real positions; the decoder's side is given in pieces that end at `cuts`."""
    ids, mask = padded(rows)
    memory, cache = graphs.encode(ids, mask), graphs.empty_cache(len(rows))
    answers = [[START, *reversed(row)] for row in rows]
    written, _ = padded(answers)
    pieces = []
    for part in np.split(written, cuts, axis=1):
        logits, cache = graphs.decode(part, memory, mask, cache)
        pieces.append(logits)
    logits = np.concatenate(pieces, axis=1)
    expected = [reference(model, row, answer) for row, answer in zip(rows, answers, strict=True)]
    return largest(np.concatenate([logits[row, : len(each)] - each for row, each in enumerate(expected)]))


@torch.inference_mode()
def reference(model: EncoderDecoder, prompt: list[int], answer: list[int]) -> np.ndarray:
    """PyTorch's logits [time, vocabulary] at every place of an answer."""
    device = model.embedding.weight.device
    return model(torch.tensor([prompt], device=device), torch.tensor([answer], device=device))[0].float().cpu().numpy()

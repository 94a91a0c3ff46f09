"""The exam of an encoder–decoder. Both graphs of a variant are judged together: its decoder reads what its own encoder makes.

Running text is not what training asks for, which is missing spans behind sentinels, so that perplexity is high. What counts
is how far a variant is from it.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from llm.export.exams.causal import PROMPT_TOKENS, WRITTEN_TOKENS
from llm.export.exams.exam import Exam, Head
from llm.export.parity import seq2seq
from llm.export.parity.compare import padded
from llm.export.parity.loaded import DECODER, ENCODER, Arrays, Seq2SeqGraphs
from llm.export.quality import Logits, Question
from llm.model.encoder_decoder import EncoderDecoder
from llm.train.objective.spans import START


def exam(model: EncoderDecoder) -> Exam:
    """Every token of a row's second half, from the first half and those before it."""
    return Exam(Seq2SeqGraphs, samples, {"tokens": Head(second_halves, partial(_reference, model), through_cache)}, speed)


def samples(graphs: Seq2SeqGraphs, rows_NT: np.ndarray) -> dict[str, list[Arrays]]:
    """Of each row what the encoder reads, and what the decoder is given on an empty cache."""
    read, written = [], []
    for (read_S, written_T), _ in second_halves(rows_NT):
        ids, mask = padded([read_S.tolist()])
        read.append(graphs.encoder_inputs(ids, mask))
        written.append(graphs.decoder_inputs(written_T[None], graphs.encode(ids, mask), mask, graphs.empty_cache()))
    return {ENCODER: read, DECODER: written}


def second_halves(rows_NT: np.ndarray) -> list[Question]:
    """The second half of each row, given the first and the tokens so far."""
    half = rows_NT.shape[1] // 2
    return [Question((row_T[:half], np.array([START, *row_T[half:-1]])), row_T[half:]) for row_T in rows_NT]


def _reference(model: EncoderDecoder, read_S: np.ndarray, written_T: np.ndarray) -> np.ndarray:
    return seq2seq.reference(model, read_S.tolist(), written_T.tolist())


def through_cache(graphs: Seq2SeqGraphs) -> Logits:
    """The graphs' logits of what is written, whose second half follows on the cache of the first."""

    def logits(read_S: np.ndarray, written_T: np.ndarray) -> np.ndarray:
        ids, mask = padded([read_S.tolist()])
        memory, cache = graphs.encode(ids, mask), graphs.empty_cache()
        pieces = []
        for piece_T in np.array_split(written_T, 2):
            piece_BTV, cache = graphs.decode(piece_T[None], memory, mask, cache)
            pieces.append(piece_BTV[0])
        return np.concatenate(pieces)

    return logits


def speed(graphs: Seq2SeqGraphs, row_T: np.ndarray) -> float:
    """Tokens per second of one text, written token by token after a prompt was read."""
    ids, mask = padded([row_T[:PROMPT_TOKENS].tolist()])
    memory = graphs.encode(ids, mask)
    logits, cache = graphs.decode(np.array([[START]]), memory, mask, graphs.empty_cache())
    start = time.perf_counter()
    for _ in range(WRITTEN_TOKENS):
        logits, cache = graphs.decode(logits[:, -1:].argmax(axis=-1), memory, mask, cache)
    return WRITTEN_TOKENS / (time.perf_counter() - start)

"""The exam of a model that writes text from one graph."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm.export.exams.exam import Exam, Head
from llm.export.parity import causal
from llm.export.parity.loaded import Arrays, CachedGraph
from llm.export.quality import Logits, next_tokens
from llm.serve.engine.session import graph_file

PROMPT_TOKENS, WRITTEN_TOKENS = 16, 32  # when speed is measured


def exam(model: Any) -> Exam:
    """Every token of a row but the first, from those before it."""
    return Exam(opened, samples, {"tokens": Head(next_tokens, partial(_reference, model), through_cache)}, speed)


def opened(folder: Path, kind: str) -> CachedGraph:
    """The graph of this kind."""
    return CachedGraph(folder / graph_file(kind))


def samples(graph: CachedGraph, rows_NT: np.ndarray) -> dict[str, list[Arrays]]:
    """Every row but its last token, on an empty cache."""
    return {"model.onnx": [graph.inputs(row_T[None, :-1], graph.empty_cache()) for row_T in rows_NT]}


def _reference(model: Any, ids_T: np.ndarray) -> np.ndarray:
    return causal.reference(model, ids_T.tolist())


def through_cache(graph: CachedGraph) -> Logits:
    """A graph's logits of a row whose second half follows on the cache of the first, so that both ways in are judged."""

    def logits(ids_T: np.ndarray) -> np.ndarray:
        half = (len(ids_T) + 1) // 2
        first, cache = graph.run(ids_T[None, :half], graph.empty_cache())
        second, _ = graph.run(ids_T[None, half:], cache)
        return np.concatenate((first[0], second[0]))

    return logits


def speed(graph: CachedGraph, row_T: np.ndarray) -> float:
    """Tokens per second of one text, written token by token behind a prompt."""
    logits, cache = graph.run(row_T[None, :PROMPT_TOKENS], graph.empty_cache())
    start = time.perf_counter()
    for _ in range(WRITTEN_TOKENS):
        logits, cache = graph.run(logits[:, -1:].argmax(axis=-1), cache)
    return WRITTEN_TOKENS / (time.perf_counter() - start)

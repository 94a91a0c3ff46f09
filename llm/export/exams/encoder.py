"""The exams of models that read to both sides. Draws depend on a row's number alone, so that every graph is asked the same.

    tokens          what stands at 15 % of a row's places, hidden behind the last id of the model: the mask token that training
                    added, or where it took one of the tokenizer's (train.objective.mask_id) a token that tells as little
    next_sentence   whether the second half of a row follows the first; in every other row it is another row's
    exchanged       of ELECTRA: which tokens of a row are not the original ones, after any other was put at 15 % of its places

The logit of `exchanged`, beside 0, makes a choice between two answers: perplexity is the exponential of the binary
cross-entropy, 2 for who knows nothing, and the likeliest answer is the verdict, exchanged where the logit is above 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llm.export.exams.exam import Exam, Head
from llm.export.parity import encoder
from llm.export.parity.loaded import Arrays, Loaded
from llm.export.quality import Logits, Question
from llm.model.electra import Electra
from llm.model.encoder import Encoder
from llm.serve.engine.session import graph_file
from llm.train.objective.draws import integers, uniform
from llm.train.objective.masked import PICK, REPLACEMENT, SPECIAL_IDS

SHARE = 0.15  # of a row's places
PASSES = 8  # when speed is measured
Ask = Callable[[Any, np.ndarray], list[Question]]  # of a model and ids_NT; `given` is ids, segments, and what `Choose` needs
Choose = Callable[..., np.ndarray]  # a pass's outputs → logits_PV


def exam(model: Encoder | Electra) -> Exam:
    """Hidden tokens, and of a model with a second head how its segments follow; of ELECTRA exchanged tokens."""
    if isinstance(model, Electra):
        heads = {"exchanged": _head(model, exchanged, _verdicts)}
    else:
        heads = {"tokens": _head(model, hidden, _at_places)}
        heads |= {"next_sentence": _head(model, followed, _follows)} if model.next_sentence is not None else {}
    return Exam(opened, samples, heads, speed)


def opened(folder: Path, kind: str) -> Loaded:
    """The graph of this kind."""
    return Loaded(folder / graph_file(kind))


def samples(_: Loaded, rows_NT: np.ndarray) -> dict[str, list[Arrays]]:
    """Every row but its last token, nothing hidden."""
    return {"model.onnx": [_inputs(row_T[:-1], np.zeros_like(row_T[:-1])) for row_T in rows_NT]}


def speed(graph: Loaded, row_T: np.ndarray) -> float:
    """Tokens read per second, one row at a time."""
    inputs = _inputs(row_T[:-1], np.zeros_like(row_T[:-1]))
    start = time.perf_counter()
    for _ in range(PASSES):
        graph(inputs)
    return PASSES * (len(row_T) - 1) / (time.perf_counter() - start)


def hidden(model: Encoder, ids_NT: np.ndarray) -> list[Question]:
    """What stood at hidden places."""
    places_NP, shown_NT = picked(ids_NT), ids_NT.copy()
    np.put_along_axis(shown_NT, places_NP, model.vocab_size - 1, axis=1)
    segments_T = _halves(ids_NT) * (model.next_sentence is not None)
    rows = zip(shown_NT, places_NP, np.take_along_axis(ids_NT, places_NP, axis=1), strict=True)
    return [Question((shown_T, segments_T, places_P), answers_P) for shown_T, places_P, answers_P in rows]


def followed(_: Encoder, ids_NT: np.ndarray) -> list[Question]:
    """0 where the second half follows the first, 1 where it is that of the row before."""
    segments_T, strange_N = _halves(ids_NT), np.arange(len(ids_NT)) % 2
    shown_NT = np.where(segments_T * strange_N[:, None], np.roll(ids_NT, 1, axis=0), ids_NT)
    return [Question((shown_T, segments_T), strange_N[row : row + 1]) for row, shown_T in enumerate(shown_NT)]


def exchanged(model: Electra, ids_NT: np.ndarray) -> list[Question]:
    """1 where another token stands in the original one's place, 0 elsewhere."""
    places_NP, shown_NT = picked(ids_NT), ids_NT.copy()
    any_NP = SPECIAL_IDS + integers(
        np.arange(len(ids_NT)), places_NP.shape[1], model.vocab_size - 1 - SPECIAL_IDS, seed=0, purpose=REPLACEMENT
    )
    np.put_along_axis(shown_NT, places_NP, any_NP, axis=1)
    rows = zip(shown_NT, shown_NT != ids_NT, strict=True)
    return [Question((shown_T, np.zeros_like(shown_T)), answers_T.astype(np.int64)) for shown_T, answers_T in rows]


def picked(ids_NT: np.ndarray) -> np.ndarray:
    """Places in each row, as many in all and one at least, special tokens' last: N, P."""
    draws_NT = uniform(np.arange(len(ids_NT)), ids_NT.shape[1], seed=0, purpose=PICK)
    draws_NT[ids_NT < SPECIAL_IDS] += 1
    return draws_NT.argsort(axis=1)[:, : max(1, round(SHARE * ids_NT.shape[1]))]


def _halves(ids_NT: np.ndarray) -> np.ndarray:
    """The segments of a row: 1 in its second half."""
    T = ids_NT.shape[1]
    return (np.arange(T) >= T // 2).astype(np.int64)


def _head(model: Encoder | Electra, ask: Ask, choose: Choose) -> Head:
    """A head that is asked so, and whose logits are found so among a pass's outputs."""

    def reference(ids_T: np.ndarray, segments_T: np.ndarray, *places_P: np.ndarray) -> np.ndarray:
        return choose(encoder.reference(model, ids_T.tolist(), segments_T.tolist()), *places_P)

    def candidate(graph: Loaded) -> Logits:
        def logits(ids_T: np.ndarray, segments_T: np.ndarray, *places_P: np.ndarray) -> np.ndarray:
            return choose({name: value[0] for name, value in graph(_inputs(ids_T, segments_T)).items()}, *places_P)

        return logits

    return Head(lambda rows_NT: ask(model, rows_NT[:, :-1]), reference, candidate)


def _inputs(ids_T: np.ndarray, segments_T: np.ndarray) -> Arrays:
    return {"input_ids": ids_T[None], "attention_mask": np.ones_like(ids_T)[None], "token_type_ids": segments_T[None]}


def _at_places(found: Arrays, places_P: np.ndarray) -> np.ndarray:
    return found["logits"][places_P]


def _follows(found: Arrays) -> np.ndarray:
    return found["seq_relationship_logits"][None]


def _verdicts(found: Arrays) -> np.ndarray:
    return np.stack((np.zeros_like(found["logits"]), found["logits"]), axis=-1)

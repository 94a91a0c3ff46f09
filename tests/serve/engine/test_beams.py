"""Beam search against that of transformers, on the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llm.errors import DataError
from llm.serve.engine.engine import Engine
from llm.serve.engine.sampling import Sampling


def ids(engine: Engine, prompt: list[int], sampling: Sampling) -> list[int]:
    return [token.id for chunk in engine.submit(prompt, sampling) for token in chunk.tokens]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ends", [True, False])
def test_the_best_text_is_transformers(served: Engine, decoder: Any, seed: int, ends: bool) -> None:
    prompt = np.random.default_rng(seed).integers(6, 600, 5 + 9 * seed).tolist()
    silent = [id for id, piece in enumerate(served.pieces) if piece is None]
    stops = {"eos_token_id": silent if ends else None, "pad_token_id": 0}
    answer = decoder.reference.generate(torch.tensor([prompt]), num_beams=3, do_sample=False, max_new_tokens=12, **stops)
    expected = answer[0, len(prompt) :].tolist()
    ends_at = next((place for place, id in enumerate(expected) if id in silent), len(expected))
    expected = expected[: ends_at + 1]
    running = served.submit(prompt[:3], Sampling(60, seed=1))
    assert ids(served, prompt, Sampling(12, beams=3, ignore_eos=not ends)) == expected
    running.cancel()


@pytest.mark.parametrize(
    "settings", [{"presence_penalty": 1.0}, {"logit_bias": {7: 1.0}}, {"seed": 1}, {"top_p": 0.9}, {"temperature": 0.5}]
)
def test_what_a_search_would_ignore_is_named(served: Engine, settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"beams can't be searched with {next(iter(settings))}"):
        served.submit([1], Sampling(5, beams=2, **settings))


def test_a_search_reports_no_logprobs(served: Engine) -> None:
    with pytest.raises(DataError, match="beams can't be searched with logprobs"):
        served.submit([1], Sampling(5, beams=2), top=0)


def test_more_beams_find_a_likelier_text(served: Engine) -> None:
    def likelihood(text: list[int]) -> float:
        return sum(token.logprob or 0.0 for token in served.score([1, 40, *text], top=0)[2:])

    one, four = (ids(served, [1, 40], Sampling(10, temperature=0, beams=beams, ignore_eos=True)) for beams in (1, 4))
    assert likelihood(four) >= likelihood(one)


def test_more_beams_than_slots_are_refused(served: Engine) -> None:
    with pytest.raises(DataError, match="at most 4"):
        served.submit([1], Sampling(5, beams=5))

"""Choices against their definitions: transformers' processors, and shares that are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm.serve.engine.sampling import Sampling, adjust, choose, draw, weights

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], dtype=np.float32))
NOTHING = np.zeros(0, np.int64)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(1, temperature=0), [0, 1, 0, 0]),
        (Sampling(1, temperature=1e-6), [0, 1, 0, 0]),
        (Sampling(1, temperature=1e-46), [0, 1, 0, 0]),
        (Sampling(1, temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(1, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(1, top_p=0.41), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(1, top_p=1e-9), [0, 1, 0, 0]),
        (Sampling(1, min_p=0.6), [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_tokens_are_drawn_with_their_shares(sampling: Sampling, expected: list[float]) -> None:
    uniforms = np.random.default_rng(0).random(4000)
    drawn = choose(np.repeat(LOGITS[None], 4000, axis=0), [sampling] * 4000, uniforms).tolist()
    assert [drawn.count(id) / len(drawn) for id in range(4)] == pytest.approx(expected, abs=0.03)


@given(
    temperature=st.floats(0.2, 2),
    top_k=st.sampled_from([0, 1, 5, 40, 700]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    seed=st.integers(0, 1000),
)
def test_what_is_cut_off_is_what_transformers_cuts_off(temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(scale=3, size=(1, 700)).astype(np.float32)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = torch.softmax(warpers(torch.zeros((1, 0), dtype=torch.long), torch.from_numpy(logits)).double(), dim=1).numpy()
    ours = weights(logits, [Sampling(1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)]).astype(np.float64)
    assert ours / ours.sum() == pytest.approx(expected, abs=2e-6)


def test_rows_of_a_batch_keep_their_own_settings() -> None:
    settings = [Sampling(1, temperature=0), Sampling(1), Sampling(1, top_k=3, temperature=0.7), Sampling(1, top_p=0.3)]
    rng = np.random.default_rng(5)
    logits, uniforms = rng.normal(size=(4, 900)).astype(np.float32), rng.random(4)
    alone = [int(choose(logits[row : row + 1], settings[row : row + 1], uniforms[row : row + 1])[0]) for row in range(4)]
    assert choose(logits, settings, uniforms).tolist() == alone


@given(uniform=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 100), size=st.integers(1, 1000))
def test_a_draw_is_where_the_running_sum_passes(uniform: float, seed: int, size: int) -> None:
    shares = np.random.default_rng(seed).random(size).astype(np.float32) ** 8
    shares[np.random.default_rng(seed + 1).random(size) < 0.5] = 0
    shares[seed % size] = 1
    id = int(draw(shares[None], np.array([uniform]))[0])
    sums = shares.cumsum(dtype=np.float64)
    assert shares[id] > 0
    assert sums[id] - shares[id] - 1e-6 <= uniform * sums[-1] <= sums[id] + 1e-6


def test_repetition_is_punished_as_in_transformers() -> None:
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    text = np.array([3, 7, 7, 9])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.from_numpy(text[None]), torch.from_numpy(logits[None].copy()))[0].numpy()
    adjust(logits, Sampling(1, repetition_penalty=1.3), tokens=text, written=NOTHING)
    assert logits == pytest.approx(expected)


def test_presence_counts_once_frequency_every_time_and_the_prompt_not_at_all() -> None:
    logits = np.zeros(5, np.float32)
    sampling = Sampling(1, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={4: -3.0, 1: 1.0})
    adjust(logits, sampling, tokens=np.array([0, 1, 2, 2]), written=np.array([1, 2, 2]))
    assert logits.tolist() == [0, 1 - 0.75, -1.0, 0, -3.0]

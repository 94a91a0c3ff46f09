"""Prompts that are read beside each other: every one comes to its end, and short ones don't wait for long ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm.serve.engine.batch import SHARE_TOKENS, Batch, Row
from llm.serve.engine.generation import Generation
from llm.serve.engine.prefixes import Prefixes
from llm.serve.engine.sampling import Sampling
from llm.serve.engine.session import open_session
from llm.serve.engine.slots import Slots
from llm.serve.models.folder import open_folder

SLOTS = 32


@pytest.fixture
def batch(decoder: Any) -> Batch:
    folder = open_folder(decoder.folder)
    slots = Slots(open_session(folder, threads=1), folder, slots=SLOTS, capacity=folder.context_tokens)
    return Batch(slots, Prefixes(0), most_rows=SLOTS)


def add(batch: Batch, tokens: int) -> Row:
    """A prompt that is like no other."""
    prompt = np.random.default_rng().integers(6, 600, tokens).tolist()
    batch.add(row := Row.of(Generation(prompt, Sampling(1))))
    return row


def step(batch: Batch, tokens: int) -> list[Row]:
    """The rows that are through after a step; they leave their slots."""
    through = [row for row, _, logits_V in batch.read_some(tokens) if logits_V is not None]
    for row in through:
        batch.remove(row, keep=False)
    return through


def test_a_long_prompt_is_read_while_short_ones_keep_coming(batch: Batch) -> None:
    """Each step brings as much as a step reads."""
    long, ended = add(batch, 400), list[Row]()
    steps = -(-400 // 32)
    for _ in range(steps):
        for _ in range(2):
            add(batch, 32)
        ended += step(batch, 64)
    assert long in ended
    assert len(ended) == 1 + steps, "half of each step was for the short ones"


def test_a_long_prompt_costs_short_ones_little(batch: Batch) -> None:
    for _ in range(3):
        add(batch, 500)
    for _ in range(3):
        step(batch, 64)
    short = add(batch, 30)
    assert step(batch, 64) == [short]


@pytest.mark.parametrize(("rows", "passes"), [(1, [SHARE_TOKENS, 72]), (2, [100, 100]), (3, [100, 100])])
def test_a_step_reads_no_more_than_it_may(batch: Batch, rows: int, passes: list[int]) -> None:
    """The row that began first takes half of it at most, unless nobody waits."""
    for _ in range(rows):
        add(batch, 300)
    assert [tokens for _, tokens, _ in batch.read_some(200)] == passes

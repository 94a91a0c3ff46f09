"""Generation against a loop that reads everything again for every token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm.model import families
from llm.model.config import parse_model
from llm.model.generate import choose, generate

VOCAB_SIZE, PROMPT = 50, [1, 7, 8, 9]


SIZES = {"width": 32, "num_layers": 2, "num_heads": 4, "ffn_width": 48, "max_positions": 32}
DECODERS = {"decoder": {"num_kv_heads": 2}, "gpt2": {}, "moe": {"num_kv_heads": 2, "num_experts": 4, "experts_per_token": 2}}


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    config = parse_model({"architecture": request.param, **SIZES, **DECODERS[request.param]})
    model = families.build(config, VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def recomputed(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[len(prompt) :]


def test_the_cache_changes_no_token(model: Any) -> None:
    written = generate(model, PROMPT, 20)
    assert written == recomputed(model, PROMPT, 20)
    assert len(set(written)) > 3


def test_a_stop_token_ends_and_is_left_out(model: Any) -> None:
    whole = generate(model, PROMPT, 20)
    stop = whole[5]
    assert generate(model, PROMPT, 20, stop_ids={stop}) == whole[: whole.index(stop)]


def test_writing_ends_with_the_positions(model: Any) -> None:
    assert len(generate(model, PROMPT, 1000)) == 32 - len(PROMPT)


def test_a_long_prompt_loses_its_beginning(model: Any) -> None:
    prompt = [index % VOCAB_SIZE for index in range(100)]
    assert generate(model, prompt, 10) == generate(model, prompt[-31:], 10) == recomputed(model, prompt[-31:], 1)


def test_a_seed_decides_a_sample(model: Any) -> None:
    samples = [generate(model, PROMPT, 20, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


def test_top_k_of_one_is_greedy(model: Any) -> None:
    assert generate(model, PROMPT, 20, temperature=2.0, top_k=1) == generate(model, PROMPT, 20)


def test_samples_follow_the_tempered_shares() -> None:
    logits, generator = torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.Generator().manual_seed(0)
    drawn = torch.tensor([choose(logits, 0.5, 3, generator) for _ in range(4000)])
    expected = torch.softmax(logits[:3] / 0.5, dim=0)
    assert torch.bincount(drawn, minlength=4)[3] == 0
    torch.testing.assert_close(torch.bincount(drawn)[:3] / 4000, expected, rtol=0, atol=0.03)

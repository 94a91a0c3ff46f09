"""With a draft, texts are as without one: the same greedy tokens, and the same shares of drawn ones."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from llm.data.config import TokenizeConfig
from llm.data.tokenizer import train
from llm.errors import ArtifactError
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Step
from llm.serve.engine.sampling import Sampling, choose, weights
from llm.serve.engine.speculation import judge


@pytest.fixture(scope="module", params=["itself", "stranger"])
def drafted(decoder: Any, stranger: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    draft = decoder.folder if request.param == "itself" else stranger
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=2, draft=draft, draft_tokens=3))
    yield engine
    engine.close()


def ids(engine: Engine, prompt: list[int], sampling: Sampling) -> list[int]:
    return [token.id for chunk in engine.submit(prompt, sampling) for token in chunk.tokens]


@pytest.mark.parametrize("settings", [{}, {"presence_penalty": 0.8}, {"stop": ("e",)}, {"ignore_eos": True}])
def test_greedy_tokens_are_the_same(drafted: Engine, served: Engine, settings: dict[str, Any]) -> None:
    for seed in range(3):
        prompt = np.random.default_rng(seed).integers(6, 600, 8).tolist()
        sampling = Sampling(40, temperature=0, **settings)
        assert ids(drafted, prompt, sampling) == ids(served, prompt, sampling)


def test_a_good_draft_saves_steps(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, draft=decoder.folder, draft_tokens=3))
    steps: list[int] = []
    engine.watch = lambda event: steps.append(event.tokens) if isinstance(event, Step) and event.kind == "decode" else None
    assert len(ids(engine, [9, 10], Sampling(41, temperature=0, ignore_eos=True))) == 41
    engine.close()
    assert steps[:10] == [4] * 10


def test_drawn_tokens_have_the_large_models_shares() -> None:
    """The rule itself, many times: a draft that is far off changes nothing about the outcome."""
    rng = np.random.default_rng(0)
    large, small = rng.normal(size=(2, 6)).astype(np.float32) * 1.5
    sampling = Sampling(1, temperature=0.8, top_k=5)
    counts = np.zeros(6)
    for _ in range(20_000):
        guess = int(choose(small[None], [sampling], rng.random(1))[0])
        counts[judge(large.copy(), guess, small, sampling, rng)] += 1
    shares = weights(large[None], [sampling])[0].astype(np.float64)
    kept = shares > 0
    assert counts[~kept].sum() == 0
    assert chisquare(counts[kept], 20_000 * shares[kept] / shares[kept].sum()).pvalue > 0.001


def test_seeded_draws_do_not_depend_on_the_draft(drafted: Engine, served: Engine) -> None:
    sampling = Sampling(25, temperature=0.9, seed=5)
    assert ids(drafted, [7, 8], sampling) == ids(served, [7, 8], sampling)


def test_unseeded_draws_run_to_the_end(drafted: Engine) -> None:
    assert len(ids(drafted, [7, 8], Sampling(30, temperature=0.9, ignore_eos=True))) == 30


def test_a_draft_with_another_tokenizer_is_refused(decoder: Any, tmp_path: Path) -> None:
    texts = [f"{word} {word}s" for word in inspect.getsource(json).split()]
    other = tmp_path / "tokenizer.model"
    other.write_bytes(train(texts, TokenizeConfig(vocab_size=600, row_tokens=32)))
    folder = shutil.copytree(decoder.folder, tmp_path / "onnx")
    (folder / "tokenizer.model").write_bytes(other.read_bytes())
    with pytest.raises(ArtifactError, match="another tokenizer"):
        Engine(decoder.folder, model_id="m", config=EngineConfig(draft=folder))

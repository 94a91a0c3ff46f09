"""Many requests at once: each gets what it would get alone, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from llm.errors import ArtifactError, CapacityError, DataError, RecipeError
from llm.serve.engine.config import EngineConfig
from llm.serve.engine.engine import Engine
from llm.serve.engine.generation import Finished, Generation, Step
from llm.serve.engine.sampling import Sampling
from tests.serve.engine.conftest import LLAMA, write

GREEDY = Sampling(24, temperature=0)


def a_prompt(seed: int, tokens: int) -> list[int]:
    return np.random.default_rng(seed).integers(6, 600, tokens).tolist()


def ids(generation: Generation) -> list[int]:
    return [token.id for chunk in generation for token in chunk.tokens]


def greedy_reference(model: Any, prompt: list[int], tokens: int) -> list[int]:
    answer = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens, eos_token_id=None)
    return answer[0, len(prompt) :].tolist()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_greedy_texts_are_transformers(written: Any) -> None:
    """More requests than slots, of different lengths, in pieces: the texts of one request at a time in PyTorch."""
    engine = Engine(written.folder, model_id="m", config=EngineConfig(threads=1, slots=3, prefill_tokens=8))
    prompts = [a_prompt(seed, size) for seed, size in enumerate((3, 40, 1, 17, 9, 140))]
    running = [engine.submit(prompt, Sampling(24, temperature=0, ignore_eos=True)) for prompt in prompts]
    expected = [greedy_reference(written.reference, prompt, 24) for prompt in prompts]
    assert [ids(generation) for generation in running] == expected
    engine.close()


def test_a_seed_gives_the_same_tokens_alone_and_in_a_full_batch(served: Engine) -> None:
    sampling = Sampling(30, temperature=0.9, top_p=0.95, seed=11, presence_penalty=0.3)
    alone = ids(served.submit(a_prompt(0, 20), sampling))
    mates = [served.submit(a_prompt(seed, 5 * seed), Sampling(60, seed=seed)) for seed in range(1, 7)]
    assert ids(served.submit(a_prompt(0, 20), sampling)) == alone
    assert ids(served.submit(a_prompt(0, 20), Sampling(30, temperature=0.9, top_p=0.95, seed=12, presence_penalty=0.3))) != alone
    for mate in mates:
        mate.cancel()


def test_prompts_that_begin_alike_are_read_once(served: Engine) -> None:
    first, prompt = a_prompt(50, 30), a_prompt(51, 4)
    before = ids(served.submit(first + prompt, GREEDY))
    again = served.submit(first + prompt, GREEDY)
    assert ids(again) == before
    assert again.cached_tokens == 33  # the last one is read for its logits
    other = served.submit(first + a_prompt(52, 9), GREEDY)
    ids(other)
    assert 30 <= other.cached_tokens < 39


def test_a_kept_text_that_serves_again_is_kept_longer(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, prefix_tokens=100))
    used, unused, fresh = (a_prompt(seed, 30) for seed in (53, 54, 59))

    def cached(prompt: list[int]) -> int:
        generation = engine.submit(prompt, Sampling(1, ignore_eos=True))
        ids(generation)
        return generation.cached_tokens

    assert [cached(prompt) for prompt in (used, unused, used[:20] + fresh[:5], fresh)] == [0, 0, 20, 0]
    assert cached(used) == 29
    assert cached(unused) == 0
    engine.close()


def test_clients_do_not_see_what_others_have_asked(decoder: Any) -> None:
    """Neither what is kept of finished texts nor what running ones have read."""
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=4, prefill_tokens=16))
    prompt, settings = a_prompt(55, 40), Sampling(300, temperature=0, ignore_eos=True)
    running = engine.submit(prompt, settings, client="one")
    next(chunks := iter(running))
    cached = []
    for client in ("other", "one", "other", "third"):
        generation = engine.submit(prompt, Sampling(2, temperature=0, ignore_eos=True), client=client)
        ids(generation)
        cached.append(generation.cached_tokens)
    assert cached == [0, 39, 39, 0]
    chunks.close()
    engine.close()


def test_a_row_that_cannot_go_on_fails_alone(served: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """And is no fault of the server's that its log would tell."""
    settings = Sampling(40, temperature=0, ignore_eos=True)
    alone = ids(served.submit(a_prompt(56, 9), settings))
    good = served.submit(a_prompt(56, 9), settings)
    with pytest.raises(RecipeError, match="settings leave no token"):
        ids(served.submit(a_prompt(57, 20), Sampling(40, repetition_penalty=1e-39)))
    assert ids(good) == alone
    assert caplog.records == []


@pytest.fixture(scope="module")
def partly_broken(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A model whose embedding of id 7 isn't finite."""
    folder = write(LLAMA | {"tied_embeddings": False}, tmp_path_factory.mktemp("partly"), tokenizer_file).folder
    model = onnx.load(folder / "model.onnx")
    table = next(node.input[0] for node in model.graph.node if node.op_type == "Gather" and "input_ids" in node.input)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == table)
    weights = onnx.numpy_helper.to_array(tensor).copy()
    weights[7] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, table))
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.mark.parametrize("drafted", [False, True])
def test_logits_that_are_not_finite_fail_their_row_alone(partly_broken: Path, decoder: Any, drafted: bool) -> None:
    draft = decoder.folder if drafted else None
    engine = Engine(partly_broken, model_id="m", config=EngineConfig(threads=1, draft=draft))
    reasons: list[str] = []
    engine.watch = lambda event: reasons.append("error" if event.generation.error else "") if isinstance(event, Finished) else None
    settings = Sampling(30, temperature=0, ignore_eos=True, logit_bias={7: -1000.0})
    good = engine.submit([8, 9], settings)
    for bad in ([6, 7], [8, 9], [8, 9]):  # the id is read in the prompt; written beside another text; written alone
        with pytest.raises(ArtifactError, match="logits aren't finite"):
            ids(engine.submit(bad, Sampling(30, temperature=0, logit_bias={7: 1000.0})))
        if bad != [6, 7]:
            wait_until(lambda: good.finish_reason is not None)
    assert len(ids(good)) == 30
    wait_until(lambda: len(reasons) == 4)
    assert sorted(reasons) == ["", "error", "error", "error"]
    engine.close()


def test_a_search_whose_logits_are_not_finite_fails_alone(partly_broken: Path) -> None:
    """Neither a text nor another search that runs beside it is touched."""
    engine = Engine(partly_broken, model_id="m", config=EngineConfig(threads=1))
    search = Sampling(2, beams=2, ignore_eos=True)
    alone = ids(engine.submit([6, 8], search))
    text = engine.submit([8, 9], Sampling(400, temperature=0, ignore_eos=True, logit_bias={7: -1000.0}))
    bad, good = engine.submit([6, 7], search), engine.submit([6, 8], search)
    with pytest.raises(ArtifactError, match="logits aren't finite"):
        ids(bad)
    assert ids(good) == alone
    assert len(ids(text)) == 400
    engine.close()


def test_a_prompt_whose_logits_are_not_finite_has_no_score(partly_broken: Path) -> None:
    engine = Engine(partly_broken, model_id="m", config=EngineConfig(threads=1))
    alone = engine.score([6, 8], top=0)
    with pytest.raises(ArtifactError, match="logits aren't finite"):
        engine.score([6, 7], top=0)
    assert engine.score([6, 8], top=0) == alone
    engine.close()


@pytest.mark.parametrize("top", [None, 2])
def test_the_id_that_ends_a_text_is_a_token_that_says_nothing(served: Engine, decoder: Any, top: int | None) -> None:
    end, prompt = served.tokenizer.eos, a_prompt(58, 6)
    generation = served.submit(prompt, Sampling(5, temperature=0, logit_bias={end: 1000.0}), top=top)
    [chunk] = list(generation)
    assert (chunk.text, chunk.finish_reason, generation.completion_tokens) == ("", "stop", 1)
    assert [token.id for token in chunk.tokens] == [end]
    if top is not None:
        with torch.no_grad():
            expected = torch.log_softmax(decoder.reference(torch.tensor([prompt])).logits[0, -1], dim=-1)
        assert chunk.tokens[0].logprob == pytest.approx(float(expected[end]), abs=1e-4)
        assert list(chunk.tokens[0].top) == expected.topk(top).indices.tolist()


def test_choices_of_one_prompt_share_it_while_they_run(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, prefix_tokens=0, prefill_tokens=16))
    choices = [engine.submit(a_prompt(60, 200), Sampling(300, seed=seed, ignore_eos=True)) for seed in range(4)]
    begun = [iter(choice) for choice in choices]
    for chunks in begun:
        next(chunks)
    assert sum(choice.cached_tokens for choice in choices) > 3 * 150
    engine.close()


def test_a_long_prompt_stalls_nobody(served: Engine) -> None:
    long, short = served.submit(a_prompt(70, 480), Sampling(1)), served.submit(a_prompt(71, 10), Sampling(3, ignore_eos=True))
    ids(short)
    assert long.finish_reason is None
    ids(long)


def test_each_pass_over_a_prompt_is_told(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, prefill_tokens=64))
    passes: list[Step] = []
    engine.watch = lambda event: passes.append(event) if isinstance(event, Step) and event.kind == "prefill" else None
    running = [engine.submit(a_prompt(seed, 300), Sampling(1, ignore_eos=True)) for seed in (72, 73, 74)]
    for generation in running:
        ids(generation)
    engine.close()
    assert {step.rows for step in passes} == {1}
    assert sum(step.tokens for step in passes) == 900
    assert len(passes) > 900 / 64 + 5, "several in one step"


def test_a_generation_ends_when_it_is_cancelled_or_late(served: Engine) -> None:
    endless = Sampling(400, ignore_eos=True)
    running = served.submit(a_prompt(80, 5), endless)
    next(iter(running))  # leaving the loop cancels
    wait_until(lambda: running.finish_reason == "cancelled")
    late = served.submit(a_prompt(81, 5), endless, deadline_seconds=0.05)
    assert list(late)[-1].finish_reason == "deadline"
    assert late.completion_tokens < 400
    wait_until(lambda: served.load().running == 0)
    assert served.load().kv_used_tokens == 0


def test_a_full_queue_refuses_and_a_cancelled_place_is_free_again(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=1, queue_requests=1))
    first = engine.submit([7], Sampling(500, ignore_eos=True))
    wait_until(lambda: engine.load().running == 1)
    waiting = engine.submit([8], GREEDY)
    with pytest.raises(CapacityError, match="queue is full"):
        engine.submit([9], GREEDY)
    waiting.cancel()
    assert [chunk.finish_reason for chunk in waiting] == ["cancelled"]
    third = engine.submit([9], GREEDY)
    first.cancel()
    assert len(ids(third)) > 0
    engine.close()
    with pytest.raises(CapacityError, match="closed"):
        engine.submit([9], GREEDY)


@pytest.mark.parametrize(("slots", "places"), [(2, 0), (1, 1), (4, 0)])
def test_what_begins_at_once_takes_no_place_in_the_queue(decoder: Any, slots: int, places: int) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=slots, queue_requests=places))
    settings = Sampling(400, ignore_eos=True)
    running = [engine.submit([7], settings) for _ in range(slots + places)]
    with pytest.raises(CapacityError, match="queue is full"):
        engine.submit([7], settings)
    assert [len(ids(generation)) for generation in running] == [400] * (slots + places)
    engine.close()


def test_slots_that_memory_keeps_empty_are_no_places(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=8, kv_tokens=500, queue_requests=2))
    running = engine.submit([7], Sampling(499, ignore_eos=True))
    wait_until(lambda: engine.load().running == 1)
    waiting = engine.submit([8], GREEDY)
    with pytest.raises(CapacityError, match="1 requests wait, 1 of this client"):
        engine.submit([9], GREEDY)
    running.cancel()
    assert len(ids(waiting)) > 0
    engine.close()


def test_a_client_that_fills_the_queue_keeps_nobody_out(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=1, queue_requests=8))
    filled = threading.Event()
    engine.watch = lambda _: filled.wait(20) and None  # the first step ends when the queue is full
    blocking = engine.submit([7], Sampling(500, ignore_eos=True), client="busy")
    wait_until(lambda: engine.load().running == 1)

    def fill(client: str) -> list[Generation]:
        waiting = list[Generation]()
        with suppress(CapacityError):
            while True:
                waiting.append(engine.submit([8], GREEDY, client=client))
        return waiting

    busy, other, third = fill("busy"), fill("other"), fill("third")
    assert [len(busy), len(other), len(third)] == [4, 2, 1]
    with pytest.raises(CapacityError, match="7 requests wait, 4 of this client"):
        engine.submit([8], GREEDY, client="busy")
    filled.set()
    blocking.cancel()
    for generation in (*other, *third):
        assert len(ids(generation)) > 0
    engine.close()


def test_memory_is_reserved_before_a_generation_begins(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=8, kv_tokens=100))
    used: list[int] = []
    engine.watch = lambda _: used.append(engine.load().kv_used_tokens)
    running = [engine.submit(a_prompt(seed, 20), Sampling(20, ignore_eos=True)) for seed in range(5)]
    assert [len(ids(generation)) for generation in running] == [20] * 5
    assert max(used) == 80
    with pytest.raises(DataError, match="longer than the context"):
        engine.submit(a_prompt(0, 90), Sampling(20))
    engine.close()


def test_clients_take_turns(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=1))
    order: list[str] = []
    engine.watch = lambda event: order.append(event.generation.client) if isinstance(event, Finished) else None
    blocking = engine.submit([7], Sampling(300, ignore_eos=True), client="first")
    wait_until(lambda: engine.load().running == 1)
    waiting = [engine.submit([8], Sampling(2), client=client) for client in ("busy", "busy", "busy", "other")]
    blocking.cancel()
    for generation in waiting:
        ids(generation)
    wait_until(lambda: len(order) == 5)
    assert order == ["first", "busy", "other", "busy", "busy"]
    engine.close()


def test_async_readers_get_the_same(served: Engine) -> None:
    async def read() -> list[int]:
        return [token.id async for chunk in served.submit([9, 10], GREEDY) for token in chunk.tokens]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(read() for _ in range(6)))

    assert asyncio.run(together()) == [ids(served.submit([9, 10], GREEDY))] * 6


def test_closing_ends_what_runs(decoder: Any) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1, slots=1))
    running = [engine.submit([7], Sampling(500, ignore_eos=True)) for _ in range(3)]
    engine.close()
    assert [list(generation)[-1].finish_reason for generation in running] == ["cancelled"] * 3


def test_a_failing_step_fails_its_requests_and_no_others(decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(decoder.folder, model_id="m", config=EngineConfig(threads=1))
    working = engine._slots.decode
    ended: list[Finished] = []
    engine.watch = lambda event: ended.append(event) if isinstance(event, Finished) else None
    monkeypatch.setattr(engine._slots, "decode", lambda *_: working(np.zeros(3, np.int64), np.zeros(2, np.int32)))
    with pytest.raises(ValueError, match="broadcast"):
        ids(engine.submit([7, 8], Sampling(5, ignore_eos=True)))
    wait_until(lambda: len(ended) == 1)
    assert isinstance(ended[0].generation.error, ValueError)
    monkeypatch.undo()
    assert len(ids(engine.submit([7, 8], Sampling(5, ignore_eos=True)))) == 5
    engine.close()


def test_logprobs_are_of_the_models_own_distribution(served: Engine, decoder: Any) -> None:
    """Penalties and temperature change the choice, not what is reported."""
    prompt, settings = a_prompt(90, 12), Sampling(8, temperature=0.7, seed=3, presence_penalty=1.0, ignore_eos=True)
    tokens = [token for chunk in served.submit(prompt, settings, top=3) for token in chunk.tokens]
    text = prompt + [token.id for token in tokens]
    with torch.no_grad():
        expected = torch.log_softmax(decoder.reference(torch.tensor([text])).logits[0], dim=-1)
    for place, token in enumerate(tokens, len(prompt)):
        assert token.logprob == pytest.approx(float(expected[place - 1, token.id]), abs=1e-4)
        best = expected[place - 1].topk(3)
        assert list(token.top) == best.indices.tolist()
        assert list(token.top.values()) == pytest.approx(best.values.tolist(), abs=1e-4)


def test_embeddings_are_mean_states_of_unit_length(served: Engine, decoder: Any) -> None:
    texts = [a_prompt(95, 40), a_prompt(96, 3)]
    vectors = served.embed(texts)
    with torch.no_grad():
        states = [decoder.reference.model(torch.tensor([text])).last_hidden_state[0].mean(dim=0) for text in texts]
    expected = [(state / state.norm()).numpy() for state in states]
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(np.stack(expected), abs=1e-5)

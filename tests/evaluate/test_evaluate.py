"""The stage on small real artifacts, base and tuned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm.data.document import Document
from llm.data.template import Turn, encode, prompt_ids
from llm.data.tokenizer import EOS, Tokenizer
from llm.evaluate.config import EvaluateConfig
from llm.evaluate.evaluate import evaluate
from llm.evaluate.kneser_ney import KneserNey
from llm.evaluate.likelihood import Stream, answer_loss, held_out, score
from llm.model.decoder import Decoder
from llm.model.generate import generate
from llm.model.weights import load

CONFIG = EvaluateConfig(batch_rows=4, prompts=("def ",), chat_prompts=("Add?", "Sum?"), sample_tokens=5)


def write_chat(folder: Path, tokenizer: Tokenizer) -> None:
    """Two conversations, a row each, and the same with their questions exchanged."""
    folder.mkdir()
    questions, answers = ["add first", "the sum of"], ["return first + second", "two numbers"]
    for split, order in (("test", (0, 1)), ("test-shuffled", (1, 0))):
        ids, mask = [], []
        for question, answer in zip((questions[place] for place in order), answers, strict=True):
            row = encode(tokenizer, [Turn("user", question), Turn("assistant", answer)])
            padding = 64 - len(row[0])
            ids, mask = ids + row[0] + [EOS] * padding, mask + row[1] + [0] * padding
        np.array([*ids, EOS], dtype=np.uint16).tofile(folder / f"{split}.tokens")
        np.array([*mask, 0], dtype=np.uint8).tofile(folder / f"{split}.mask")
    facts = {"dtype": "uint16", "row_tokens": 64, "vocab_size": tokenizer.vocab_size, "splits": {"test": {}, "test-shuffled": {}}}
    (folder / "rows.json").write_text(json.dumps(facts))


def test_a_base_model_is_scored_against_the_bigram(artifacts, tokenizer: Tokenizer, documents: list[Document], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    scores = evaluate(artifacts.trained(0), artifacts.tokenized, artifacts.deduped, out, CONFIG, seed=0)
    assert json.loads((out / "scores.json").read_text()) == scores
    assert scores["documents"] == len(documents)
    assert set(scores["by_domain"]) == {"code", "docs"}
    assert "answer_loss" not in scores

    train = np.fromfile(artifacts.tokenized / "train.tokens", dtype=np.uint16)
    stream = Stream.of(tokenizer, documents)
    expected = stream.tally(KneserNey.fit(train, tokenizer.vocab_size).nats(stream.tokens))
    assert scores["baseline"]["kneser_ney"] == expected
    assert expected["bits_per_byte"] < scores["bits_per_byte"], "a bigram of the test text itself beats a model that was never trained"


def test_samples_continue_the_fixed_prompts(artifacts, tmp_path: Path) -> None:
    trained, texts = artifacts.trained(0), []
    config = CONFIG.model_copy(update={"temperature": 1.0})
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        (tmp_path / name).mkdir()
        evaluate(trained, artifacts.tokenized, artifacts.deduped, tmp_path / name, config, seed=seed)
        texts.append((tmp_path / name / "samples.json").read_text())
    assert [sample["prompt"] for sample in json.loads(texts[0])] == ["def "]
    assert texts[0] == texts[1] != texts[2]


def test_a_tuned_model_is_scored_on_answers_and_against_shuffled_questions(
    artifacts, model: Decoder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out, chat = tmp_path / "out", tmp_path / "chat"
    out.mkdir()
    write_chat(chat, tokenizer)
    tuned, base = artifacts.trained(1), artifacts.trained(0)
    scores = evaluate(tuned, artifacts.tokenized, artifacts.deduped, out, CONFIG, seed=0, base=base, chat=chat)
    assert scores["answer_loss_base"] == pytest.approx(answer_loss(model, chat, "test"))
    assert len({scores["answer_loss"], scores["answer_loss_base"], scores["answer_loss_shuffled"]}) == 3
    samples = json.loads((out / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == ["Add?", "Sum?"]
    asked = prompt_ids(tokenizer, [Turn("user", "Add?")])
    assert samples[0]["text"] == tokenizer.decode(generate(load(tuned), asked, 5, (EOS, tokenizer.end)))


def test_a_limit_scores_fewer_documents(artifacts, model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    config = CONFIG.model_copy(update={"max_documents": 2})
    scores = evaluate(artifacts.trained(0), artifacts.tokenized, artifacts.deduped, out, config, seed=0)
    assert scores["documents"] == 2
    direct = score(model, tokenizer, held_out(artifacts.deduped, limit=2), row_tokens=16)
    assert scores["bits_per_byte"] == pytest.approx(direct["bits_per_byte"])

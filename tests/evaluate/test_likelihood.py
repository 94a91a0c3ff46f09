"""Scores against sums made token by token, and books that balance."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.data.document import Document, write_documents
from llm.data.tokenizer import BOS, EOS, Tokenizer
from llm.errors import DataError
from llm.evaluate.likelihood import Stream, answer_loss, held_out, score, token_nats
from llm.model.decoder import Decoder


def by_hand(model: Decoder, tokenizer: Tokenizer, documents: list[Document], row_tokens: int) -> dict[str, tuple[float, int]]:
    """Nats and counted tokens per domain, every token predicted alone from the start of its row."""
    tokens = [(token, document.domain) for document in documents for token in [BOS, *tokenizer.encode(document.text), EOS]]
    found: dict[str, tuple[float, int]] = {}
    for place in range(1, len(tokens)):
        token, domain = tokens[place]
        if token == BOS:
            continue
        start = (place - 1) // row_tokens * row_tokens
        context = torch.tensor([[token for token, _ in tokens[start:place]]])
        with torch.no_grad():
            nats = -F.log_softmax(model(context)[0][0, -1].double(), dim=-1)[token].item()
        total, count = found.get(domain, (0.0, 0))
        found[domain] = (total + nats, count + 1)
    return found


@pytest.mark.parametrize("row_tokens", [7, 64])
def test_every_token_is_predicted_once_from_its_row(
    model: Decoder, tokenizer: Tokenizer, documents: list[Document], row_tokens: int
) -> None:
    documents = documents[::2]
    scores = score(model, tokenizer, documents, row_tokens=row_tokens, batch_rows=3)
    expected = by_hand(model, tokenizer, documents, row_tokens)
    for domain, (nats, count) in expected.items():
        text_bytes = sum(len(document.text.encode()) for document in documents if document.domain == domain)
        got = scores["by_domain"][domain]
        assert (got["tokens"], got["bytes"]) == (count, text_bytes)
        assert got["loss"] == pytest.approx(nats / count, rel=1e-5)
        assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))


def test_the_books_balance(model: Decoder, tokenizer: Tokenizer, documents: list[Document]) -> None:
    scores = score(model, tokenizer, documents, row_tokens=16)
    assert scores["tokens"] == sum(len(tokenizer.encode(document.text)) + 1 for document in documents)
    assert scores["bytes"] == sum(len(document.text.encode()) for document in documents)
    domains = scores["by_domain"].values()
    assert scores["tokens"] == sum(domain["tokens"] for domain in domains)
    total = sum(domain["loss"] * domain["tokens"] for domain in domains)
    assert scores["loss"] == pytest.approx(total / scores["tokens"])


def test_uniform_predictions_score_the_logarithm_of_the_vocabulary(model: Decoder, tokenizer: Tokenizer, documents: list[Document]) -> None:
    silent = Decoder(model.config, tokenizer.vocab_size)
    torch.nn.init.zeros_(silent.head.weight)
    scores = score(silent, tokenizer, documents, row_tokens=16)
    assert scores["loss"] == pytest.approx(math.log(tokenizer.vocab_size))
    assert scores["bits_per_byte"] == pytest.approx(scores["tokens"] * math.log2(tokenizer.vocab_size) / scores["bytes"])


def test_rows_per_pass_change_nothing_beyond_rounding(model: Decoder, tokenizer: Tokenizer, documents: list[Document]) -> None:
    tokens = Stream.of(tokenizer, documents).tokens
    one, many = (token_nats(model, tokens, row_tokens=16, batch_rows=rows) for rows in (1, 64))
    np.testing.assert_allclose(one, many, rtol=1e-4)
    assert len(one) == len(tokens) - 1


def test_no_document_is_a_named_error(model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"no test document to score; raise dedup\.test_share"):
        score(model, tokenizer, [], row_tokens=16)
    with pytest.raises(DataError, match="test documents hold no text"):
        score(model, tokenizer, [Document("a", "", "test")], row_tokens=16)


def test_a_limit_chooses_by_id_and_not_by_place(documents: list[Document], tmp_path: Path) -> None:
    chosen = []
    for order in (documents, documents[::-1]):
        write_documents(tmp_path / "test-00000.parquet", order)
        chosen.append(held_out(tmp_path, limit=3))
    assert len(chosen[0]) == 3
    assert {document.id for document in chosen[0]} == {document.id for document in chosen[1]}
    assert [document.id for document in chosen[0]] == [document.id for document in documents if document in chosen[0]]
    assert len(held_out(tmp_path)) == len(held_out(tmp_path, limit=100)) == len(documents)


def write_chat(folder: Path, mask: list[int], *, row_tokens: int = 8) -> np.ndarray:
    tokens = np.random.default_rng(1).integers(3, 300, len(mask)).astype(np.uint16)
    tokens.tofile(folder / "test.tokens")
    np.array(mask, dtype=np.uint8).tofile(folder / "test.mask")
    facts = {"dtype": "uint16", "row_tokens": row_tokens, "vocab_size": 330, "splits": {"test": {}}}
    (folder / "rows.json").write_text(json.dumps(facts))
    return tokens.astype(np.int64)


def test_answer_loss_counts_only_what_the_mask_says(model: Decoder, tmp_path: Path) -> None:
    mask = [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    tokens = write_chat(tmp_path, mask)
    nats = token_nats(model, tokens, row_tokens=8, batch_rows=1)
    expected = nats[np.array(mask[1:]) == 1].mean()
    assert answer_loss(model, tmp_path, "test", batch_rows=1) == pytest.approx(expected, rel=1e-6)


def test_answers_without_a_counted_token_are_a_named_error(model: Decoder, tmp_path: Path) -> None:
    write_chat(tmp_path, [0] * 17)
    with pytest.raises(DataError, match="no answer to score: split test counts 0 tokens"):
        answer_loss(model, tmp_path, "test")

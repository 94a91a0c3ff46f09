from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm.data.config import CorpusMixtureConfig, TokenizeConfig
from llm.data.document import Document, read_shards, write_documents
from llm.data.encode import tokenize
from llm.data.mixture import Blend
from llm.data.packing import Packing
from llm.data.parts import Workshop
from llm.data.rows import IGNORED, Rows
from llm.data.split import SPLITS
from llm.data.tokenizer import Tokenizer

ROW_TOKENS = 64
KINDS = (("code", "python"), ("text", "de"), ("text", "en"))


@pytest.fixture(scope="module")
def deduped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of three kinds by turns, of a few to a few hundred tokens, in three shards a split."""
    folder, random = tmp_path_factory.mktemp("deduped"), np.random.default_rng(0)
    for split in SPLITS:
        for shard in range(3):
            documents = []
            for number in range(24):
                domain, language = KINDS[number % 3]
                words = " ".join(f"{language}{n}" for n in random.integers(0, 30, random.integers(2, 60)))
                documents.append(Document(f"{split}/{shard}/{number}", words, "files", domain=domain, language=language))
            write_documents(folder / f"{split}-{shard:05d}.parquet", documents)
    return folder


@pytest.fixture(scope="module", params=["concatenate", "best_fit"])
def packing(request: pytest.FixtureRequest) -> Packing:
    chosen: Packing = request.param
    return chosen


@pytest.fixture(scope="module")
def tokenized(deduped: Path, packing: Packing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(packing)
    tokenize(deduped, out, TokenizeConfig(vocab_size=300, row_tokens=ROW_TOKENS, packing=packing), Workshop(out / "parts"))
    return out


def kinds_of(rows: Rows, tokenizer: Tokenizer, indices: range) -> set[str]:
    """Languages that the text of these rows is written in; each word begins with its own."""
    text = " ".join(map(tokenizer.decode, rows.batch(np.array(indices))[0]))
    return {language for _, language in KINDS if f" {language}" in text}


def test_every_document_begins_at_its_border(tokenized: Path, deduped: Path, packing: Packing) -> None:
    """The whole of it, or in packed rows the head of one that is too long."""
    tokenizer, facts = Tokenizer.load(tokenized), json.loads((tokenized / "rows.json").read_text())
    for split in SPLITS:
        tokens = np.fromfile(tokenized / f"{split}.tokens", facts["dtype"])
        borders = np.fromfile(tokenized / f"{split}.borders", "<i8")
        for border, document in zip(borders, read_shards(deduped, split), strict=True):
            ids = tokenizer.document_ids(document.text)
            if packing == "best_fit" and len(ids) > ROW_TOKENS:
                ids = ids[: len(ids) % ROW_TOKENS or ROW_TOKENS]
            assert tokens[border : border + len(ids)].tolist() == ids


def test_groups_of_training_rows_hold_their_own_kind(tokenized: Path, packing: Packing) -> None:
    rows, tokenizer = Rows.open(tokenized, "train"), Tokenizer.load(tokenized)
    assert [(group.domain, group.language) for group in rows.groups] == list(KINDS)
    assert sum(group.rows for group in rows.groups) == len(rows)
    facts = json.loads((tokenized / "rows.json").read_text())
    assert sum(group.tokens for group in rows.groups) == facts["splits"]["train"]["tokens"]
    first = 0
    for group in rows.groups:
        last = first + group.rows - (packing == "concatenate")  # whose last row runs on into the next group
        assert kinds_of(rows, tokenizer, range(first, last)) == {group.language}
        first += group.rows


def test_other_splits_keep_the_order_of_their_documents(tokenized: Path) -> None:
    rows, tokenizer = Rows.open(tokenized, "validation"), Tokenizer.load(tokenized)
    assert rows.groups == ()
    assert kinds_of(rows, tokenizer, range(12)) == {"python", "de", "en"}


def test_what_packing_costs_is_reported(tokenized: Path, deduped: Path, packing: Packing) -> None:
    report, tokenizer = json.loads((tokenized / "report.json").read_text()), Tokenizer.load(tokenized)
    for split in SPLITS:
        rows = Rows.open(tokenized, split)
        lengths = [len(tokenizer.document_ids(document.text)) for document in read_shards(deduped, split)]
        lost, long = report[split]["packing"], sum(length > ROW_TOKENS for length in lengths) / len(lengths)
        if packing == "best_fit":
            assert lost["padding_share"] == pytest.approx(1 - sum(lengths) / (len(rows) * ROW_TOKENS), abs=1e-6)
            assert lost["cut_documents_share"] == pytest.approx(long, abs=1e-6)
            assert lost["padding_share"] < 0.1
        else:
            assert lost["padding_share"] == 0
            assert lost["unread_share"] == pytest.approx(1 - len(rows) * ROW_TOKENS / sum(lengths), abs=1e-6)
            assert lost["cut_documents_share"] > long


def test_padding_and_strangers_never_count(tokenized: Path, packing: Packing) -> None:
    rows, tokenizer = Rows.open(tokenized, "train"), Tokenizer.load(tokenized)
    inputs, targets = rows.batch(np.arange(len(rows)))
    if packing == "concatenate":
        assert (targets != IGNORED).all()
        return
    counted = targets != IGNORED
    assert not (counted & (inputs == tokenizer.eos)).any()
    assert not (counted & (targets == tokenizer.bos)).any()
    assert counted.sum() > 0.8 * counted.size


def test_a_mixture_chooses_among_the_groups(tokenized: Path) -> None:
    rows = Rows.open(tokenized, "train")
    stream = Blend.plan(rows.groups, CorpusMixtureConfig(languages={"de": 1.0}), 100, seed=0)
    first = rows.groups[0].rows
    assert set(stream.indices(0, 100).tolist()) == set(range(first, first + rows.groups[1].rows))

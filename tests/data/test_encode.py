from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm.artifact import named_errors
from llm.data.config import TokenizeConfig, TokenizerConfig
from llm.data.document import Document, read_shards, write_documents
from llm.data.encode import encode_shard, token_dtype, tokenize
from llm.data.parts import Workshop
from llm.data.rows import Rows
from llm.data.split import SPLITS
from llm.data.tokenizer import BOS, EOS, Tokenizer, train
from llm.errors import ArtifactError, DataError


def test_the_stream_is_every_document_between_its_borders(stages: dict[str, Path]) -> None:
    folder, tokenizer = stages["tokenize"], Tokenizer.load(stages["tokenize"])
    facts = json.loads((folder / "rows.json").read_text())
    for split in SPLITS:
        stream = np.fromfile(folder / f"{split}.tokens", dtype=facts["dtype"])
        borders = np.fromfile(folder / f"{split}.borders", dtype="<i8")
        documents = list(read_shards(stages["dedup"], split))
        pieces = np.split(stream, borders[1:])
        assert facts["splits"][split] == {"rows": (len(stream) - 1) // 128, "tokens": len(stream), "documents": len(documents)}
        for document, piece in zip(documents, pieces, strict=True):
            assert (piece[0], piece[-1]) == (BOS, EOS)
            assert tokenizer.decode(piece) == document.text


def test_the_report_counts_bytes_and_tokens(stages: dict[str, Path]) -> None:
    report = json.loads((stages["tokenize"] / "report.json").read_text())
    facts = json.loads((stages["tokenize"] / "rows.json").read_text())["splits"]
    for split in SPLITS:
        texts = [document.text.encode() for document in read_shards(stages["dedup"], split)]
        assert report[split]["by_domain"]["code"]["bytes"] == sum(map(len, texts))
        assert report[split]["by_domain"]["code"]["tokens"] == facts[split]["tokens"] - 2 * len(texts)


def test_the_vocabulary_has_seen_the_training_split_only(tmp_path: Path) -> None:
    for name in ("deduped", "out"):
        (tmp_path / name).mkdir()
    for split in SPLITS:
        text = "common words everywhere " * 300 if split == "train" else "xylophone " * 300
        write_documents(tmp_path / "deduped" / f"{split}-00000.parquet", [Document(id=split, text=text, source="files")])
    tokenize(tmp_path / "deduped", tmp_path / "out", TokenizeConfig(vocab_size=300, row_tokens=64), Workshop(tmp_path / "parts"))
    assert b"xylo" not in (tmp_path / "out" / "tokenizer.model").read_bytes()
    assert b"common" in (tmp_path / "out" / "tokenizer.model").read_bytes()


def test_rows_longer_than_the_data_name_the_setting(stages: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a row is longer than the \w+ split.*tokenize\.row_tokens"):
        tokenize(stages["dedup"], tmp_path, TokenizeConfig(vocab_size=1000, row_tokens=10_000_000), Workshop(tmp_path / "parts"))


def test_large_vocabularies_take_four_bytes() -> None:
    assert [token_dtype(size) for size in (65_536, 65_537)] == ["<u2", "<u4"]


def test_the_stage_is_deterministic(stages: dict[str, Path], tmp_path: Path) -> None:
    from .conftest import TOKENIZE

    tokenize(stages["dedup"], tmp_path, TOKENIZE, Workshop(tmp_path / "parts"))
    for path in stages["tokenize"].iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_batches_are_rows_of_the_stream(stages: dict[str, Path]) -> None:
    rows = Rows.open(stages["tokenize"], "validation")
    stream = np.fromfile(stages["tokenize"] / "validation.tokens", dtype="<u2").astype(np.int64)
    indices = np.array([len(rows) - 1, 0, 3])
    inputs, targets = rows.batch(indices)
    assert inputs.dtype == targets.dtype == np.int64
    for index, row, target in zip(indices, inputs, targets, strict=True):
        assert row.tolist() == stream[index * 128 : index * 128 + 128].tolist()
        assert target.tolist() == stream[index * 128 + 1 : index * 128 + 129].tolist()
    assert (rows.row_tokens, rows.vocab_size) == (128, 1000)
    with pytest.raises(DataError, match="no split named dev"):
        Rows.open(stages["tokenize"], "dev")


@pytest.mark.parametrize("name", ["train.tokens", "train.borders"])
def test_a_full_disk_is_named(stages: dict[str, Path], tmp_path: Path, name: str) -> None:
    from .conftest import TOKENIZE

    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="no space left"), named_errors(tmp_path):
        tokenize(stages["dedup"], tmp_path, TOKENIZE, Workshop(tmp_path / "parts"))


@pytest.mark.parametrize("kind", ["unigram", "byte_bpe", "wordpiece"])
def test_every_kind_of_tokenizer_makes_rows(stages: dict[str, Path], tmp_path: Path, kind: str) -> None:
    config = TokenizeConfig(vocab_size=700, row_tokens=128, sample_bytes=100_000, tokenizer=TokenizerConfig(kind=kind))
    tokenize(stages["dedup"], tmp_path, config, Workshop(tmp_path / "parts"))
    tokenizer, report = Tokenizer.load(tmp_path), json.loads((tmp_path / "report.json").read_text())
    stream = np.fromfile(tmp_path / "test.tokens", dtype="<u2")
    assert stream.tolist() == [id for document in read_shards(stages["dedup"], "test") for id in tokenizer.document_ids(document.text)]
    figures = report["test"]["by_domain"]["code"]
    assert report["vocabulary"]["gives_back_every_text"] == (kind != "wordpiece")
    assert (figures["round_trip_failures"] > 0) == (kind == "wordpiece")
    assert (tmp_path / "tokenizer.json").exists()


def test_an_imported_tokenizer_keeps_its_ids(stages: dict[str, Path], tmp_path: Path) -> None:
    config = TokenizeConfig(row_tokens=128, tokenizer=TokenizerConfig(kind="imported", path=str(stages["tokenize"])))
    tokenize(stages["dedup"], tmp_path, config, Workshop(tmp_path / "parts"))
    for name in ("tokenizer.model", "train.tokens", "rows.json"):
        assert (tmp_path / name).read_bytes() == (stages["tokenize"] / name).read_bytes()


def test_a_document_that_does_not_come_back_is_named(stages: dict[str, Path], tmp_path: Path) -> None:
    """A vocabulary that says it gives back every text, and normalises after all."""
    content = json.loads(train(["some words"] * 50, TokenizeConfig(vocab_size=300, tokenizer=TokenizerConfig(kind="byte_bpe"))))
    content["pre_tokenizer"]["add_prefix_space"] = True
    write_documents(tmp_path / "shard.parquet", [Document("good", " words", "x"), Document("bad", "words", "x")])
    with pytest.raises(DataError, match="does not give back document bad"):
        encode_shard(json.dumps(content).encode(), str(tmp_path / "shard.parquet"), tmp_path)

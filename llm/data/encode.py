"""Stage tokenize: a tokenizer learned from the training split, and every split as rows of ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm.artifact import write_json
from llm.data.config import TokenizeConfig
from llm.data.document import read_documents
from llm.data.hashing import share
from llm.data.split import SPLITS
from llm.data.tokenizer import Tokenizer, round_trip, train
from llm.errors import DataError


def tokenize(deduped: Path, out: Path, config: TokenizeConfig) -> dict[str, Any]:
    """`tokenizer.model`, and per split `.tokens`, `.borders` (where each document starts), described in `rows.json`.

    Every document must come back from its ids unchanged.

    Raises: DataError if one doesn't, or a split is shorter than a row; RecipeError if the vocabulary doesn't fit the text.
    """
    (out / "tokenizer.model").write_bytes(train(_sample(deduped / "train.parquet", config.sample_bytes), config))
    tokenizer = Tokenizer.load(out)
    report: dict[str, Any] = {}
    splits = {split: _encode_split(deduped, out, split, tokenizer, config, report) for split in SPLITS}
    rows = {"dtype": token_dtype(config), "row_tokens": config.row_tokens, "vocab_size": tokenizer.vocab_size, "splits": splits}
    write_json(out / "rows.json", rows)
    write_json(out / "report.json", report)
    return rows


def token_dtype(config: TokenizeConfig) -> str:
    """Little-endian type of a token on disk."""
    return "<u2" if config.vocab_size <= 2**16 else "<u4"


def count_rows(tokens: int, row_tokens: int) -> int:
    """Rows in a stream of `tokens`: each needs one token more, its last target."""
    return max(0, tokens - 1) // row_tokens


def _sample(path: Path, sample_bytes: int) -> Iterator[str]:
    """Texts to learn the vocabulary from, in their order: all of them, or a share drawn by the hash of the ids."""
    total_bytes = sum(len(document.text.encode()) for document in read_documents(path))
    wanted = sample_bytes / max(1, total_bytes)
    return (document.text for document in read_documents(path) if share(document.id, "vocabulary") < wanted)


def _encode_split(
    deduped: Path, out: Path, split: str, tokenizer: Tokenizer, config: TokenizeConfig, report: dict[str, Any]
) -> dict[str, int]:
    """Writes one split's stream and borders; returns its sizes and adds bytes per token by domain to the report."""
    borders = [0]
    text_bytes, tokens = Counter[str](), Counter[str]()
    with (out / f"{split}.tokens").open("wb") as stream:
        for document in read_documents(deduped / f"{split}.parquet"):
            ids = tokenizer.document_ids(document.text)
            round_trip(tokenizer, document.id, document.text, ids)
            stream.write(np.array(ids, dtype=token_dtype(config)).tobytes())
            borders.append(borders[-1] + len(ids))
            text_bytes[document.domain] += len(document.text.encode())
            tokens[document.domain] += len(ids) - 2
    (out / f"{split}.borders").write_bytes(np.array(borders[:-1], dtype="<i8").tobytes())
    rows = count_rows(borders[-1], config.row_tokens)
    if not rows:
        remedy = "set tokenize.row_tokens lower, or collect more text"
        raise DataError(f"a row is longer than the {split} split", value=f"{config.row_tokens} of {borders[-1]} tokens", remedy=remedy)
    report[split] = {domain: _density(text_bytes[domain], tokens[domain]) for domain in sorted(tokens)}
    return {"rows": rows, "tokens": borders[-1], "documents": len(borders) - 1}


def _density(text_bytes: int, tokens: int) -> dict[str, float]:
    return {"bytes": text_bytes, "tokens": tokens, "bytes_per_token": round(text_bytes / max(1, tokens), 4)}

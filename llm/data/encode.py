"""Stage tokenize: a tokenizer learned from the training split, and every split as rows of ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from llm.artifact import sha256_file, write_json
from llm.data.config import TokenizeConfig
from llm.data.document import concatenate, read_documents, read_shards
from llm.data.hashing import share
from llm.data.parts import Workshop, shards
from llm.data.split import SPLITS
from llm.data.tokenizer import Tokenizer, round_trip, train
from llm.errors import DataError


def tokenize(deduped: Path, out: Path, config: TokenizeConfig, workshop: Workshop) -> dict[str, Any]:
    """`tokenizer.model`, and per split `.tokens`, `.borders` (where each document starts), described in `rows.json`.

    Every document must come back from its ids unchanged.

    Raises: DataError if one doesn't, or a split is shorter than a row; RecipeError if the vocabulary doesn't fit the text.
    """
    (out / "tokenizer.model").write_bytes(train(_sample(deduped, config.sample_bytes), config))
    tokenizer = Tokenizer.load(out)
    report: dict[str, Any] = {}
    splits = {split: _encode_split(deduped, out, split, config, report, workshop) for split in SPLITS}
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


def _sample(deduped: Path, sample_bytes: int) -> Iterator[str]:
    """Texts to learn the vocabulary from, in their order: all of them, or a share drawn by the hash of the ids."""
    total_bytes = sum(len(document.text.encode()) for document in read_shards(deduped, "train"))
    wanted = sample_bytes / max(1, total_bytes)
    return (document.text for document in read_shards(deduped, "train") if share(document.id, "vocabulary") < wanted)


def _encode_split(
    deduped: Path, out: Path, split: str, config: TokenizeConfig, report: dict[str, Any], workshop: Workshop
) -> dict[str, int]:
    """Writes one split's stream and borders; returns its sizes and adds bytes per token by domain to the report."""
    settings = {"dtype": token_dtype(config), "tokenizer": sha256_file(out / "tokenizer.model")}
    make = partial(encode_shard, (out / "tokenizer.model").read_bytes(), token_dtype(config))
    parts = workshop.made("encode", make, shards(deduped, f"{split}-*.parquet"), settings=settings)
    concatenate((part.path / "tokens" for part in parts), out / f"{split}.tokens")
    counts = [part.counts for part in parts]
    starts = np.cumsum([0, *(each["tokens"] for each in counts)])
    with (out / f"{split}.borders").open("wb") as borders:
        for start, part in zip(starts, parts, strict=False):
            borders.write((np.fromfile(part.path / "borders", dtype="<i8") + start).astype("<i8").tobytes())
    tokens = int(starts[-1])
    rows = count_rows(tokens, config.row_tokens)
    if not rows:
        remedy = "set tokenize.row_tokens lower, or collect more text"
        raise DataError(f"a row is longer than the {split} split", value=f"{config.row_tokens} of {tokens} tokens", remedy=remedy)
    report[split] = _densities(counts)
    return {"rows": rows, "tokens": tokens, "documents": sum(each["documents"] for each in counts)}


def encode_shard(model: bytes, dtype: str, shard: str, out: Path) -> dict[str, Any]:
    """One shard's stream and borders; its sizes, by domain as well."""
    tokenizer = Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=model))
    borders, domains = [0], dict[str, dict[str, int]]()
    with (out / "tokens").open("wb") as stream:
        for document in read_documents(Path(shard)):
            ids = tokenizer.document_ids(document.text)
            round_trip(tokenizer, document.id, document.text, ids)
            stream.write(np.array(ids, dtype=dtype).tobytes())
            borders.append(borders[-1] + len(ids))
            counts = domains.setdefault(document.domain, {"bytes": 0, "tokens": 0})
            counts["bytes"] += len(document.text.encode())
            counts["tokens"] += len(ids) - 2
    (out / "borders").write_bytes(np.array(borders[:-1], dtype="<i8").tobytes())
    return {"documents": len(borders) - 1, "tokens": borders[-1], "domains": domains}


def _densities(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes, tokens and bytes per token of each domain."""
    text_bytes, tokens = Counter[str](), Counter[str]()
    for each in counts:
        for domain, sizes in each["domains"].items():
            text_bytes[domain] += sizes["bytes"]
            tokens[domain] += sizes["tokens"]
    return {domain: _density(text_bytes[domain], tokens[domain]) for domain in sorted(tokens)}


def _density(text_bytes: int, tokens: int) -> dict[str, float]:
    return {"bytes": text_bytes, "tokens": tokens, "bytes_per_token": round(text_bytes / max(1, tokens), 4)}

"""Stage tokenize: a tokenizer learned from the training split, and every split as rows of ids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.artifact import sha256_file, write_json
from llm.data.config import TokenizeConfig
from llm.data.document import Document, read_documents, read_shards
from llm.data.hashing import share
from llm.data.layout import Laid, lay_out
from llm.data.parts import Workshop, shards
from llm.data.split import SPLITS
from llm.data.tokenizer import Tokenizer, find, round_trip, train
from llm.data.vocabulary import converted
from llm.data.vocabulary.report import Sizes, describe, figures, joined
from llm.data.vocabulary.words import Encoded, Encoder
from llm.errors import DataError

BATCH_CHARACTERS = 4_000_000  # encoded at a time


def tokenize(deduped: Path, out: Path, config: TokenizeConfig, workshop: Workshop) -> dict[str, Any]:
    """The tokenizer, and per split `.tokens`, `.borders` (where each document starts), described in `rows.json`.

    If the tokenizer is of a kind that gives back every text, every document must come back from its ids unchanged.

    Raises: DataError if one doesn't, or a split is shorter than a row; RecipeError if the vocabulary doesn't fit the text.
    """
    tokenizer = Tokenizer.read(train(_sample(deduped, config.sample_bytes), config))
    tokenizer.save(out)
    converted.write(tokenizer, out)
    report: dict[str, Any] = {"vocabulary": describe(tokenizer)}
    splits = {split: _encode_split(deduped, out, split, tokenizer, config, report, workshop) for split in SPLITS}
    rows = {
        "dtype": token_dtype(tokenizer.vocab_size),
        "row_tokens": config.row_tokens,
        "vocab_size": tokenizer.vocab_size,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "splits": {split: {"rows": laid.rows, "tokens": laid.tokens, "documents": laid.documents} for split, laid in splits.items()},
        "groups": {"train": splits["train"].groups},
    }
    write_json(out / "rows.json", rows)
    write_json(out / "report.json", report)
    return rows


def token_dtype(vocab_size: int) -> str:
    """Little-endian type of a token on disk."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def _sample(deduped: Path, sample_bytes: int) -> Iterator[str]:
    """Texts to learn the vocabulary from, in their order: all of them, or a share drawn by the hash of the ids."""
    total_bytes = sum(len(document.text.encode()) for document in read_shards(deduped, "train"))
    wanted = sample_bytes / max(1, total_bytes)
    return (document.text for document in read_shards(deduped, "train") if share(document.id, "vocabulary") < wanted)


def _encode_split(
    deduped: Path, out: Path, split: str, tokenizer: Tokenizer, config: TokenizeConfig, report: dict[str, Any], workshop: Workshop
) -> Laid:
    """Writes one split's stream and borders; returns its sizes and adds what its tokens hold to the report."""
    model = find(out)
    make = partial(encode_shard, model.read_bytes())
    parts = workshop.made("encode", make, shards(deduped, f"{split}-*.parquet"), settings={"tokenizer": sha256_file(model)})
    dtype = token_dtype(tokenizer.vocab_size)
    laid = lay_out(parts, out, split, packing=config.packing, row_tokens=config.row_tokens, dtype=dtype, eos=tokenizer.eos)
    if not laid.rows:
        remedy = "set tokenize.row_tokens lower, or collect more text"
        raise DataError(f"a row is longer than the {split} split", value=f"{config.row_tokens} of {laid.tokens} tokens", remedy=remedy)
    report[split] = figures(joined(part.counts["sizes"] for part in parts)) | {"packing": laid.losses}
    return laid


def encode_shard(model: bytes, shard: str, out: Path) -> dict[str, Any]:
    """One shard's stream and borders; its sizes, by domain and language as well."""
    tokenizer = Tokenizer.read(model)
    encoder, dtype = Encoder(tokenizer), token_dtype(tokenizer.vocab_size)
    sizes, lengths = Sizes(), [np.zeros(0, np.int64)]
    names, groups = dict[tuple[str, str], int](), list[int]()
    with (out / "tokens").open("wb") as stream:
        for documents in _batches(read_documents(Path(shard))):
            encoded = encoder([document.text for document in documents])
            if tokenizer.vocabulary.lossless and not encoded.comes_back.all():
                _name_failure(tokenizer, documents, encoded)
            stream.write(_as_documents(tokenizer, encoded, dtype).tobytes())
            lengths.append(encoded.tokens + 2)
            sizes.add(documents, encoded)
            groups += [names.setdefault((document.domain, document.language), len(names)) for document in documents]
    tokens = np.concatenate(lengths)
    (out / "borders").write_bytes((np.cumsum(tokens) - tokens).astype("<i8").tobytes())
    (out / "groups").write_bytes(np.array(groups, "<u4").tobytes())
    return {"documents": len(tokens), "tokens": int(tokens.sum()), "sizes": sizes.groups, "groups": list(names)}


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _as_documents(tokenizer: Tokenizer, encoded: Encoded, dtype: str) -> NDArray[np.unsignedinteger]:
    """The batch as it stands in the stream: each text between begin and end."""
    ends = np.cumsum(encoded.tokens + 2)
    stream = np.empty(len(encoded.ids) + 2 * len(encoded.tokens), dtype)
    inside = np.ones(len(stream), bool)
    stream[ends - encoded.tokens - 2], stream[ends - 1] = tokenizer.bos, tokenizer.eos
    inside[ends - encoded.tokens - 2] = inside[ends - 1] = False
    stream[inside] = encoded.ids
    return stream


def _name_failure(tokenizer: Tokenizer, documents: list[Document], encoded: Encoded) -> None:
    """Raises: DataError about the first document that doesn't come back."""
    document = documents[int(np.argmin(encoded.comes_back))]
    round_trip(tokenizer, document.id, document.text, tokenizer.encode(document.text))
    raise DataError("the tokenizer spells a document otherwise than it decodes it", value=document.id, remedy="report this as a bug")

"""A corpus of about 1 KB per text in which three of ten are near copies of another, at Jaccard similarities that are known.

python dedup_corpus.py COUNT FOLDER     writes documents-NNNNN.parquet and labels.npz: what was copied from what, and how alike the two are
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COPIES = 0.3
SHINGLE_WORDS = 5
VOCABULARY = 50_000
MEAN_WORDS = 150
SHARD = 30_000
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "url", "domain", "language", "license", "created", "meta")])


def write(count: int, folder: Path, seed: int = 0) -> None:
    """Shards of documents with shuffled places, and their labels."""
    random = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(random.choice(letters, length)) for length in random.integers(3, 10, VOCABULARY)], object)
    originals = count - int(COPIES * count)
    places = random.permutation(count)
    texts: list[list[int]] = []
    parents, similarities = np.full(count, -1), np.ones(count)
    out: list[str] = [""] * count
    for number in range(count):
        if number < originals:
            size = int(random.integers(MEAN_WORDS // 2, MEAN_WORDS * 3 // 2))
            words = (VOCABULARY * random.random(size) ** 2).astype(int)
            texts.append(words.astype(np.uint16))
        else:
            parent = int(random.integers(originals))
            words = edited(texts[parent].astype(int), random.uniform(0.6, 0.95), random)
            parents[places[number]] = places[parent]
            similarities[places[number]] = jaccard(texts[parent].tolist(), words.tolist())
        out[places[number]] = " ".join(vocabulary[words])
    for start in range(0, count, SHARD):
        columns = {name: [""] * len(out[start : start + SHARD]) for name in SCHEMA.names}
        columns |= {
            "id": [f"document-{place:08d}" for place in range(start, min(count, start + SHARD))],
            "text": out[start : start + SHARD],
        }
        columns["meta"] = ["{}"] * len(columns["text"])
        pq.write_table(
            pa.table(columns, SCHEMA), folder / f"documents-{start // SHARD:05d}.parquet", compression="zstd", row_group_size=16_000
        )
    np.savez(folder / "labels.npz", parents=parents, similarities=similarities)


def edited(words: np.ndarray, similarity: float, random: np.random.Generator) -> np.ndarray:
    """The words with so many replaced, one here and one there, that about this share of shingles stays."""
    touched = (1 - similarity) / (1 + similarity) * len(words)
    places = random.choice(len(words), max(1, round(touched / SHINGLE_WORDS)), replace=False)
    words = words.copy()
    words[places] = random.integers(VOCABULARY, size=len(places))
    return words


def jaccard(one: list[int], two: list[int]) -> float:
    """The definition, on tuples of words."""
    first, second = ({tuple(each[i : i + SHINGLE_WORDS]) for i in range(len(each) - SHINGLE_WORDS + 1)} for each in (one, two))
    return len(first & second) / len(first | second)


if __name__ == "__main__":
    write(int(sys.argv[1]), Path(sys.argv[2]))

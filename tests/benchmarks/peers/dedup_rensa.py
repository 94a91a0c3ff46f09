"""rensa: R-MinHash sketches made in batches, and its deduplicator with LSH; shingles are made by Python, as rensa takes tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from dedup_clock import BANDS, PERMUTATIONS, THRESHOLD, measured, shingles
from rensa import RMinHash, RMinHashDeduplicator

BATCH = 1000


def by_rensa(folder: Path, out: Path) -> Iterator[str]:
    """Kept ids; as many bands as ours."""
    seen = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True, num_bands=BANDS, seed=42)
    for path in sorted(folder.glob("documents-*.parquet")):
        table = pq.read_table(path, columns=["id", "text"])
        for start in range(0, len(table), BATCH):
            batch = table.slice(start, BATCH)
            ids = batch["id"].to_pylist()
            sets = [list(shingles(text)) for text in batch["text"].to_pylist()]
            for id, sketch in zip(ids, RMinHash.from_token_sets(sets, PERMUTATIONS, 42), strict=True):
                if seen.add(id, sketch):
                    yield id


if __name__ == "__main__":
    measured(by_rensa)

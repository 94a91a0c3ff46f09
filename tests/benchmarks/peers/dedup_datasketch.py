"""datasketch: MinHash and MinHashLSH, one text after the other; who meets nobody is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH
from dedup_clock import BANDS, PERMUTATIONS, measured, shingles


def by_datasketch(folder: Path, out: Path) -> Iterator[str]:
    """Kept ids; as many bands as ours."""
    index = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, PERMUTATIONS // BANDS))
    sketches: dict[str, MinHash] = {}
    for path in sorted(folder.glob("documents-*.parquet")):
        table = pq.read_table(path, columns=["id", "text"])
        sets = ([shingle.encode() for shingle in shingles(text)] for text in table["text"].to_pylist())
        for id, sketch in zip(table["id"].to_pylist(), MinHash.generator(sets, num_perm=PERMUTATIONS), strict=True):
            if not any(sketches[other].jaccard(sketch) >= 0.8 for other in index.query(sketch)):
                index.insert(id, sketch, check_duplication=False)
                sketches[id] = sketch
                yield id


if __name__ == "__main__":
    measured(by_datasketch)

"""datatrove: its four steps on this machine (signatures, buckets, clusters, filter), each as one task after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from dedup_clock import PERMUTATIONS, SHINGLE_WORDS, measured

BUCKETS = 16  # its default is 14 of 8 hashes; with 8 per bucket this is as many hashes as ours


def by_datatrove(folder: Path, out: Path) -> Iterator[str]:
    """Ids in the files that the last step writes."""
    config = MinhashConfig(n_grams=SHINGLE_WORDS, num_buckets=BUCKETS, hashes_per_bucket=PERMUTATIONS // BUCKETS)
    steps: list[tuple[list[Any], int]] = [
        (
            [ParquetReader(str(folder), glob_pattern="documents-*.parquet"), MinhashDedupSignature(str(out / "signatures"), config=config)],
            1,
        ),
        ([MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config)], BUCKETS),
        ([MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=config)], 1),
        (
            [
                ParquetReader(str(folder), glob_pattern="documents-*.parquet"),
                MinhashDedupFilter(str(out / "remove")),
                ParquetWriter(str(out / "kept")),
            ],
            1,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=1, logging_dir=str(out / f"log{number}")).run()
    for path in sorted((out / "kept").glob("*.parquet")):
        yield from pq.read_table(path, columns=["id"])["id"].to_pylist()


if __name__ == "__main__":
    measured(by_datatrove)

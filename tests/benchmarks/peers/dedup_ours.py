"""Our dedup stage as it is in a run, splits and all; and the ids that it keeps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas  # noqa: F401 - pyarrow looks for it at its first array; nobody's imports are on the clock
import pyarrow as pa
import pyarrow.parquet as pq
from dedup_clock import PERMUTATIONS, SHINGLE_WORDS, THRESHOLD, measured

from llm.data.config import DedupConfig
from llm.data.dedup import dedup
from llm.data.parts import Workshop


def ours(folder: Path, out: Path) -> Iterable[str]:
    """Dedup with parts, shards and books."""
    (out / "stage").mkdir()
    config = DedupConfig(threshold=THRESHOLD, permutations=PERMUTATIONS, shingle_words=SHINGLE_WORDS)
    dedup(folder, out / "stage", config, Workshop(out / "parts"))
    return [id for path in sorted((out / "stage").glob("*.parquet")) for id in pq.read_table(path, columns=["id"])["id"].to_pylist()]


if __name__ == "__main__":
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    measured(ours)

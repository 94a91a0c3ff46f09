"""text-dedup: its minhash command, called in this process, with the faster of its hash functions and the bands that it chooses itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import datasets
from dedup_clock import PERMUTATIONS, SHINGLE_WORDS, THRESHOLD, measured
from text_dedup.minhash import main


def by_text_dedup(folder: Path, out: Path) -> Iterable[str]:
    """Ids in the data set that it writes."""
    options = {
        "path": "parquet", "data_files": str(folder / "documents-*.parquet"), "split": "train", "column": "text", "num_proc": 1,
        "cache_dir": str(out / "cache"), "output": str(out / "kept"), "ngram": SHINGLE_WORDS, "num_perm": PERMUTATIONS,
        "threshold": THRESHOLD, "hash_func": "xxh3",
    }  # fmt: skip
    main([part for name, value in options.items() for part in (f"--{name}", str(value))], standalone_mode=False)
    return datasets.load_from_disk(str(out / "kept"))["id"]


if __name__ == "__main__":
    measured(by_text_dedup)

"""R5: shuffled batches of 32 rows of 1,024 tokens out of 1 GB, against litdata, mosaicml-streaming and datasets with a DataLoader.

    TRAINYARD_R5_MB=50 make bench ONLY=R5       of 50 MB instead of 1,000

Every side runs in a process of its own, without worker processes, from its own format on the local disk, and makes int64
inputs and targets; only waiting for a batch is timed. A checksum over every token of the epoch tells that each row came once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import measured
from tests.benchmarks.measured import ROOT, TORCH, environment

PEERS = Path(__file__).parent / "peers"
MEGABYTES = float(os.environ.get("TRAINYARD_R5_MB", "1000"))
row = partial(measured.row, "R5")
PACKAGES = {
    "litdata": [TORCH, "numpy", "litdata==0.2.76"],
    "streaming": [TORCH, "numpy", "mosaicml-streaming==0.13.0"],
    "datasets": [TORCH, "numpy", "datasets==5.2.0"],
}
ROW_TOKENS, BATCH, VOCAB_SIZE = 1024, 32, 50_304
RESUME_BATCH, PEERS_RESUME_BATCH = 100_000, 2_000  # peers get there by reading all that comes before
REPEATS = 5
Case = dict[str, Any]


def measure(megabytes: float = MEGABYTES) -> Iterator[dict[str, Any]]:
    """Rows of R5."""
    pythons = {peer: environment(peer, packages) for peer, packages in PACKAGES.items()} | {"ours": Path(sys.executable)}
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as name:
        given = write(Path(name), int(megabytes * 1e6) // (2 * ROW_TOKENS * BATCH) * BATCH)
        expected = checksum(given)
        resume = resumed(pythons, "ours", given, RESUME_BATCH)
        for peer in PACKAGES:
            yield epochs(pythons, peer, given, expected, f"batches of {BATCH} × {ROW_TOKENS}, {megabytes:g} MB")
            batch = min(PEERS_RESUME_BATCH, given["rows"] // BATCH // 2)
            theirs = resumed(pythons, peer, given, batch)
            metric, seconds = f"resume at batch {RESUME_BATCH:,} (peer: {batch:,})", resume["resume_seconds"]
            exact = resume["exact"] and theirs["exact"]
            yield row(metric, seconds, "s", "≤ 0.05 s", seconds <= 0.05, peer=peer, peer_value=theirs["resume_seconds"], equal=exact)


def epochs(pythons: dict[str, Path], peer: str, given: Case, expected: int, metric: str) -> dict[str, Any]:
    """Epochs by turns, with the middle speed of each side."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], peer: []}
    for turn in range(REPEATS):
        for who in (("ours", peer), (peer, "ours"))[turn % 2]:
            runs[who].append(asked(pythons, who, given, "epoch"))
    ours, theirs = (statistics.median(run["tokens_per_second"] for run in runs[who]) for who in runs)
    whole = all(run["rows"] == given["rows"] and run["checksum"] == expected for who in runs for run in runs[who])
    return row(metric, ours, "tokens/s", "≥ 100 M tokens/s per core", ours >= 1e8, peer=peer, peer_value=theirs, equal=whole)


def write(folder: Path, rows: int) -> Case:
    """A tokenize artifact of random tokens."""
    path, random = folder / "train.tokens", np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(rows):
            file.write(random.integers(0, VOCAB_SIZE, ROW_TOKENS, dtype=np.uint16).tobytes())
        file.write(np.uint16(1).tobytes())
    facts = {"dtype": "<u2", "row_tokens": ROW_TOKENS, "vocab_size": VOCAB_SIZE, "splits": {"train": {"rows": rows}}}
    (folder / "rows.json").write_text(json.dumps(facts))
    return {"tokens": str(path), "rows": rows, "row_tokens": ROW_TOKENS, "batch": BATCH}


def checksum(given: Case) -> int:
    """Of every row in the file's own order, by whoever reads no loader's code."""
    tokens, total = np.memmap(given["tokens"], dtype=np.uint16, mode="r"), 0
    odd = np.random.default_rng(0).integers(0, 2**62, ROW_TOKENS, dtype=np.int64) * 2 + 1
    for first in range(0, given["rows"] * ROW_TOKENS, ROW_TOKENS):
        window = tokens[first : first + ROW_TOKENS + 1].astype(np.int64)
        total += int(window[:-1] @ odd) + 31 * int(window[1:] @ odd[::-1])
    return total % 2**64


def resumed(pythons: dict[str, Path], who: str, given: Case, batch: int) -> dict[str, Any]:
    """One process stops at a batch, another goes on from there."""
    asked(pythons, who, given | {"resume_batch": batch}, "save")
    return asked(pythons, who, given, "resume")


def asked(pythons: dict[str, Path], who: str, given: Case, what: str) -> dict[str, Any]:
    """One process's answer.

    Raises: RuntimeError with the end of what it said, if it fails.
    """
    case = given | {"asked": what, "folder": str(Path(given["tokens"]).parent / who)}
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT) if who == "ours" else ""}
    command = [str(pythons[who]), str(PEERS / f"batches_{who}.py"), json.dumps(case)]
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{who} failed: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


if __name__ == "__main__":
    for found in measure():
        print(json.dumps(found))

"""What R5 asks of every loader: one shuffled epoch, and the batches after a resume.

Imported by the scripts beside it, each of which runs in its own environment and process. The first argument is the case; the
answer is one line of JSON. A script gives `write(given)`, which stores the rows in the loader's own format, and
`opened(given, state)`, which gives (batches, state): an iterator of inputs and targets, and what saves its place.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Case = SimpleNamespace
Batches = Iterator[tuple[Any, Any]]
Opened = tuple[Batches, Callable[[], Any]]
AFTER = 8  # batches that are compared after a resume


def windows(given: Case) -> np.ndarray:
    """Rows with the token behind each, as the file of tokens has them."""
    tokens = np.memmap(given.tokens, dtype=np.uint16, mode="r")
    return np.lib.stride_tricks.as_strided(tokens, (given.rows, given.row_tokens + 1), (2 * given.row_tokens, 2), writeable=False)


def prints(inputs: Any, targets: Any) -> np.ndarray:
    """A number for each row, of every token and its place."""
    x, y = np.asarray(inputs), np.asarray(targets)
    assert x.dtype == y.dtype == np.int64, (x.dtype, y.dtype)
    odd = np.random.default_rng(0).integers(0, 2**62, x.shape[1], dtype=np.int64) * 2 + 1
    return x @ odd + 31 * (y @ odd[::-1])


def epoch(given: Case, opened: Callable[[Case, Any], Opened]) -> dict[str, Any]:
    """Clock and checksum of a whole epoch; only waiting for a batch is timed."""
    batches, _ = opened(given, None)
    rows, checksum, seconds, used = 0, 0, 0.0, 0.0
    while True:
        began, cpu = time.perf_counter(), time.process_time()
        batch = next(batches, None)
        seconds, used = seconds + time.perf_counter() - began, used + time.process_time() - cpu
        if batch is None:
            break
        rows += len(batch[0])
        checksum = (checksum + int(prints(*batch).sum())) % 2**64
    return {"rows": rows, "checksum": checksum, "tokens_per_second": rows * given.row_tokens / seconds, "cpu_share": used / seconds}


def save(given: Case, opened: Callable[[Case, Any], Opened]) -> dict[str, Any]:
    """Stop at a batch: keep the place, and what the run reads that goes on."""
    batches, state = opened(given, None)
    for _ in range(given.resume_batch):
        next(batches)
    place = state()
    Path(f"{given.folder}.place").write_bytes(pickle.dumps((place, [prints(*next(batches)).tolist() for _ in range(AFTER)])))
    return {}


def resume(given: Case, opened: Callable[[Case, Any], Opened]) -> dict[str, Any]:
    """Seconds from a kept place to the next batch, and whether the batches from there on are those of the run that went on."""
    place, going_on = pickle.loads(Path(f"{given.folder}.place").read_bytes())
    began = time.perf_counter()
    batches, _ = opened(given, place)
    first = next(batches)
    seconds = time.perf_counter() - began
    found = [prints(*batch).tolist() for batch in (first, *(next(batches) for _ in range(AFTER - 1)))]
    return {"resume_seconds": seconds, "exact": found == going_on}


def answer(write: Callable[[Case], None], opened: Callable[[Case, Any], Opened]) -> None:
    """Store the rows if they aren't yet, then do what is asked."""
    given = SimpleNamespace(**json.loads(sys.argv[1]))
    if not Path(given.folder).exists():
        Path(given.folder).mkdir()
        write(given)
    print(json.dumps({"epoch": epoch, "save": save, "resume": resume}[given.asked](given, opened)))

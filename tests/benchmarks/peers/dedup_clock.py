"""What a dedup costs from the file to the ids that are kept: seconds of wall and CPU, children's included, and peak memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

THRESHOLD = 0.8
SHINGLE_WORDS = 5
PERMUTATIONS = 128
BANDS = 32


def measured(dedup: Callable[[Path, Path], Iterable[str]]) -> None:
    """Run `dedup(FOLDER, OUT)`, as the command line names them; its ids go to OUT/kept.txt, its costs to the terminal."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    began, cpu = time.perf_counter(), cpu_seconds()
    kept = list(dedup(folder, out))
    costs = {"wall_seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - cpu}
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    (out / "kept.txt").write_text("\n".join(kept))
    print(json.dumps(costs | {"peak_bytes": max(peaks) * 1024}))


def cpu_seconds() -> float:
    """Of this process and those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def shingles(text: str) -> set[str]:
    """Runs of words of a corpus whose words are lower-case and stand between single blanks."""
    words = text.split(" ")
    return {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(max(1, len(words) - SHINGLE_WORDS + 1))}

"""R3: near-dedup from the file to the ids that are kept, against datasketch, rensa, text-dedup and datatrove.

    TRAINYARD_R3_DOCUMENTS=10000,30000,100000,300000,1000000 make bench ONLY=R3     how far ours grows; by default to 100,000
    TRAINYARD_R3_PEER_DOCUMENTS=10000                                               where it meets its peers
    TRAINYARD_R3_REPEATS=5

Every measurement is a process of its own (tests/benchmarks/peers/dedup_*.py) with one thread. Peers live in environments that
are built on first use in TRAINYARD_BENCH_HOME (~/.cache/trainyard-bench). The corpus is generated: what was copied from what, and
how alike the two are, is known exactly. R3_growth.svg beside this file is drawn from the last run.
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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.data.similarity.pairs import components
from llm.sweep.charts import Axis, Marks, scatter
from tests.benchmarks import measured
from tests.benchmarks.measured import ROOT, environment

HERE = Path(__file__).parent
PEERS = HERE / "peers"
DOCUMENTS = [int(count) for count in os.environ.get("TRAINYARD_R3_DOCUMENTS", "10000,30000,100000").split(",")]
PEER_DOCUMENTS = int(os.environ.get("TRAINYARD_R3_PEER_DOCUMENTS", "10000"))
REPEATS = int(os.environ.get("TRAINYARD_R3_REPEATS", "5"))
row = partial(measured.row, "R3")
PACKAGES = {
    "datasketch": ["datasketch==2.0.0", "pyarrow"],
    "rensa": ["rensa==0.5.0", "pyarrow"],
    "datatrove": ["datatrove[io,processing]==0.10.1", "spacy"],
    "text-dedup": [
        "datasets", "scipy", "xxhash", "tqdm", "rich", "click", "click-option-group", "regex", "bitarray", "ftfy", "zstandard",
        "pybloom-live", "psutil", "setuptools",
    ],
}  # fmt: skip
BARE = {"text-dedup": ["text-dedup==0.4.0"]}  # without what else it declares: its MinHash needs neither Spark nor a Sphinx extension
FACTORS = {"rensa": 3.0, "text-dedup": 10.0}  # times as much text per second of CPU is the goal
THRESHOLD = 0.8
ENOUGH = 0.95
LOOK = "<style>text{font:11px sans-serif}.grid{stroke:#ddd}.main{fill:none;stroke:#36c}.trial{fill:#36c}</style>"
Run = dict[str, Any]


def measure() -> Iterator[dict[str, Any]]:
    """Rows of R3."""
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as folder:
        yield from against_peers(corpus(PEER_DOCUMENTS, Path(folder)), Path(folder))
        yield from growth([corpus(count, Path(folder)) for count in DOCUMENTS], Path(folder))


def against_peers(texts: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Text per second of CPU, ours and each peer's in turns; equal if both find what exact similarity does."""
    size = megabytes(texts)
    for peer in PACKAGES:
        pythons = {"ours": Path(sys.executable), peer: environment(f"dedup-{peer}", PACKAGES[peer], bare=BARE.get(peer, []))}
        runs: dict[str, list[Run]] = {"ours": [], peer: []}
        for turn in range(REPEATS):
            for who in (("ours", peer), (peer, "ours"))[turn % 2]:
                runs[who].append(run(pythons[who], who, texts, folder))
        ours, theirs = (size / statistics.median(each["cpu_seconds"] for each in runs[who]) for who in runs)
        right = {who: all(min(quality(each["kept"], texts)) >= ENOUGH for each in runs[who]) for who in runs}
        factor = FACTORS.get(peer)
        goal, met = (None, None) if factor is None else (f"≥ {factor:g} × {peer}", ours >= factor * theirs)
        metric = f"{PEER_DOCUMENTS:,} documents"
        yield row(metric, ours, "MB per CPU second", goal, met, peer=peer, peer_value=theirs, equal=right["ours"] and right[peer])
        for name, found, peers in zip(
            ("recall", "precision"), quality(runs["ours"][0]["kept"], texts), quality(runs[peer][0]["kept"], texts), strict=True
        ):
            yield row(f"{metric}: {name}", found, "", "≥ 0.95", found >= ENOUGH, peer=peer, peer_value=peers, equal=right["ours"])


def growth(corpora: list[Path], folder: Path) -> Iterator[dict[str, Any]]:
    """How ours grows with the corpus: the exponent of a line through the logarithms, and the largest run's speed and memory."""
    runs = [[run(Path(sys.executable), "ours", texts, folder) for _ in range(REPEATS)] for texts in corpora]
    seconds = [statistics.median(each["cpu_seconds"] for each in some) for some in runs]
    speeds = [megabytes(texts) / each for texts, each in zip(corpora, seconds, strict=True)]
    equal = all(min(quality(each["kept"], texts)) >= ENOUGH for some, texts in zip(runs, corpora, strict=True) for each in some)
    for count, speed in zip(DOCUMENTS, speeds, strict=True):
        yield row(f"{count:,} documents, all in", speed, "MB per CPU second", "≥ 30", speed >= 30, equal=equal)
    if len(corpora) > 1:
        exponent = float(np.polyfit(np.log(DOCUMENTS), np.log(seconds), 1)[0])
        yield row("CPU time grows as N to the power of", exponent, "", "≤ 1.05", exponent <= 1.05, equal=equal)
        draw(list(zip(DOCUMENTS, seconds, strict=True)), HERE / "R3_growth.svg")
    peak = max(each["peak_bytes"] for each in runs[-1]) / 2**30
    enough = DOCUMENTS[-1] >= 1_000_000  # to say whether the goal is met
    yield row(f"{DOCUMENTS[-1]:,} documents: peak memory", peak, "GiB", "≤ 4 at 1,000,000", peak <= 4 if enough else None, equal=equal)


def corpus(count: int, folder: Path) -> Path:
    """A folder of documents and labels, generated once."""
    path = folder / f"texts-{count}"
    if not path.exists():
        path.mkdir()
        subprocess.run([sys.executable, PEERS / "dedup_corpus.py", str(count), str(path)], check=True)
    return path


def quality(kept: list[str], texts: Path) -> tuple[float, float]:
    """Recall and precision of what was dropped; whom a tool keeps of a cluster is its own affair, but it has to be one.

    A document belongs to a cluster with what it was copied from, if exact Jaccard similarity says so.
    """
    labels = np.load(texts / "labels.npz")
    parents, near = labels["parents"], (labels["similarities"] >= THRESHOLD) & (labels["parents"] >= 0)
    cluster = components(len(parents), np.stack([np.flatnonzero(near), parents[near]], 1))
    dropped = np.ones(len(parents), bool)
    dropped[[int(id.split("-")[1]) for id in kept]] = False
    superfluous = np.bincount(cluster) - 1
    right = np.minimum(np.bincount(cluster, weights=dropped), superfluous).sum()
    return float(right / max(1, superfluous.sum())), float(right / max(1, dropped.sum()))


def run(python: Path, who: str, texts: Path, folder: Path) -> Run:
    """One process that dedups: its costs, and the ids that it keeps.

    Raises: RuntimeError with the end of what it said, if it fails.
    """
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [str(python), str(PEERS / f"dedup_{who.replace('-', '_')}.py"), str(texts), out]
        variables = {**os.environ, "PYTHONPATH": str(ROOT)} if who == "ours" else dict(os.environ)
        variables |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HOME": f"{out}/cache", "TOKENIZERS_PARALLELISM": "false"}
        answer = subprocess.run(command, cwd=out, env=variables, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise RuntimeError(f"{who} failed: {answer.stderr[-2000:]}")
        return json.loads(answer.stdout.splitlines()[-1]) | {"kept": (Path(out) / "kept.txt").read_text().splitlines()}


def megabytes(texts: Path) -> float:
    """Of text, before compression."""
    tables = (pq.read_table(path, columns=["text"]) for path in texts.glob("documents-*.parquet"))
    return sum(pc.sum(pc.binary_length(table["text"])).as_py() for table in tables) / 1e6


def draw(points: list[tuple[int, float]], path: Path) -> None:
    """CPU seconds over documents, both by their logarithm; the line is N to the power of 1, through the first point."""
    first, seconds = points[0]
    logs = [(float(count), float(np.log10(each))) for count, each in points]
    straight = [(float(count), float(np.log10(seconds * count / first))) for count, _ in points]
    chart = scatter([Marks(straight, "law"), Marks(logs, "trial")], Axis(log=True), title="log10 of CPU seconds by documents")
    path.write_text(
        chart.replace('<svg class="chart"', '<svg xmlns="http://www.w3.org/2000/svg" class="chart"').replace("</svg>", f"{LOOK}</svg>")
    )

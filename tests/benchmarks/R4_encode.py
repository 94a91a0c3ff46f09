"""R4: MB of text per second of processor time, encoded with a 32 k BPE and a 32 k unigram, against sentencepiece and tokenizers.

    TRAINYARD_R4_MB=10 TRAINYARD_R4_REPEATS=1 make bench ONLY=R4       less text, once instead of five times

The text is what Python and its packages bring: sources and documentation. Every measurement is a process of its own
(tests/benchmarks/peers/encode_*.py) that begins without any word known, and reports the sha256 of all ids; the seconds are those of
all its threads together.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.config import TokenizeConfig, TokenizerConfig
from llm.data.tokenizer import SPACE_MARK, Tokenizer, train
from llm.data.vocabulary import converted
from tests.benchmarks import measured
from tests.benchmarks.measured import ROOT, environment

PEERS = Path(__file__).parent / "peers"
MEGABYTES = float(os.environ.get("TRAINYARD_R4_MB", "100"))
REPEATS = int(os.environ.get("TRAINYARD_R4_REPEATS", "5"))
VOCAB_SIZE = int(os.environ.get("TRAINYARD_R4_VOCAB", "32000"))
LEARNED_BYTES = 10_000_000
MAX_CHARACTERS = 200_000  # a longer file is generated, not written
row = partial(measured.row, "R4")
PACKAGES = {"sentencepiece": ["numpy", "sentencepiece==0.2.3"], "tokenizers": ["numpy", "tokenizers==0.23.3"]}
RUNS = {
    "ours": ("ours", 1),
    "sentencepiece": ("sentencepiece", 1),
    "sentencepiece, 2 threads": ("sentencepiece", 2),
    "tokenizers": ("tokenizers", 1),
}
GOAL = "≥ 3 × sentencepiece per core"


def measure() -> Iterator[dict[str, Any]]:
    """Rows of R4."""
    pythons = {peer: environment(f"encode-{peer}", packages) for peer, packages in PACKAGES.items()} | {"ours": Path(sys.executable)}
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as name:
        folder = Path(name)
        texts = list(corpus(MEGABYTES * 1e6))
        text_bytes = write_corpus(texts, folder)
        for kind in ("bpe", "unigram"):
            learn(kind, texts, folder)
            runs: dict[str, list[dict[str, Any]]] = {who: [] for who in RUNS}
            for turn in range(REPEATS):
                for who in list(RUNS) if turn % 2 == 0 else reversed(RUNS):
                    script, threads = RUNS[who]
                    runs[who].append(run(pythons[script], script, folder, threads))
            speeds = {who: text_bytes / 1e6 / statistics.median(each["seconds"] for each in found) for who, found in runs.items()}
            sums = {who: {each["sha256"] for each in found} for who, found in runs.items()}
            for who in list(RUNS)[1:]:
                alone = who == "sentencepiece"
                met = speeds["ours"] >= 3 * speeds[who] if alone else None
                equal = sums["ours"] == sums[who] and len(sums[who]) == 1
                metric = f"encode {text_bytes / 1e6:.0f} MB, {kind} {VOCAB_SIZE}"
                yield row(
                    metric, speeds["ours"], "MB/s per core", GOAL if alone else None, met, peer=who, peer_value=speeds[who], equal=equal
                )


def corpus(limit_bytes: float) -> Iterator[str]:
    """Sources and documentation of Python and the installed packages, each text once.

    Not what spells special tokens: there a peer writes their ids, and we don't.
    """
    paths = sysconfig.get_paths()
    found = (path for place in (paths["stdlib"], paths["purelib"]) for path in sorted(Path(place).rglob("*")))
    seen: set[str] = set()
    size = 0
    for path in found:
        if path.suffix not in (".py", ".md", ".rst", ".txt", ".pyi", ".h") or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except ValueError:
            continue
        special = SPACE_MARK in text or "<|" in text or any(symbol in text for symbol in ("<s>", "</s>", "<unk>"))
        if not text or special or len(text) > MAX_CHARACTERS or text in seen:
            continue
        seen.add(text)
        yield text
        size += len(text.encode())
        if size >= limit_bytes:
            return


def write_corpus(texts: list[str], folder: Path) -> int:
    """The texts in one file, and their sizes in another; answers with the bytes of all."""
    contents = [text.encode() for text in texts]
    (folder / "texts").write_bytes(b"".join(contents))
    np.save(folder / "sizes.npy", np.array([len(content) for content in contents]))
    return sum(map(len, contents))


def learn(kind: Any, texts: list[str], folder: Path) -> None:
    """A vocabulary from texts all over the corpus, as tokenizer.model and tokenizer.json."""
    every = max(1, int(sum(map(len, texts)) / LEARNED_BYTES))
    config = TokenizeConfig(vocab_size=VOCAB_SIZE, tokenizer=TokenizerConfig(kind=kind))
    tokenizer = Tokenizer.read(train(texts[::every], config))
    tokenizer.save(folder)
    converted.write(tokenizer, folder)


def run(python: Path, script: str, folder: Path, threads: int) -> dict[str, Any]:
    """What a measurement in a process of its own answers."""
    command = [str(python), str(PEERS / f"encode_{script}.py"), str(folder), str(threads)]
    variables = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    answer = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{script} failed: {answer.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found

"""R2: tokens and time to the loss that nanoGPT's recipe reaches, on characters and on 20 MB of text.

Both sides see the same ids, train a model of the same width and depth at the same rows per step, look for their learning
rate downhill on a grid of seven with the first seed, and are scored on every row of the same validation split. nanoGPT
trains its whole budget; we train at most half of it, and what counts is where our validation loss first is as low. A quarter of
the steps is too short to choose a rate by: nanoGPT's best was then another one.

    make bench ONLY=R2 PART=characters     one case alone
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.benchmarks import measured
from tests.benchmarks.measured import ROOT

if TYPE_CHECKING:
    from llm.train.job import TrainJob

PEER = Path(__file__).parent / "peers" / "nanogpt_loss.py"
SEEDS = (1, 2, 3)
row = partial(measured.row, "R2")
PEER_RATES = tuple(2.5e-4 * 2**power for power in range(7))
RATES = tuple((2.5e-3 * 2**power, 0.01 if power < 3 else 0.02) for power in range(7))  # Muon's, AdamW's


@dataclass(frozen=True)
class Case:
    """One comparison; `steps` are nanoGPT's."""

    name: str
    row_tokens: int
    rows_per_step: int
    width: int
    layers: int
    heads: int
    ffn_width: int
    steps: int
    warmup: int
    beta2: float


CASES = (
    # sizes and steps of nanoGPT's README for a laptop
    Case("characters", 64, 12, 128, 4, 4, 344, 2000, 100, 0.99),
    # 4 M parameters over 4,096 ids, 20 MB of text
    Case("20 MB", 256, 32, 224, 5, 7, 600, 400, 40, 0.95),
)
PARTS = tuple(case.name for case in CASES)


@dataclass(frozen=True)
class Run:
    """What one side's process answers."""

    curve: list[dict[str, float]]  # tokens, seconds and validation loss
    scored: dict[str, Any]  # rows and targets of a validation pass, and the digest of the targets' ids

    @property
    def loss(self) -> float:
        """At the end."""
        return self.curve[-1]["validation_loss"]


def measure(part: str = "") -> Iterator[dict[str, Any]]:
    """A row each for tokens and time, by case."""
    for case in CASES:
        if part in ("", case.name):
            with tempfile.TemporaryDirectory() as folder:
                yield from compare(case, Path(folder))


def compare(case: Case, folder: Path) -> Iterator[dict[str, Any]]:
    bytes_per_token = prepare(case, folder)
    peer_rate = tuned(PEER_RATES, lambda rate: peer(case, folder, rate, SEEDS[0]).loss)
    our_rates = tuned(RATES, lambda rates: ours(case, folder, rates, SEEDS[0]).loss)
    peers: list[Run] = []
    own: list[Run] = []
    for seed in SEEDS:  # A B B A, so that a slow machine slows both
        for side in ("peer", "ours") if seed % 2 else ("ours", "peer"):
            if side == "peer":
                peers.append(peer(case, folder, peer_rate, seed))
            else:
                own.append(ours(case, folder, our_rates, seed))
    adamw = ours(case, folder, (peer_rate,), SEEDS[0])
    goal_loss = statistics.mean(run.loss for run in peers)
    budget = case.steps * case.rows_per_step * case.row_tokens
    reached = [first_at(run.curve, goal_loss) for run in own]
    tokens, seconds = (statistics.median(point[name] for point in reached) for name in ("tokens", "seconds"))
    peer_seconds = statistics.median(run.curve[-1]["seconds"] for run in peers)
    equal = all(run.scored == peers[0].scored for run in peers + own)
    facts = {
        "peer_rate": peer_rate,
        "our_rates": our_rates,
        "peer_bits_per_byte": [run.loss / math.log(2) / bytes_per_token for run in peers],
        "our_bits_per_byte": [run.loss / math.log(2) / bytes_per_token for run in own],
    }
    for what, unit, reach, theirs, most in (("tokens", "tokens", tokens, budget, 0.5), ("time", "s", seconds, peer_seconds, 0.4)):
        metric, met = f"{what} to nanoGPT's loss, {case.name}", reach <= most * theirs
        yield row(metric, reach, unit, f"≤ {most}", met, peer="nanoGPT", peer_value=theirs, equal=equal) | facts
    without = first_at(adamw.curve, goal_loss)["tokens"]
    metric, equal = f"Muon: tokens to nanoGPT's loss, {case.name}", adamw.scored == own[0].scored
    if math.isinf(without):
        yield row(f"{metric}, which AdamW in our loop doesn't reach", reached[0]["tokens"], "tokens", equal=equal) | facts
    else:
        yield row(metric, reached[0]["tokens"], "tokens", peer="AdamW in our loop", peer_value=without, equal=equal) | facts


def tuned(grid: tuple[Any, ...], loss: Callable[[Any], float]) -> Any:
    """The point of the grid whose neighbours both end at a higher loss, downhill from the middle."""
    place = len(grid) // 2
    while True:
        near = range(max(0, place - 1), min(len(grid), place + 2))
        best = min(near, key=lambda place: loss(grid[place]))
        if best == place:
            return grid[place]
        place = best


def first_at(curve: list[dict[str, float]], loss: float) -> dict[str, float]:
    """The first point as low as `loss`; infinite if there is none."""
    return next((point for point in curve if point["validation_loss"] <= loss), {"tokens": math.inf, "seconds": math.inf})


def prepare(case: Case, folder: Path) -> float:
    """Rows of the case's text in `folder`; bytes per token of its validation part."""
    import pydoc_data.topics

    if case.name == "characters":  # the language reference in every Python: prose, as long as half of Shakespeare
        text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
        text = "".join(letter for letter in text if letter.isascii())
        letters = sorted(set(text))
        ids = {letter: number for number, letter in enumerate(letters, start=3)}
        border = int(len(text) * 0.9)
        parts = {"train": [ids[letter] for letter in text[:border]], "validation": [ids[letter] for letter in text[border:]]}
        write(folder, parts, case.row_tokens, len(letters) + 3)
        return 1.0
    from llm.data.config import TokenizeConfig
    from llm.data.tokenizer import Tokenizer, train

    files = sorted(Path(os.__file__).parent.rglob("*.py"))
    texts = [file.read_bytes().decode("utf-8", "ignore") for file in files][:: max(1, len(files) // 6000)]
    kept, size = [], 0
    for text in texts:
        if size < 20_000_000 and text.strip():
            kept.append(text)
            size += len(text.encode())
    (folder / "tokenizer.model").write_bytes(train(iter(kept[::4]), TokenizeConfig(vocab_size=4096, row_tokens=case.row_tokens)))
    tokenizer = Tokenizer.load(folder)
    documents = [tokenizer.document_ids(text) for text in kept]
    held_out = set(range(0, len(documents), 50))
    parts = {
        "train": [token for number, ids in enumerate(documents) if number not in held_out for token in ids],
        "validation": [token for number in sorted(held_out) for token in documents[number]][: 256 * case.row_tokens + 1],
    }
    write(folder, parts, case.row_tokens, 4096)
    whole = sum(len(documents[number]) for number in held_out)
    return sum(len(kept[number].encode()) for number in held_out) / whole


def write(folder: Path, parts: dict[str, list[int]], row_tokens: int, vocab_size: int) -> None:
    for split, ids in parts.items():
        np.array(ids, dtype="<u2").tofile(folder / f"{split}.tokens")
    splits = {split: {"rows": (len(ids) - 1) // row_tokens} for split, ids in parts.items()}
    facts = {"dtype": "<u2", "row_tokens": row_tokens, "vocab_size": vocab_size, "splits": splits}
    (folder / "rows.json").write_text(json.dumps(facts))


@cache
def ours(case: Case, folder: Path, rates: tuple[float, ...], seed: int) -> Run:
    """Our validation curve from a process of its own: half of nanoGPT's budget with Muon's and AdamW's rates, all of it with AdamW's"""
    settings = (json.dumps(asdict(case)), str(folder), json.dumps(rates), str(seed))
    return answer_of([sys.executable, "-m", "tests.benchmarks.R2_time_to_loss", *settings])


@cache
def peer(case: Case, folder: Path, rate: float, seed: int) -> Run:
    """nanoGPT's validation at its end, from a process of its own."""
    return answer_of([sys.executable, str(PEER), json.dumps(asdict(case)), str(folder), str(rate), str(seed)])


def answer_of(command: list[str]) -> Run:
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    run = Run(**json.loads(answer.stdout.splitlines()[-1]))
    print(command[1].rsplit("/", 1)[-1], command[-2:], run.curve[-1], file=sys.stderr, flush=True)
    return run


def train_ours(case: Case, folder: Path, rates: tuple[float, ...], seed: int) -> Run:
    """Train with the loop itself, and read the curve that it writes. The clock leaves validation out, on both sides."""
    import torch

    from llm.model.config import DecoderConfig
    from llm.train.config import ClusterConfig, TrainConfig
    from llm.train.job import TrainJob
    from llm.train.loop import train

    torch.set_num_threads(os.cpu_count() or 1)
    model = DecoderConfig(
        width=case.width,
        num_layers=case.layers,
        num_heads=case.heads,
        num_kv_heads=case.heads,
        ffn_width=case.ffn_width,
        max_positions=case.row_tokens,
    )
    *muon, adamw = rates
    steps = case.steps // 2 if muon else case.steps
    optimizer = {"kind": "muon", "muon_learning_rate": muon[0]} if muon else {"kind": "adamw"}
    settings = {
        "steps": steps,
        "global_batch_size": case.rows_per_step,
        "micro_batch_size": case.rows_per_step,
        "optimizer": optimizer | {"adamw_learning_rate": adamw},
        "schedule": {"kind": "wsd", "warmup_steps": 10, "decay_steps": steps // 2, "floor_share": 0.0},
        "validate_every_steps": max(1, steps // 25),
        "validation_rows": 10**6,
        "checkpoint_every_steps": steps,
    }
    with tempfile.TemporaryDirectory() as work:
        job = TrainJob(folder, model, TrainConfig.model_validate(settings), seed, Path(work), cluster=ClusterConfig(in_process=True))
        train(job)
        lines = (Path(work) / "metrics.jsonl").read_text().splitlines()
    curve, seconds = [], 0.0
    for record in map(json.loads, lines):
        seconds += record["step_seconds"] * (1 - record.get("validation_share", 0.0) - record.get("start_share", 0.0))
        if "validation_loss" in record:
            curve.append({"tokens": record["tokens"], "seconds": seconds, "validation_loss": record["validation_loss"]})
    return Run(curve, validation_targets(job))


def validation_targets(job: TrainJob) -> dict[str, Any]:
    """What the loop's validation counts: the same stream that the loop opens, without the targets that its loss ignores."""
    from llm.data.rows import IGNORED, Rows
    from llm.train.objective import kinds
    from llm.train.parallel.layout import Layout
    from llm.train.parallel.world import World
    from llm.train.stream import Stream

    rows = Rows.open(job.rows, "train")
    objective = kinds.build(job.train, job.model.architecture, rows.vocab_size, rows.row_tokens)
    stream = Stream.open(job, objective, Layout.over(World.current(job.device), job.cluster.layout))
    batches = stream.validation(job.train.validation_rows, job.train.micro_batch_size)
    counted = [batch.targets_BT[batch.targets_BT != IGNORED] for batch in batches]
    digest = hashlib.sha256(b"".join(targets.numpy().tobytes() for targets in counted)).hexdigest()
    return {"rows": sum(len(batch.targets_BT) for batch in batches), "targets": sum(map(len, counted)), "sha256": digest}


if __name__ == "__main__":  # one of our runs
    _, case, folder, rates, seed = sys.argv
    print(json.dumps(asdict(train_ours(Case(**json.loads(case)), Path(folder), tuple(json.loads(rates)), int(seed)))))

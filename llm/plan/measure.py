"""A few real steps of a recipe's training on this machine: what a prediction is held against and refined by.

One worker in a process of its own, without Ray, on random rows of the recipe's size, with the loop that will train.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm.errors import CapacityError
from llm.model.config import ModelConfig, parse_model
from llm.recipe import Recipe
from llm.train.config import ClusterConfig, TrainConfig

STEPS = 6  # the first two compile, allocate and fill caches, and don't count
UNCOUNTED_STEPS = 2
LONGEST_SECONDS = 1800


@dataclass(frozen=True)
class Measured:
    """What one worker did in a few steps."""

    tokens_per_second: float
    seconds_per_step: float
    peak_bytes: int  # on a GPU its memory, else resident memory of the process
    process_bytes: int  # of that, what was there before the model
    device: str


def measure(
    model: ModelConfig,
    vocab_size: int,
    row_tokens: int,
    train: TrainConfig,
    cluster: ClusterConfig | None = None,
    *,
    steps: int = STEPS,
    variables: Mapping[str, str] | None = None,
) -> Measured:
    """Train a few steps with one worker's share of the batch.

    Raises: CapacityError if the process dies, as it does without enough memory.
    """
    cluster = cluster or ClusterConfig()
    question = {
        "model": model.model_dump(mode="json"),
        "vocab_size": vocab_size,
        "row_tokens": row_tokens,
        "train": _shortened(train, cluster.workers, steps).model_dump(mode="json"),
        "device": cluster.device,
        "threads": cluster.threads_per_worker,
    }
    with tempfile.TemporaryDirectory(prefix="trainyard-plan-") as folder:
        command = [sys.executable, "-m", "llm.plan.measure", folder]
        answer = subprocess.run(
            command,
            input=json.dumps(question),
            env={**os.environ, **(variables or {})},
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
    if answer.returncode:
        raise CapacityError(
            "measured steps failed",
            value=(answer.stderr.strip().splitlines() or [f"status {answer.returncode}"])[-1],
            remedy="lower train.micro_batch_size, or set train.activation_checkpointing to full",
        )
    return Measured(**json.loads(answer.stdout.splitlines()[-1]))


def measure_recipe(recipe: Recipe, train: TrainConfig) -> Measured:
    """A few steps of one of the recipe's trainings by one of its workers."""
    sizes = recipe.tokenize
    return measure(recipe.model, sizes.vocab_size, sizes.row_tokens, train, recipe.cluster)


def _shortened(train: TrainConfig, workers: int, steps: int) -> TrainConfig:
    """The same updates, fewer of them, of one worker's share of the rows, and nothing in between."""
    changes: dict[str, Any] = {
        "steps": steps,
        "global_batch_size": max(train.micro_batch_size, train.global_batch_size // workers),
        "ramp": None,
        "initial": None,
        "schedule": train.schedule.model_dump() | {"warmup_steps": 0, "decay_steps": None},
        "validation_rows": 0,
        "stop_after_validations": None,
        "keep_best": False,
        "checkpoint_every_steps": steps,
    }
    return TrainConfig.model_validate(train.model_dump() | changes)


def _answer(question: Mapping[str, Any], folder: Path) -> Measured:
    """In the measuring process: train, and say what it took."""
    import torch

    from llm.train.job import TrainJob
    from llm.train.loop import train as train_job
    from llm.train.meter import peak_memory_bytes

    torch.set_num_threads(question["threads"])
    settings, row_tokens = TrainConfig.model_validate(question["train"] | {"mixture": None}), question["row_tokens"]
    _write_rows(folder, rows=settings.global_batch_size * settings.steps, row_tokens=row_tokens, vocab_size=question["vocab_size"])
    job = TrainJob(folder, parse_model(question["model"]), settings, 0, folder / "work", device=question["device"])
    before = peak_memory_bytes("cpu")
    train_job(job)
    lines = [json.loads(line) for line in (folder / "work" / "metrics.jsonl").read_text().splitlines()]
    seconds = statistics.median(
        settings.global_batch_size * row_tokens / line["tokens_per_second"] for line in lines[UNCOUNTED_STEPS:] or lines
    )
    device = "cuda" if torch.cuda.is_available() and question["device"] != "cpu" else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    tokens_per_second = settings.global_batch_size * row_tokens / seconds
    return Measured(tokens_per_second, seconds, peak_memory_bytes(device), before if device == "cpu" else 0, name)


def _write_rows(folder: Path, *, rows: int, row_tokens: int, vocab_size: int) -> None:
    """Random tokens as a tokenize artifact holds them."""
    import numpy as np

    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    for split, count in (("train", rows), ("validation", 1)):
        np.random.default_rng(0).integers(3, vocab_size, count * row_tokens + 1).astype(dtype).tofile(folder / f"{split}.tokens")
    facts = {"dtype": dtype, "row_tokens": row_tokens, "vocab_size": vocab_size, "splits": {"train": {}, "validation": {}}}
    (folder / "rows.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    print(json.dumps(asdict(_answer(json.load(sys.stdin), Path(sys.argv[1])))))

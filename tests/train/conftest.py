"""Rows of a language that a tiny model can learn, a tiny job, and groups of processes that train together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.model.config import DecoderConfig, parse_model
from llm.train.config import TrainConfig
from llm.train.job import TrainJob
from tests.train.golden import MODELS

VOCAB_SIZE, ROW_TOKENS = 48, 16
WORKER = Path(__file__).parent / "worker.py"

JobMaker = Callable[..., TrainJob]
Trained = Callable[[int], Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def chain(count: int, seed: int) -> np.ndarray:
    """Tokens in which each has three successors of unequal chance."""
    random = np.random.default_rng(seed)
    successors = np.random.default_rng(0).integers(3, VOCAB_SIZE, (VOCAB_SIZE, 3))
    tokens = np.ones(count, dtype=np.uint16)
    for place in range(1, count):
        tokens[place] = successors[tokens[place - 1], random.choice(3, p=(0.7, 0.2, 0.1))]
    return tokens


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 rows to train on and 9 to validate on."""
    return write_rows(tmp_path_factory.mktemp("rows"), masked=False)


@pytest.fixture(scope="session")
def masked_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, in which a varying part of each counts."""
    return write_rows(tmp_path_factory.mktemp("masked"), masked=True)


def write_rows(folder: Path, *, masked: bool) -> Path:
    splits = {"train": 60, "validation": 9}
    for seed, (split, count) in enumerate(splits.items(), start=1):
        tokens = chain(count * ROW_TOKENS + 1, seed)
        tokens.astype("<u2").tofile(folder / f"{split}.tokens")
        if masked:
            (np.random.default_rng(seed).random(len(tokens)) < 0.4).astype(np.uint8).tofile(folder / f"{split}.mask")
    facts = {
        "dtype": "uint16",
        "row_tokens": ROW_TOKENS,
        "vocab_size": VOCAB_SIZE,
        "splits": {split: {"rows": n} for split, n in splits.items()},
    }
    (folder / "rows.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def make_job(rows: Path, tmp_path: Path) -> JobMaker:
    """A job over the tiny rows in a work folder of the test's own; keywords change its `train` section."""

    def make(work: str = "work", *, rows: Path = rows, seed: int = 7, initial: Path | None = None, **changes: object) -> TrainJob:
        return tiny_job(rows, tmp_path / work, seed, initial, **changes)

    return make


def tiny_job(rows: Path, work: Path, seed: int = 7, initial: Path | None = None, **changes: object) -> TrainJob:
    model = DecoderConfig(width=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=32, max_positions=ROW_TOKENS)
    settings: dict[str, object] = {
        "steps": 12,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "schedule": {"warmup_steps": 2},
        "precision": "fp32",
        "validate_every_steps": 5,
        "checkpoint_every_steps": 4,
    }
    return TrainJob(rows, model, TrainConfig.model_validate(settings | changes), seed, work, initial, device="cpu")


@pytest.fixture(scope="session")
def trained(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """By number of workers: a folder with `whole` (never interrupted), `resumed` (stopped before step 7) and `adamw`."""
    folders: dict[int, Path] = {}

    def folder(size: int) -> Path:
        if size not in folders:
            folders[size] = tmp_path_factory.mktemp(f"group-{size}")
            run_group(size, rows, folders[size])
        return folders[size]

    return folder


def run_group(size: int, rows: Path, folder: Path) -> None:
    """Train in `size` processes that share a gloo process group; a process that fails fails the test."""
    whole, resumed = (tiny_job(rows, folder / name) for name in ("whole", "resumed"))
    adamw = tiny_job(rows, folder / "adamw", optimizer={"kind": "adamw", "adamw_learning_rate": 3e-3})
    experts = parse_model(MODELS["moe"] | {"balance": "bias"})
    moe = [replace(tiny_job(rows, folder / f"moe-{name}", steps=8), model=experts) for name in ("whole", "resumed")]
    attempts = [(whole, None), (resumed, 7), (resumed, None), (adamw, None), (moe[0], None), (moe[1], 6), (moe[1], None)]
    (folder / "attempts.json").write_text(json.dumps([as_json(job) | {"stop_before": stop_before} for job, stop_before in attempts]))
    processes = [
        subprocess.Popen([sys.executable, WORKER, folder, str(rank), str(size)], stderr=subprocess.PIPE, text=True) for rank in range(size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def as_json(job: TrainJob) -> dict[str, object]:
    return {
        "rows": str(job.rows),
        "work": str(job.work),
        "seed": job.seed,
        "model": job.model.model_dump(mode="json"),
        "train": job.train.model_dump(mode="json"),
    }

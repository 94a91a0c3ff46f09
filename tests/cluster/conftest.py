"""One local Ray for the whole room, and a job that takes its workers a few seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llm.cluster.connect import connected
from llm.model.config import DecoderConfig
from llm.train.config import ClusterConfig, TrainConfig
from llm.train.job import TrainJob

ROW_TOKENS, VOCAB_SIZE = 64, 64

JobMaker = Callable[..., TrainJob]
Steps = Callable[[Path], list[int]]
After = Callable[[int, Path], None]


@pytest.fixture(scope="session")
def two_workers() -> ClusterConfig:
    return ClusterConfig(workers=2, use_gpu=False, poll_seconds=0.2)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def ray_cluster(two_workers: ClusterConfig, home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        with connected(two_workers, home):
            yield


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for seed, (split, count) in enumerate({"train": 64, "validation": 8}.items()):
        tokens = np.random.default_rng(seed).integers(3, VOCAB_SIZE, count * ROW_TOKENS + 1)
        tokens.astype("<u2").tofile(folder / f"{split}.tokens")
    facts = {"dtype": "uint16", "row_tokens": ROW_TOKENS, "vocab_size": VOCAB_SIZE, "splits": {"train": {}, "validation": {}}}
    (folder / "rows.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def make_job(rows: Path) -> JobMaker:
    """A job of 60 steps in this work folder; keywords change its `train` section."""

    def make(work: Path, **changes: object) -> TrainJob:
        model = DecoderConfig(width=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=128, max_positions=ROW_TOKENS)
        settings: dict[str, object] = {
            "steps": 60,
            "global_batch_size": 16,
            "micro_batch_size": 4,
            "schedule": {"warmup_steps": 2},
            "precision": "fp32",
            "checkpoint_every_steps": 10,
        }
        return TrainJob(rows, model, TrainConfig.model_validate(settings | changes), 5, work)

    return make


@pytest.fixture(scope="session")
def steps() -> Steps:
    """The steps that a work folder's attempts have reported, in order."""

    def read(work: Path) -> list[int]:
        path = work / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    return read


@pytest.fixture(scope="session")
def after(steps: Steps) -> After:
    """Return once a step is reported."""

    def wait(step: int, work: Path) -> None:
        deadline = time.monotonic() + 120
        while not any(done >= step for done in steps(work)):
            assert time.monotonic() < deadline, "the step never came"
            time.sleep(0.005)

    return wait

"""Loss curves that must not change by accident: one for every architecture and objective.

python -m tests.train.golden       writes golden.json anew; say in infra/DECISIONS.md why the curves changed
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from llm.model import families, weights
from llm.model.config import parse_model
from llm.train.config import TrainConfig
from llm.train.job import TrainJob

FILE = Path(__file__).with_name("golden.json")
GOLDEN: dict[str, list[dict[str, float]]] = json.loads(FILE.read_text()) if FILE.exists() else {}
STEPS = 8
_sizes = {"width": 16, "num_layers": 2, "num_heads": 4, "ffn_width": 32, "max_positions": 32}
MODELS: dict[str, dict[str, Any]] = {
    "decoder": {**_sizes, "num_kv_heads": 2},
    "gpt2": {**_sizes, "architecture": "gpt2"},
    "moe": {**_sizes, "architecture": "moe", "num_kv_heads": 2, "num_experts": 4, "experts_per_token": 2},
    "encoder": {**_sizes, "architecture": "encoder", "next_sentence": True},
    "encoder_decoder": {**_sizes, "architecture": "encoder_decoder"},
    "electra": {
        **_sizes,
        "architecture": "electra",
        "embedding_width": 16,
        "generator": {"width": 8, "num_layers": 1, "num_heads": 2, "ffn_width": 16},
    },
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "next_token": ("decoder", {"kind": "next_token"}),
    "gpt2": ("gpt2", {"kind": "next_token"}),
    "moe": ("moe", {"kind": "next_token"}),
    "masked": ("encoder", {"kind": "masked", "next_sentence": True}),
    "spans": ("encoder_decoder", {"kind": "spans"}),
    "spans_by_decoder": ("decoder", {"kind": "spans", "sentinels": 4}),
    "replaced": ("electra", {"kind": "replaced"}),
    "mixture": (
        "decoder",
        {
            "kind": "mixture",
            "parts": [
                {"objective": {"kind": "next_token"}, "share": 3},
                {"objective": {"kind": "spans", "sentinels": 8}, "share": 1},
            ],
        },
    ),
    "distillation": ("decoder", {"kind": "distillation", "teacher": "teacher"}),
}


def golden_job(case: str, rows: Path, folder: Path) -> TrainJob:
    """A few steps of an architecture under an objective; a teacher is made in the folder where one is needed."""
    architecture, objective = CASES[case]
    if case == "distillation":
        objective = {**objective, "teacher": str(folder / "teacher")}
        (folder / "teacher").mkdir(parents=True)
        torch.manual_seed(5)
        weights.save(families.build(parse_model(MODELS["decoder"]), 48), folder / "teacher")
    settings = {
        "steps": STEPS,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "schedule": {"warmup_steps": 2},
        "optimizer": {"kind": "adamw", "adamw_learning_rate": 1e-2},
        "precision": "fp32",
        "checkpoint_every_steps": STEPS,
        "objective": objective,
        "z_loss_weight": 1e-4,
    }
    return TrainJob(rows, parse_model(MODELS[architecture]), TrainConfig.model_validate(settings), 7, folder / "work", device="cpu")


def write() -> None:
    """Train every case and keep its curve."""
    from llm.train.loop import train
    from tests.train.conftest import write_rows

    torch.set_num_threads(1)
    curves = {}
    with tempfile.TemporaryDirectory() as name:
        (rows := Path(name) / "rows").mkdir()
        write_rows(rows, masked=False)
        for case in CASES:
            job = golden_job(case, rows, Path(name) / case)
            train(job)
            records = [json.loads(line) for line in (job.work / "final" / "history.jsonl").read_text().splitlines()]
            terms = [name for name in records[0] if name not in ("step", "learning_rate", "tokens", "validation_loss")]
            curves[case] = [{term: record[term] for term in sorted(terms)} for record in records]
    FILE.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    write()

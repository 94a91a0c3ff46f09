"""What lm-evaluation-harness makes of a Hugging Face folder: `python harness.py FOLDER TASKS` prints bits per byte as JSON."""

from __future__ import annotations

import json
import sys

import lm_eval
import torch
from lm_eval.tasks import TaskManager


def main(folder: str, tasks: str) -> None:
    """Score the task `documents` of the folder TASKS."""
    torch.set_num_threads(1)
    settings = {"pretrained": folder, "dtype": "float32", "max_length": 128}
    found = lm_eval.simple_evaluate(
        model="hf", model_args=settings, tasks=["documents"], task_manager=TaskManager(include_path=tasks), device="cpu", bootstrap_iters=0
    )
    print(json.dumps(found["results"]["documents"]["bits_per_byte,none"]))


if __name__ == "__main__":
    main(*sys.argv[1:])

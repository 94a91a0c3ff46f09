"""The same training steps for whoever takes part: data, precision, AdamW, clipping, clocks.

Imported by the scripts beside it, each of which runs in its own environment and process. The first argument is the case,
the second a file of initial weights; the answer is one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Case = SimpleNamespace  # what R1_train_step.py calls a shape, and a variant's settings


def case() -> tuple[Case, dict[str, Tensor]]:
    """What to run, and the weights to begin with, in Llama's or GPT-2's usual names."""
    given = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return given, torch.load(sys.argv[2], weights_only=True)


def rows(given: Case, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step: token frequencies fall as in text, so that there is something to learn."""
    random = np.random.default_rng(step)
    ranks = np.exp(random.random((given.rows, given.row_tokens + 1)) * np.log(given.vocab_size)).astype(np.int64) - 1
    window = torch.from_numpy(ranks)
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def measure(given: Case, model: torch.nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Train and print losses, wall and CPU seconds of every step, and peak memory; loss(tokens, targets) is a mean."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": 0.1},
        {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    losses, wall, cpu = [], [], []
    for step in range(given.steps):
        tokens_BT, targets_BT = rows(given, step)
        began, used = time.perf_counter(), time.process_time()
        total = 0.0
        parts = given.rows // given.micro_rows
        for tokens, targets in zip(tokens_BT.split(given.micro_rows), targets_BT.split(given.micro_rows), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=given.dtype == "bf16"):
                mean = loss(tokens, targets) / parts
            mean.backward()
            total += mean.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
        losses.append(total)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"losses": losses, "wall_seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak}))

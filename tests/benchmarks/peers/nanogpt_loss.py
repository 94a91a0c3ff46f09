"""nanoGPT's model, optimizer and schedule over the rows of a folder; prints tokens, seconds and validation loss at the end.

What its train.py does on one CPU: random windows, AdamW, linear warm-up, cosine down to a tenth, clipping at 1, bfloat16
where the chip multiplies it. Validation is over every row, as on our side, and not on its clock.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def checkout() -> Path:
    """Where nanoGPT's sources are; cloned if nobody says."""
    folder = Path(os.environ.get("TRAINYARD_NANOGPT", Path.home() / ".cache" / "trainyard-bench" / "nanoGPT"))
    if not (folder / "model.py").exists():
        subprocess.run(["git", "clone", "--quiet", "https://github.com/karpathy/nanoGPT", str(folder)], check=True)
    return folder


def main(case: dict[str, Any], folder: Path, peak: float, seed: int) -> list[dict[str, float]]:
    sys.path.insert(0, str(checkout()))
    from model import GPT, GPTConfig

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(seed)
    facts = json.loads((folder / "rows.json").read_text())
    T, B, steps, warmup = case["row_tokens"], case["rows_per_step"], case["steps"], case["warmup"]
    train, validation = (
        np.fromfile(folder / f"{split}.tokens", dtype=facts["dtype"]).astype(np.int64) for split in ("train", "validation")
    )
    sizes = {"n_layer": case["layers"], "n_head": case["heads"], "n_embd": case["width"], "block_size": T}
    model = GPT(GPTConfig(**sizes, vocab_size=facts["vocab_size"], dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, peak, (0.9, case["beta2"]), "cpu")
    half = torch.cpu.get_capabilities().get("amx_bf16", False)
    random, seconds = np.random.default_rng(seed), 0.0
    for step in range(steps):
        began = time.monotonic()
        rate = peak * (step + 1) / (warmup + 1)
        if step >= warmup:
            share = (step - warmup) / (steps - warmup)
            rate = peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = random.integers(0, len(train) - T - 1, B)
        window = torch.from_numpy(np.stack([train[start : start + T + 1] for start in starts]))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            _, loss = model(window[:, :-1].contiguous(), window[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.monotonic() - began
    return [{"tokens": steps * B * T, "seconds": seconds, "validation_loss": score(model, validation, T, half)}]


@torch.no_grad()
def score(model: Any, tokens: np.ndarray, T: int, half: bool) -> float:
    """Mean nats over all rows."""
    model.eval()
    rows = torch.from_numpy(np.stack([tokens[start : start + T + 1] for start in range(0, len(tokens) - T, T)]))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = [model(part[:, :-1].contiguous(), part[:, 1:].contiguous())[1].float() * len(part) for part in rows.split(32)]
    model.train()
    return float(sum(losses) / len(rows))


if __name__ == "__main__":
    _, case, folder, rate, seed = sys.argv
    print(json.dumps(main(json.loads(case), Path(folder), float(rate), int(seed))))

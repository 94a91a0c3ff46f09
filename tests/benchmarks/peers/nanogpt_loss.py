"""nanoGPT's model, optimizer and schedule over the rows of a folder; prints tokens, seconds and validation loss at the end,
and which targets that loss is over.

What its train.py does on one CPU: random windows, AdamW, linear warm-up, cosine down to a tenth, clipping at 1, bfloat16
where the chip multiplies it. Validation is over every row, as on our side, and not on its clock.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nanogpt_source import source


def main(case: dict[str, Any], folder: Path, peak: float, seed: int) -> dict[str, Any]:
    sys.path.insert(0, str(source()))
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
    half = any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))
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
    loss, scored = score(model, validation, T, half)
    return {"curve": [{"tokens": steps * B * T, "seconds": seconds, "validation_loss": loss}], "scored": scored}


@torch.no_grad()
def score(model: Any, tokens: np.ndarray, T: int, half: bool) -> tuple[float, dict[str, Any]]:
    """Mean nats over all rows; how many rows and targets that were, and the digest of the targets' ids."""
    model.eval()
    rows = torch.from_numpy(np.stack([tokens[start : start + T + 1] for start in range(0, len(tokens) - T, T)]))
    total, targets, digest = 0.0, 0, hashlib.sha256()
    for part in rows.split(32):
        inputs_BT, targets_BT = part[:, :-1].contiguous(), part[:, 1:].contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            total += model(inputs_BT, targets_BT)[1].item() * targets_BT.numel()
        targets += targets_BT.numel()
        digest.update(targets_BT.numpy().tobytes())
    model.train()
    return total / targets, {"rows": len(rows), "targets": targets, "sha256": digest.hexdigest()}


if __name__ == "__main__":
    _, case, folder, rate, seed = sys.argv
    print(json.dumps(main(json.loads(case), Path(folder), float(rate), int(seed))))

"""transformers in PyTorch, prompts of one length as one batch."""

from __future__ import annotations

from pathlib import Path

import torch
from serving import given, measure
from transformers import AutoModelForCausalLM

case = given()
torch.set_num_threads(case["threads"])
model = AutoModelForCausalLM.from_pretrained(Path(case["folder"]) / "huggingface", dtype=torch.float32).eval()


def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Ids of every prompt's continuation."""
    batch = torch.tensor(prompts)
    mask = torch.ones_like(batch)
    ids = model.generate(batch, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
    return ids[:, len(prompts[0]) :].tolist()


with torch.inference_mode():
    measure(case, generate)

"""optimum's ORTModelForCausalLM on our exported graph, prompts of one length as one batch."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from serving import given, measure

case = given()
torch.set_num_threads(case["threads"])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = case["threads"]
model = ORTModelForCausalLM.from_pretrained(Path(case["folder"]) / "onnx", file_name="model.onnx", session_options=options)


def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Ids of every prompt's continuation."""
    batch = torch.tensor(prompts)
    mask = torch.ones_like(batch)
    ids = model.generate(batch, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
    return ids[:, len(prompts[0]) :].tolist()


measure(case, generate)

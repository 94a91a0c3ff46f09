"""transformers in PyTorch reads answers: the likeliest id at every place, and how far its logit lies above the second."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from serving import given
from transformers import AutoModelForCausalLM, AutoTokenizer

case = given()
torch.set_num_threads(case["threads"])
folder = Path(case["folder"]) / "huggingface"
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
silent = [id for id, piece in AutoTokenizer.from_pretrained(folder).added_tokens_decoder.items() if piece.special]


@torch.inference_mode()
def read(prompt: list[int], ids: list[int]) -> tuple[list[int], list[float]]:
    """Where a control token would be likeliest, the gap is 0: servers that never write one can't be compared there."""
    logits_TV = model(torch.tensor([prompt + ids]), logits_to_keep=len(ids) + 1).logits[0, :-1]
    control_T = torch.isin(logits_TV.argmax(dim=1), torch.tensor(silent))
    logits_TV[:, silent] = -torch.inf
    best_T2, ids_T2 = logits_TV.topk(2, dim=1)
    gap_T = (best_T2[:, 0] - best_T2[:, 1]).masked_fill(control_T, 0.0)
    return ids_T2[:, 0].tolist(), gap_T.tolist()


print(json.dumps([read(prompt, ids) for prompt, ids in case["texts"]]))

"""What optimum makes of an exported folder: `python opened_by_optimum.py FOLDER CLASS` prints token ids or logits as JSON."""

from __future__ import annotations

import json
import sys

import optimum.onnxruntime
import torch

PROMPT = [1, 40, 300, 5, 17, 260, 44, 91, 350, 12]
ROWS = {"left": [PROMPT, [0] * 7 + [1, 33, 8]], "right": [PROMPT, [1, 33, 8] + [0] * 7]}


def main(folder: str, name: str) -> None:
    """Greedy tokens of a padded batch of a model that writes, or what an encoder computes for one row."""
    torch.set_num_threads(1)
    model = getattr(optimum.onnxruntime, name).from_pretrained(folder)
    if hasattr(model, "generate"):
        ids = torch.tensor(ROWS["left" if name == "ORTModelForCausalLM" else "right"])
        written = model.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=12, do_sample=False, eos_token_id=None)
        print(json.dumps(written[:, ids.shape[1] if name == "ORTModelForCausalLM" else 1 :].tolist()))
        return
    ids = torch.tensor([PROMPT])
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
    print(json.dumps(next(iter(found.values())).tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])

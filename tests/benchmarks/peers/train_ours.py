"""Trainyard's model, head and learner in the common steps."""

from __future__ import annotations

from typing import Any

import torch
from steps import case, measure
from torch import Tensor, nn

from llm.model import families
from llm.model.config import parse_model
from llm.train.allocator import keep_freed_memory
from llm.train.batch import Batch
from llm.train.learner import Learner
from llm.train.objective.next_token import NextToken

given, weights = case()
if given.keep_freed_memory:
    keep_freed_memory()
model: Any = families.build(parse_model(given.model), given.vocab_size)
model.load_state_dict(weights)
if given.compile:
    for block in model.blocks:
        block.compile()
learner = Learner(model, NextToken(), torch.bfloat16 if given.dtype == "bf16" else torch.float32).train()


def loss(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean nats per token."""
    if given.whole_logits:
        logits_BTV = model.head(model.features(tokens_BT=tokens_BT))
        return nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())
    return learner(Batch({"tokens_BT": tokens_BT}, targets_BT, {}))["loss"] / targets_BT.numel()


measure(given, model, loss)

"""A model that reads to both sides as one graph, in the names of optimum and transformers.js.

    input_ids, attention_mask, token_type_ids [batch, sequence]
    → logits [batch, sequence, vocabulary], last_hidden_state [batch, sequence, width],
      seq_relationship_logits [batch, 2] where the model has a head for it

ELECTRA is its discriminator: logits [batch, sequence] are above 0 where a token looks replaced. Positions count from the
first place of a row, so padding belongs behind the text.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor, nn
from torch.export import Dim

from llm.export.graphs.trace import Graph
from llm.model.electra import Electra
from llm.model.encoder import Encoder


def graphs(model: Encoder | Electra) -> dict[str, Graph]:
    """The one graph of an encoder, by file name."""
    B, T = 2, 3
    device = model.embedding.weight.device
    inputs = tuple(torch.ones(B, T, dtype=torch.int64, device=device) for _ in range(3))
    flat = {0: Dim("batch_size", max=2**15), 1: Dim("sequence", max=2**20)}
    outputs = ["logits", "last_hidden_state"]
    if isinstance(model, Encoder) and model.next_sentence is not None:
        outputs.append("seq_relationship_logits")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    return {"model.onnx": Graph(PaddedEncoder(model), inputs, (flat, flat, flat), names, outputs)}


class PaddedEncoder(nn.Module):
    """An encoder that pays no attention to padding."""

    def __init__(self, model: Encoder | Electra) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        x_BTD: Tensor = model.projection(model.embeddings(input_ids, token_type_ids, None))
        visible_BTS = attention_mask.bool()[:, None, :].expand(-1, input_ids.shape[1], -1)  # onnxruntime repeats no mask by itself
        first = model.config.generator.num_layers if isinstance(model, Electra) else 0
        for block in islice(model.blocks, first, None):
            x_BTD = block(x_BTD, visible_BTS[:, None])
        if isinstance(model, Electra):
            return model.judge(x_BTD), x_BTD
        logits_BTV = model.head(model.transform(x_BTD))
        return (logits_BTV, x_BTD) if model.next_sentence is None else (logits_BTV, x_BTD, model.follows(x_BTD))

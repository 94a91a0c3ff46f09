"""A mixture of experts in operators that a graph has."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.decoder import Block
from llm.model.moe import Experts, Moe
from llm.model.weights import assemble


class TracedExperts(nn.Module):
    """The experts of a layer: each takes the tokens that chose it and adds its answers where they came from.

    Training sorts tokens by expert and cuts the sorted rows at counts that only the data knows, which no graph can
    say. Here every expert looks its own tokens up, so one that nobody chose multiplies nothing, in a prompt as in
    decoding. Each matrix stands alone and multiplies three axes, which becomes the MatMul that quantisers look for.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.config, self.router, self.shared, self.bias_E = experts.config, experts.router, experts.shared, experts.bias_E
        stacks = (experts.gate, experts.up, experts.down)
        self.gates, self.ups, self.downs = (nn.ModuleList(_linear(matrix) for matrix in stack.detach()) for stack in stacks)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        shares_NE = self.shares(x_ND)
        y_ND = torch.zeros_like(x_ND)
        for expert, (gate, up, down) in enumerate(zip(self.gates, self.ups, self.downs, strict=True)):
            rows_R = shares_NE[:, expert].nonzero().squeeze(1)
            x_1RD, share_R1 = x_ND[rows_R][None], shares_NE[rows_R, expert, None]
            answer_1RD = down(F.silu(gate(x_1RD)) * up(x_1RD))
            y_ND = y_ND.index_add(0, rows_R, answer_1RD[0] * share_R1)
        y_BTD = y_ND.view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)

    def shares(self, x_ND: Tensor) -> Tensor:
        """Each expert's share in a token's output: 0 for those that it doesn't visit."""
        logits_NE = self.router(x_ND)
        scores_NE = logits_NE.softmax(dim=-1) if self.config.router == "softmax" else logits_NE.sigmoid()
        wanted_NE = scores_NE if self.bias_E is None else scores_NE + self.bias_E
        experts_NK = wanted_NE.topk(self.config.experts_per_token, dim=-1).indices
        shares_NK = scores_NE.gather(1, experts_NK)
        if self.config.normalised_shares:
            shares_NK = shares_NK / shares_NK.sum(dim=-1, keepdim=True)
        return torch.zeros_like(scores_NE).scatter(1, experts_NK, shares_NK)


def traceable(model: Moe) -> Moe:
    """The same model with experts that can be traced; the weights are shared, not copied."""
    twin: Moe = assemble(model.config, model.vocab_size, model.state_dict())
    for block in twin.blocks:
        block.feed_forward = TracedExperts(cast(Experts, cast(Block, block).feed_forward))
    return twin


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear

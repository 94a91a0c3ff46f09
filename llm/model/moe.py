"""Mixture of experts: a Llama decoder in whose layers a router sends each token to a few of many feed-forward nets.

Further axes: N tokens of a batch, E experts, K experts per token, A = K · N assignments of a token to an expert.

Source: Switch, https://arxiv.org/abs/2101.03961; Mixtral, https://arxiv.org/abs/2401.04088; OLMoE,
https://arxiv.org/abs/2409.02060; DeepSeek-V3, https://arxiv.org/abs/2412.19437, section 2.1.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import MoeConfig
from llm.model.decoder import Decoder, FeedForward


class Moe(Decoder):
    """Next-token logits from token ids, by a few experts per token."""

    config: MoeConfig

    def __init__(self, config: MoeConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        for block in self.blocks:
            block.feed_forward = Experts(config)

    @property
    def auxiliary_weights(self) -> dict[str, float]:
        """By term of `auxiliary`, its weight in the loss."""
        return {"balance": self.config.balance_weight if self.config.balance == "auxiliary" else 0.0, "router_z": self.config.z_weight}

    def auxiliary(self) -> dict[str, Tensor]:
        """Loss terms of the last forward pass, summed over its tokens (divide by all of them) and averaged over layers.

        `balance` is 1 per token when every expert gets as much as any other; `router_z` is the squared logsumexp of
        the router's logits. In training it also adds the pass to each layer's load, so call it once per pass.
        """
        routed = [experts.routed for experts in experts_of(self)]
        if self.training:
            for experts in experts_of(self):
                experts.count()
        return {
            "balance": torch.stack([layer.balance for layer in routed]).mean(),
            "router_z": torch.stack([layer.router_z for layer in routed]).mean(),
        }

    def router_statistics(self, total: Callable[[Tensor], Tensor] = lambda counts: counts) -> dict[str, Tensor]:
        """Of the passes in the load, by layer: each expert's share of the assignments, entropy per token in nats, dropped assignments.

        `total` adds a tensor up over the workers.
        """
        counts = total(torch.stack([experts.counts() for experts in experts_of(self)]))
        load_LE, dropped_L, entropy_L = counts[:, :-2], counts[:, -2], counts[:, -1]
        assigned_L = load_LE.sum(dim=-1)
        return {
            "shares_LE": load_LE / assigned_L[:, None],
            "entropy_L": entropy_L * self.config.experts_per_token / assigned_L,
            "dropped_L": dropped_L,
            "assigned_L": assigned_L,
        }


@dataclass(frozen=True)
class Routed:
    """What one layer's router did in one forward pass."""

    chosen_E: Tensor  # assignments that asked for each expert
    dropped: Tensor  # assignments beyond an expert's capacity
    entropy: Tensor  # mean over tokens, nats
    balance: Tensor  # loss terms, summed over tokens
    router_z: Tensor


class Experts(nn.Module):
    """The feed-forward part of a layer: a router, E SwiGLU nets, and what every token visits besides."""

    routed: Routed  # the last forward pass
    bias_E: Tensor | None  # added to the scores when experts are chosen
    load_E: Tensor | None  # assignments since `update_biases`; no buffer, which DDP would overwrite with one worker's
    beside_2: Tensor | None  # of the same passes: assignments beyond capacity, and nats of choice summed over tokens
    dispatch: Callable[[Tensor, list[int]], Tensor] | None  # answers for `compute` where other workers hold some of the experts

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        E, D, F_ = config.num_experts, config.width, config.ffn_width
        self.router = nn.Linear(D, E, bias=False)
        self.gate = nn.Parameter(torch.empty(E, F_, D))
        self.up = nn.Parameter(torch.empty(E, F_, D))
        self.down = nn.Parameter(torch.empty(E, D, F_))
        shared = config.model_copy(update={"ffn_width": config.ffn_width * config.num_shared_experts})
        self.shared = FeedForward(shared) if config.num_shared_experts else None
        self.register_buffer("bias_E", torch.zeros(E) if config.balance == "bias" else None)
        self.load_E = self.beside_2 = self.dispatch = None
        self._initialise()

    def _initialise(self) -> None:
        residual_scale = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.02 * (residual_scale if name.startswith(("down", "shared.down")) else 1.0))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        shares_NK, experts_NK = self.route(x_ND)
        y_BTD = self.visit(x_ND, shares_NK, experts_NK).view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Each token's experts and their shares in its output, in float32 whatever the layers compute in.

        The selection bias decides who is chosen, never how much it counts.
        """
        config = self.config
        with torch.autocast(x_ND.device.type, enabled=False):
            logits_NE = F.linear(x_ND.float(), self.router.weight.float())
        scores_NE = logits_NE.softmax(dim=-1) if config.router == "softmax" else logits_NE.sigmoid()
        wanted_NE = scores_NE if self.bias_E is None else scores_NE + self.bias_E
        experts_NK = wanted_NE.topk(config.experts_per_token, dim=-1).indices
        shares_NK = scores_NE.gather(1, experts_NK)
        if config.normalised_shares:
            shares_NK = shares_NK / shares_NK.sum(dim=-1, keepdim=True)
        self._record(logits_NE, scores_NE / scores_NE.sum(dim=-1, keepdim=True), experts_NK)
        return shares_NK, experts_NK

    def _record(self, logits_NE: Tensor, probabilities_NE: Tensor, experts_NK: Tensor) -> None:
        """Source: balance, Switch, eq. 4, over the K assignments; z-loss, https://arxiv.org/abs/2202.08906, eq. 5."""
        N, E = logits_NE.shape
        chosen_E = torch.bincount(experts_NK.flatten(), minlength=E).float()
        capacity = self.capacity(N)
        self.routed = Routed(
            chosen_E=chosen_E,
            dropped=(chosen_E - capacity).clamp(min=0).sum() if capacity else chosen_E.new_zeros(()),
            entropy=torch.special.entr(probabilities_NE.detach()).sum(dim=-1).mean(),
            balance=E * (chosen_E / experts_NK.numel() * probabilities_NE.sum(dim=0)).sum(),
            router_z=logits_NE.logsumexp(dim=-1).square().sum(),
        )

    def count(self) -> None:
        """Add the last pass to the load."""
        routed = self.routed
        tokens = routed.chosen_E.sum() / self.config.experts_per_token
        beside_2 = torch.stack([routed.dropped, routed.entropy * tokens])
        self.load_E = routed.chosen_E if self.load_E is None else self.load_E + routed.chosen_E
        self.beside_2 = beside_2 if self.beside_2 is None else self.beside_2 + beside_2

    def counts(self) -> Tensor:
        """The load of each expert, and behind it what stands beside; zeros before the first pass."""
        if self.load_E is None or self.beside_2 is None:
            return torch.zeros(self.config.num_experts + 2, device=self.router.weight.device)
        return torch.cat([self.load_E, self.beside_2])

    def forget(self) -> None:
        """Drop what has been counted."""
        self.load_E = self.beside_2 = None

    def capacity(self, N: int) -> int | None:
        """Assignments that one expert takes of N tokens while training; a token that finds no room keeps its residual alone."""
        config = self.config
        if config.capacity_factor is None or not self.training:
            return None
        return math.ceil(config.capacity_factor * N * config.experts_per_token / config.num_experts)

    def visit(self, x_ND: Tensor, shares_NK: Tensor, experts_NK: Tensor) -> Tensor:
        """Every token's experts, weighted and added. Assignments are sorted by expert, so that each computes one dense block.

        First choices come before second ones when an expert is full. Every index is written once, so the sum is
        the same on every run, on a GPU too.
        """
        (N, D), K = x_ND.shape, experts_NK.shape[1]
        chosen_A = experts_NK.T.flatten()
        counts_E = torch.bincount(chosen_A, minlength=self.config.num_experts)
        order_A = chosen_A.argsort(stable=True)
        if capacity := self.capacity(N):
            first_E = counts_E.cumsum(0) - counts_E
            rank_A = torch.arange(K * N, device=x_ND.device) - first_E[chosen_A[order_A]]
            order_A, counts_E = order_A[rank_A < capacity], counts_E.clamp(max=capacity)
        sent_AD = x_ND.expand(K, N, D).reshape(K * N, D)[order_A]
        compute = self.dispatch or self.compute
        answered_AD = compute(sent_AD, counts_E.tolist()) * shares_NK.T.flatten()[order_A, None].to(x_ND.dtype)
        y_AD = torch.zeros(K * N, D, dtype=answered_AD.dtype, device=x_ND.device).index_copy(0, order_A, answered_AD)
        return y_AD.view(K, N, D).sum(dim=0)

    def compute(self, sorted_AD: Tensor, counts: list[int]) -> Tensor:
        """SwiGLU of each expert on its own stretch of the sorted tokens."""
        return swiglu_by_expert(sorted_AD, counts, self.gate, self.up, self.down)


def swiglu_by_expert(sorted_AD: Tensor, counts: list[int], gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """SwiGLU of each of these experts on the next `counts` tokens."""
    return torch.cat(
        [
            F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
            for x, gate, up, down in zip(sorted_AD.split(counts), gate_EFD, up_EFD, down_EDF, strict=True)
        ]
    )


def experts_of(model: nn.Module) -> Iterator[Experts]:
    """The experts of every layer, first layer first."""
    return (module for module in model.modules() if isinstance(module, Experts))


def forget_loads(model: nn.Module) -> None:
    """Before a step: drop what rehearsals, refused steps and passes cut short have counted."""
    for experts in experts_of(model):
        experts.forget()


@torch.no_grad()
def update_biases(model: nn.Module, total: Callable[[Tensor], Tensor] = lambda load_E: load_E) -> None:
    """After a step: raise the selection bias of experts with less than the mean load and lower that of the others.

    `total` adds a tensor up over the workers, so that all of them keep the same bias. Other models stay as they are.

    Source: DeepSeek-V3, section 2.1.2; https://arxiv.org/abs/2408.15664, algorithm 1.
    """
    for experts in experts_of(model):
        if experts.bias_E is not None and experts.load_E is not None:
            load_E = total(experts.load_E)
            experts.bias_E += experts.config.bias_rate * torch.sign(load_E.mean() - load_E)
        experts.forget()

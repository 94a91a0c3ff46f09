"""GPT-2: learned positions, LayerNorm before each part, GELU, biases, tied embeddings.

Source: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf, section 2.3.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import Gpt2Config
from llm.model.decoder import KeysValues, Past, same_document
from llm.model.recompute import Checkpointing, checkpointed


class Gpt2(nn.Module):
    """Next-token logits from token ids; axes as in llm/model/decoder.py."""

    def __init__(self, config: Gpt2Config, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_positions, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        """Normal(0, 0.02), biases 0; projections back into the residual stream are scaled by 1/sqrt(2 · layers)."""
        residual_scale = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() >= 2:
                scale = residual_scale if name.endswith(("attention.output.weight", "feed_forward.down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def features(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """x_BTD, what the head reads, for training: causal, and with document numbers inside each document, positions too."""
        positions_BT, mask = places(tokens_BT, documents_BT), None if documents_BT is None else same_document(documents_BT)
        x_BTD = self._embed(tokens_BT, positions_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        return self.norm(x_BTD)

    def forward(
        self, tokens_BT: Tensor, *, past: Past | None = None, positions_BT: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Past]:
        """logits_BTV, and the keys and values of past + new tokens per layer; without `mask` attention is causal."""
        x_BTD, present = self.extend(tokens_BT, past=past, positions_BT=positions_BT, mask=mask)
        return self.head(x_BTD), present

    def extend(
        self, tokens_BT: Tensor, *, past: Past | None = None, positions_BT: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Past]:
        """x_BTD, what the head reads, and the cache; see `forward`."""
        past_length = past[0][0].shape[2] if past else 0
        T = tokens_BT.shape[1]
        if positions_BT is None:
            positions_BT = torch.arange(past_length, past_length + T, device=tokens_BT.device)[None]
        if mask is None and past_length:
            mask = torch.ones(T, past_length + T, dtype=torch.bool, device=tokens_BT.device).tril(past_length)
        x_BTD, present = self._embed(tokens_BT, positions_BT), []
        for layer, block in enumerate(cast(list[Block], self.blocks)):
            x_BTD, keys_values = block.extend(x_BTD, mask, past[layer] if past else None)
            present.append(keys_values)
        return self.norm(x_BTD), present

    def _embed(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens_BT) + self.position_embedding(positions_BT))


class Block(nn.Module):
    """One layer: attention, then the feed-forward net, each on a normalised copy added back."""

    checkpointing: Checkpointing = "none"

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
        """The layer in training: nothing is past, nothing is kept for later tokens."""
        return checkpointed(self._output, self.checkpointing, x_BTD, mask)

    def _output(self, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
        return self.extend(x_BTD, mask, None)[0]

    def extend(self, x_BTD: Tensor, mask: Tensor | None, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """The layer's output for the new tokens, and the keys and values of past + new tokens."""
        attended_BTD, present = self.attention(self.attention_norm(x_BTD), mask, past)
        x_BTD = x_BTD + self.dropout(attended_BTD)
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD))), present


class Attention(nn.Module):
    """Causal self-attention, every head with keys and values of its own."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.head_dim, self.dropout = config.width // config.num_heads, config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        query_BHTC, key_BHSC, value_BHSC = (self._heads(project(x_BTD)) for project in (self.query, self.key, self.value))
        if past is not None:
            key_BHSC, value_BHSC = torch.cat((past[0], key_BHSC), dim=2), torch.cat((past[1], value_BHSC), dim=2)
        dropout = self.dropout if self.training else 0.0
        attended_BHTC = F.scaled_dot_product_attention(query_BHTC, key_BHSC, value_BHSC, mask, dropout, is_causal=mask is None)
        return self.output(attended_BHTC.transpose(1, 2).flatten(2)), (key_BHSC, value_BHSC)

    def _heads(self, x: Tensor) -> Tensor:
        """B, heads, T, C. As many heads as there are: a tensor-parallel worker has its share of them."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """down(gelu(up(x))), GELU in its tanh form as GPT-2 was trained.

    Source: GELU, https://arxiv.org/abs/1606.08415, section 2.
    """

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.ffn_width)
        self.down = nn.Linear(config.ffn_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh"))


def places(tokens_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
    """Each token's place in its row, or in its document.

    Example:
        >>> places(torch.zeros(1, 5), torch.tensor([[4, 4, 5, 5, 5]])).tolist()
        [[0, 1, 0, 1, 2]]
    """
    places_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
    if documents_BT is None:
        return places_BT
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return places_BT - (places_BT * begins_BT).cummax(dim=1).values

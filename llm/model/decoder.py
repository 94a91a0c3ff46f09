"""Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings.

Axes, for the whole of llm/model:
    B batch, T new tokens, S past + new tokens, D model width, H query heads, K key/value heads,
    C head width, F feed-forward width, V vocabulary.  logits_BTV has those three axes in that order.

Source: Llama 2, https://arxiv.org/abs/2307.09288, section 2.2; parameter names follow this file, not
the Hugging Face port (llm/export/huggingface.py maps them).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import ModelConfig

KeysValues = tuple[Tensor, Tensor]  # keys_BKSC and values_BKSC of one layer
Past = list[KeysValues]  # by layer
Rotation = tuple[Tensor, Tensor]  # cosines and sines, B, 1, T, C


class Decoder(nn.Module):
    """Next-token logits from token ids."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        """Normal(0, 0.02); projections back into the residual stream are scaled by 1/sqrt(2 · layers).

        Source: GPT-2, https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf, 2.3.
        """
        residual_scale = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            scale = residual_scale if name.endswith(("attention.output.weight", "feed_forward.down.weight")) else 1.0
            nn.init.normal_(parameter, std=0.02 * scale)

    def forward(
        self, tokens_BT: Tensor, *, past: Past | None = None, positions_BT: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Past]:
        """logits_BTV, and the keys and values of past + new tokens per layer.

        Without `mask` (True = may attend, broadcastable to B, 1, T, S) attention is causal; with a past, the
        new tokens follow it.
        """
        past_length = past[0][0].shape[2] if past else 0
        T = tokens_BT.shape[1]
        if positions_BT is None:
            positions_BT = torch.arange(past_length, past_length + T, device=tokens_BT.device)[None]
        if mask is None and past_length:
            mask = torch.ones(T, past_length + T, dtype=torch.bool, device=tokens_BT.device).tril(past_length)
        rotation = rope(positions_BT, head_width(self.config), self.config.rope_theta)
        x_BTD, present = self.embedding(tokens_BT), []
        for layer, block in enumerate(self.blocks):
            x_BTD, keys_values = block(x_BTD, rotation, past[layer] if past else None, mask)
            present.append(keys_values)
        return self.head(self.norm(x_BTD)), present


class Block(nn.Module):
    """One layer: attention, then the feed-forward net, each on a normalised copy added back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, rotation: Rotation, past: KeysValues | None, mask: Tensor | None) -> tuple[Tensor, KeysValues]:
        attended_BTD, present = self.attention(self.attention_norm(x_BTD), rotation, past, mask)
        x_BTD = x_BTD + attended_BTD
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD)), present


class Attention(nn.Module):
    """Causal self-attention in which groups of query heads share one key/value head.

    Source: GQA, https://arxiv.org/abs/2305.13245.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, head_width(config)
        self.query = nn.Linear(config.width, self.num_heads * self.head_dim, bias=False)
        self.key = nn.Linear(config.width, self.num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(config.width, self.num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(self.num_heads * self.head_dim, config.width, bias=False)

    def forward(self, x_BTD: Tensor, rotation: Rotation, past: KeysValues | None, mask: Tensor | None) -> tuple[Tensor, KeysValues]:
        B, T, _ = x_BTD.shape
        query_BHTC = rotate(self.query(x_BTD).view(B, T, self.num_heads, self.head_dim).transpose(1, 2), rotation)
        key_BKSC = rotate(self.key(x_BTD).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2), rotation)
        value_BKSC = self.value(x_BTD).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if past is not None:
            key_BKSC, value_BKSC = torch.cat((past[0], key_BKSC), dim=2), torch.cat((past[1], value_BKSC), dim=2)
        groups = self.num_heads // self.num_kv_heads
        attended_BHTC = F.scaled_dot_product_attention(
            query_BHTC,
            key_BKSC.repeat_interleave(groups, dim=1),
            value_BKSC.repeat_interleave(groups, dim=1),
            attn_mask=mask,
            is_causal=mask is None,
        )
        return self.output(attended_BHTC.transpose(1, 2).reshape(B, T, -1)), (key_BKSC, value_BKSC)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)).

    Source: GLU variants, https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


def head_width(config: ModelConfig) -> int:
    """C, the model width shared out among the query heads."""
    return config.width // config.num_heads


def rope(positions_BT: Tensor, head_dim: int, theta: float) -> Rotation:
    """Cosines and sines that rotate pairs (i, i + head_dim/2), both B, 1, T, head_dim, in float32.

    Source: RoFormer, https://arxiv.org/abs/2104.09864, eq. 34, in the half-split layout of the Llama port.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32) / head_dim
    angles = positions_BT[..., None].float() * theta**-exponents
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x_BHTC: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys turned by their positions' angles."""
    cosine, sine = rotation
    first, second = x_BHTC.chunk(2, dim=-1)
    return (x_BHTC * cosine + torch.cat((-second, first), dim=-1) * sine).to(x_BHTC.dtype)


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers, a tied matrix counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

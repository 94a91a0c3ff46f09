"""Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings.

Axes, for the whole of llm/model:
    B batch, T new tokens, S past + new tokens, D model width, H query heads, K key/value heads,
    C head width, F feed-forward width, V vocabulary.  logits_BTV has those three axes in that order.

Source: Llama 2, https://arxiv.org/abs/2307.09288, section 2.2; parameter names follow this file, not
the Hugging Face port (llm/model/pretrained.py maps them).
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import LlamaSizes, RopeScaling
from llm.model.recompute import Checkpointing, checkpointed

KeysValues = tuple[Tensor, Tensor]  # keys_BKSC and values_BKSC of one layer
Past = list[KeysValues]  # by layer
Rotation = tuple[Tensor, Tensor]  # cosines and sines, B, 1, T, C


class Decoder(nn.Module):
    """Next-token logits from token ids."""

    def __init__(self, config: LlamaSizes, vocab_size: int) -> None:
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
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                scale = residual_scale if name.endswith(("attention.output.weight", "feed_forward.down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def features(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """x_BTD, what the head reads, for training: causal, and with document numbers never across a border.

        Positions run on over borders: rotary scores depend on distances alone.
        """
        positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        mask = None if documents_BT is None else same_document(documents_BT)
        rotation = self.rotation(positions_BT)
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotation, mask)
        return self.norm(x_BTD)

    def forward(
        self, tokens_BT: Tensor, *, past: Past | None = None, positions_BT: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Past]:
        """logits_BTV, and the keys and values of past + new tokens per layer.

        Without `mask` (True = may attend, broadcastable to B, 1, T, S) attention is causal; with a past, the
        new tokens follow it.
        """
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
        rotation = self.rotation(positions_BT)
        x_BTD, present = self.embedding(tokens_BT), []
        for layer, block in enumerate(cast(list[Block], self.blocks)):
            x_BTD, keys_values = block.extend(x_BTD, rotation, mask, past[layer] if past else None)
            present.append(keys_values)
        return self.norm(x_BTD), present

    def rotation(self, positions_BT: Tensor) -> Rotation:
        """Cosines and sines that this model's heads are turned by."""
        return rope(positions_BT, head_width(self.config), self.config.rope_theta, self.config.rope_scaling)


class Block(nn.Module):
    """One layer: attention, then the feed-forward net, each on a normalised copy added back."""

    checkpointing: Checkpointing = "none"

    def __init__(self, config: LlamaSizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None = None) -> Tensor:
        """The layer in training: nothing is past, nothing is kept for later tokens."""
        return checkpointed(self._output, self.checkpointing, x_BTD, rotation, mask)

    def _output(self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        return self.extend(x_BTD, rotation, mask, None)[0]

    def extend(self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """The layer's output for the new tokens, and the keys and values of past + new tokens."""
        attended_BTD, present = self.attention(self.attention_norm(x_BTD), rotation, mask, past)
        x_BTD = x_BTD + self.dropout(attended_BTD)
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD))), present


class Attention(nn.Module):
    """Causal self-attention in which groups of query heads share one key/value head.

    Source: GQA, https://arxiv.org/abs/2305.13245.
    """

    def __init__(self, config: LlamaSizes) -> None:
        super().__init__()
        self.head_dim = head_width(config)
        queries, keys = config.num_heads * self.head_dim, config.num_kv_heads * self.head_dim
        self.query = nn.Linear(config.width, queries, bias=config.attention_bias)
        self.key = nn.Linear(config.width, keys, bias=config.attention_bias)
        self.value = nn.Linear(config.width, keys, bias=config.attention_bias)
        self.output = nn.Linear(queries, config.width, bias=False)
        self.query_norm = nn.RMSNorm(self.head_dim, eps=config.norm_epsilon) if config.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.head_dim, eps=config.norm_epsilon) if config.qk_norm else nn.Identity()

    def forward(
        self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None = None, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        query_BHTC = rotate(self.query_norm(self._heads(self.query(x_BTD))), rotation)
        key_BKSC = rotate(self.key_norm(self._heads(self.key(x_BTD))), rotation)
        value_BKSC = self._heads(self.value(x_BTD))
        if past is not None:
            key_BKSC, value_BKSC = torch.cat((past[0], key_BKSC), dim=2), torch.cat((past[1], value_BKSC), dim=2)
        grouped = mask is None or not query_BHTC.is_cuda  # no fused kernel of a GPU takes both groups and a mask
        keys, values = (key_BKSC, value_BKSC) if grouped else (repeated(part, query_BHTC.shape[1]) for part in (key_BKSC, value_BKSC))
        grouped &= keys.shape[1] < query_BHTC.shape[1]  # ONNX has no groups of one
        attended_BHTC = F.scaled_dot_product_attention(query_BHTC, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        return self.output(attended_BHTC.transpose(1, 2).flatten(2)), (key_BKSC, value_BKSC)

    def _heads(self, x: Tensor) -> Tensor:
        """B, heads, T, C. As many heads as there are: a tensor-parallel worker has its share of them."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def repeated(part_BKSC: Tensor, num_heads: int) -> Tensor:
    """Keys or values once for each of the query heads that share them."""
    return part_BKSC.repeat_interleave(num_heads // part_BKSC.shape[1], dim=1)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)).

    Source: GLU variants, https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: LlamaSizes) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


def head_width(config: LlamaSizes) -> int:
    """C: set, or the model width shared out among the query heads."""
    return config.head_dim or config.width // config.num_heads


def same_document(documents_BT: Tensor) -> Tensor:
    """True where a token may attend: to earlier ones, and itself, of its document. B, 1, T, T."""
    T = documents_BT.shape[1]
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril()
    return (causal_TT & (documents_BT[:, :, None] == documents_BT[:, None, :]))[:, None]


def rope(positions_BT: Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Rotation:
    """Cosines and sines that rotate pairs (i, i + head_dim/2), both B, 1, T, head_dim, in float32.

    Source: RoFormer, https://arxiv.org/abs/2104.09864, eq. 34, in the half-split layout of the Llama port.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions_BT.device, dtype=torch.float32) / head_dim
    frequencies = theta**-exponents
    if scaling is not None:
        frequencies = frequencies * _stretch(frequencies, scaling)
    angles = positions_BT[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor | float:
    """What each frequency is multiplied by.

    `llama3` leaves waves alone that turn often within the original length, divides those that hardly turn by `factor`,
    and blends in between.

    Source: linear, https://arxiv.org/abs/2306.15595; Llama 3.1, https://arxiv.org/abs/2407.21783, and its published config.
    """
    if scaling.kind == "linear":
        return 1 / scaling.factor
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return kept + (1 - kept) / scaling.factor


def rotate(x_BHTC: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys turned by their positions' angles."""
    cosine, sine = rotation
    first, second = x_BHTC.chunk(2, dim=-1)
    return (x_BHTC * cosine + torch.cat((-second, first), dim=-1) * sine).to(x_BHTC.dtype)


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers, a tied matrix counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

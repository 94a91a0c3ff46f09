"""T5: an encoder and a decoder that reads it, with relative positions as a bias of the attention.

The encoder's tokens have axis S, the decoder's axis T; other axes as in llm/model/decoder.py.

Source: https://arxiv.org/abs/1910.10683, section 2.1; version 1.1 with gated GELU, https://arxiv.org/abs/2002.05202.
"""

from __future__ import annotations

import math
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import EncoderDecoderConfig
from llm.model.encoder import within_document
from llm.model.recompute import Checkpointing, checkpointed


class EncoderDecoder(nn.Module):
    """Next-token logits of the decoder, which sees all that the encoder read. `blocks` holds the encoder's layers, then the decoder's."""

    def __init__(self, config: EncoderDecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.encoder_positions = nn.Embedding(config.relative_buckets, config.num_heads)
        self.decoder_positions = nn.Embedding(config.relative_buckets, config.num_heads)
        decoder_layers = config.num_decoder_layers or config.num_layers
        self.blocks = nn.ModuleList(
            [*(EncoderBlock(config) for _ in range(config.num_layers)), *(DecoderBlock(config) for _ in range(decoder_layers))]
        )
        self.encoder_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self._initialise()

    def _initialise(self) -> None:
        """Normal, so that scores and outputs start with unit variance although attention divides by nothing.

        Source: Mesh TensorFlow, https://github.com/tensorflow/mesh/blob/master/mesh_tensorflow/transformer/attention.py.
        """
        D, C = self.config.width, head_width(self.config)
        for name, parameter in self.named_parameters():
            if name == "embedding.weight":
                nn.init.normal_(parameter)
            elif name.endswith("query.weight"):
                nn.init.normal_(parameter, std=(D * C) ** -0.5)
            elif name.endswith("positions.weight"):
                nn.init.normal_(parameter, std=D**-0.5)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def forward(
        self,
        tokens_BS: Tensor,
        decoder_tokens_BT: Tensor,
        documents_BS: Tensor | None = None,
        decoder_documents_BT: Tensor | None = None,
    ) -> Tensor:
        """logits_BTV."""
        return self.head(self.features(tokens_BS, decoder_tokens_BT, documents_BS, decoder_documents_BT))

    def features(
        self,
        tokens_BS: Tensor,
        decoder_tokens_BT: Tensor,
        documents_BS: Tensor | None = None,
        decoder_documents_BT: Tensor | None = None,
    ) -> Tensor:
        """x_BTD, what the head reads; a tied head reads it scaled by 1/sqrt(D).

        With documents, a token sees those of its own on both sides. Padding is a document of its own.
        """
        memory_BSD = self.encode(tokens_BS, documents_BS)
        x_BTD = self.decode(memory_BSD, decoder_tokens_BT, documents_BS, decoder_documents_BT)
        return x_BTD * self.config.width**-0.5 if self.config.tied_embeddings else x_BTD

    def encode(self, tokens_BS: Tensor, documents_BS: Tensor | None = None) -> Tensor:
        """memory_BSD, what the decoder attends to."""
        S = tokens_BS.shape[1]
        bias = self._bias(self.encoder_positions, S, both_sides=True)
        if documents_BS is not None:
            bias = bias.masked_fill(~within_document(documents_BS), -math.inf)
        x_BSD = self.dropout(self.embedding(tokens_BS))
        for block in islice(self.blocks, self.config.num_layers):
            x_BSD = block(x_BSD, bias)
        return self.dropout(self.encoder_norm(x_BSD))

    def decode(
        self, memory_BSD: Tensor, tokens_BT: Tensor, documents_BS: Tensor | None = None, decoder_documents_BT: Tensor | None = None
    ) -> Tensor:
        """x_BTD of the decoder's last layer, normalised."""
        T = tokens_BT.shape[1]
        causal_TT = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril()
        bias = self._bias(self.decoder_positions, T, both_sides=False).masked_fill(~causal_TT, -math.inf)
        memory_mask = None
        if documents_BS is not None and decoder_documents_BT is not None:
            bias = bias.masked_fill(~within_document(decoder_documents_BT), -math.inf)
            memory_mask = (decoder_documents_BT[:, :, None] == documents_BS[:, None, :])[:, None]
        x_BTD = self.dropout(self.embedding(tokens_BT))
        for block in islice(self.blocks, self.config.num_layers, None):
            x_BTD = block(x_BTD, bias, memory_BSD, memory_mask)
        return self.dropout(self.norm(x_BTD))

    def _bias(self, buckets: nn.Embedding, length: int, *, both_sides: bool) -> Tensor:
        """What the attention of every layer adds to its scores: 1, H, length, length."""
        config, places_T = self.config, torch.arange(length, device=buckets.weight.device)
        distance_TS = places_T[None, :] - places_T[:, None]
        bucket_TS = relative_bucket(distance_TS, config.relative_buckets, config.relative_max_distance, both_sides=both_sides)
        return buckets(bucket_TS).permute(2, 0, 1)[None]


class EncoderBlock(nn.Module):
    """One layer of the encoder: attention, then the feed-forward net, each on a normalised copy added back."""

    checkpointing: Checkpointing = "none"

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, bias: Tensor) -> Tensor:
        return checkpointed(self._output, self.checkpointing, x_BTD, bias)

    def _output(self, x_BTD: Tensor, bias: Tensor) -> Tensor:
        normed_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed_BTD, normed_BTD, bias))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class DecoderBlock(nn.Module):
    """One layer of the decoder: attention to itself, to the encoder, then the feed-forward net."""

    checkpointing: Checkpointing = "none"

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.cross_attention_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.cross_attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, bias: Tensor, memory_BSD: Tensor, memory_mask: Tensor | None) -> Tensor:
        return checkpointed(self._output, self.checkpointing, x_BTD, bias, memory_BSD, memory_mask)

    def _output(self, x_BTD: Tensor, bias: Tensor, memory_BSD: Tensor, memory_mask: Tensor | None) -> Tensor:
        normed_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed_BTD, normed_BTD, bias))
        x_BTD = x_BTD + self.dropout(self.cross_attention(self.cross_attention_norm(x_BTD), memory_BSD, memory_mask))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class Attention(nn.Module):
    """Attention from x to a memory, whose scores aren't divided by the square root of the head width."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.head_dim, self.dropout = head_width(config), config.dropout
        inner = config.num_heads * self.head_dim
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, inner, bias=False)
        self.value = nn.Linear(config.width, inner, bias=False)
        self.output = nn.Linear(inner, config.width, bias=False)

    def forward(self, x_BTD: Tensor, memory_BSD: Tensor, bias: Tensor | None) -> Tensor:
        query_BHTC, key_BHSC, value_BHSC = (
            self._heads(projected) for projected in (self.query(x_BTD), self.key(memory_BSD), self.value(memory_BSD))
        )
        if bias is not None and bias.is_floating_point():
            bias = bias.to(query_BHTC.dtype)
        dropout = self.dropout if self.training else 0.0
        attended_BHTC = F.scaled_dot_product_attention(query_BHTC, key_BHSC, value_BHSC, bias, dropout, scale=1.0)
        return self.output(attended_BHTC.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """B, heads, T, C."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """down(gelu(gate(x)) · up(x)) as in version 1.1, or down(relu(up(x))) as in the first T5."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False) if config.feed_forward == "gated_gelu" else None
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF = self.up(x_BTD)
        inner_BTF = F.relu(up_BTF) if self.gate is None else F.gelu(self.gate(x_BTD), approximate="tanh") * up_BTF
        return self.down(self.dropout(inner_BTF))


def head_width(config: EncoderDecoderConfig) -> int:
    """C: set, or the model width shared out among the heads."""
    return config.head_dim or config.width // config.num_heads


def relative_bucket(distance: Tensor, buckets: int, max_distance: int, *, both_sides: bool) -> Tensor:
    """The bucket of each distance (memory's place minus query's): near ones alone, far ones in growing groups up to `max_distance`.

    Looking to both sides, half of the buckets are for what comes later; otherwise what comes later shares bucket 0.

    Source: T5, section 2.1.

    Example:
        >>> relative_bucket(torch.tensor([-200, -20, -3, 0, 3, 20]), 32, 128, both_sides=True).tolist()
        [15, 10, 3, 0, 19, 26]
    """
    later = torch.zeros_like(distance)
    if both_sides:
        buckets //= 2
        later, distance = buckets * (distance > 0), -distance.abs()
    far = (-distance).clamp(min=0)
    alone = buckets // 2
    growth = torch.log(far.clamp(min=1).float() / alone) / math.log(max_distance / alone)
    grouped = (alone + (growth * (buckets - alone)).long()).clamp(max=buckets - 1)
    return later + torch.where(far < alone, far, grouped)

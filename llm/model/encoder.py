"""BERT: attention in both directions, learned positions and segments, LayerNorm after each part, a head for masked tokens.

Source: https://arxiv.org/abs/1810.04805, section 3; the head's transform and the factorised embeddings
(https://arxiv.org/abs/1909.11942, section 3.1) as published with the models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import ElectraConfig, EncoderConfig, GeneratorSizes
from llm.model.gpt2 import places
from llm.model.recompute import Checkpointing, checkpointed


class Encoder(nn.Module):
    """Logits of what stands at each place; axes as in llm/model/decoder.py."""

    def __init__(self, config: EncoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        width = config.embedding_width or config.width
        self.embeddings = Embeddings(config, vocab_size, width)
        self.projection = nn.Linear(width, config.width) if width != config.width else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, config.norm_epsilon, config.dropout) for _ in range(config.num_layers))
        self.transform = Transform(config.width, width, config.norm_epsilon)
        self.head = nn.Linear(width, vocab_size)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self.pooler = nn.Linear(config.width, config.width) if config.next_sentence else None
        self.next_sentence = nn.Linear(config.width, 2) if config.next_sentence else None
        initialise(self)

    @property
    def embedding(self) -> nn.Embedding:
        """The vocabulary's vectors."""
        return self.embeddings.tokens

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """logits_BTV."""
        return self.head(self.features(tokens_BT, segments_BT, documents_BT))

    def features(self, tokens_BT: Tensor, segments_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """What the head reads: the last layer, transformed to the width of the embeddings."""
        return self.transform(self.encode(tokens_BT, segments_BT, documents_BT))

    def encode(self, tokens_BT: Tensor, segments_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """x_BTD of the last layer; with documents, attention and positions stay inside each. Padding is a document of its own."""
        x_BTD = self.projection(self.embeddings(tokens_BT, segments_BT, documents_BT))
        mask = None if documents_BT is None else within_document(documents_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        return x_BTD

    def follows(self, x_BTD: Tensor) -> Tensor:
        """logits_B2 from `encode`'s output: whether the second segment follows the first (0), or comes from elsewhere (1)."""
        assert self.pooler is not None, "model.next_sentence is off"
        assert self.next_sentence is not None, "model.next_sentence is off"
        return self.next_sentence(torch.tanh(self.pooler(x_BTD[:, 0])))


class Embeddings(nn.Module):
    """Token, place and segment, added and normalised."""

    def __init__(self, config: EncoderConfig | ElectraConfig, vocab_size: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(config.max_positions, width)
        self.segments = nn.Embedding(config.num_segments, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None, documents_BT: Tensor | None) -> Tensor:
        segments_BT = torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT
        x_BTD = self.tokens(tokens_BT) + self.positions(places(tokens_BT, documents_BT)) + self.segments(segments_BT)
        return self.dropout(self.norm(x_BTD))


class Block(nn.Module):
    """One layer: attention, then the feed-forward net, each added back and the sum normalised."""

    checkpointing: Checkpointing = "none"

    def __init__(self, sizes: EncoderConfig | ElectraConfig | GeneratorSizes, norm_epsilon: float, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(sizes.width, sizes.num_heads, dropout)
        self.attention_norm = nn.LayerNorm(sizes.width, eps=norm_epsilon)
        self.up = nn.Linear(sizes.width, sizes.ffn_width)
        self.down = nn.Linear(sizes.ffn_width, sizes.width)
        self.feed_forward_norm = nn.LayerNorm(sizes.width, eps=norm_epsilon)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
        return checkpointed(self._output, self.checkpointing, x_BTD, mask)

    def _output(self, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, mask)))
        return self.feed_forward_norm(x_BTD + self.dropout(self.down(F.gelu(self.up(x_BTD)))))


class Attention(nn.Module):
    """Self-attention to both sides."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.head_dim, self.dropout = width // num_heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
        query_BHTC, key_BHTC, value_BHTC = (self._heads(project(x_BTD)) for project in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        attended_BHTC = F.scaled_dot_product_attention(query_BHTC, key_BHTC, value_BHTC, mask, dropout)
        return self.output(attended_BHTC.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """B, heads, T, C. As many heads as there are: a tensor-parallel worker has its share of them."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Transform(nn.Module):
    """norm(gelu(dense(x))), between the last layer and the vocabulary."""

    def __init__(self, width: int, output_width: int, norm_epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, output_width)
        self.norm = nn.LayerNorm(output_width, eps=norm_epsilon)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x_BTD)))


def within_document(documents_BT: Tensor) -> Tensor:
    """True where a token may attend: to every token of its document. B, 1, T, T."""
    return (documents_BT[:, :, None] == documents_BT[:, None, :])[:, None]


def initialise(model: nn.Module) -> None:
    """Normal(0, 0.02) for matrices, 0 for biases; norms stay as they are built."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() >= 2:
            nn.init.normal_(parameter, std=0.02)

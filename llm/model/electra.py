"""ELECTRA: a small masked language model replaces tokens, and the model that is kept tells which ones were replaced.

Source: https://arxiv.org/abs/2003.10555, section 2; embeddings are shared, section 3.2.
"""

from __future__ import annotations

from itertools import islice

import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.config import ElectraConfig
from llm.model.encoder import Block, Embeddings, Transform, initialise, within_document


class Electra(nn.Module):
    """Generator and discriminator over one set of embeddings; axes as in llm/model/decoder.py.

    `blocks` holds the generator's layers, then the discriminator's. `features` and `head` are the generator's.
    """

    def __init__(self, config: ElectraConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        generator, width = config.generator, config.embedding_width
        self.embeddings = Embeddings(config, vocab_size, width)
        self.generator_projection = nn.Linear(width, generator.width) if width != generator.width else nn.Identity()
        self.projection = nn.Linear(width, config.width) if width != config.width else nn.Identity()
        sizes = [generator] * generator.num_layers + [config] * config.num_layers
        self.blocks = nn.ModuleList(Block(each, config.norm_epsilon, config.dropout) for each in sizes)
        self.transform = Transform(generator.width, width, config.norm_epsilon)
        self.head = nn.Linear(width, vocab_size)
        self.head.weight = self.embedding.weight
        self.verdict_dense = nn.Linear(config.width, config.width)
        self.verdict = nn.Linear(config.width, 1)
        initialise(self)

    @property
    def embedding(self) -> nn.Embedding:
        """The vocabulary's vectors."""
        return self.embeddings.tokens

    def features(self, tokens_BT: Tensor, segments_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """What the generator's head reads."""
        x_BTD = self.generator_projection(self.embeddings(tokens_BT, segments_BT, documents_BT))
        mask = None if documents_BT is None else within_document(documents_BT)
        for block in islice(self.blocks, self.config.generator.num_layers):
            x_BTD = block(x_BTD, mask)
        return self.transform(x_BTD)

    def encode(self, tokens_BT: Tensor, segments_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """x_BTD of the discriminator's last layer; with documents, attention and positions stay inside each."""
        x_BTD: Tensor = self.projection(self.embeddings(tokens_BT, segments_BT, documents_BT))
        mask = None if documents_BT is None else within_document(documents_BT)
        for block in islice(self.blocks, self.config.generator.num_layers, None):
            x_BTD = block(x_BTD, mask)
        return x_BTD

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """logits_BT of the discriminator: above 0 where it takes a token for a replaced one."""
        return self.judge(self.encode(tokens_BT, segments_BT, documents_BT))

    def judge(self, x_BTD: Tensor) -> Tensor:
        """logits_BT from `encode`'s output."""
        return self.verdict(F.gelu(self.verdict_dense(x_BTD))).squeeze(-1)
